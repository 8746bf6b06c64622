"""The forward pass of the small networks inside a learned rule: a recurrent cell and an MLP head.

Every coordinate of every agent shares one network, so there are few weights and very many
coordinates. Arrays put features first and coordinates last, `[features, *shape]`: each step is a
small matrix times a wide one, and elementwise work runs along contiguous memory. JAX and PyTorch
share these formulae (`arrays`).
"""

import itertools
from collections.abc import Mapping
from typing import Literal, NamedTuple

from jaxtyping import Float

from optim4rl.optimizers.arrays import Array, linear, mean, namespace, relu, rsqrt, sigmoid, split

# "none" is no cell: the head reads the features, and nothing is carried over.
CellKind = Literal["gru", "lstm", "none"]

Weights = dict[str, Array]
# What a cell carries over from step to step: (h,) for a GRU, (h, c) for an LSTM, () for none.
Carry = tuple[Float[Array, "hidden *shape"], ...]
# One array per product or activation of a cell.
Rows = tuple[Float[Array, "hidden *shape"], ...]

GATES: Mapping[CellKind, int] = {"gru": 3, "lstm": 4, "none": 0}
CARRIES: Mapping[CellKind, int] = {"gru": 1, "lstm": 2, "none": 0}

# Flax's epsilon, with which OPEN's weights were trained.
_NORM_EPSILON = 1e-6


def weight_shapes(
    cell: CellKind,
    num_inputs: int,
    hidden_size: int,
    head_sizes: tuple[int, ...],
    num_outputs: int,
    head_norm: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of one network's weights."""
    rows = GATES[cell] * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if cell != "none":
        shapes = {"input": (rows, num_inputs), "hidden": (rows, hidden_size), "bias": (rows,)}
    if cell == "gru":
        shapes["bias_new"] = (hidden_size,)
    sizes = (num_inputs if cell == "none" else hidden_size, *head_sizes, num_outputs)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"head{layer}": (outputs, inputs), f"head{layer}_bias": (outputs,)}
        if head_norm and layer < len(head_sizes):
            shapes |= {f"norm{layer}": (outputs,), f"norm{layer}_bias": (outputs,)}
    return shapes


class Pass(NamedTuple):
    """One step of a network, with the arrays for its backward pass.

    Attributes:
        output: the head's output.
        carry: the new carry.
        reads: `[h, inputs, 1]`, which the cell's single matrix multiplies.
        activations: the cell's activations, in the order of its backward pass.
        layers: the inputs of each layer of the head; first the new hidden state, or without a cell
            the inputs.
    """

    output: Float[Array, "outputs *shape"]
    carry: Carry
    reads: Array
    activations: Rows
    layers: list[Array]


def forward(
    weights: Weights,
    cell: CellKind,
    inputs: Float[Array, "features *shape"],
    carry: Carry,
    kernel: Float[Array, "rows reads"] | None = None,
) -> Pass:
    """Make one step of the cell, then apply the head to the new hidden state.

    Args:
        weights: the network's weights.
        cell: its cell.
        inputs: the features.
        carry: the carry of the last step.
        kernel: the `cell_kernel` of these weights, if it has been computed.
    """
    reads, new_carry = inputs, carry
    activations: Rows = ()
    if cell != "none":
        xp = namespace(inputs)
        reads = xp.concatenate([carry[0], inputs, xp.ones_like(inputs[:1])])
        products = linear(cell_kernel(weights, cell) if kernel is None else kernel, reads)
        new_carry, activations = cell_forward(cell, split(products, 4), carry)
    layers = [new_carry[0] if new_carry else inputs]
    for layer in range(num_layers(weights)):
        x = head_layer(weights, layer, layers[-1])
        if f"norm{layer}" in weights:
            x = layer_norm(x, weights[f"norm{layer}"], weights[f"norm{layer}_bias"])
        layers.append(relu(x))
    return Pass(x, new_carry, reads, activations, layers[:-1])


def num_layers(weights: Weights) -> int:
    """Return the number of layers of the head, including the last."""
    return sum(name.startswith("head") and not name.endswith("bias") for name in weights)


def head_layer(
    weights: Weights, layer: int, x: Float[Array, "inputs *shape"]
) -> Float[Array, "outputs *shape"]:
    """Apply a layer of the head, before its normalisation or ReLU."""
    return linear(weights[f"head{layer}"], x) + _column(weights[f"head{layer}_bias"], x)


def layer_norm(
    x: Float[Array, "units *shape"], scale: Float[Array, " units"], bias: Float[Array, " units"]
) -> Float[Array, "units *shape"]:
    """Normalise units to mean 0 and variance 1 at each coordinate.

    Source: Ba et al. 2016 (arXiv 1607.06450).
    """
    centred = x - mean(x, (0,))
    size = rsqrt(mean(centred * centred, (0,)) + _NORM_EPSILON)
    return centred * size * _column(scale, x) + _column(bias, x)


def _column(values: Float[Array, " units"], like: Array) -> Float[Array, "units *ones"]:
    """Reshape a number for each unit to broadcast with `[units, *shape]`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def cell_kernel(weights: Weights, cell: CellKind) -> Float[Array, "rows reads"]:
    """Return the cell's products as one matrix, which reads `[h, inputs, 1]`.

    A GRU's rows are reset, update, memory (of h) and new (of the inputs), an LSTM's input, forget,
    new and output gates. One product computes all, biases included, and one computes the gradient
    of all. On a CPU the call of a small product costs more than the zeros that this product
    multiplies.
    """
    xp = namespace(weights["hidden"])
    hidden, inputs, bias = weights["hidden"], weights["input"], weights["bias"][:, None]
    if cell == "lstm":
        return xp.concatenate([hidden, inputs, bias], 1)
    size = hidden.shape[1]
    new = 2 * size
    memory = xp.concatenate(
        [hidden[new:], xp.zeros_like(inputs[new:]), weights["bias_new"][:, None]], 1
    )
    of_input = xp.concatenate([xp.zeros_like(hidden[new:]), inputs[new:], bias[new:]], 1)
    both = xp.concatenate([hidden[:new], inputs[:new], bias[:new]], 1)
    return xp.concatenate([both, memory, of_input])


def cell_forward(cell: CellKind, products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """Return the new carry, and `cell_backward`'s activations, from the cell's four products.

    The products are four arrays `[hidden, *shape]`, from the rows of `cell_kernel`. Everything here
    is elementwise.
    """
    return (_gru if cell == "gru" else _lstm)(products, carry)


def _gru(products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """Compute a GRU (Cho et al. 2014) as cuDNN: the reset gate acts after the recurrent product."""
    (reset_in, update_in, memory, new_in), (h,) = products, carry
    reset, update = sigmoid(reset_in), sigmoid(update_in)
    new = namespace(h).tanh(new_in + reset * memory)
    return ((1.0 - update) * new + update * h,), (reset, update, memory, new)


def _lstm(products: Rows, carry: Carry) -> tuple[Carry, Rows]:
    """Compute an LSTM (Hochreiter and Schmidhuber 1997) with forget gates."""
    (write_in, forget_in, new_in, output_in), (_, c) = products, carry
    write, forget, output = sigmoid(write_in), sigmoid(forget_in), sigmoid(output_in)
    tanh = namespace(c).tanh
    new = tanh(new_in)
    c = forget * c + write * new
    squashed = tanh(c)
    return (output * squashed, c), (write, forget, new, output, squashed)
