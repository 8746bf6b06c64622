"""The functions that JAX's arrays and PyTorch's tensors share do the same to both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from optim4rl.optimizers import arrays, processing, structures, tensors

X = np.array([[-3.0, -0.5, 0.0], [1e-8, 0.5, 2.0]], np.float32)
OUTER = X[:, None] * X[..., None]
KERNEL = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]], np.float32)


def square_mean(axes):
    return lambda x: arrays.mean(x * x, axes)


def kernel_times(x):
    return arrays.linear(arrays.constant(tuple(KERNEL.ravel().tolist()), x).reshape(3, 2), x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: arrays.rsqrt(abs(x) + 1.0), (np.abs(X) + 1.0) ** -0.5),
        (arrays.sigmoid, 1.0 / (1.0 + np.exp(-X))),
        (arrays.relu, np.maximum(X, 0.0)),
        (arrays.stop_gradient, X),
        (lambda x: arrays.to_float32(x > 0), (X > 0).astype(np.float32)),
        (square_mean((1,)), np.mean(X * X, 1, keepdims=True)),
        (square_mean((0, 1)), np.mean(X * X, keepdims=True)),
        (square_mean(()), X * X),
        (lambda x: arrays.split(x, 2)[1], X[1:]),
        (kernel_times, KERNEL @ X),
        (lambda x: arrays.shift(x[:, None] * x[..., None], 2.0), OUTER + 2.0 * np.eye(3)),
        (structures.straight_through_sign, np.where(X >= 0, 1.0, -1.0)),
        (lambda x: structures.factors(x[None])[2][0], None),
        (lambda x: arrays.unit_rms(x, 1e-9), X / np.sqrt(np.mean(X * X, 1, keepdims=True))),
        *((x().first, None) for x in processing.PROCESSINGS.values()),
        *((x().second, None) for x in processing.PROCESSINGS.values()),
    ],
)
def test_both_give_the_same(function, expected):
    ours, jaxs = function(torch.tensor(X)), jax.jit(function)(jnp.asarray(X))
    assert ours.dtype == torch.float32
    assert jaxs.dtype == jnp.float32
    np.testing.assert_allclose(ours.numpy(), jaxs, rtol=1e-6, atol=1e-7)
    if expected is not None:
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_a_constant_lies_where_its_model_does():
    with torch.device("meta"):
        found = arrays.constant((1.0, 2.0), torch.zeros(1, device="cpu"))
    assert found.device.type == "cpu"
    assert found.dtype == torch.float32


def test_no_derivative_goes_through_a_stopped_gradient():
    x = torch.tensor(X, requires_grad=True)
    (structures.straight_through_sign(x) * 2.0).sum().backward()
    assert torch.equal(x.grad, torch.full(X.shape, 2.0))


@pytest.mark.parametrize("shape", [(5, 40), (5, 6), (2, 3, 30)])
def test_orthogonal_matrices_are_the_same_and_leave_what_they_are_given(shape):
    """`shift` changes tensors in place; nothing that is still needed may change."""
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensor = torch.tensor(matrix)
    found, expected = tensors.orthogonal(tensor), tensors.orthogonal(jnp.asarray(matrix))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    np.testing.assert_array_equal(tensor, matrix)
