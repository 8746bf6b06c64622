"""The small networks inside a learned rule, in torch: the forward pass of `optimizers.networks`.

Arrays put features first and coordinates last, `[features, n]`.
"""

import itertools
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

# "none" is no cell: the head reads the features, and nothing is carried over.
CellKind = Literal["gru", "lstm", "none"]
CELL_KINDS: tuple[CellKind, ...] = get_args(CellKind)

Weights = Mapping[str, Tensor]
# (h,) for a GRU, (h, c) for an LSTM, () for none.
Carry = tuple[Float[Tensor, "hidden n"], ...]

_GATES: dict[CellKind, int] = {"gru": 3, "lstm": 4, "none": 0}
CARRIES: dict[CellKind, int] = {"gru": 1, "lstm": 2, "none": 0}


def weight_shapes(
    cell: CellKind,
    num_inputs: int,
    hidden_size: int,
    head_sizes: tuple[int, ...],
    num_outputs: int,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of one network's weights."""
    rows = _GATES[cell] * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if cell != "none":
        shapes = {"input": (rows, num_inputs), "hidden": (rows, hidden_size), "bias": (rows,)}
    if cell == "gru":
        shapes["bias_new"] = (hidden_size,)
    sizes = (num_inputs if cell == "none" else hidden_size, *head_sizes, num_outputs)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"head{layer}": (outputs, inputs), f"head{layer}_bias": (outputs,)}
    return shapes


def apply_network(
    weights: Weights, cell: CellKind, inputs: Float[Tensor, "features n"], carry: Carry
) -> tuple[Float[Tensor, "outputs n"], Carry]:
    """One step of the cell, then the head on the new hidden state."""
    x = inputs
    if cell != "none":
        carry = (_gru if cell == "gru" else _lstm)(weights, inputs, carry)
        x = carry[0]
    last = sum(name.startswith("head") and not name.endswith("bias") for name in weights) - 1
    for layer in range(last + 1):
        x = _affine(weights[f"head{layer}"], x, weights[f"head{layer}_bias"])
        x = x.relu() if layer < last else x
    return x, carry


def _affine(
    kernel: Float[Tensor, "outputs inputs"],
    x: Float[Tensor, "inputs n"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "outputs n"]:
    return torch.addmm(bias[:, None], kernel, x)


def _gru(weights: Weights, inputs: Float[Tensor, "features n"], carry: Carry) -> Carry:
    """Cho et al. 2014 in cuDNN's form: the reset gate acts after the recurrent product."""
    (h,) = carry
    reset_in, update_in, new_in = _affine(weights["input"], inputs, weights["bias"]).chunk(3)
    reset_h, update_h, new_h = (weights["hidden"] @ h).chunk(3)
    update = (update_in + update_h).sigmoid()
    memory = new_h + weights["bias_new"][:, None]
    new = (new_in + (reset_in + reset_h).sigmoid() * memory).tanh()
    return ((1.0 - update) * new + update * h,)


def _lstm(weights: Weights, inputs: Float[Tensor, "features n"], carry: Carry) -> Carry:
    """Hochreiter and Schmidhuber 1997 with forget gates."""
    h, c = carry
    products = _affine(weights["input"], inputs, weights["bias"]) + weights["hidden"] @ h
    write, forget, new, output = products.chunk(4)
    c = forget.sigmoid() * c + write.sigmoid() * new.tanh()
    return output.sigmoid() * c.tanh(), c
