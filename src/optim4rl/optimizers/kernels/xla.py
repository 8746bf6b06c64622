"""The rule in XLA: every rule on every machine, and the oracle of the other kernels.

The gradient enters a rule as a constant, so the meta-gradient through K inner updates needs no
rollout: it is one VJP through K coordinate-wise steps, independent for each coordinate. Both passes
stream over blocks of coordinates and so run in constant memory, whatever the number of parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from optim4rl.optimizers.inputs import rows_at, segments, tensor_rows
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import Layout, Tensor, pieces
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState, read, run, step
from optim4rl.optimizers.structures import NO_EXTRAS, Extras, Features, Reading

# Coordinates in one block: few enough for the working set to stay in cache, which for a replay
# holds the activations of all its steps.
BLOCK = 2048
REPLAY_BLOCK = 512


def stream_step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    extras: Extras = NO_EXTRAS,
    *,
    block: int = BLOCK,
    layout: Layout = (),
) -> tuple[Float[Array, " n"], RuleState]:
    """`rule.step`, one block of coordinates at a time."""
    n = gradient.shape[0]
    block = _even(n, block)
    first = jax.tree.map(lambda x: x[None], extras)
    reader = _Reader(spec, layout, gradient[None], state, first, block)

    def result(start: Array) -> tuple[Array, RuleState]:
        (direction,), after = reader.directions(meta_parameters, start)
        return direction, after

    if n == block:
        return result(jnp.int32(0))

    def write(index: Array, outputs: tuple[Array, RuleState]) -> tuple[Array, RuleState]:
        start = _start(index, block, n)
        return jax.tree.map(
            lambda whole, part: (
                jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=-1)
                if whole.ndim
                else part
            ),
            outputs,
            result(start),
        )

    outputs = jax.tree.map(jnp.zeros_like, (gradient, state))
    return jax.lax.fori_loop(0, _num_blocks(n, block), write, outputs)


def unroll(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K *shape"],
    state: RuleState,
    rows: Float[Array, "rows *shape"] | None = None,
) -> tuple[Float[Array, "K *shape"], RuleState]:
    """The directions of K steps over recorded gradients, and the state after them."""

    def body(carry: RuleState, gradient: Array) -> tuple[RuleState, Array]:
        direction, carry = step(spec, meta_parameters, gradient, carry, rows)
        return carry, direction

    state, directions = jax.lax.scan(body, state, gradients, unroll=gradients.shape[0] <= 4)
    return directions, state


def replay_vjp(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K n"],
    state: RuleState,
    cotangents: Float[Array, "K n"],
    extras: Extras = NO_EXTRAS,
    *,
    block: int = REPLAY_BLOCK,
    layout: Layout = (),
) -> MetaParameters:
    """The meta-gradient of `sum(cotangents * directions)`, where directions = K steps of the rule.

    Args:
        gradients: the K gradients that the agent met, constants.
        state: the rule's state before the first of them, a constant.
        cotangents: what one unit of each direction does to the meta-objective.
        extras: what the structure read beside each gradient, constants.
        block: coordinates held in memory at a time.
        layout: what the coordinates belong to.
    """
    n = gradients.shape[-1]
    block = _even(n, block)
    reader = _Reader(spec, layout, gradients, state, extras, block)

    def accumulate(total: MetaParameters, index: Array) -> tuple[MetaParameters, None]:
        start = _start(index, block, n)
        # The last block overlaps the one before it: what that one has counted is not counted again.
        fresh = start + jnp.arange(block) >= index * block
        _, pullback = jax.vjp(lambda w: reader.directions(w, start)[0], meta_parameters)
        part = jnp.where(fresh[None], _slice(cotangents, start, block), 0.0)
        (gradient,) = pullback(part)
        return jax.tree.map(jnp.add, total, gradient), None

    zero = jax.tree.map(jnp.zeros_like, meta_parameters)
    total, _ = jax.lax.scan(accumulate, zero, jnp.arange(_num_blocks(n, block)))
    return total


class _Reader:
    """K steps of the rule over recorded gradients, for one block of coordinates at a time."""

    def __init__(
        self,
        spec: OptimizerSpec,
        layout: Layout,
        gradients: Float[Array, "K n"],
        state: RuleState,
        extras: Extras,
        block: int,
    ) -> None:
        self.spec, self.state, self.block, self.gradients = spec, state, block, gradients
        n = gradients.shape[-1]
        self.segments = segments(spec.inputs, layout, n)
        # Statistics of a tensor need all of it, so what depends on them is made once.
        self.readings = None
        if spec.structure.tensorwise:
            self.readings = _read_tensors(spec, layout, gradients, state, extras)

    def directions(
        self, meta_parameters: MetaParameters, start: Int[Array, ""]
    ) -> tuple[Float[Array, "K block"], RuleState]:
        """The directions of the block that starts at a coordinate, and its state after them."""
        state = _slice_state(self.state, start, self.block)
        gradients = _slice(self.gradients, start, self.block)
        if self.readings is None:
            return unroll(self.spec, meta_parameters, gradients, state, self._rows(start))

        def body(state: RuleState, read: _TensorReading) -> tuple[RuleState, Array]:
            features, gradient, moments, extras = read
            reading = Reading(gradient, moments, state.age, extras)
            direction, carries = run(self.spec, meta_parameters, features, reading, state.carries)
            return RuleState(carries, moments, state.age + 1), direction

        readings = jax.tree.map(lambda x: _slice(x, start, self.block), self.readings)
        state, directions = jax.lax.scan(body, state, readings)
        return directions, state

    def _rows(self, start: Int[Array, ""]) -> Float[Array, "rows block"] | None:
        """The further inputs of the block, made where they are read."""
        if not self.spec.inputs:
            return None
        return rows_at(self.segments, start + jnp.arange(self.block, dtype=jnp.int32))


# The networks' inputs, the clipped gradient, the moments after it, the extras.
_TensorReading = tuple[Features, Array, Array, Extras]


def _read_tensors(
    spec: OptimizerSpec,
    layout: Layout,
    gradients: Float[Array, "K n"],
    state: RuleState,
    extras: Extras,
) -> _TensorReading:
    """What K steps read; every array has a leading axis of size K."""

    def body(state: RuleState, met: tuple[Array, Extras]) -> tuple[RuleState, _TensorReading]:
        parts = []
        for tensor, where in pieces(layout, met[0].shape[0]):

            def whole(x: Array, where: slice = where, tensor: Tensor = tensor) -> Array:
                return x[..., where].reshape(*x.shape[:-1], *tensor.shape)

            def flat(x: Array, tensor: Tensor = tensor) -> Array:
                return x.reshape(*x.shape[: x.ndim - len(tensor.shape)], -1)

            gradient, extras = jax.tree.map(whole, met)
            rows = tensor_rows(spec.inputs, tensor)
            features, reading = read(spec, gradient, whole(state.moments), state.age, rows, extras)
            parts.append(jax.tree.map(flat, (features, reading.gradient, reading.moments, extras)))
        result: _TensorReading = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *parts)
        return state._replace(moments=result[2], age=state.age + 1), result

    readings: _TensorReading = jax.lax.scan(body, state, (gradients, extras))[1]
    return readings


def _num_blocks(n: int, block: int) -> int:
    return -(-n // block)


def _even(n: int, block: int) -> int:
    """The size at which as many blocks as of size `block` overlap least."""
    return -(-n // _num_blocks(n, block))


def _start(index: Array, block: int, n: int) -> Array:
    return jnp.minimum(index * block, n - block)


def _slice(x: Array, start: Array, block: int) -> Array:
    if x.shape[-1] == block:
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, block, axis=-1)


def _slice_state(state: RuleState, start: Array, block: int) -> RuleState:
    return jax.tree.map(lambda x: _slice(x, start, block) if x.ndim else x, state)


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Batched by `jax.vmap`, one agent after the other.

    Side by side, the blocks of all of them would not fit into the cache.
    """

    def run(spec: OptimizerSpec, *arrays: Any, layout: Layout = ()) -> Any:
        return sequential_vmap(partial(function, spec, layout=layout))(*arrays)

    return run


KERNEL = Kernel(
    name="xla",
    refusal=lambda spec: None,
    step=_one_by_one(stream_step),
    replay_vjp=_one_by_one(replay_vjp),
    status=lambda: "runs every rule everywhere",
)
