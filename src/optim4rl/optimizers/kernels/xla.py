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

from optim4rl.optimizers.inputs import rows_at, segments
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState, step

# Coordinates in one block: few enough for the working set to stay in cache, which for a replay
# holds the activations of all its steps.
BLOCK = 2048
REPLAY_BLOCK = 512


def stream_step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    block: int = BLOCK,
    *,
    layout: Layout = (),
) -> tuple[Float[Array, " n"], RuleState]:
    """`rule.step`, one block of coordinates at a time."""
    n = gradient.shape[0]
    block = _even(n, block)
    rows = _block_rows(spec, layout, n, block)
    if n == block:
        return step(spec, meta_parameters, gradient, state, rows(jnp.int32(0)))

    def write(index: Array, outputs: tuple[Array, RuleState]) -> tuple[Array, RuleState]:
        start = _start(index, block, n)
        result = step(
            spec,
            meta_parameters,
            _slice(gradient, start, block),
            _slice_state(state, start, block),
            rows(start),
        )
        return jax.tree.map(
            lambda whole, part: (
                jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=-1)
                if whole.ndim
                else part
            ),
            outputs,
            result,
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
    block: int = REPLAY_BLOCK,
    *,
    layout: Layout = (),
) -> MetaParameters:
    """The meta-gradient of `sum(cotangents * directions)`, where directions = K steps of the rule.

    Args:
        gradients: the K gradients that the agent met, constants.
        state: the rule's state before the first of them, a constant.
        cotangents: what one unit of each direction does to the meta-objective.
        block: coordinates held in memory at a time.
        layout: what the coordinates belong to.
    """
    n = gradients.shape[-1]
    block = _even(n, block)
    rows = _block_rows(spec, layout, n, block)

    def accumulate(total: MetaParameters, index: Array) -> tuple[MetaParameters, None]:
        start = _start(index, block, n)
        # The last block overlaps the one before it: what that one has counted is not counted again.
        fresh = start + jnp.arange(block) >= index * block
        _, pullback = jax.vjp(
            partial(
                _directions,
                spec,
                gradients=_slice(gradients, start, block),
                state=_slice_state(state, start, block),
                rows=rows(start),
            ),
            meta_parameters,
        )
        part = jnp.where(fresh[None], _slice(cotangents, start, block), 0.0)
        (gradient,) = pullback(part)
        return jax.tree.map(jnp.add, total, gradient), None

    zero = jax.tree.map(jnp.zeros_like, meta_parameters)
    total, _ = jax.lax.scan(accumulate, zero, jnp.arange(_num_blocks(n, block)))
    return total


def _directions(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    *,
    gradients: Array,
    state: RuleState,
    rows: Array | None,
) -> Float[Array, "K n"]:
    return unroll(spec, meta_parameters, gradients, state, rows)[0]


def _block_rows(
    spec: OptimizerSpec, layout: Layout, n: int, block: int
) -> Callable[[Int[Array, ""]], Float[Array, "rows block"] | None]:
    """The further inputs of the block that starts at a coordinate, made where they are read."""
    if not spec.inputs:
        return lambda start: None
    runs = segments(spec.inputs, layout, n)
    return lambda start: rows_at(runs, start + jnp.arange(block, dtype=jnp.int32))


def _num_blocks(n: int, block: int) -> int:
    return -(-n // block)


def _even(n: int, block: int) -> int:
    """The size at which as many blocks as of size `block` overlap least."""
    return -(-n // _num_blocks(n, block))


def _start(index: Array, block: int, n: int) -> Array:
    return jnp.minimum(index * block, n - block)


def _slice(x: Array, start: Array, block: int) -> Array:
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
