"""The native kernel against the XLA kernel and plain autodiff."""

import dataclasses
import functools
import itertools
import os
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rule import random_weights

from optim4rl.cpp.library import ISA_VARIABLE
from optim4rl.optimizers import KINDS, LEARNED, RuleState, init_state
from optim4rl.optimizers.kernels import native, xla
from optim4rl.optimizers.kernels.native import KERNEL
from optim4rl.optimizers.kernels.normalise import raw
from optim4rl.optimizers.layout import Tensor
from optim4rl.optimizers.structures import Adaptive

RUN = ("optim4rl", "optim4rl-rlc", "anchored", "generalist", "mirrored", "orthogonal")
PRESETS = {name: raw(LEARNED[name]) for name in RUN}
A, B, ANCHORED, GENERALIST, MIRRORED, ORTHOGONAL = PRESETS.values()
VARIATIONS = {
    "unsigned": dataclasses.replace(A, structure=Adaptive(signed=False), clip=None),
    "linear head": dataclasses.replace(A, head_sizes=(), zero_head=True, step_scale=0.3),
    "anchored, deep": dataclasses.replace(ANCHORED, head_sizes=(16, 16), clip=None),
    "mirrored, of raw gradients": dataclasses.replace(MIRRORED, processing=B.processing),
    "without a cell, two networks": dataclasses.replace(A, cell="none", inputs=("layer",)),
    "without a cell, deep": dataclasses.replace(ORTHOGONAL, head_sizes=(5, 7), step_scale=0.3),
    "odd sizes": dataclasses.replace(
        B, hidden_size=5, head_sizes=(7,), clip=0.01, inputs=("layer", "kind")
    ),
}
SPECS = {**PRESETS, **VARIATIONS}
SIZES = (1, 7, 63, 64, 65, 1000, 5000)
N = max(SIZES)

built = pytest.mark.skipif(
    not native.LIBRARY.path.exists(), reason="the library is not built: there was no C++ compiler"
)


def test_it_is_built_where_there_is_a_compiler():
    """So that the tests below are left out on no other machine."""
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    assert native.LIBRARY.path.exists() or not any(map(shutil.which, compilers))


def problem(spec, K, n=N, seed=0):
    """Weights, gradients over nine decades, a state in mid-run, cotangents."""
    keys = jax.random.split(jax.random.key(seed), 5)
    decades = 10.0 ** jax.random.uniform(keys[0], (K, n), minval=-8.0, maxval=1.0)
    gradients = decades * jax.random.normal(keys[1], (K, n))
    start = init_state(spec, (n,))
    state = RuleState(
        jax.tree.map(
            lambda h: jax.random.uniform(keys[2], h.shape, minval=-1.0, maxval=1.0), start.carries
        ),
        jnp.abs(jax.random.normal(keys[3], start.moments.shape)),
        jnp.int32(3),
    )
    return random_weights(spec), gradients, state, jax.random.normal(keys[4], (K, n))


def layout_of(n):
    """Some small tensors and some large ones; the last one has what is left."""
    sizes = [min(left, n) for left in (70, 1, 64, 3, 2, 4000)]
    cuts = [0, *(min(cut, n) for cut in np.cumsum(sizes)), n]
    return tuple(
        Tensor((int(end - start),), KINDS[i % 4], i / 6)
        for i, (start, end) in enumerate(itertools.pairwise(cuts))
    )


def head(tree, n):
    """The first n coordinates."""
    return jax.tree.map(lambda x: x[..., :n] if x.ndim else x, tree)


def assert_close(found, expected, tolerance=2e-5):
    """Equal up to a part of the largest entry of each array, NaNs and infinities in place."""

    def compare(a, b):
        finite = np.abs(b[np.isfinite(b)]) if b.ndim else np.abs(b)
        scale = finite.max() if finite.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)

    jax.tree.map(compare, jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected))


def jitted(function, spec):
    """Both arguments of a kernel decide n: the gradients come second."""

    @jax.jit
    def run(weights, gradients, *rest):
        layout = layout_of(gradients.shape[-1])
        return function(spec, weights, gradients, *rest, layout=layout)

    return run


@built
def test_it_runs_the_presets():
    assert [KERNEL.refusal(spec) for spec in SPECS.values()] == [None] * len(SPECS)
    assert native.LIBRARY.status().startswith("instruction set ")


@built
@pytest.mark.parametrize("name", SPECS)
def test_step_and_replay_of_any_size_are_those_of_xla(name):
    """One program for all sizes, and one of the oracle: what lies beyond n has no cotangent."""
    spec, sizes = SPECS[name], SIZES if name in PRESETS else (65,)
    weights, gradients, state, cotangents = problem(spec, 2, n=max(sizes))

    @jax.jit
    def run():
        return [
            (
                KERNEL.step(spec, weights, gradients[0, :n], head(state, n), layout=layout_of(n)),
                KERNEL.replay_vjp(
                    spec,
                    weights,
                    gradients[:, :n],
                    head(state, n),
                    cotangents[:, :n],
                    layout=layout_of(n),
                ),
            )
            for n in sizes
        ]

    expected = jitted(xla.stream_step, spec)(weights, gradients[0], state)
    replay = jitted(xla.replay_vjp, spec)
    for n, (found, meta_gradient) in zip(sizes, run(), strict=True):
        assert_close(found, head(expected, n))
        within = jnp.where(jnp.arange(max(sizes)) < n, cotangents, 0.0)
        assert_close(meta_gradient, replay(weights, gradients, state, within), 1e-4)


@built
@pytest.mark.parametrize(("name", "K"), [("optim4rl", 1), ("anchored", 3), ("optim4rl-rlc", 16)])
def test_a_replay_is_the_gradient_of_the_unrolled_steps(name, K):
    spec = SPECS[name]
    weights, gradients, state, cotangents = problem(spec, K, n=70)

    def objective(weights):
        return jnp.sum(xla.unroll(spec, weights, gradients, state)[0] * cotangents)

    found = jitted(KERNEL.replay_vjp, spec)(weights, gradients, state, cotangents)
    assert_close(found, jax.jit(jax.grad(objective))(weights), 1e-4)


EXTREMES = (0.0, -0.0, 1e-30, -1e-30, 1e-12, 1e30, -1e30, 1.0, np.inf, -np.inf, np.nan)


@built
@pytest.mark.parametrize("name", PRESETS)
def test_extreme_gradients(name):
    weights, _, state, _ = problem(SPECS[name], 1, n=len(EXTREMES))
    clipped, unclipped = SPECS[name], dataclasses.replace(SPECS[name], clip=None)
    # Without a clip, the finite ones: what an infinity makes of a matrix product is XLA's own.
    for spec, n in ((clipped, len(EXTREMES)), (unclipped, 8)):
        gradient = jnp.array(EXTREMES[:n])
        expected = jitted(xla.stream_step, spec)(weights, gradient, head(state, n))
        assert_close(jitted(KERNEL.step, spec)(weights, gradient, head(state, n)), expected)


@built
@pytest.mark.parametrize("name", ["optim4rl", "anchored"])
def test_a_nan_stays_in_its_coordinate_and_shows_in_the_meta_gradient(name):
    spec = SPECS[name]
    weights, gradients, state, cotangents = problem(spec, 2, n=100)
    gradients = gradients.at[0, 70].set(jnp.nan)
    direction, after = jitted(KERNEL.step, spec)(weights, gradients[0], state)
    for array in (direction[None], *(h for (h,) in after.carries)):
        np.testing.assert_array_equal(np.isnan(array).any(axis=0).nonzero()[0], [70])
    meta_gradient = jitted(KERNEL.replay_vjp, spec)(weights, gradients, state, cotangents)
    assert np.isnan(meta_gradient["network0"]["bias"]).all()


@built
@pytest.mark.parametrize(("name", "shared"), [("optim4rl-rlc", True), ("generalist", False)])
def test_agents_side_by_side(name, shared):
    """Two nested batches, each agent of another age, with shared or their own weights."""
    spec, K, n, batch = SPECS[name], 2, 70, (2, 3)
    weights, gradients, state, cotangents = problem(spec, K, n=n * 6)

    def split(x):
        return jnp.moveaxis(x.reshape(*x.shape[:-1], *batch, n), (-3, -2), (0, 1))

    gradients, cotangents = split(gradients), split(cotangents)
    state = RuleState(
        jax.tree.map(split, state.carries),
        split(state.moments),
        jnp.arange(6, dtype=jnp.int32).reshape(batch),
    )
    factors = 1.0 + jnp.arange(6.0).reshape(batch) / 10.0
    every = jax.tree.map(lambda x: jnp.multiply.outer(factors, x), weights)
    axis, weights = (None, weights) if shared else (0, every)

    def run(kernel):
        def one(weights, gradients, state, cotangents):
            return (
                kernel.step(spec, weights, gradients[0], state, layout=layout_of(n)),
                kernel.replay_vjp(spec, weights, gradients, state, cotangents, layout=layout_of(n)),
            )

        axes = (axis, 0, 0, 0)
        return jax.jit(jax.vmap(jax.vmap(one, axes), axes))(weights, gradients, state, cotangents)

    assert_close(run(KERNEL), run(xla.KERNEL), 1e-4)


@built
def test_agents_that_share_their_state():
    """A batch of gradients and one state: the new states cannot lie where the old one does."""
    weights, gradients, state, _ = problem(A, 3, n=70)
    found = jax.jit(jax.vmap(partial(KERNEL.step, A), (None, 0, None)))(weights, gradients, state)
    alone = jitted(KERNEL.step, A)
    for agent in range(3):
        expected = alone(weights, gradients[agent], state)
        assert_close(jax.tree.map(lambda x, i=agent: x[i] if x.ndim else x, found), expected)


@built
def test_it_works_inside_scan_and_map_and_leaves_its_inputs_alone():
    weights, gradients, state, cotangents = problem(B, 4, n=70)
    before = jax.tree.map(np.array, state)

    @jax.jit
    def scan(state):
        def body(state, gradient):
            direction, state = KERNEL.step(B, weights, gradient, state)
            return state, direction

        return jax.lax.scan(body, state, gradients)

    after, directions = scan(state)
    assert_close((directions, after), xla.unroll(B, weights, gradients, state))
    jax.tree.map(np.testing.assert_array_equal, before, state)

    @jax.jit
    def mapped(gradients, cotangents):
        return jax.lax.map(
            lambda x: KERNEL.replay_vjp(B, weights, x[0][None], state, x[1][None]),
            (gradients, cotangents),
            batch_size=2,
        )

    alone = jitted(KERNEL.replay_vjp, B)
    expected = [
        alone(weights, g[None], state, c[None]) for g, c in zip(gradients, cotangents, strict=True)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *expected)
    assert_close(mapped(gradients, cotangents), stacked, 1e-6)


@built
def test_results_are_the_same_to_the_bit_every_time():
    weights, gradients, state, cotangents = problem(B, 2, n=50_000)
    replay = jitted(KERNEL.replay_vjp, B)
    first = replay(weights, gradients, state, cotangents)
    for _ in range(5):
        again = replay(weights, gradients, state, cotangents)
        jax.tree.map(np.testing.assert_array_equal, first, again)


@functools.cache
def expected_step(spec):
    weights, gradients, state, _ = problem(spec, 2, n=100)
    return jitted(xla.stream_step, spec)(weights, gradients[0], state)


@functools.cache
def expected_replay(spec):
    return jitted(xla.replay_vjp, spec)(*problem(spec, 2, n=100))


@built
@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2"])
def test_every_instruction_set(isa, tmp_path, monkeypatch):
    """Those that this machine has run the rule; the others are refused by name."""
    monkeypatch.setenv(ISA_VARIABLE, isa)
    if native.LIBRARY.status() == f"instruction set {isa}":
        return  # the one that all other tests run
    with another_library(tmp_path / f"{isa}.so", monkeypatch):
        if KERNEL.refusal(A) is not None:
            refused = f"{ISA_VARIABLE} = {isa!r}: this machine has no such set"
            assert native.LIBRARY.status() == refused
            return
        assert native.LIBRARY.status() == f"instruction set {isa}"
        for spec in PRESETS.values():
            weights, gradients, state, cotangents = problem(spec, 2, n=100)
            step, replay = jitted(KERNEL.step, spec), jitted(KERNEL.replay_vjp, spec)
            assert_close(step(weights, gradients[0], state), expected_step(spec))
            found = replay(weights, gradients, state, cotangents)
            assert_close(found, expected_replay(spec), 1e-4)


class another_library:  # noqa: N801  (a context manager reads as a function)
    """`native` loads a copy of the library afresh, and its own again afterwards."""

    def __init__(self, path, monkeypatch):
        self.path, self.monkeypatch = path, monkeypatch

    def __enter__(self):
        shutil.copy(native.LIBRARY.path, self.path)
        replace_library(self.monkeypatch, self.path)

    def __exit__(self, *_):
        self.monkeypatch.undo()


def replace_library(monkeypatch, path):
    monkeypatch.setattr(native, "LIBRARY", dataclasses.replace(native.LIBRARY, path=path))


@pytest.mark.parametrize("kernel", [xla.KERNEL, pytest.param(KERNEL, marks=built)])
def test_a_layout_of_another_size_is_refused(kernel):
    weights, gradients, state, _ = problem(GENERALIST, 1, n=10)
    for layout in ((), layout_of(11)):
        with pytest.raises(ValueError, match=r"layout: .* coordinates in all, but there are 10"):
            kernel.step(GENERALIST, weights, gradients[0], state, layout=layout)


def test_what_it_does_not_run_is_refused_with_the_reason():
    refused = {
        "cell": dataclasses.replace(A, cell="lstm"),
        "structure": LEARNED["l2lgd2"],
        "processing": dataclasses.replace(A, processing=LEARNED["l2lgd2"].processing),
        "head_sizes": dataclasses.replace(A, head_sizes=(4,) * 8),
    }
    for field, spec in refused.items():
        assert KERNEL.refusal(spec).startswith(f"{field} = ")


def test_a_library_that_is_not_there_or_broken_is_refused(tmp_path, monkeypatch):
    replace_library(monkeypatch, tmp_path / "none.so")
    assert KERNEL.refusal(A).startswith("not built: no C++ compiler")
    assert native.LIBRARY.status() == KERNEL.refusal(A)
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    replace_library(monkeypatch, broken)
    assert KERNEL.refusal(A).startswith("broken.so cannot be used here, reinstall: ")
    assert "\n" not in str(KERNEL.refusal(A))
