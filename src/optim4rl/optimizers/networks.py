"""The small networks inside a learned rule: a recurrent cell and an MLP head.

One network is shared by every coordinate of every agent, so there are few weights and very many
coordinates. Arrays put features first and coordinates last, `[features, *shape]`: each step is a
small matrix times a wide one, and elementwise work runs along contiguous memory.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

CellKind = Literal["gru", "lstm"]
CELL_KINDS: tuple[CellKind, ...] = ("gru", "lstm")

Weights = dict[str, Array]
# What a cell carries over from step to step: (h,) for a GRU, (h, c) for an LSTM.
Carry = tuple[Float[Array, "hidden *shape"], ...]

_GATES: dict[CellKind, int] = {"gru": 3, "lstm": 4}
_CARRIES: dict[CellKind, int] = {"gru": 1, "lstm": 2}


def carry_floats(cell: CellKind, hidden_size: int) -> int:
    """Floats of state that one network keeps for each coordinate."""
    return _CARRIES[cell] * hidden_size


def init_network(
    key: PRNGKeyArray,
    cell: CellKind,
    num_inputs: int,
    hidden_size: int,
    head_sizes: tuple[int, ...],
    num_outputs: int,
    *,
    zero_head: bool,
) -> Weights:
    """Weights of one cell with its head.

    Initialised as the paper's release does: input and head kernels LeCun-normal, recurrent kernels
    orthogonal, biases zero. With `zero_head` the last layer starts at zero, so that every output
    starts at exactly zero.
    """
    key_input, key_hidden, *key_head = jax.random.split(key, 3 + len(head_sizes))
    lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    orthogonal = jax.nn.initializers.orthogonal()
    gates = _GATES[cell]
    weights: Weights = {
        "input": jnp.concatenate(
            [
                lecun(k, (hidden_size, num_inputs), jnp.float32)
                for k in jax.random.split(key_input, gates)
            ]
        ),
        "hidden": jnp.concatenate(
            [
                orthogonal(k, (hidden_size, hidden_size), jnp.float32)
                for k in jax.random.split(key_hidden, gates)
            ]
        ),
        "bias": jnp.zeros((gates * hidden_size,), jnp.float32),
    }
    if cell == "gru":
        weights["bias_new"] = jnp.zeros((hidden_size,), jnp.float32)
    sizes = (hidden_size, *head_sizes, num_outputs)
    for layer, k in enumerate(key_head):
        shape = (sizes[layer + 1], sizes[layer])
        last = layer == len(head_sizes)
        kernel = (
            jnp.zeros(shape, jnp.float32) if zero_head and last else lecun(k, shape, jnp.float32)
        )
        weights[f"head{layer}"] = kernel
        weights[f"head{layer}_bias"] = jnp.zeros((shape[0],), jnp.float32)
    return weights


def init_carry(cell: CellKind, hidden_size: int, shape: tuple[int, ...]) -> Carry:
    """A zero carry for coordinates of the given shape."""
    return tuple(jnp.zeros((hidden_size, *shape), jnp.float32) for _ in range(_CARRIES[cell]))


def apply_network(
    weights: Weights, cell: CellKind, inputs: Float[Array, "features *shape"], carry: Carry
) -> tuple[Float[Array, "outputs *shape"], Carry]:
    """One step of the cell, then the head on the new hidden state."""
    carry = _gru(weights, inputs, *carry) if cell == "gru" else _lstm(weights, inputs, *carry)
    x = carry[0]
    layers = sum(name.startswith("head") and not name.endswith("bias") for name in weights)
    for layer in range(layers):
        x = _affine(weights[f"head{layer}"], x, weights[f"head{layer}_bias"])
        if layer + 1 < layers:
            x = jax.nn.relu(x)
    return x, carry


def _linear(
    kernel: Float[Array, "outputs inputs"], x: Float[Array, "inputs *shape"]
) -> Float[Array, "outputs *shape"]:
    # Float32 for real: a GPU's default precision would round the products to TF32.
    return jnp.tensordot(kernel, x, axes=1, precision=jax.lax.Precision.HIGHEST)


def _affine(
    kernel: Float[Array, "outputs inputs"],
    x: Float[Array, "inputs *shape"],
    bias: Float[Array, " outputs"],
) -> Float[Array, "outputs *shape"]:
    return _linear(kernel, x) + _column(bias, x)


def _column(bias: Float[Array, " n"], like: Array) -> Array:
    """A bias shaped to be added to `[n, *shape]`."""
    return bias.reshape(-1, *(1,) * (like.ndim - 1))


def _sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # The tanh form vectorises on CPUs where a division does not, and saturates without overflow.
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _gru(weights: Weights, x: Array, h: Array) -> Carry:
    """Cho et al. 2014 in cuDNN's form: the reset gate acts after the recurrent product."""
    gates = _affine(weights["input"], x, weights["bias"])
    recurrent = _linear(weights["hidden"], h)
    reset_in, update_in, new_in = jnp.split(gates, 3)
    reset_h, update_h, new_h = jnp.split(recurrent, 3)
    reset = _sigmoid(reset_in + reset_h)
    update = _sigmoid(update_in + update_h)
    new = jnp.tanh(new_in + reset * (new_h + _column(weights["bias_new"], new_h)))
    return ((1.0 - update) * new + update * h,)


def _lstm(weights: Weights, x: Array, h: Array, c: Array) -> Carry:
    """Hochreiter and Schmidhuber 1997 with forget gates; gate order input, forget, new, output."""
    gates = _affine(weights["input"], x, weights["bias"]) + _linear(weights["hidden"], h)
    write, forget, new, output = jnp.split(gates, 4)
    c = _sigmoid(forget) * c + _sigmoid(write) * jnp.tanh(new)
    return _sigmoid(output) * jnp.tanh(c), c
