"""The rule in XLA, on every machine; the tests compare the other kernels with it.

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
from optim4rl.optimizers.kernels.interface import Kernel, structure_refusal
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState, step

# Coordinates in one block: few enough for the working set to stay in cache. For a replay, the
# working set holds the activations of all its steps.
BLOCK = 2048
REPLAY_BLOCK = 512


def stream_step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    *,
    block: int = BLOCK,
    layout: Layout = (),
) -> tuple[Float[Array, " n"], RuleState]:
    """Run `rule.step`, one block of coordinates at a time."""
    n = gradient.shape[0]
    block = _even(n, block)
    directions = _directions(spec, layout, gradient[None], state, block)

    def result(start: Array) -> tuple[Array, RuleState]:
        (direction,), after = directions(meta_parameters, start)
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
    """Return the directions of K steps over recorded gradients, and the state after them."""

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
    *,
    block: int = REPLAY_BLOCK,
    layout: Layout = (),
) -> MetaParameters:
    """Return the meta-gradient of `sum(cotangents * directions)`; directions = K steps of the rule.

    Args:
        gradients: the K gradients that the agent met, constants.
        state: the rule's state before the first of them, a constant.
        cotangents: effect of one unit of each direction on the meta-objective.
        block: coordinates held in memory at a time.
        layout: tensors of the coordinates.
    """
    n = gradients.shape[-1]
    block = _even(n, block)
    directions = _directions(spec, layout, gradients, state, block)

    def accumulate(total: MetaParameters, index: Array) -> tuple[MetaParameters, None]:
        start = _start(index, block, n)
        # The last block overlaps the one before it: do not count the shared coordinates twice.
        fresh = start + jnp.arange(block) >= index * block
        _, pullback = jax.vjp(lambda w: directions(w, start)[0], meta_parameters)
        part = jnp.where(fresh[None], _slice(cotangents, start, block), 0.0)
        (gradient,) = pullback(part)
        return jax.tree.map(jnp.add, total, gradient), None

    zero = jax.tree.map(jnp.zeros_like, meta_parameters)
    total, _ = jax.lax.scan(accumulate, zero, jnp.arange(_num_blocks(n, block)))
    return total


def _directions(
    spec: OptimizerSpec,
    layout: Layout,
    gradients: Float[Array, "K n"],
    state: RuleState,
    block: int,
) -> Callable[[MetaParameters, Int[Array, ""]], tuple[Float[Array, "K block"], RuleState]]:
    """Run K steps over the block that starts at a coordinate, given weights and start."""
    runs = segments(spec.inputs, layout, gradients.shape[-1])

    def unroll_block(
        meta_parameters: MetaParameters, start: Int[Array, ""]
    ) -> tuple[Float[Array, "K block"], RuleState]:
        rows = None
        if spec.inputs:
            rows = rows_at(runs, start + jnp.arange(block, dtype=jnp.int32))
        before = jax.tree.map(lambda x: _slice(x, start, block) if x.ndim else x, state)
        return unroll(spec, meta_parameters, _slice(gradients, start, block), before, rows)

    return unroll_block


def _num_blocks(n: int, block: int) -> int:
    return -(-n // block)


def _even(n: int, block: int) -> int:
    """Return the block size at which as many blocks as of size `block` overlap least."""
    return -(-n // _num_blocks(n, block))


def _start(index: Array, block: int, n: int) -> Array:
    return jnp.minimum(index * block, n - block)


def _slice(x: Array, start: Array, block: int) -> Array:
    if x.shape[-1] == block:
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, block, axis=-1)


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make `jax.vmap` run the function for one agent after the other.

    Side by side, the blocks of all agents would not fit into the cache.
    """

    def run(spec: OptimizerSpec, *arrays: Any, layout: Layout = ()) -> Any:
        return sequential_vmap(partial(function, spec, layout=layout))(*arrays)

    return run


KERNEL = Kernel(
    name="xla",
    refusal=structure_refusal,
    step=one_by_one(stream_step),
    replay_vjp=one_by_one(replay_vjp),
    status=lambda: "runs everywhere",
)
