"""The rule that modulates Muon's steps: closed forms, and each part by itself."""

import dataclasses
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.optimizers import LEARNED, OptimizerSpec, init_meta_parameters, learned_optimizer
from optim4rl.optimizers.kernels import plain
from optim4rl.optimizers.kernels.interface import Met
from optim4rl.optimizers.layout import infer_layout
from optim4rl.optimizers.modulated import STEP_RMS, Modulated
from optim4rl.optimizers.processing import Raw
from optim4rl.optimizers.rule import init_state
from optim4rl.optimizers.structure import Extras, Reading

SPEC = LEARNED["modulated"]
PARTS = ("training", "epochs", "age", "noise", "size", "directions")


def rms(x):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))


def gradients(shape, count=4, scale=1e-3):
    return scale * jax.random.normal(jax.random.key(3), (count, *shape))


def updates(spec, weights, params, given, rate=1.0, **told):
    """The updates of the optax form on one tensor, one for each gradient."""
    tx = learned_optimizer(spec, weights, rate, kernel=None)
    state, found = tx.init(params), []
    for gradient in given:
        update, state = tx.update({"w": gradient}, state, params, **told)
        found.append(update["w"])
    return found


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 2, 5), (7,)])
def test_a_fresh_rule_makes_steps_of_one_size(shape):
    """Whatever the gradient's size and shape: the network's outputs are zero."""
    weights = init_meta_parameters(SPEC, jax.random.key(0))
    params = {"w": jnp.ones(shape)}
    for scale in (1e-6, 1e3):
        for found in updates(SPEC, weights, params, gradients(shape, scale=scale)):
            assert rms(found) == pytest.approx(STEP_RMS, rel=1e-3)


def test_a_fresh_rule_follows_muon_in_kernels():
    """Nesterov's momentum, made orthogonal by its singular vectors."""
    spec = dataclasses.replace(SPEC, clip=None)
    weights = init_meta_parameters(spec, jax.random.key(0))
    params, given = {"w": jnp.ones((16, 16))}, gradients((16, 16))
    m = np.zeros((16, 16))
    for t, found in enumerate(updates(spec, weights, params, given)):
        gradient = np.asarray(given[t], np.float64)
        m = 0.9 * m + 0.1 * gradient
        u, _, v = np.linalg.svd(0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * gradient)
        expected = -(u @ v)
        cosine = (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found)
        assert cosine > 0.95  # singular values are only nearly equal


def test_a_fresh_rule_follows_adam_in_vectors():
    weights = init_meta_parameters(SPEC, jax.random.key(0))
    given = gradients((50,))
    m = v = np.zeros(50)
    found = updates(SPEC, weights, {"w": jnp.ones(50)}, given)
    for t, (gradient, update) in enumerate(zip(np.asarray(given, np.float64), found, strict=True)):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * gradient
        step = step / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        np.testing.assert_allclose(update, -STEP_RMS * step / rms(step), rtol=1e-3)


def test_the_gain_multiplies_the_step():
    """With the biases of the last layer alone, the gain is the exponential of the first."""
    weights = init_meta_parameters(SPEC, jax.random.key(0))
    weights["network0"]["head1_bias"] = weights["network0"]["head1_bias"].at[0].set(0.7)
    (found,) = updates(SPEC, weights, {"w": jnp.ones((4, 4))}, gradients((4, 4), 1))
    assert rms(found) == pytest.approx(STEP_RMS * np.exp(0.7), rel=1e-3)


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_the_step_falls_over_training(share, left):
    weights, given = init_meta_parameters(SPEC, jax.random.key(0)), gradients((4, 4), 1)
    told = {"training_proportion": jnp.float32(share)}
    (found,) = updates(SPEC, weights, {"w": jnp.ones((4, 4))}, given, **told)
    assert rms(found) == pytest.approx(STEP_RMS * left, rel=1e-3)
    constant = dataclasses.replace(SPEC, structure=Modulated(decay=False))
    (found,) = updates(constant, weights, {"w": jnp.ones((4, 4))}, given, **told)
    assert rms(found) == pytest.approx(STEP_RMS, rel=1e-3)


def reading(shape=(5, 4), **extras):
    structure = Modulated()
    gradient = gradients(shape, 1)[0]
    moments = structure.accumulate(gradient, jnp.zeros((3, *shape)))
    params = extras.pop("params", jnp.full(shape, 2.0))
    return Reading(gradient, moments, jnp.int32(0), Extras(params, **extras))


def test_features_are_numbers_of_the_tensor():
    told = reading(training_proportion=jnp.float32(0.25), epoch_proportion=jnp.float32(0.5))
    (found,) = Modulated().features(Raw(), told)
    assert found.shape == (7, 1, 1)
    training, epochs, age, fast, slow, cosine, size = np.ravel(found)
    assert (training, epochs, age) == (0.25, 0.5, 0.0)
    # After one gradient both momenta, corrected, are the gradient: no noise, full agreement.
    np.testing.assert_allclose([fast, slow, cosine], [0.0, 0.0, 1.0], atol=1e-4)
    assert size == pytest.approx(0.5 * np.log(2.001) + 1.5, rel=1e-5)


def test_the_signal_of_pure_noise_is_small():
    """Momentum of independent gradients has the variance (1 - b) / (1 + b) of theirs."""
    structure, shape = Modulated(beta2=0.99), (200, 20)
    moments, drawn = jnp.zeros((3, *shape)), gradients(shape, 600)
    moments, _ = jax.lax.scan(lambda m, g: (structure.accumulate(g, m), None), moments, drawn)
    noisy = Reading(drawn[0], moments, jnp.int32(599), Extras(jnp.ones(shape)))
    _, _, _, fast, slow, cosine, _ = np.ravel(structure.features(Raw(), noisy)[0])
    expected = [0.5 * np.log((1 - b) / (1 + b)) for b in (structure.beta1, structure.beta_slow)]
    np.testing.assert_allclose([fast, slow], expected, atol=0.05)
    assert abs(cosine) < 0.05


def test_what_is_not_told_is_the_first_rollout():
    (untold,), (first,) = (
        Modulated().features(Raw(), x)
        for x in (reading(), reading(training_proportion=jnp.float32(0.0)))
    )
    np.testing.assert_array_equal(untold, first)


def test_the_length_of_the_run_tells_how_much_is_done():
    """It is the same as the share told at every update; beyond its end a run is done."""
    weights = init_meta_parameters(dataclasses.replace(SPEC, zero_head=False), jax.random.key(1))
    params, given = {"w": jnp.ones((6, 3))}, gradients((6, 3), 5)

    def run(tell, **options):
        tx = learned_optimizer(SPEC, weights, 1.0, kernel=None, **options)
        state, found = tx.init(params), []
        for t, gradient in enumerate(given):
            update, state = tx.update({"w": gradient}, state, params, **tell(t))
            found.append(update["w"])
        return jnp.stack(found)

    counted = run(lambda t: {}, total_updates=3)
    np.testing.assert_array_equal(counted, run(lambda t: {"training_proportion": min(t / 2, 1.0)}))
    assert (counted[1:] != run(lambda t: {})[1:]).any()
    with pytest.raises(ValueError, match="total_updates = 0: a number of at least 1"):
        learned_optimizer(SPEC, weights, 1.0, total_updates=0)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_left_out(part):
    """It takes its inputs or outputs with it, and nothing else changes a fresh rule's steps."""
    whole, without = Modulated(), Modulated(**{part: False})
    (before,), (after,) = whole.networks(Raw()), without.networks(Raw())
    expected = {"noise": (3, 0), "directions": (0, 3)}.get(part, (1, 0))
    assert (before.inputs - after.inputs, before.outputs - after.outputs) == expected
    params, given = {"w": jnp.ones((6, 3))}, gradients((6, 3))
    found = [
        updates(spec, init_meta_parameters(spec, jax.random.key(0)), params, given)
        for spec in (SPEC, dataclasses.replace(SPEC, structure=without))
    ]
    np.testing.assert_array_equal(*found)


def test_a_rule_that_reads_nothing_is_refused():
    nothing = Modulated(**dict.fromkeys(PARTS, False))
    with pytest.raises(ValueError, match=r"inputs = \(\): the structure reads nothing"):
        dataclasses.replace(SPEC, structure=nothing, inputs=())
    assert OptimizerSpec(structure=nothing, inputs=("kind",), cell="none").networks[0].inputs == 4


def test_a_rule_can_read_a_tensors_use_alone():
    """Tensors of one kind get the same gain, whatever their gradients."""
    spec = dataclasses.replace(
        SPEC, structure=Modulated(**dict.fromkeys(PARTS, False)), zero_head=False
    )
    weights = init_meta_parameters(spec, jax.random.key(1))
    found = updates(spec, weights, {"w": jnp.ones((6, 3))}, gradients((6, 3)))
    sizes = [rms(x) / STEP_RMS for x in found]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-3)
    assert abs(sizes[0] - 1.0) > 0.01


def test_agents_with_rules_of_their_own_step_as_if_alone():
    """The plain kernel runs them side by side."""
    spec, agents = dataclasses.replace(SPEC, zero_head=False), 3
    weights = jax.vmap(partial(init_meta_parameters, spec))(jax.random.split(jax.random.key(0), 3))
    layout = infer_layout({"a": jnp.ones((6, 3)), "b": jnp.ones(3)})
    state = init_state(spec, (21,))
    met = [Met(x, Extras(jnp.ones(21))) for x in gradients((21,), agents)]
    step = jax.jit(partial(plain.KERNEL.step, spec, layout=layout))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *met)
    together = jax.vmap(step, (0, 0, None))(weights, stacked, state)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for agent in range(agents):
        own, expected = (jax.tree.map(itemgetter(agent), x) for x in (weights, together))
        jax.tree.map(close, step(own, met[agent], state), expected)
