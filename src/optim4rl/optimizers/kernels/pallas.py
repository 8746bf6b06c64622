"""The rule on GPUs: each network's K steps as one fused kernel, forward and backward, in Triton.

A program holds one block of coordinates: it reads the carries once, keeps them and every activation
in registers through the K steps, and writes the carries once. Its products are Triton dots in exact
float32 over the networks' matrices, padded with zeros to powers of two of at least 16. The backward
kernel reads the carries that the forward kernel left after each step and recomputes the rest; each
program sums the weights' gradients of its blocks, and those sums are added in a fixed order.

XLA computes the networks' inputs and the formula of the update, which are elementwise. So every
processing and every structure that reads single coordinates runs here, with a GRU or an LSTM. The
inputs and outputs pass through the GPU's memory, as do the K cotangents of the directions: a replay
keeps `K * (hidden + features + outputs)` floats for each coordinate.

Written without a GPU: tests compare the interpreter with the XLA kernel and lower the kernels to
Triton, but nobody has measured speed, block size and number of warps. So "auto" does not choose
this kernel; ask for it with `kernel="pallas"`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from optim4rl.optimizers import rule
from optim4rl.optimizers.cells import (
    Carry,
    CellKind,
    Rows,
    Weights,
    cell_forward,
    cell_kernel,
    num_layers,
)
from optim4rl.optimizers.inputs import rows_at, segments
from optim4rl.optimizers.kernels.interface import Kernel, structure_refusal
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.networks import cell_backward
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import Reading

# Coordinates held by one program: a tile of 16 features is 8 registers of each of 128 threads.
BLOCK = 64
NUM_WARPS = 4
# Most programs of a backward pass. Each writes its own sum of the weights' gradients.
MAX_PROGRAMS = 1024
# The smallest side of a matrix that Triton's dot accepts.
MIN_TILE = 16

# Which of a cell's four products read the hidden state, and which read the inputs.
_ALL = (True, True, True, True)
_READS_HIDDEN: dict[CellKind, tuple[bool, ...]] = {"gru": (True, True, True, False), "lstm": _ALL}
_READS_INPUTS: dict[CellKind, tuple[bool, ...]] = {"gru": (True, True, False, True), "lstm": _ALL}


class _Tiles(NamedTuple):
    """The weights of one network, each side padded with zeros to a power of two.

    Attributes:
        hidden: `[4, H, H]`, the cell's four products of the hidden state.
        inputs: `[4, H, F]`, the cell's four products of the inputs.
        bias: `[4, H]`.
        head: for each layer its kernel `[P_out, P_in]` and bias `[P_out]`.
    """

    hidden: Any
    inputs: Any
    bias: Any
    head: tuple[tuple[Any, Any], ...]


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    *,
    layout: Layout = (),
    interpret: bool = False,
) -> tuple[Float[Array, " n"], RuleState]:
    """Run `rule.step` with fused networks."""
    features, readings = _read(spec, gradient[None], state, layout)
    outputs, carries = zip(
        *(
            _run(_tiles(spec.cell, weights), spec.cell, weights, x, carry, interpret)
            for weights, x, carry in _each(meta_parameters, features, state)
        ),
        strict=True,
    )
    (direction,) = _write(spec, readings, outputs)
    last = jax.tree.map(lambda after: after[-1], carries)
    return direction, RuleState(last, readings[-1].moments, state.age + 1)


def replay_vjp(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K n"],
    state: RuleState,
    cotangents: Float[Array, "K n"],
    *,
    layout: Layout = (),
    interpret: bool = False,
) -> MetaParameters:
    """Return the meta-gradient, like `Kernel.replay_vjp`.

    Args:
        interpret: run the kernels in Pallas' interpreter, on any platform.
    """
    features, readings = _read(spec, gradients, state, layout)
    tiles, pullbacks, outputs, carries = [], [], [], []
    for weights, x, carry in _each(meta_parameters, features, state):
        padded, pullback = jax.vjp(partial(_tiles, spec.cell), weights)
        output, after = _run(padded, spec.cell, weights, x, carry, interpret)
        tiles.append(padded)
        pullbacks.append(pullback)
        outputs.append(output)
        carries.append((carry, after))
    _, to_outputs = jax.vjp(partial(_write, spec, readings), tuple(outputs))
    (deltas,) = to_outputs(cotangents)
    return {
        f"network{i}": pullback(_run_backward(padded, spec.cell, x, *carry, delta, interpret))[0]
        for i, (padded, pullback, x, carry, delta) in enumerate(
            zip(tiles, pullbacks, features, carries, deltas, strict=True)
        )
    }


def _each(
    meta_parameters: MetaParameters, features: tuple[Array, ...], state: RuleState
) -> list[tuple[Weights, Array, Carry]]:
    return [
        (meta_parameters[f"network{i}"], x, carry)
        for i, (x, carry) in enumerate(zip(features, state.carries, strict=True))
    ]


def _read(
    spec: OptimizerSpec, gradients: Float[Array, "K n"], state: RuleState, layout: Layout
) -> tuple[tuple[Float[Array, "K _ n"], ...], list[Reading]]:
    """Return each network's inputs at each step, and each step's `Reading` for `_write`."""
    n = gradients.shape[-1]
    rows = None
    if spec.inputs:
        rows = rows_at(segments(spec.inputs, layout, n), jnp.arange(n, dtype=jnp.int32))
    moments, features, readings = state.moments, [], []
    for k, gradient in enumerate(gradients):
        x, reading = rule.read(spec, gradient, moments, state.age + k, rows)
        moments = reading.moments
        features.append(x)
        readings.append(reading)
    return tuple(map(jnp.stack, zip(*features, strict=True))), readings


def _write(
    spec: OptimizerSpec, readings: list[Reading], outputs: tuple[Float[Array, "K _ n"], ...]
) -> Float[Array, "K n"]:
    """Return the direction of each step."""
    return jnp.stack(
        [
            rule.write(spec, reading, tuple(x[k] for x in outputs))
            for k, reading in enumerate(readings)
        ]
    )


def _tiles(cell: CellKind, weights: Weights) -> _Tiles:
    size = weights["hidden"].shape[1]
    kernel = cell_kernel(weights, cell).reshape(4, size, -1)
    return _Tiles(
        hidden=_pad(kernel[:, :, :size], 2),
        inputs=_pad(kernel[:, :, size:-1], 2),
        bias=_pad(kernel[:, :, -1], 1),
        head=tuple(
            (_pad(weights[f"head{i}"], 2), _pad(weights[f"head{i}_bias"], 1))
            for i in range(num_layers(weights))
        ),
    )


def _pad(x: Array, axes: int) -> Array:
    """Pad the last `axes` axes with zeros to sizes that Triton accepts."""
    widths = [(0, max(MIN_TILE, pl.next_power_of_2(n)) - n) for n in x.shape[-axes:]]
    return jnp.pad(x, [(0, 0)] * (x.ndim - axes) + widths)


def _run(
    tiles: _Tiles,
    cell: CellKind,
    weights: Weights,
    inputs: Float[Array, "K features n"],
    carry: Carry,
    interpret: bool,
) -> tuple[Float[Array, "K outputs n"], tuple[Float[Array, "K hidden n"], ...]]:
    """Return the head's outputs, and the carry after each step."""
    K, _, n = inputs.shape
    outputs = weights[f"head{num_layers(weights) - 1}"].shape[0]
    shapes = (
        jax.ShapeDtypeStruct((K, outputs, n), jnp.float32),
        tuple(jax.ShapeDtypeStruct((K, *x.shape), jnp.float32) for x in carry),
    )
    call = pl.pallas_call(
        partial(_forward_kernel, cell),
        shapes,
        grid=(pl.cdiv(n, BLOCK),),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS),
        interpret=interpret,
        name="optim4rl_forward",
    )
    return call(tiles, inputs, carry)


def _run_backward(
    tiles: _Tiles,
    cell: CellKind,
    inputs: Float[Array, "K features n"],
    carry: Carry,
    after: tuple[Float[Array, "K hidden n"], ...],
    deltas: Float[Array, "K outputs n"],
    interpret: bool,
) -> _Tiles:
    """Return the gradient of the tiles, given the gradient of the outputs."""
    programs = min(pl.cdiv(inputs.shape[-1], BLOCK), MAX_PROGRAMS)

    def one_each(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape), lambda program: (program, *(0,) * x.ndim))

    call = pl.pallas_call(
        partial(_backward_kernel, cell, programs),
        (jax.tree.map(lambda x: jax.ShapeDtypeStruct((programs, *x.shape), x.dtype), tiles),),
        grid=(programs,),
        out_specs=(jax.tree.map(one_each, tiles),),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS),
        interpret=interpret,
        name="optim4rl_backward",
    )
    (partial_sums,) = call(tiles, inputs, carry, after, deltas)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), partial_sums)


def _forward_kernel(
    cell: CellKind, tiles: _Tiles, inputs: Any, carry: Any, outputs: Any, after: Any
) -> None:
    columns = pl.program_id(0) * BLOCK + jnp.arange(BLOCK)
    H, F = tiles.inputs.shape[1:]

    def body(k: Array, state: Carry) -> Carry:
        products = _products(tiles, cell, _load(inputs, F, columns, k), state[0])
        state, _ = cell_forward(cell, products, state)
        _store(outputs, _head(tiles, state[0])[-1], columns, k)
        for ref, x in zip(after, state, strict=True):
            _store(ref, x, columns, k)
        return state

    jax.lax.fori_loop(0, inputs.shape[0], body, tuple(_load(ref, H, columns) for ref in carry))


def _backward_kernel(
    cell: CellKind,
    programs: int,
    tiles: _Tiles,
    inputs: Any,
    carry: Any,
    after: Any,
    deltas: Any,
    sums: _Tiles,
) -> None:
    K, _, n = inputs.shape
    H, F = tiles.inputs.shape[1:]
    P = tiles.head[-1][1].shape[0]

    program = pl.program_id(0)

    def add_block(index: Array, total: Any) -> Any:
        columns = (program + index * programs) * BLOCK + jnp.arange(BLOCK)

        def body(index: Array, state: tuple[Any, Carry]) -> tuple[Any, Carry]:
            total, d_carry = state
            k = K - 1 - index
            before = tuple(
                jnp.where(
                    k == 0,
                    _load(first, H, columns),
                    _load(ref, H, columns, jnp.maximum(k - 1, 0)),
                )
                for first, ref in zip(carry, after, strict=True)
            )
            x, delta = _load(inputs, F, columns, k), _load(deltas, P, columns, k)
            gradient, d_carry = _step_backward(tiles, cell, x, before, delta, d_carry)
            return jax.tree.map(jnp.add, total, gradient), d_carry

        zero = tuple(jnp.zeros((H, BLOCK), jnp.float32) for _ in carry)
        return jax.lax.fori_loop(0, K, body, (total, zero))[0]

    def zeros_like(ref: Any) -> tuple[Array, ...]:
        return tuple(jnp.zeros(ref.shape[1:], jnp.float32) for _ in range(4))

    zeros = _Tiles(
        hidden=zeros_like(tiles.hidden),
        inputs=zeros_like(tiles.inputs),
        bias=zeros_like(tiles.bias),
        head=jax.tree.map(lambda ref: jnp.zeros(ref.shape, jnp.float32), tiles.head),
    )
    blocks = pl.cdiv(pl.cdiv(n, BLOCK), programs)
    total = jax.lax.fori_loop(0, blocks, add_block, zeros)
    for row in range(4):
        sums.hidden[0, row] = total.hidden[row]
        sums.inputs[0, row] = total.inputs[row]
        sums.bias[0, row] = total.bias[row]
    for refs, values in zip(sums.head, total.head, strict=True):
        for ref, value in zip(refs, values, strict=True):
            ref[0] = value


def _step_backward(
    tiles: _Tiles, cell: CellKind, x: Array, before: Carry, delta: Array, d_carry: Carry
) -> tuple[_Tiles, Carry]:
    """Return one step's gradient by the tiles, the four products in tuples, and by the carry."""
    new_carry, activations = cell_forward(cell, _products(tiles, cell, x, before[0]), before)
    layers = _head(tiles, new_carry[0])
    head = []
    for i, (kernel, _) in reversed(list(enumerate(tiles.head))):
        head.append((_dot(delta, layers[i], (1, 1)), jnp.sum(delta, axis=1)))
        delta = _dot(kernel[...], delta, (0, 0))
        if i > 0:
            delta = jnp.where(layers[i] > 0, delta, 0.0)
    d_products, (d_h, *d_rest) = cell_backward(
        cell, before, activations, (delta + d_carry[0], *d_carry[1:])
    )
    for row, reads in enumerate(_READS_HIDDEN[cell]):
        if reads:
            d_h = d_h + _dot(tiles.hidden[row], d_products[row], (0, 0))
    gradient = _Tiles(
        hidden=_outers(d_products, before[0], _READS_HIDDEN[cell]),
        inputs=_outers(d_products, x, _READS_INPUTS[cell]),
        bias=tuple(jnp.sum(d, axis=1) for d in d_products),
        head=tuple(reversed(head)),
    )
    return gradient, (d_h, *d_rest)


def _products(tiles: _Tiles, cell: CellKind, x: Array, h: Array) -> Rows:
    products = []
    for row in range(4):
        product = jnp.broadcast_to(tiles.bias[row][:, None], h.shape)
        if _READS_HIDDEN[cell][row]:
            product = product + _dot(tiles.hidden[row], h, (1, 0))
        if _READS_INPUTS[cell][row]:
            product = product + _dot(tiles.inputs[row], x, (1, 0))
        products.append(product)
    return tuple(products)


def _head(tiles: _Tiles, h: Array) -> list[Array]:
    """Return the input of each layer of the head, and the head's outputs."""
    layers = [h]
    for i, (kernel, bias) in enumerate(tiles.head):
        x = layers[-1] if i == 0 else jnp.maximum(layers[-1], 0.0)
        layers[-1] = x
        layers.append(_dot(kernel[...], x, (1, 0)) + bias[...][:, None])
    return layers


def _outers(deltas: Rows, x: Array, wanted: tuple[bool, ...]) -> tuple[Array, ...]:
    """Return the gradient of each of four matrices that multiply `x`; zero if not wanted."""
    return tuple(
        _dot(delta, x, (1, 1)) if want else jnp.zeros((delta.shape[0], x.shape[0]), jnp.float32)
        for delta, want in zip(deltas, wanted, strict=True)
    )


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """Multiply over axis `contracted[0]` of `a` and `contracted[1]` of `b`, in exact float32."""
    axes = ((contracted[0],), (contracted[1],))
    return jax.lax.dot_general(a, b, (axes, ((), ())), precision=jax.lax.Precision.HIGHEST)


def _load(ref: Any, rows: int, columns: Array, *step: Array) -> Array:
    """Load a tile `[rows, columns]` of an array (of its entry `step`), zero beyond its edges."""
    where, mask = _tile(ref, rows, columns, step)
    return plgpu.load(where, mask=mask, other=0.0)


def _store(ref: Any, tile: Array, columns: Array, step: Array) -> None:
    where, mask = _tile(ref, tile.shape[0], columns, (step,))
    plgpu.store(where, tile, mask=mask)


def _tile(ref: Any, rows: int, columns: Array, step: tuple[Array, ...]) -> tuple[Any, Array]:
    height, width = ref.shape[-2:]
    row, column = jnp.arange(rows)[:, None], columns[None, :]
    return ref.at[(*step, row, column)], (row < height) & (column < width)


def _refusal(spec: OptimizerSpec) -> str | None:
    if spec.cell not in _READS_HIDDEN:
        return f"cell = {spec.cell!r}: it runs only {', '.join(_READS_HIDDEN)}"
    if reason := structure_refusal(spec, "head_norm"):
        return reason
    platform = jax.default_backend()
    return None if platform == "gpu" else f"it needs a GPU, and JAX runs on {platform} here"


KERNEL = Kernel("pallas", _refusal, step, replay_vjp, lambda: "fused for GPUs with Pallas")
