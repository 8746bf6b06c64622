"""Directions scaled tensor by tensor: the formulae, its VJP around each kernel, and in optax."""

import dataclasses
from functools import cache, partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree
from test_rule import random_weights

from optim4rl.optimizers import LEARNED, infer_layout, init_state, scale_by_learned_rule
from optim4rl.optimizers.kernels.normalise import normalise, raw
from optim4rl.optimizers.kernels.select import KERNELS, choose
from optim4rl.optimizers.tensors import Normalisation, Tensor, orthogonal, orthogonalise

PARAMS = {
    "conv": jnp.zeros((2, 2, 1, 3)),
    "dense": {"b": jnp.zeros(3), "w": jnp.zeros((4, 3)), "wide": jnp.zeros((40, 3))},
    "linear": {"weight": jnp.zeros((3, 40))},
    "empty": jnp.zeros((0, 2)),
    "policy": jnp.zeros((50, 3)),
}
LAYOUT = infer_layout(PARAMS)
FLAT, unravel = ravel_pytree(PARAMS)
RULES = {
    "celo2": dataclasses.replace(LEARNED["celo2"], step_scale=0.5, inputs=("kind",)),
    "generalist": dataclasses.replace(LEARNED["generalist"], step_scale=2.0, normalise="rms"),
    "scaled": dataclasses.replace(LEARNED["scaled"], step_scale=2.0),
    "orthogonal": dataclasses.replace(LEARNED["orthogonal"], step_scale=2.0),
}
CASES = [
    (name, kernel.name)
    for name, spec in RULES.items()
    for kernel in KERNELS
    if kernel.refusal(spec) is None
]


def directions_of(spec, weights, gradients, kernel):
    """The optax form's directions, each tensor by itself."""
    tx = scale_by_learned_rule(spec, weights, kernel=kernel)
    state, directions = tx.init(PARAMS), []
    for gradient in gradients:
        update, state = tx.update(unravel(gradient), state)
        directions.append(ravel_pytree(update)[0])
    return jnp.stack(directions)


def problem(name):
    spec = RULES[name]
    return spec, random_weights(spec), *jax.random.normal(jax.random.key(0), (2, 2, FLAT.size))


@cache
def by_autodiff(name):
    """The directions of two updates of the optax form in plain JAX, and the meta-gradient."""
    spec, weights, gradients, cotangents = problem(name)

    def total(weights):
        directions = directions_of(spec, weights, gradients, None)
        return jnp.sum(directions * cotangents), directions

    meta_gradient, directions = jax.jit(jax.grad(total, has_aux=True))(weights)
    return directions[0], meta_gradient


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_a_kernel_is_the_optax_form_and_its_vjp(name, kernel):
    spec, weights, gradients, cotangents = problem(name)
    state, used = init_state(spec, FLAT.shape), choose(spec, kernel)

    @jax.jit
    def run(weights):
        first, _ = used.step(spec, weights, gradients[0], state, layout=LAYOUT)
        found = used.replay_vjp(spec, weights, gradients, state, cotangents, layout=LAYOUT)
        return first, directions_of(spec, weights, gradients[:1], kernel)[0], found

    found, (direction, meta_gradient) = run(weights), by_autodiff(name)
    expected = (direction, direction, meta_gradient)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(meta_gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), found, expected
    )
    unscaled, _ = used.step(raw(spec), weights, gradients[0], state, layout=LAYOUT)
    scales = {"b": 0.25, "w": 0.25, "wide": 0.25, "weight": 0.25, "conv": 0.25, "policy": 32 / 50}
    inputs = {"wide": 0, "weight": 1}
    for (path, tensor), direction in zip(
        jax.tree.leaves_with_path(unravel(found[0])),
        jax.tree.leaves(unravel(unscaled)),
        strict=True,
    ):
        if tensor.size and spec.normalise == "rms":
            rms = np.sqrt(np.mean(np.square(tensor)))
            np.testing.assert_allclose(rms, spec.step_scale, rtol=1e-4)
        elif tensor.size and spec.normalise == "layers":
            key = path[-1].key
            factor = spec.step_scale * scales[key]
            rounding = 0.0
            if key in inputs:
                direction = direction - direction.mean(inputs[key], keepdims=True)
                rounding = 1e-6  # where the mean takes almost all of a coordinate away
                np.testing.assert_allclose(tensor.mean(inputs[key]), 0, atol=rounding)
            np.testing.assert_allclose(tensor, factor * direction, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("kind", [x for x in get_args(Normalisation) if x != "none"])
@pytest.mark.parametrize("shape", [(3,), (3, 40), (2, 2, 3, 5)])
def test_a_direction_of_zero_stays_zero_and_has_a_derivative(kind, shape):
    spec = dataclasses.replace(LEARNED["scaled"], normalise=kind)
    tensor = kernel(shape) if len(shape) > 1 else Tensor(shape, "bias", 0.0)
    zero = jnp.zeros(shape)
    np.testing.assert_array_equal(normalise(spec, tensor, zero), zero)
    slope = jax.grad(lambda x: normalise(spec, tensor, x).sum())(zero)
    assert jnp.isfinite(slope).all()


def kernel(shape):
    return Tensor(shape, "weight", 0.0, outputs=len(shape) - 1)


@given(
    st.sampled_from([(1, 7), (7, 1), (5, 5), (3, 40), (40, 3), (2, 3, 4, 6), (64, 32)]),
    st.integers(0, 2**31 - 1),
    st.floats(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_an_orthogonal_direction_is_as_large_in_every_direction(shape, seed, log_size):
    direction = 10.0**log_size * jax.random.normal(jax.random.key(seed), shape)
    tensor = kernel(shape)
    found = np.asarray(orthogonalise(tensor, direction)).reshape(tensor.matrix)
    given = np.asarray(direction).reshape(tensor.matrix)
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(given), rtol=1e-3)

    # In the bases of the given direction it is diagonal, and what is on it hardly varies.
    u, sizes, vt = np.linalg.svd(given, full_matrices=False)
    inside = u.T @ found @ vt.T
    values = np.diag(inside)
    rms = np.sqrt(np.mean(values**2))
    np.testing.assert_allclose(inside - np.diag(values), 0, atol=2e-3 * rms)
    clear = values[sizes > 0.02 * np.linalg.norm(sizes)]
    assert (0.6 * rms < clear).all()
    assert (clear < 1.45 * rms).all()


@pytest.mark.parametrize("shape", [(16, 20), (16, 100), (3, 700)])
def test_wide_matrices_take_the_same_steps(shape):
    """The steps one by one, in float64."""
    matrix = np.random.default_rng(0).normal(size=shape) * np.logspace(0, -3, shape[0])[:, None]
    y = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = y @ y.T
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    expected = y * np.linalg.norm(matrix) / np.linalg.norm(y)
    found = orthogonal(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_orthogonal_directions_turn_with_their_kernel_and_change_with_its_size():
    a, b = (
        jnp.linalg.qr(jax.random.normal(jax.random.key(i), (n, n)))[0] for i, n in ((0, 6), (1, 9))
    )
    direction = jax.random.normal(jax.random.key(2), (6, 9))
    whole = partial(orthogonalise, kernel((6, 9)))
    expected = whole(direction)
    np.testing.assert_allclose(whole(a @ direction @ b), a @ expected @ b, atol=1e-4)
    np.testing.assert_allclose(whole(100.0 * direction), 100.0 * expected, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(whole(-direction), -expected, atol=1e-5)
    # The axis of outputs does not matter, nor how many directions there are.
    turned = Tensor((9, 6), "weight", 0.0, outputs=0)
    np.testing.assert_allclose(orthogonalise(turned, direction.T), expected.T, atol=1e-5)
    both = whole(jnp.stack([direction, 2.0 * direction]))
    np.testing.assert_allclose(both, jnp.stack([expected, 2.0 * expected]), rtol=1e-3, atol=1e-3)


def test_vectors_keep_their_direction():
    direction = jax.random.normal(jax.random.key(0), (5,))
    bias, column = Tensor((5,), "bias", 0.0), kernel((5, 1))
    np.testing.assert_array_equal(orthogonalise(bias, direction), direction)
    np.testing.assert_array_equal(orthogonalise(column, direction[:, None])[:, 0], direction)


def test_without_its_layout_a_normalised_rule_is_refused():
    spec = RULES["generalist"]
    with pytest.raises(ValueError, match=r"layout: 0 tensors of 0 coordinates in all, but .* 4"):
        choose(spec, "xla").step(
            spec, random_weights(spec), jnp.zeros(4), init_state(spec, (4,)), layout=()
        )
