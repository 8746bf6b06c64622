"""The small networks inside a learned rule: a recurrent cell and an MLP head.

One network is shared by every coordinate of every agent, so there are few weights and very many
coordinates. Arrays put features first and coordinates last, `[features, *shape]`: each step is a
small matrix times a wide one, and elementwise work runs along contiguous memory.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# "none" is no cell: the head reads the features, and nothing is carried over.
CellKind = Literal["gru", "lstm", "none"]
CELL_KINDS: tuple[CellKind, ...] = ("gru", "lstm", "none")

Weights = dict[str, Array]
# What a cell carries over from step to step: (h,) for a GRU, (h, c) for an LSTM, () for none.
Carry = tuple[Float[Array, "hidden *shape"], ...]
# One array per product or activation of a cell.
Rows = tuple[Float[Array, "hidden *shape"], ...]

_GATES: dict[CellKind, int] = {"gru": 3, "lstm": 4, "none": 0}
_CARRIES: dict[CellKind, int] = {"gru": 1, "lstm": 2, "none": 0}


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
    weights: Weights = {}
    if cell != "none":
        weights = _init_cell(key_input, key_hidden, cell, num_inputs, hidden_size)
    sizes = (num_inputs if cell == "none" else hidden_size, *head_sizes, num_outputs)
    for layer, k in enumerate(key_head):
        shape = (sizes[layer + 1], sizes[layer])
        last = layer == len(head_sizes)
        kernel = (
            jnp.zeros(shape, jnp.float32) if zero_head and last else lecun(k, shape, jnp.float32)
        )
        weights[f"head{layer}"] = kernel
        weights[f"head{layer}_bias"] = jnp.zeros((shape[0],), jnp.float32)
    return weights


def _init_cell(
    key_input: PRNGKeyArray,
    key_hidden: PRNGKeyArray,
    cell: CellKind,
    num_inputs: int,
    hidden_size: int,
) -> Weights:
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
    return weights


def init_carry(cell: CellKind, hidden_size: int, shape: tuple[int, ...]) -> Carry:
    """A zero carry for coordinates of the given shape."""
    return tuple(jnp.zeros((hidden_size, *shape), jnp.float32) for _ in range(_CARRIES[cell]))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def apply_network(
    weights: Weights, cell: CellKind, inputs: Float[Array, "features *shape"], carry: Carry
) -> tuple[Float[Array, "outputs *shape"], Carry]:
    """One step of the cell, then the head on the new hidden state.

    Its reverse-mode derivative is written by hand below; forward mode is not offered.
    """
    return _forward(weights, cell, inputs, carry)[0]


class _Residuals(NamedTuple):
    """What the backward pass reads of the forward pass.

    Attributes:
        reads: `[h, inputs, 1]`, what the cell's one matrix is multiplied by.
        activations: of the cell, in the order in which its backward pass takes them.
        layers: what each layer of the head read, the new hidden state (or, without a cell, the
            inputs) first.
    """

    weights: Weights
    reads: Array
    carry: Carry
    activations: tuple[Array, ...]
    layers: list[Array]


def _forward(
    weights: Weights, cell: CellKind, inputs: Array, carry: Carry
) -> tuple[tuple[Array, Carry], _Residuals]:
    reads, new_carry = inputs, carry
    activations: Rows = ()
    if cell != "none":
        reads = jnp.concatenate([carry[0], inputs, jnp.ones_like(inputs[:1])])
        products = _linear(cell_kernel(weights, cell), reads)
        new_carry, activations = cell_forward(cell, tuple(jnp.split(products, 4)), carry)
    layers = [new_carry[0] if new_carry else inputs]
    for layer in range(num_layers(weights)):
        x = _affine(weights[f"head{layer}"], layers[-1], weights[f"head{layer}_bias"])
        layers.append(jax.nn.relu(x))
    *layers, _ = layers
    return (x, new_carry), _Residuals(weights, reads, carry, activations, layers)


def _backward(
    cell: CellKind, residuals: _Residuals, cotangents: tuple[Array, Carry]
) -> tuple[Weights, Array, Carry]:
    weights, reads, carry, activations, layers = residuals
    delta, d_carry = cotangents
    gradients: Weights = {}
    for layer in reversed(range(len(layers))):
        gradients[f"head{layer}"] = _outer(delta, layers[layer])
        gradients[f"head{layer}_bias"] = _total(delta)
        delta = _linear_transpose(weights[f"head{layer}"], delta)
        if layer > 0:
            delta = jnp.where(layers[layer] > 0, delta, 0.0)
    if cell == "none":
        return gradients, delta, ()
    d_hidden, *d_rest = d_carry
    deltas, (d_h, *d_state) = cell_backward(cell, carry, activations, (delta + d_hidden, *d_rest))
    d_products = jnp.concatenate(deltas)
    size = carry[0].shape[0]
    gradients |= cell_weights(_outer(d_products, reads), cell, size)
    kernel = cell_kernel(weights, cell)
    d_h = d_h + _linear_transpose(kernel[:, :size], d_products)
    d_inputs = _linear_transpose(kernel[:, size:-1], d_products)
    return gradients, d_inputs, (d_h, *d_state)


apply_network.defvjp(
    lambda weights, cell, inputs, carry: _forward(weights, cell, inputs, carry), _backward
)


def num_layers(weights: Weights) -> int:
    """Layers of the head, the last one included."""
    return sum(name.startswith("head") and not name.endswith("bias") for name in weights)


def _linear(
    kernel: Float[Array, "outputs inputs"], x: Float[Array, "inputs *shape"]
) -> Float[Array, "outputs *shape"]:
    # Float32 for real: a GPU's default precision would round the products to TF32.
    return jnp.tensordot(kernel, x, axes=1, precision=jax.lax.Precision.HIGHEST)


def _linear_transpose(
    kernel: Float[Array, "outputs inputs"], delta: Float[Array, "outputs *shape"]
) -> Float[Array, "inputs *shape"]:
    # Behind the barrier the transpose is a matrix of its own, made once: XLA's CPU backend would
    # fold it into each product, which takes 1.5 times as long.
    return _linear(jax.lax.optimization_barrier(kernel.T), delta)


def _outer(
    delta: Float[Array, "outputs *shape"], x: Float[Array, "inputs *shape"]
) -> Float[Array, "outputs inputs"]:
    """The gradient of a kernel: the sum over coordinates of `delta x^T`."""
    axes = tuple(range(1, delta.ndim))
    return jnp.tensordot(delta, x, axes=(axes, axes), precision=jax.lax.Precision.HIGHEST)


def _total(delta: Float[Array, "outputs *shape"]) -> Float[Array, " outputs"]:
    return jnp.sum(delta, axis=range(1, delta.ndim))


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


def cell_kernel(weights: Weights, cell: CellKind) -> Float[Array, "rows reads"]:
    """The cell's products as one matrix, which reads `[h, inputs, 1]`.

    A GRU's rows are reset, update, memory (of h) and new (of the inputs), an LSTM's input, forget,
    new and output gates. One product for all, biases included, and one for the gradient of all: on
    a CPU each small product costs more in its call than in the zeros that this one multiplies.
    """
    hidden, inputs, bias = weights["hidden"], weights["input"], weights["bias"][:, None]
    if cell == "lstm":
        return jnp.concatenate([hidden, inputs, bias], axis=1)
    size = hidden.shape[1]
    new = 2 * size
    memory = jnp.concatenate(
        [hidden[new:], jnp.zeros_like(inputs[new:]), weights["bias_new"][:, None]], axis=1
    )
    of_input = jnp.concatenate([jnp.zeros_like(hidden[new:]), inputs[new:], bias[new:]], axis=1)
    both = jnp.concatenate([hidden[:new], inputs[:new], bias[:new]], axis=1)
    return jnp.concatenate([both, memory, of_input])


def cell_weights(kernel: Float[Array, "rows reads"], cell: CellKind, size: int) -> Weights:
    """The entries of `cell_kernel` as weights again."""
    if cell == "lstm":
        return {"hidden": kernel[:, :size], "input": kernel[:, size:-1], "bias": kernel[:, -1]}
    of_input = jnp.concatenate([kernel[: 2 * size], kernel[3 * size :]])
    return {
        "hidden": kernel[: 3 * size, :size],
        "bias_new": kernel[2 * size : 3 * size, -1],
        "input": of_input[:, size:-1],
        "bias": of_input[:, -1],
    }


def cell_forward(cell: CellKind, products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """The new carry, and the activations that `cell_backward` reads, of the cell's four products.

    The rows of `cell_kernel` come as four arrays `[hidden, *shape]`: all is elementwise here.
    """
    return (_gru if cell == "gru" else _lstm)(products, carry)


def cell_backward(
    cell: CellKind, carry: Carry, activations: Rows, cotangents: Carry
) -> tuple[Rows, Carry]:
    """The derivatives by the four products, and those by the carry that pass them by."""
    backward = _gru_backward if cell == "gru" else _lstm_backward
    return backward(carry, activations, cotangents)


def _gru(products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """Cho et al. 2014 in cuDNN's form: the reset gate acts after the recurrent product."""
    (reset_in, update_in, memory, new_in), (h,) = products, carry
    reset, update = _sigmoid(reset_in), _sigmoid(update_in)
    new = jnp.tanh(new_in + reset * memory)
    return ((1.0 - update) * new + update * h,), (reset, update, memory, new)


def _gru_backward(carry: Carry, activations: Rows, cotangents: Carry) -> tuple[Rows, Carry]:
    (h,), (d_hidden,) = carry, cotangents
    reset, update, memory, new = activations
    d_new = d_hidden * (1.0 - update) * (1.0 - new * new)
    d_update = d_hidden * (h - new) * update * (1.0 - update)
    d_reset = d_new * memory * reset * (1.0 - reset)
    return (d_reset, d_update, d_new * reset, d_new), (d_hidden * update,)


def _lstm(products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """Hochreiter and Schmidhuber 1997 with forget gates."""
    (write_in, forget_in, new_in, output_in), (_, c) = products, carry
    write, forget, output = _sigmoid(write_in), _sigmoid(forget_in), _sigmoid(output_in)
    new = jnp.tanh(new_in)
    c = forget * c + write * new
    squashed = jnp.tanh(c)
    return (output * squashed, c), (write, forget, new, output, squashed)


def _lstm_backward(carry: Carry, activations: Rows, cotangents: Carry) -> tuple[Rows, Carry]:
    (h, c), (d_hidden, d_cell) = carry, cotangents
    write, forget, new, output, squashed = activations
    d_cell = d_cell + d_hidden * output * (1.0 - squashed * squashed)
    deltas = (
        d_cell * new * write * (1.0 - write),
        d_cell * c * forget * (1.0 - forget),
        d_cell * write * (1.0 - new * new),
        d_hidden * squashed * output * (1.0 - output),
    )
    return deltas, (jnp.zeros_like(h), d_cell * forget)
