"""The networks of `cells` in JAX: fresh weights, and the derivative of a step."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from optim4rl.optimizers.arrays import linear
from optim4rl.optimizers.cells import (
    CARRIES,
    GATES,
    Carry as Carry,
    CellKind,
    Rows,
    Weights as Weights,
    cell_kernel,
    forward,
    head_layer,
    layer_norm,
    weight_shapes,
)


def init_network(
    key: PRNGKeyArray,
    cell: CellKind,
    num_inputs: int,
    hidden_size: int,
    head_sizes: tuple[int, ...],
    num_outputs: int,
    *,
    zero_head: bool,
    head_norm: bool = False,
) -> Weights:
    """Return fresh weights of one cell with its head.

    They start as in the paper's release: input and head kernels LeCun-normal, recurrent kernels
    orthogonal, biases zero. With `zero_head` the last layer, and so every output, starts at exactly
    zero. With `head_norm` the scales of the layer normalisation start at 1.
    """
    key_input, key_hidden, *key_head = jax.random.split(key, 3 + len(head_sizes))
    lecun = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    orthogonal = jax.nn.initializers.orthogonal()
    shapes = weight_shapes(cell, num_inputs, hidden_size, head_sizes, num_outputs, head_norm)
    weights = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
    if cell != "none":
        for name, draw, k in (("input", lecun, key_input), ("hidden", orthogonal, key_hidden)):
            gates, shape = jax.random.split(k, GATES[cell]), (hidden_size, shapes[name][1])
            weights[name] = jnp.concatenate([draw(gate, shape, jnp.float32) for gate in gates])
    for layer, k in enumerate(key_head):
        last = layer == len(head_sizes)
        if not (zero_head and last):
            weights[f"head{layer}"] = lecun(k, shapes[f"head{layer}"], jnp.float32)
        if head_norm and not last:
            weights[f"norm{layer}"] = jnp.ones_like(weights[f"norm{layer}"])
    return weights


def init_carry(cell: CellKind, hidden_size: int, shape: tuple[int, ...]) -> Carry:
    """Return a zero carry for coordinates of the given shape."""
    return tuple(jnp.zeros((hidden_size, *shape), jnp.float32) for _ in range(CARRIES[cell]))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def apply_network(
    weights: Weights, cell: CellKind, inputs: Float[Array, "features *shape"], carry: Carry
) -> tuple[Float[Array, "outputs *shape"], Carry]:
    """Make one step of the cell, then apply the head to the new hidden state.

    The reverse-mode derivative is written by hand below; there is no forward mode.
    """
    return forward(weights, cell, inputs, carry)[:2]


# Coordinates in one block: few enough for the activations of eight agents to stay in the cache.
BLOCK = 512


def apply_in_blocks(
    weights: Weights, cell: CellKind, inputs: Float[Array, "features *shape"], carry: Carry
) -> tuple[Float[Array, "outputs *shape"], Carry]:
    """Run `apply_network` on a block of coordinates at a time.

    OPEN's network on 61,440 coordinates takes a tenth of the time on one core (5 against 54 ms).
    """
    shape, n = inputs.shape[1:], math.prod(inputs.shape[1:])
    count = -(-n // BLOCK)
    if count <= 1:
        return apply_network(weights, cell, inputs, carry)
    size = -(-n // count)

    def cut(x: Float[Array, "rows *shape"]) -> Float[Array, "count rows size"]:
        padded = jnp.pad(x.reshape(len(x), n), ((0, 0), (0, count * size - n)))
        return jnp.moveaxis(padded.reshape(len(x), count, size), 1, 0)

    def join(x: Float[Array, "count rows size"]) -> Float[Array, "rows *shape"]:
        rows = x.shape[1]
        return jnp.moveaxis(x, 0, 1).reshape(rows, count * size)[:, :n].reshape(rows, *shape)

    blocks = jax.tree.map(cut, (inputs, carry))
    done = jax.lax.map(lambda block: apply_network(weights, cell, *block), blocks)
    joined: tuple[Array, Carry] = jax.tree.map(join, done)
    return joined


class _Residuals(NamedTuple):
    """The part of the forward pass (`cells.Pass`) that the backward pass reads."""

    weights: Weights
    carry: Carry
    reads: Array
    activations: Rows
    layers: list[Array]


def _forward(
    weights: Weights, cell: CellKind, inputs: Array, carry: Carry
) -> tuple[tuple[Array, Carry], _Residuals]:
    output, new_carry, *read = forward(weights, cell, inputs, carry)
    return (output, new_carry), _Residuals(weights, carry, *read)


def _backward(
    cell: CellKind, residuals: _Residuals, cotangents: tuple[Array, Carry]
) -> tuple[Weights, Array, Carry]:
    weights, carry, reads, activations, layers = residuals
    delta, d_carry = cotangents
    gradients: Weights = {}
    for layer in reversed(range(len(layers))):
        gradients[f"head{layer}"] = _outer(delta, layers[layer])
        gradients[f"head{layer}_bias"] = jnp.sum(delta, axis=range(1, delta.ndim))
        delta = _linear_transpose(weights[f"head{layer}"], delta)
        if layer > 0:
            delta = jnp.where(layers[layer] > 0, delta, 0.0)
            names = (f"norm{layer - 1}", f"norm{layer - 1}_bias")
            norm = {name: weights[name] for name in names if name in weights}
            if norm:
                before = head_layer(weights, layer - 1, layers[layer - 1])
                delta, *found = jax.vjp(layer_norm, before, *norm.values())[1](delta)
                gradients |= dict(zip(norm, found, strict=True))
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


apply_network.defvjp(_forward, _backward)


def _linear_transpose(
    kernel: Float[Array, "outputs inputs"], delta: Float[Array, "outputs *shape"]
) -> Float[Array, "inputs *shape"]:
    # The barrier makes the transpose a matrix of its own, computed once. XLA's CPU backend would
    # fold it into each product, which takes 1.5 times as long.
    return linear(jax.lax.optimization_barrier(kernel.T), delta)


def _outer(
    delta: Float[Array, "outputs *shape"], x: Float[Array, "inputs *shape"]
) -> Float[Array, "outputs inputs"]:
    """Return the gradient of a kernel: the sum over coordinates of `delta x^T`."""
    axes = tuple(range(1, delta.ndim))
    return jnp.tensordot(delta, x, axes=(axes, axes), precision=jax.lax.Precision.HIGHEST)


def cell_weights(kernel: Float[Array, "rows reads"], cell: CellKind, size: int) -> Weights:
    """Return the entries of a `cell_kernel` matrix as weights."""
    if cell == "lstm":
        return {"hidden": kernel[:, :size], "input": kernel[:, size:-1], "bias": kernel[:, -1]}
    of_input = jnp.concatenate([kernel[: 2 * size], kernel[3 * size :]])
    return {
        "hidden": kernel[: 3 * size, :size],
        "bias_new": kernel[2 * size : 3 * size, -1],
        "input": of_input[:, size:-1],
        "bias": of_input[:, -1],
    }


def cell_backward(
    cell: CellKind, carry: Carry, activations: Rows, cotangents: Carry
) -> tuple[Rows, Carry]:
    """Return derivatives by the four products, and by the carry with the products held fixed."""
    backward = _gru_backward if cell == "gru" else _lstm_backward
    return backward(carry, activations, cotangents)


def _gru_backward(carry: Carry, activations: Rows, cotangents: Carry) -> tuple[Rows, Carry]:
    (h,), (d_hidden,) = carry, cotangents
    reset, update, memory, new = activations
    d_new = d_hidden * (1.0 - update) * (1.0 - new * new)
    d_update = d_hidden * (h - new) * update * (1.0 - update)
    d_reset = d_new * memory * reset * (1.0 - reset)
    return (d_reset, d_update, d_new * reset, d_new), (d_hidden * update,)


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
