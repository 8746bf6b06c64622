"""The convolutional torso in C++ against the one in XLA, and both against plain autodiff."""

import dataclasses
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import answer
from optim4rl.cpp.library import ISA_VARIABLE
from optim4rl.tasks.backprop import SharedTorso
from optim4rl.tasks.inputs import DenseInputs, SparseInputs
from optim4rl.tasks.kernels import native
from optim4rl.tasks.kernels.native import NativeConvLayers
from optim4rl.tasks.kernels.select import choose
from optim4rl.tasks.kernels.xla import XlaConvLayers
from optim4rl.tasks.networks import ActorCritic, Conv2x2

BIASES = ("zero", "positive", "negative", "mixed")
# Observation, order of the maps, filters, units, ones, batch.
SIZES: dict[str, tuple[Any, ...]] = {
    "big_dense_long": ((5, 15, 11), "channels", 16, 32, 5, 130),
    "the release's order": ((5, 15, 11), "rows", 16, 32, 5, 33),
    "odd": ((3, 4, 5), "rows", 5, 7, 3, 9),
    "wide": ((3, 4, 5), "channels", 17, 50, 6, 200),
    "one position": ((2, 1, 1), "channels", 1, 1, 1, 3),
    "one column": ((4, 6, 1), "channels", 3, 20, 2, 11),
}

built = pytest.mark.skipif(
    not native.LIBRARY.path.exists(), reason="the library is not built: there was no C++ compiler"
)


def test_it_is_built_where_there_is_a_compiler() -> None:
    """So that the tests below are left out on no other machine."""
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    assert native.LIBRARY.path.exists() or not any(map(shutil.which, compilers))


def places(shape: tuple[int, ...], ones: int, batch: int, seed: int = 0) -> jax.Array:
    """Random ones, twice at one place, side by side, in the corners, and absent ones."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    found = rng.integers(0, size + 1, size=(ones, batch))
    found[:, 0] = size
    found[0, 1], found[-1, 1] = 0, size - 1
    found[:, 2] = 0
    if batch > 8:
        found[:, 3] = np.arange(ones) % size
        found[-1, 4] = found[0, 4]
        found[:, 5] = size - 1 - np.arange(ones) % size
    return jnp.asarray(found, jnp.int32)


def problem(name: str, bias: str, seed: int = 0) -> tuple[Any, ...]:
    """Parameters, observations and cotangents."""
    shape, maps, filters, units, ones, batch = SIZES[name]
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=size), jnp.float32)

    channels = shape[0 if maps == "channels" else -1]
    positions = int(np.prod(shape)) // channels
    drawn = normal(filters)
    biases = {
        "zero": jnp.zeros_like(drawn),
        "positive": jnp.abs(drawn),
        "negative": -jnp.abs(drawn),
        "mixed": drawn,
    }
    return (
        normal(2, 2, channels, filters),
        biases[bias],
        normal(positions * filters, units),
        places(shape, ones, batch, seed),
        normal(batch, units),
    )


def run(layers: Any, kernel: Any, bias: Any, dense: Any, x: Any, cotangent: Any) -> Any:
    """Forward and backward."""
    conv = Conv2x2(kernel, bias)
    return layers.forward(conv, dense, x), layers.backward(conv, dense, x, cotangent)


def both(name: str) -> tuple[NativeConvLayers, XlaConvLayers]:
    """The implementations for observations of that shape."""
    inputs = SparseInputs(*SIZES[name][:2])
    return NativeConvLayers(inputs), XlaConvLayers(inputs)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal up to a part of the largest entry of each array."""

    def compare(a: Any, b: Any) -> None:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))

    jax.tree.map(compare, jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected))


@built
@pytest.mark.parametrize("name", SIZES)
def test_it_gives_what_xla_gives(name: str) -> None:
    """Any sizes, any biases."""
    found, expected = (jax.jit(partial(run, layers)) for layers in both(name))
    for seed, bias in enumerate(BIASES):
        arguments = problem(name, bias, seed)
        reference = expected(*arguments)
        assert_close(found(*arguments), reference)
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(reference)) or bias != "positive"


@built
@pytest.mark.parametrize(
    ("axes", "nested"),
    [
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
        ((None, None, None, 0, 0), (None, None, None, 0, 0)),
        ((0, 0, 0, None, None), (0, 0, 0, 0, 0)),
        ((0, 0, 0, None, 0), (None, None, None, 0, 0)),
    ],
    ids=["of their own", "shared parameters", "shared observations", "each axis another"],
)
def test_agents_side_by_side(axes: tuple[Any, ...], nested: tuple[Any, ...]) -> None:
    """Two nested batches; what they share is not repeated for each."""
    outer, inner = 2, 3
    alone = [problem("odd", "mixed", seed) for seed in range(outer * inner)]

    def stacked(argument: int) -> jax.Array:
        every = jnp.stack([x[argument] for x in alone])
        every = every.reshape(outer, inner, *every.shape[1:])
        if nested[argument] is None:
            every = every[:, 0]
        return every if axes[argument] == 0 else every[0]

    arguments = [stacked(i) for i in range(5)]
    found, expected = (
        jax.vmap(jax.vmap(partial(run, layers), nested), axes) for layers in both("odd")
    )
    assert_close(jax.jit(found)(*arguments), jax.jit(expected)(*arguments))
    for equation in jax.make_jaxpr(found)(*arguments).eqns:
        if equation.primitive.name == "broadcast_in_dim":
            assert equation.outvars[0].aval.size == equation.invars[0].aval.size


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("maps", ["channels", "rows"])
def test_the_network_is_the_one_that_autodiff_knows(maps: Any, live: bool) -> None:
    """Outputs, values and every parameter's gradient, whichever implementation runs here."""
    shape = (3, 4, 5)
    torso = SharedTorso(SparseInputs(shape, maps), "conv", 4, (6, 6) if live else (6,))
    x = places(shape, 3, 10)
    written = np.zeros((10, 61), np.float32)
    np.add.at(written, (np.arange(10)[None], np.asarray(x)), 1.0)
    mask = jnp.array([1.0, 1, 1, 1, 0, 0]) if live else None

    @jax.jit
    def compare(key: jax.Array, images: jax.Array, cotangents: Any) -> Any:
        params = torso.init(key)
        params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
        prepared = torso.prepare(params, mask)
        outputs, value, cache = torso.forward(prepared, x)
        gradient = torso.backward(prepared, x, cache, *cotangents)

        def plain(params: ActorCritic) -> Any:
            if mask is not None:
                kernels = [head.kernel * mask[:, None] for head in (params.policy, params.value)]
                params = masked(params, kernels)
            return jax.vmap(partial(answer, params, maps=maps))(images)

        expected, transpose = jax.vjp(plain, params)
        return ((outputs, value), gradient), (expected, transpose(cotangents)[0])

    images = jnp.asarray(written[:, :60].reshape(10, *shape))
    cotangents = tuple(
        jnp.asarray(np.random.default_rng(i).normal(size=size), jnp.float32)
        for i, size in enumerate([(10, 4), (10,)])
    )
    assert_close(*compare(jax.random.key(0), images, cotangents))


def masked(params: ActorCritic, kernels: list[jax.Array]) -> ActorCritic:
    """The same network with other kernels in its heads."""
    leaves, structure = jax.tree.flatten(params)
    policy, value = kernels
    changed: ActorCritic = jax.tree.unflatten(
        structure, [*leaves[:4], policy, leaves[5], value, leaves[7]]
    )
    return changed


@built
def test_it_works_inside_scan_and_gives_the_same_bits_every_time() -> None:
    """More agents than a machine has threads, in a loop."""
    layers, _ = both("wide")
    many = [
        jnp.stack(x) for x in zip(*(problem("wide", "mixed", i) for i in range(5)), strict=True)
    ]

    @jax.jit
    def loop() -> Any:
        def body(_: None, __: None) -> Any:
            return None, jax.vmap(partial(run, layers))(*many)

        return jax.lax.scan(body, None, length=4)[1]

    result = jax.tree.map(np.asarray, loop())
    for x in jax.tree.leaves(result):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    out, gradient = jax.jit(partial(run, layers))(*(x[2] for x in many))
    np.testing.assert_array_equal(result[0][0, 2], out)
    assert_close(jax.tree.map(lambda x: x[0, 2], result[1]), gradient, 1e-6)


@built
@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2"])
def test_every_instruction_set(isa: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this machine has give what XLA gives; the others are refused by name."""
    monkeypatch.setenv(ISA_VARIABLE, isa)
    if native.LIBRARY.status() == f"instruction set {isa}":
        return  # the one that all other tests run
    shutil.copy(native.LIBRARY.path, tmp_path / f"{isa}.so")
    replace_library(monkeypatch, tmp_path / f"{isa}.so")
    if native.LIBRARY.refusal() is not None:
        assert native.LIBRARY.status() == f"{ISA_VARIABLE} = {isa!r}: this machine has no such set"
        return
    for name in ("wide", "odd"):
        arguments = problem(name, "mixed")
        found, expected = (jax.jit(partial(run, layers)) for layers in both(name))
        assert_close(found(*arguments), expected(*arguments))


def replace_library(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY", dataclasses.replace(native.LIBRARY, path=path))


@built
def test_a_number_that_is_none_shows_where_it_is_touched() -> None:
    """Divergence is never hidden: not in the convolution, nor in what lies beneath the ones."""
    layers, _ = both("odd")
    forward = jax.jit(partial(run, layers))
    kernel, bias, dense, x, cotangent = problem("odd", "mixed")
    out, (_, gradient) = forward(kernel, bias.at[2].set(jnp.nan), dense, x, cotangent)
    assert np.isnan(out).all()
    assert np.isnan(gradient.reshape(-1, bias.size, dense.shape[1])[:, 2]).all()
    out, _ = forward(kernel.at[:, :, :, 2].set(jnp.nan), bias, dense, x, cotangent)
    touched = (np.asarray(x) < 60).any(axis=0)
    assert np.isnan(out[touched]).all()
    assert np.isfinite(out[~touched]).all()
    _, (_, gradient) = forward(kernel, bias, dense, x, cotangent.at[1].set(jnp.nan))
    assert np.isnan(gradient).all()


@built
def test_it_reads_observations_of_few_ones_alone() -> None:
    """Others are XLA's."""
    sparse, dense = SparseInputs((3, 4, 5), "rows"), DenseInputs((3, 4, 5), "rows")
    assert native.LIBRARY.refusal() is None
    assert choose(sparse) == NativeConvLayers(sparse)
    assert choose(dense) == XlaConvLayers(dense)


def test_without_the_library_xla_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was never built or is broken; the status says which."""
    inputs = SparseInputs((3, 4, 5), "rows")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    for path, reason in ((tmp_path / "none.so", "not built"), (broken, "broken.so cannot be")):
        replace_library(monkeypatch, path)
        assert choose(inputs) == XlaConvLayers(inputs)
        assert native.LIBRARY.status().startswith(reason)
        assert "\n" not in native.LIBRARY.status()
