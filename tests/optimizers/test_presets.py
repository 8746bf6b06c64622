"""Names: learned presets, classical optimizers, and clear errors for all others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from optim4rl.optimizers import (
    CLASSICAL,
    LEARNED,
    OptimizerSpec,
    classical,
    learned_spec,
    optimizer_names,
)
from optim4rl.optimizers.processing import Andrychowicz, RawAndSquare, SignLog
from optim4rl.optimizers.structures import (
    L2L,
    Adaptive,
    Anchored,
    Celo2,
    Linear,
    Mirrored,
    Open,
    Star,
)

TREE = {"w": (2, 3), "b": (3,)}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in TREE.items()}


def test_every_name_is_listed_once():
    names = optimizer_names()
    assert len(set(names)) == len(names)
    assert set(names) == set(LEARNED) | set(CLASSICAL)


@pytest.mark.parametrize(
    ("name", "processing", "structure", "head_sizes"),
    [
        ("optim4rl", SignLog(1e-18), Adaptive(1e-18, signed=True), (16, 16)),
        ("optim4rl-rlc", RawAndSquare(), Adaptive(1e-8, signed=False), ()),
        ("linear", SignLog(1e-18), Linear(), (16, 16)),
        ("l2lgd2", Andrychowicz(p=10.0), L2L(), (16, 16)),
        ("anchored", SignLog(1e-8, 9.2, 0.1), Anchored(), ()),
        ("generalist", SignLog(1e-8, 9.2, 0.1), Anchored(), ()),
        ("mirrored", SignLog(1e-8, 9.2, 0.1), Mirrored(0.0, 0.9, 0.9), ()),
        ("scaled", SignLog(1e-8, 9.2, 0.1), Mirrored(0.0, 0.9, 0.9), ()),
    ],
)
def test_the_presets_are_as_published(name, processing, structure, head_sizes):
    spec = learned_spec(name)
    assert (spec.processing, spec.structure, spec.head_sizes) == (processing, structure, head_sizes)
    assert (spec.cell, spec.hidden_size, spec.clip, spec.step_scale) == ("gru", 8, 1.0, 1.0)
    assert spec.zero_head == (name in ("anchored", "generalist", "mirrored", "scaled"))
    assert spec.inputs == (("kind",) if name in ("generalist", "mirrored", "scaled") else ())
    assert spec.normalise == ("layers" if name == "scaled" else "none")


def test_celo2_is_an_mlp_of_two_hidden_layers_of_8_with_updates_of_unit_rms():
    spec = learned_spec("celo2")
    assert (spec.cell, spec.head_sizes, spec.normalise) == ("none", (8, 8), "rms")
    assert (spec.structure, spec.clip, spec.zero_head) == (Celo2(beta2=0.95), 1000.0, False)


def test_orthogonal_starts_as_adam_and_keeps_three_floats():
    spec = learned_spec("orthogonal")
    assert (spec.structure, spec.normalise, spec.zero_head) == (Mirrored(), "orthogonal", True)
    assert (spec.cell, spec.head_sizes, spec.inputs) == ("none", (), ("kind",))
    assert spec.state_floats == 3


def test_star_and_open_are_as_published():
    star, open_ = learned_spec("star"), learned_spec("open")
    assert (star.cell, star.head_sizes, star.structure) == ("none", (4, 4), Star())
    assert (open_.cell, open_.hidden_size, open_.head_sizes) == ("gru", 8, (16, 16))
    assert (open_.structure, open_.inputs) == (Open(), ("layer",))
    assert (open_.head_norm, open_.zero_mean) == (True, True)
    assert (open_.clip_norm, open_.clip) == (0.5, None)
    assert open_.networks[0].inputs == 19


def test_the_default_spec_is_the_papers_reference():
    assert learned_spec("optim4rl") == OptimizerSpec()


@pytest.mark.parametrize("name", ["Adam", "optim4rl ", "", "velo"])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"optimizer = '{name}'.*optim4rl, .*anchored"):
        learned_spec(name)
    with pytest.raises(
        ValueError, match=rf"optimizer = '{name}'.*adam, rmsprop, sgd, sign_sgd, muon"
    ):
        classical(name, 1e-3)


@pytest.mark.parametrize("rate", [3e-3, optax.linear_schedule(1e-2, 0.0, 3)])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", optax.adam),
        ("rmsprop", optax.rmsprop),
        ("sgd", optax.sgd),
        ("sign_sgd", optax.sign_sgd),
        ("muon", optax.contrib.muon),
        ("muon_rms", partial(optax.contrib.muon, beta=0.9, consistent_rms=0.2)),
        ("schedule_free", optax.contrib.schedule_free_adamw),
        ("ademamix", optax.contrib.ademamix),
        ("adopt", optax.contrib.adopt),
    ],
)
def test_a_classical_optimizer_is_optaxs_own(name, reference, rate):
    @jax.jit
    def updates(params, gradients):
        results = []
        for tx in (classical(name, rate), reference(rate)):
            state, trace = tx.init(params), []
            for gradient in gradients:
                update, state = tx.update(gradient, state, params)
                trace.append(update)
            results.append(trace)
        return results

    # Optax's bias correction and schedules mix dtypes.
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = updates(random_tree(0), [random_tree(seed) for seed in (1, 2, 3)])
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert any(x.any() for x in jax.tree.leaves(ours))


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_state_of_a_classical_optimizer_is_as_told(name):
    kernel = {"kernel": jax.ShapeDtypeStruct((100, 100), "float32")}
    state = jax.eval_shape(classical(name, 1e-3).init, kernel)
    floats = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert floats // 10_000 == CLASSICAL[name].state_floats


def test_every_classical_optimizer_is_compared_above():
    noisy = {"muon_rms", "schedule_free", "ademamix", "adopt"}
    assert set(CLASSICAL) == {"adam", "rmsprop", "sgd", "sign_sgd", "muon"} | noisy
