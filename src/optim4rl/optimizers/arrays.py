"""Array functions for the formulae of a rule, with the same names for JAX and PyTorch.

`xp = namespace(x)` is `jax.numpy` or `torch`. The formulae use functions that have the same name
and behaviour in both; this module has the few others. JAX is imported only for its own arrays.
torch is never imported: if there is a tensor, it has been imported already.
"""

import sys
from typing import Any, TypeAlias

# An array of JAX or a tensor of PyTorch.
Array: TypeAlias = Any


def is_tensor(x: Array) -> bool:
    """Return whether an array is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: Array) -> Any:
    """Return the module of array functions for an array: `torch` or `jax.numpy`."""
    if is_tensor(x):
        return sys.modules["torch"]
    import jax.numpy

    return jax.numpy


def constant(values: float | tuple[float, ...], like: Array) -> Array:
    """Return numbers as a float32 array on the device of `like`."""
    if is_tensor(like):
        return like.new_tensor(values)
    import jax.numpy as jnp

    return jnp.asarray(values, jnp.float32)


def to_float32(x: Array) -> Array:
    """Return an array's numbers in float32."""
    return x.float() if is_tensor(x) else x.astype("float32")


def stop_gradient(x: Array) -> Array:
    """Return the array itself, and stop derivatives."""
    if is_tensor(x):
        return x.detach()
    from jax import lax

    return lax.stop_gradient(x)


def rsqrt(x: Array) -> Array:
    """Return `1 / sqrt(x)`."""
    if is_tensor(x):
        return x.rsqrt()
    from jax import lax

    return lax.rsqrt(x)


def sigmoid(x: Array) -> Array:
    """Return the logistic function."""
    if is_tensor(x):
        return x.sigmoid()
    # The tanh form vectorises on CPUs where a division does not, and saturates without overflow.
    return 0.5 * namespace(x).tanh(0.5 * x) + 0.5


def relu(x: Array) -> Array:
    """Return `max(x, 0)`."""
    if is_tensor(x):
        return x.relu()
    import jax

    return jax.nn.relu(x)


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Return means over some axes, which keep length 1; without axes, return the array itself."""
    if is_tensor(x) and not axes:
        return x
    return namespace(x).mean(x, axis=axes, keepdims=True)


def unit_rms(x: Array, epsilon: float, leading: int = 1) -> Array:
    """Scale each tensor to a root mean square of 1, after a number of leading axes.

    `epsilon` is added to the mean square.
    """
    square = mean(namespace(x).square(x), tuple(range(leading, x.ndim)))
    return x * rsqrt(square + epsilon)


def split(x: Array, parts: int) -> tuple[Array, ...]:
    """Split an array into equal parts along its first axis."""
    return x.chunk(parts) if is_tensor(x) else tuple(namespace(x).split(x, parts))


def linear(kernel: Array, x: Array) -> Array:
    """Multiply a matrix `[outputs, inputs]` by `[inputs, *shape]`."""
    if is_tensor(x):
        return sys.modules["torch"].tensordot(kernel, x, dims=1)
    import jax
    import jax.numpy as jnp

    # Full float32: a GPU's default precision would round the products to TF32.
    return jnp.tensordot(kernel, x, axes=1, precision=jax.lax.Precision.HIGHEST)


def shift(matrix: Array, by: float) -> Array:
    """Add a multiple of the identity to a square matrix; a tensor changes in place."""
    if is_tensor(matrix):
        matrix.diagonal(dim1=-2, dim2=-1).add_(by)
        return matrix
    identity = namespace(matrix).eye(matrix.shape[-1], dtype=matrix.dtype)
    return matrix + by * identity.reshape(*(1,) * (matrix.ndim - 2), *identity.shape)
