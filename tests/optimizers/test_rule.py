"""The rule: reference formulae, laws, bounds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.optimizers import LEARNED, OptimizerSpec, init_meta_parameters, init_state, step
from optim4rl.optimizers.cells import forward
from optim4rl.optimizers.inputs import tensor_rows
from optim4rl.optimizers.networks import apply_network
from optim4rl.optimizers.processing import PROCESSINGS, Andrychowicz, Raw, SignLog, Symlog
from optim4rl.optimizers.rule import spec_from_dict, spec_to_dict
from optim4rl.optimizers.structures import (
    L2L,
    STRUCTURES,
    Adaptive,
    Anchored,
    Extras,
    Mirrored,
    NonAdaptive,
    Open,
    Reading,
    factors,
    straight_through_sign,
)
from optim4rl.optimizers.tensors import KINDS, Tensor, tensor_inputs


def product(structures, processings, cells):
    return {
        f"{structure}/{processing}/{cell}": OptimizerSpec(
            processing=PROCESSINGS[processing](), structure=STRUCTURES[structure](), cell=cell
        )
        for structure in structures
        for processing in processings
        for cell in cells
    }


# The presets, and every choice varied by itself; the whole product is a slow test.
SPECS = {
    **LEARNED,
    **product(["adaptive"], [p for p in PROCESSINGS if p != "sign_log"], ["gru"]),
    **product(["non_adaptive"], ["sign_log"], ["gru", "lstm", "none"]),
}
EVERY_SPEC = product(STRUCTURES, PROCESSINGS, ["gru", "lstm", "none"])


def every_spec_slowly(tensorwise=(False, True)):
    names = [n for n, s in {**SPECS, **EVERY_SPEC}.items() if s.structure.tensorwise in tensorwise]
    return [pytest.param(n, marks=() if n in SPECS else pytest.mark.slow) for n in names]


def random_weights(spec, seed=0):
    """Weights that are nowhere zero, so that every path through the rule is live."""
    weights = init_meta_parameters(spec, jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def weight_rows(spec, shape):
    """The further inputs of coordinates that are weights of the last layer."""
    return tensor_rows(spec.inputs, Tensor(shape, "weight", 1.0))


def extras_of(spec, shape):
    """Some numbers for what the structure reads beside gradients."""
    numbers = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)
    read = {"params": jnp.cos(numbers), "noise": jnp.sin(numbers + 1.0)}
    return Extras(**{name: read[name] for name in spec.structure.reads})


def run(spec, weights, gradients):
    """Directions of successive steps over `[K, *shape]`, operation by operation.

    An operation on arrays of a shape is compiled once for all rules, where a program would be
    compiled for each.
    """
    shape = gradients.shape[1:]
    rows, extras, state = weight_rows(spec, shape), extras_of(spec, shape), init_state(spec, shape)
    directions = []
    for gradient in gradients:
        direction, state = step(spec, weights, gradient, state, rows, extras)
        directions.append(direction)
    return jnp.stack(directions), state


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def reference_gru(w, x, h):
    """GRU of one coordinate in numpy, gate by gate (Cho et al. 2014, cuDNN's form)."""
    n = h.shape[0]
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    gate = lambda i: slice(i * n, (i + 1) * n)  # noqa: E731
    pre = [w["input"][gate(i)] @ x + w["bias"][gate(i)] for i in range(3)]
    rec = [w["hidden"][gate(i)] @ h for i in range(3)]
    r, z = sigmoid(pre[0] + rec[0]), sigmoid(pre[1] + rec[1])
    new = np.tanh(pre[2] + r * (rec[2] + w["bias_new"]))
    return (1 - z) * new + z * h


def reference_mlp(w, x):
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    layers = sorted(k for k in w if k.startswith("head") and not k.endswith("bias"))
    for i, name in enumerate(layers):
        x = w[name] @ x + w[f"{name}_bias"]
        if f"norm{i}" in w:
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * w[f"norm{i}"] + w[f"norm{i}_bias"]
        x = np.maximum(x, 0) if i + 1 < len(layers) else x
    return x


def test_version_a_is_the_papers_formula():
    spec = LEARNED["optim4rl"]
    weights = random_weights(spec)
    gradients = np.array([[0.3], [-2e-4], [5.0], [-1e-7]])
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    h1 = h2 = np.zeros(8)
    for raw, direction in zip(gradients[:, 0], np.asarray(directions)[:, 0], strict=True):
        g = np.clip(raw, -1, 1)
        log = np.log(abs(g) + 1e-18)
        h1 = reference_gru(weights["network0"], np.array([np.sign(g), log]), h1)
        h2 = reference_gru(weights["network1"], np.array([2 * log]), h2)
        o11, o12 = reference_mlp(weights["network0"], h1)
        (o2,) = reference_mlp(weights["network1"], h2)
        s = 1.0 if np.tanh(o11 + 1) >= 0 else -1.0
        expected = np.sign(g) * s * np.exp(o12) / np.sqrt(np.exp(o2) + 1e-18)
        np.testing.assert_allclose(direction, expected, rtol=2e-5)


def test_version_b_is_the_releases_formula():
    spec = LEARNED["optim4rl-rlc"]
    weights = random_weights(spec)
    gradients = np.array([[0.3], [-0.02], [0.9]])
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    h1 = h2 = np.zeros(8)
    for g, direction in zip(gradients[:, 0], np.asarray(directions)[:, 0], strict=True):
        h1 = reference_gru(weights["network0"], np.array([g]), h1)
        h2 = reference_gru(weights["network1"], np.array([g * g]), h2)
        (o1,) = reference_mlp(weights["network0"], h1)
        (o2,) = reference_mlp(weights["network1"], h2)
        expected = np.sign(g) * np.exp(o1) / np.sqrt(np.exp(o2) + 1e-8)
        np.testing.assert_allclose(direction, expected, rtol=2e-5)


def test_linear_and_l2l_are_their_formulae():
    g = 0.4
    linear, l2l = LEARNED["linear"], LEARNED["l2lgd2"]
    gradients = jnp.full((1, 1), g)
    w = random_weights(linear)
    h = reference_gru(w["network0"], np.array([1.0, np.log(g)]), np.zeros(8))
    o1, o2, o3 = reference_mlp(w["network0"], h)
    np.testing.assert_allclose(
        run(linear, w, gradients)[0], [[np.exp(o1) * g + np.exp(o2) * o3]], rtol=2e-5
    )
    w = random_weights(l2l)
    h = reference_gru(w["network0"], np.array([np.log(g) / 10, 1.0]), np.zeros(8))
    (o,) = reference_mlp(w["network0"], h)
    np.testing.assert_allclose(run(l2l, w, gradients)[0], [[np.exp(o) * g]], rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_a_one_hot_input_after_the_features(kind):
    """So what a kind does is to add its column of the input kernel to the biases."""
    spec = OptimizerSpec(structure=L2L(), head_sizes=(), inputs=("layer", "kind"))
    weights = random_weights(spec)
    rows = jnp.asarray(tensor_inputs(spec.inputs, Tensor((1,), kind, 0.25)))[:, None]
    found, _ = step(spec, weights, jnp.full(1, 0.4), init_state(spec, (1,)), rows)
    one_hot = np.eye(4)[KINDS.index(kind)]
    x = np.array([1.0, np.log(0.4), 0.25, *one_hot])
    h = reference_gru(weights["network0"], x, np.zeros(8))
    (o,) = reference_mlp(weights["network0"], h)
    np.testing.assert_allclose(found, [np.exp(o) * 0.4], rtol=2e-5)


def test_lstm_is_the_reference_formula():
    spec = OptimizerSpec(structure=NonAdaptive(signed=False), cell="lstm", head_sizes=())
    weights = random_weights(spec)
    w = {k: np.asarray(v, np.float64) for k, v in weights["network0"].items()}
    gradients = np.array([[0.5], [-0.1]])
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    h, c = np.zeros(8), np.zeros(8)
    for g, direction in zip(gradients[:, 0], np.asarray(directions)[:, 0], strict=True):
        x = np.array([np.sign(g), np.log(abs(g))])
        i, f, n, o = np.split(w["input"] @ x + w["hidden"] @ h + w["bias"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(n)
        h = sigmoid(o) * np.tanh(c)
        expected = np.sign(g) * np.exp((w["head0"] @ h + w["head0_bias"])[0])
        np.testing.assert_allclose(direction, expected, rtol=2e-5)


def test_without_a_cell_the_head_reads_the_features_and_nothing_is_kept():
    spec = OptimizerSpec(structure=NonAdaptive(signed=False), cell="none", head_sizes=(5,))
    assert spec.state_floats == 0
    weights = random_weights(spec)
    assert set(weights["network0"]) == {"head0", "head0_bias", "head1", "head1_bias"}
    gradients = np.array([[0.5], [-0.1]])
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    for g, direction in zip(gradients[:, 0], np.asarray(directions)[:, 0], strict=True):
        (o,) = reference_mlp(weights["network0"], np.array([np.sign(g), np.log(abs(g))]))
        np.testing.assert_allclose(direction, np.sign(g) * np.exp(o), rtol=2e-5)


def reference_adafactor(gradients, beta2):
    """The moments of a tensor after its gradients, by name, and Adafactor's factors, in numpy."""
    betas = (0.9, 0.99, 0.999)
    m, v = np.zeros((3, *gradients.shape[1:])), np.zeros(gradients.shape[1:])
    rows, columns = np.zeros((3, gradients.shape[1])), np.zeros((3, gradients.shape[2]))
    for g in gradients:
        v = beta2 * v + (1 - beta2) * g**2
        for i, beta in enumerate(betas):
            m[i] = beta * m[i] + (1 - beta) * g
            rows[i] = beta * rows[i] + (1 - beta) * (g**2).mean(axis=1)
            columns[i] = beta * columns[i] + (1 - beta) * (g**2).mean(axis=0)
    scale = [1 / np.sqrt(np.outer(r, c) / r.mean()) for r, c in zip(rows, columns, strict=True)]
    rows = np.stack([np.tile(r[:, None], (1, m.shape[2])) for r in rows])
    columns = np.stack([np.tile(c, (m.shape[1], 1)) for c in columns])
    return m, v[None], rows, columns, np.stack(scale)


def reference_unit_rms(features, epsilon):
    return np.stack([x / np.sqrt(np.mean(x**2) + epsilon) for x in features])


def test_celo2_is_the_papers_formula():
    """On a matrix longer than wide: its row factors are means over the longer axis."""
    spec = LEARNED["celo2"]
    weights = random_weights(spec)
    gradients = np.random.default_rng(0).normal(size=(3, 4, 6))
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    g = gradients[-1][None]
    m, v, rows, columns, scale = reference_adafactor(gradients, 0.95)
    inverse = 1 / np.sqrt(v + 1e-8)
    features = [g, m, v, m * inverse, inverse, g * scale, rows, columns]
    features += [1 / np.sqrt(rows + 1e-8), 1 / np.sqrt(columns + 1e-8), m * scale]
    features += [np.clip(g, -0.1, 0.1), g * inverse]
    x = reference_unit_rms(np.concatenate(features), 1e-9)
    expected = np.apply_along_axis(lambda x: reference_mlp(weights["network0"], x), 0, x)[0]
    np.testing.assert_allclose(directions[-1], expected, rtol=1e-4, atol=1e-5)


def test_star_is_its_formula():
    spec = LEARNED["star"]
    weights = random_weights(spec)
    gradients = np.random.default_rng(0).normal(size=(3, 4, 6))
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    g, p = gradients[-1][None], np.asarray(extras_of(spec, (4, 6)).params)[None]
    m, v, rows, columns, scale = reference_adafactor(gradients, 0.999)
    inverse = 1 / np.sqrt(v + 1e-6)
    features = [g, m, v, m * inverse, inverse, g * scale, rows, columns]
    features += [1 / np.sqrt(rows + 1e-8), 1 / np.sqrt(columns + 1e-8), m * scale, p]
    x = reference_unit_rms(np.concatenate(features), 1e-5)
    scales = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]
    time = np.tanh(2 / np.array(scales) - 1)  # two updates have been made before this one
    x = np.concatenate([x, np.broadcast_to(time[:, None, None], (11, 4, 6))])
    o = np.apply_along_axis(lambda x: reference_mlp(weights["network0"], x), 0, x)
    expected = np.exp(1e-3 * o[2]) * (m * inverse).mean(axis=0)
    expected += 1e-3 * o[0] * np.exp(1e-3 * o[1]) * inverse[0] + 1e-3 * p[0]
    np.testing.assert_allclose(directions[-1], expected, rtol=1e-4, atol=1e-5)


def test_open_is_its_formula():
    spec = dataclasses.replace(LEARNED["open"], structure=Open(rollouts=3, epochs=2, minibatches=1))
    weights = random_weights(spec)
    gradients = np.random.default_rng(0).normal(size=(3, 2, 3))
    directions, _ = run(spec, weights, jnp.asarray(gradients, jnp.float32))
    extras = extras_of(spec, (2, 3))
    p, noise = np.asarray(extras.params)[None], np.asarray(extras.noise)
    betas = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])[:, None, None]
    m, h = np.zeros((6, 2, 3)), np.zeros((8, 2, 3))
    for age, g in enumerate(gradients):
        m = betas * m + (1 - betas) * g
        log = lambda x: np.log(np.abs(x) + 1e-13)  # noqa: E731
        x = reference_unit_rms(
            np.concatenate([p, np.sign(m), log(m), np.sign(g)[None], log(g)[None]]), 1e-5
        )
        # Proportions of training and of epochs, a unit like the others, the last layer.
        told = [age // 2 / 2, age % 2, 1.0, 1.0]
        x = np.concatenate([x, np.broadcast_to(np.reshape(told, (4, 1, 1)), (4, 2, 3))])
        for at in np.ndindex(2, 3):
            where = (slice(None), *at)
            h[where] = reference_gru(weights["network0"], x[where], h[where])
    o = np.apply_along_axis(lambda x: reference_mlp(weights["network0"], x), 0, h)
    expected = o[0] * np.exp(1e-3 * o[1]) + o[2] * noise
    np.testing.assert_allclose(directions[-1], expected, rtol=1e-4, atol=1e-5)


def test_open_reads_what_an_agent_gives():
    spec = LEARNED["open"]
    reading = Reading(jnp.ones(3), jnp.ones((6, 3)), jnp.int32(0), extras_of(spec, (3,)))
    told = reading.extras._replace(
        dormancy=jnp.asarray([0.5, 1.0, 1.5]),
        training_proportion=jnp.float32(0.25),
        epoch_proportion=jnp.float32(0.75),
    )
    for extras, expected in (
        (reading.extras, [[0, 0, 0], [0, 0, 0], [1, 1, 1]]),
        (told, [[0.25] * 3, [0.75] * 3, [0.5, 1.0, 1.5]]),
    ):
        (features,) = spec.structure.features(spec.processing, reading._replace(extras=extras))
        np.testing.assert_array_equal(features[-3:], expected)


def test_open_counts_as_its_own_code_does_where_nothing_is_given():
    """Rollouts and epochs that are done, in whole numbers, over one less than there are."""
    structure = Open(rollouts=4, epochs=3, minibatches=5)
    reading = Reading(jnp.ones(2), jnp.ones((6, 2)), jnp.int32(0), extras_of(LEARNED["open"], (2,)))
    for age in range(60):
        found = structure.features(Raw(), reading._replace(age=jnp.int32(age)))[0]
        expected = np.float32([age // 15 / 3, age // 5 % 3 / 2])
        np.testing.assert_allclose(found[-3:-1, 0], expected, rtol=1e-6)


def test_the_only_rollout_and_epoch_are_the_first():
    reading = Reading(jnp.ones(2), jnp.ones((6, 2)), jnp.int32(0), extras_of(LEARNED["open"], (2,)))
    (found,) = Open(1, 1, 1).features(Raw(), reading)
    np.testing.assert_array_equal(found[-3:-1], 0.0)


@pytest.mark.parametrize("field", ["rollouts", "epochs", "minibatches"])
def test_opens_proportions_are_of_something(field):
    with pytest.raises(ValueError, match=rf"structure\.{field} = 0: a whole number of at least 1"):
        dataclasses.replace(LEARNED["open"], structure=Open(**{field: 0}))


def test_the_derivative_through_layer_normalisation_is_jaxs_own():
    spec = dataclasses.replace(LEARNED["optim4rl"], head_norm=True)
    weights = random_weights(spec)["network0"]
    carry = (jax.random.normal(jax.random.key(1), (8, 5)),)
    features = jax.random.normal(jax.random.key(2), (2, 5))

    def total(network):
        return lambda *given: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(network(*given)))

    ours = total(lambda w, x, h: apply_network(w, "gru", x, h))
    plain = total(lambda w, x, h: forward(w, "gru", x, h)[:2])
    gradients = jax.jit(lambda *given: [jax.grad(f, (0, 1, 2))(*given) for f in (ours, plain)])
    found, expected = gradients(weights, features, carry)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-6), found, expected)
    assert all(np.abs(expected[0][f"norm{i}"]).max() > 0 for i in (0, 1))


@pytest.mark.parametrize("name", ["star", "open"])
def test_what_a_structure_reads_must_be_given(name):
    spec = LEARNED[name]
    rows = weight_rows(spec, (2,))
    with pytest.raises(ValueError, match="reads an input that was not given"):
        step(spec, random_weights(spec), jnp.ones(2), init_state(spec, (2,)), rows)


def test_factors_of_a_vector_are_its_second_moments():
    v = jnp.asarray([[0.5, 2.0]])
    found = factors(v)
    np.testing.assert_array_equal(found.rows, v)
    np.testing.assert_array_equal(found.columns, v)
    np.testing.assert_allclose(found.scale, 1 / np.sqrt(v), rtol=1e-6)


def test_andrychowicz_input_is_continuous_at_the_threshold_and_linear_below():
    processing = Andrychowicz(p=10.0)
    g = jnp.asarray([0.5, -2e-6, 0.0, 1e30], jnp.float32)
    first, second = np.asarray(processing.first(g))
    np.testing.assert_allclose(first, [np.log(0.5) / 10, -1, -1, np.log(1e30) / 10], rtol=1e-5)
    np.testing.assert_allclose(second, [1, -2e-6 * np.exp(10), 0, 1], rtol=1e-5)


def test_symlog_has_a_scale():
    g = jnp.asarray([-0.02, 0.0, 0.5], jnp.float32)
    for c in (1e-3, 1e-1):
        expected = np.sign(g) * np.log(1 + np.abs(g) / c)
        np.testing.assert_allclose(Symlog(c).first(g)[0], expected, rtol=1e-5)


def test_raw_is_raw_in_and_linear_out():
    g = jnp.asarray([0.3, -0.1], jnp.float32)
    np.testing.assert_array_equal(Raw().first(g)[0], g)
    np.testing.assert_array_equal(Raw().decode(g, 2.0 * g), 2.0 * g)


def test_the_sign_is_minus_or_plus_one_with_the_identitys_gradient():
    x = jnp.asarray([-0.5, 0.0, 2.0])
    np.testing.assert_array_equal(straight_through_sign(x), [-1.0, 1.0, 1.0])
    np.testing.assert_array_equal(
        jax.grad(lambda x: straight_through_sign(x).sum())(x), jnp.ones(3)
    )


def test_version_a_starts_with_a_positive_sign():
    spec = dataclasses.replace(LEARNED["optim4rl"], zero_head=True)
    weights = init_meta_parameters(spec, jax.random.key(0))
    gradients = jnp.asarray([[0.3, -0.2, 0.0]])
    # Zero heads: m = sgn(g), v = 1, so the untrained rule is sign-SGD.
    np.testing.assert_allclose(run(spec, weights, gradients)[0], [[1.0, -1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(("name", "betas"), [("anchored", (0.9, 0.999)), ("mirrored", (0.0, 0.9))])
def test_anchored_rules_start_as_exactly_adam(name, betas):
    import optax

    spec = dataclasses.replace(LEARNED[name], clip=None, inputs=())
    gradients = jax.random.normal(jax.random.key(0), (30, 7)) * jnp.logspace(-4, 1, 7)[None]
    directions, _ = run(spec, init_meta_parameters(spec, jax.random.key(1)), gradients)
    adam = optax.scale_by_adam(*betas)
    state = adam.init(gradients[0])
    for gradient, direction in zip(gradients, directions, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            expected, state = adam.update(gradient, state)
        np.testing.assert_allclose(direction, expected, rtol=1e-5)


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_a_mirrored_rule_is_odd(processing):
    """Mirrored gradients make mirrored steps, whatever it has learned; `anchored` may drift."""
    mirrored = dataclasses.replace(
        LEARNED["mirrored"], processing=PROCESSINGS[processing](), inputs=()
    )
    gradients = jax.random.normal(jax.random.key(0), (6, 5)) * jnp.logspace(-4, 1, 5)[None]
    for spec, odd in (
        (mirrored, True),
        (dataclasses.replace(mirrored, structure=Anchored()), False),
    ):
        weights = random_weights(spec)
        there, back = (run(spec, weights, g)[0] for g in (gradients, -gradients))
        assert bool((back == -there).all()) is odd


def test_what_a_mirrored_network_reads():
    structure, processing = Mirrored(beta1=0.5, beta2=0.9, beta_slow=0.8), SignLog(1e-8)
    gradients = np.array([[0.3, -2.0], [-0.1, -1.0]], np.float32)
    moments = jnp.zeros((3, 2))
    for gradient in gradients:
        moments = structure.accumulate(jnp.asarray(gradient), moments)
    reading = Reading(jnp.asarray(gradients[1]), moments, jnp.asarray(1, jnp.int32))
    (found,) = structure.features(processing, reading)
    (g1, g2), average = gradients, lambda beta, x, y: (beta * x + y) / (beta + 1)
    root = np.sqrt(average(0.9, g1**2, g2**2))
    adam, fresh, slow = average(0.5, g1, g2) / root, g2 / root, average(0.8, g1, g2) / root
    expected = [
        np.log(abs(g2)),
        np.full(2, np.log(2) / 6),
        *map(abs, (adam, fresh, slow)),
        adam * fresh / 5,
        adam * slow / 5,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", every_spec_slowly(tensorwise=(False,)))
def test_a_rule_is_coordinate_wise(name):
    """Permuting, reshaping or splitting commutes with the rule; a NaN stays in its coordinate."""
    spec = {**EVERY_SPEC, **SPECS}[name]
    weights = random_weights(spec)
    gradients = jax.random.normal(jax.random.key(3), (3, 12))
    whole, _ = run(spec, weights, gradients)
    order = jax.random.permutation(jax.random.key(4), 12)
    tolerance: Any = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(
        run(spec, weights, gradients[:, order])[0], whole[:, order], **tolerance
    )
    reshaped = run(spec, weights, gradients.reshape(3, 2, 6))[0]
    np.testing.assert_allclose(reshaped.reshape(3, 12), whole, **tolerance)
    np.testing.assert_allclose(run(spec, weights, gradients[:, :5])[0], whole[:, :5], **tolerance)
    poisoned, _ = run(spec, weights, gradients.at[1, 0].set(jnp.nan))
    assert np.isnan(poisoned[1, 0])
    np.testing.assert_allclose(poisoned[:, 1:], whole[:, 1:], **tolerance)


@pytest.mark.parametrize("name", every_spec_slowly())
def test_meta_gradients_are_finite_at_the_edges(name):
    spec = dataclasses.replace({**EVERY_SPEC, **SPECS}[name], clip=None)
    gradients = jnp.tile(jnp.asarray([0.0, 1e-30, -1e-30, 1e30, -1e30]), (4, 1))

    def total(weights):
        return jnp.sum(run(spec, weights, gradients)[0] * 1e-30)

    value, gradient = jax.value_and_grad(total)(random_weights(spec))
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("structure", [Adaptive(), NonAdaptive()])
@pytest.mark.parametrize("processing", [p for p in PROCESSINGS if p != "raw"])
def test_sign_based_structures_leave_a_zero_gradient_alone(structure, processing):
    spec = OptimizerSpec(processing=PROCESSINGS[processing](), structure=structure)
    directions, _ = run(spec, random_weights(spec), jnp.zeros((3, 4)))
    np.testing.assert_array_equal(directions, 0.0)


@pytest.mark.parametrize("scale", [0.1, 7.0])
@pytest.mark.parametrize("gradient", [-30.0, -0.5, 0.0, 1e-6, 0.3, 2.0])
def test_step_scale_and_clip(scale, gradient):
    spec = OptimizerSpec(clip=0.5)
    weights = random_weights(spec)
    g = jnp.full((1, 1), gradient, jnp.float32)
    plain = run(spec, weights, g)[0]
    np.testing.assert_array_equal(run(spec, weights, jnp.clip(g, -0.5, 0.5))[0], plain)
    scaled = run(dataclasses.replace(spec, step_scale=scale), weights, g)[0]
    np.testing.assert_allclose(scaled, scale * plain, rtol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_specs_survive_json(name):
    import json

    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(SPECS[name])))) == SPECS[name]


@pytest.mark.parametrize("name", SPECS)
def test_state_floats_counts_the_state(name):
    spec = SPECS[name]
    state = init_state(spec, (5, 2))
    assert (
        sum(x.size for x in jax.tree.leaves((state.carries, state.moments)))
        == 10 * spec.state_floats
    )


def test_the_papers_rule_keeps_sixteen_floats_a_parameter():
    assert LEARNED["optim4rl"].state_floats == LEARNED["optim4rl-rlc"].state_floats == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "cell = 'rnn'"),
        ({"hidden_size": 2.5}, "hidden_size = 2.5"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"head_sizes": 16}, "head_sizes = 16"),
        ({"head_sizes": [16, -1]}, "head_sizes"),
        ({"clip": -1.0}, "clip = -1.0"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
        ({"zero_mean": 1}, "zero_mean = 1: True or False"),
        ({"step_scale": "x"}, "step_scale = 'x'"),
        ({"processing": {"name": "log"}}, "processing = .*sign_log"),
        ({"processing": {"name": "symlog", "d": 1}}, r"processing\.d = 1: known settings are c$"),
        ({"structure": {"name": "adaptive", "signed": 3}}, r"structure\.signed = 3"),
        ({"structure": "adaptive"}, "structure = 'adaptive'"),
        ({"colour": 1}, "colour"),
        ({"normalise": "max"}, "normalise = 'max': known values are none, rms, layers, orthogonal"),
        ({"inputs": "kind"}, "inputs = 'kind'"),
        ({"inputs": ["weather"]}, r"inputs = .'weather'.*kind, layer"),
        ({"inputs": ["kind", "kind"]}, r"inputs = .*give each input once"),
    ],
)
def test_a_bad_spec_names_the_field_and_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        spec_from_dict({**spec_to_dict(OptimizerSpec()), **change})


def test_a_spec_of_an_older_release_takes_the_defaults():
    values = spec_to_dict(LEARNED["anchored"])
    for field in ("inputs", "normalise", "head_norm", "clip_norm", "zero_mean"):
        del values[field]
    assert spec_from_dict(values) == LEARNED["anchored"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"step_scale": 1e308},
            "step_scale = 1e.308: a positive finite number is needed, in float32 too: .* inf$",
        ),
        ({"clip": 1e-50}, "clip = 1e-50: .* there it is 0.0"),
        ({"clip": 1e-40}, "clip = 1e-40: .* there it is 0.0"),
        (
            {"structure": Anchored(beta1=0.999999999999)},
            r"structure.beta1 = 0.999999999999: a number in \[0, 1\) is needed, in float32 .* 1.0$",
        ),
        (
            {"structure": Anchored(epsilon=-1.0)},
            "structure.epsilon = -1.0: a positive finite number",
        ),
        (
            {"structure": Anchored(fresh_weight=-1e39)},
            "structure.fresh_weight = -1e.39: .* there it is -inf",
        ),
        ({"structure": Adaptive(epsilon=float("nan"))}, "structure.epsilon = nan"),
        ({"processing": SignLog(epsilon=0.0)}, "processing.epsilon = 0.0"),
        ({"processing": SignLog(shift=1e60)}, "processing.shift = 1e.60"),
        ({"processing": Symlog(0.0)}, "processing.c = 0.0: a positive finite number"),
        ({"processing": Andrychowicz(-1.0)}, "processing.p = -1.0: a positive finite number"),
        ({"structure": Anchored(beta2=1.5)}, r"structure.beta2 = 1.5: a number in \[0, 1\)"),
        ({"structure": Open(epochs=0)}, "structure.epochs = 0: a whole number of at least 1"),
    ],
)
def test_settings_are_in_their_range_as_float32_has_them(change, message):
    """However the rule comes: from Python or from the card of a file."""
    with pytest.raises(ValueError, match=f"^{message}"):
        OptimizerSpec(**change)
    values = spec_to_dict(LEARNED["anchored"])
    for field, choice in change.items():
        values[field] = choice
        if dataclasses.is_dataclass(choice):
            values[field] = {"name": choice.name, **dataclasses.asdict(choice)}
    with pytest.raises(ValueError, match=f"^{message}"):
        spec_from_dict(values)


def test_sign_log_is_shifted_and_scaled():
    g = jnp.asarray([1e-4, -0.1], jnp.float32)
    expected = (np.log(np.abs(g) + 1e-8) + 9.2) * 0.1
    np.testing.assert_allclose(SignLog(1e-8, 9.2, 0.1).first(g)[1], expected, rtol=1e-5)
