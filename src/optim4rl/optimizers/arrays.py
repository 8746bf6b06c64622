"""What the formulae of a rule are written in: JAX's arrays and PyTorch's tensors by the same names.

`xp = namespace(x)` is `jax.numpy` or `torch`, of which the formulae use what is called and behaves
alike in both. The few functions that do not are here. JAX comes in with its own arrays alone, and
torch is never imported: where there is a tensor it is there already.
"""

import sys
from typing import Any, TypeAlias

# An array of JAX or a tensor of PyTorch.
Array: TypeAlias = Any


def is_tensor(x: Array) -> bool:
    """Whether an array is PyTorch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: Array) -> Any:
    """The module of array functions that an array belongs to: `torch` or `jax.numpy`."""
    if is_tensor(x):
        return sys.modules["torch"]
    import jax.numpy

    return jax.numpy


def constant(values: float | tuple[float, ...], like: Array) -> Array:
    """Numbers as a float32 array, where `like` is."""
    if is_tensor(like):
        return like.new_tensor(values)
    import jax.numpy as jnp

    return jnp.asarray(values, jnp.float32)


def to_float32(x: Array) -> Array:
    """An array's numbers in float32."""
    return x.float() if is_tensor(x) else x.astype("float32")


def stop_gradient(x: Array) -> Array:
    """The identity, through which no derivative goes."""
    if is_tensor(x):
        return x.detach()
    from jax import lax

    return lax.stop_gradient(x)


def rsqrt(x: Array) -> Array:
    """`1 / sqrt(x)`."""
    if is_tensor(x):
        return x.rsqrt()
    from jax import lax

    return lax.rsqrt(x)


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    if is_tensor(x):
        return x.sigmoid()
    # The tanh form vectorises on CPUs where a division does not, and saturates without overflow.
    return 0.5 * namespace(x).tanh(0.5 * x) + 0.5


def relu(x: Array) -> Array:
    """`max(x, 0)`."""
    if is_tensor(x):
        return x.relu()
    import jax

    return jax.nn.relu(x)


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Means over some axes, which are kept with length 1; over none it is the identity."""
    if is_tensor(x) and not axes:
        return x
    return namespace(x).mean(x, axis=axes, keepdims=True)


def split(x: Array, parts: int) -> tuple[Array, ...]:
    """Equal parts of an array, along its first axis."""
    return x.chunk(parts) if is_tensor(x) else tuple(namespace(x).split(x, parts))


def linear(kernel: Array, x: Array) -> Array:
    """A matrix `[outputs, inputs]` times `[inputs, *shape]`."""
    if is_tensor(x):
        return sys.modules["torch"].tensordot(kernel, x, dims=1)
    import jax
    import jax.numpy as jnp

    # Float32 for real: a GPU's default precision would round the products to TF32.
    return jnp.tensordot(kernel, x, axes=1, precision=jax.lax.Precision.HIGHEST)


def shift(matrix: Array, by: float) -> Array:
    """A square matrix plus a multiple of the identity; a tensor is changed in place."""
    if is_tensor(matrix):
        matrix.diagonal(dim1=-2, dim2=-1).add_(by)
        return matrix
    identity = namespace(matrix).eye(matrix.shape[-1], dtype=matrix.dtype)
    return matrix + by * identity.reshape(*(1,) * (matrix.ndim - 2), *identity.shape)
