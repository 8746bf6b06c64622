"""A learned rule as an optax gradient transformation.

`scale_by_learned_rule` is the rule itself, without a learning rate; `learned_optimizer` chains it
with `optax.scale_by_learning_rate`, as optax's own aliases do.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optim4rl.optimizers.kernels.xla import stream_step
from optim4rl.optimizers.networks import Carry
from optim4rl.optimizers.presets import ScalarOrSchedule
from optim4rl.optimizers.rule import (
    MetaParameters,
    OptimizerSpec,
    RuleState,
    init_state,
    step,
)


class LeafState(NamedTuple):
    """What the rule remembers of one leaf: `RuleState` without the count that all leaves share."""

    carries: tuple[Carry, ...]
    moments: Float[Array, "moments *shape"]


class LearnedRuleState(NamedTuple):
    """State of `scale_by_learned_rule`.

    Attributes:
        count: updates made so far.
        leaves: a tree like the parameters' with a `LeafState` in place of each leaf:
            `spec.state_floats` float32 for each parameter.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # optax's own name for it
    leaves: Any


def scale_by_learned_rule(
    spec: OptimizerSpec, meta_parameters: MetaParameters, *, block: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replace each gradient by the rule's direction (an ascent direction, as in optax).

    Args:
        spec: the rule.
        meta_parameters: its weights, shared by all coordinates and never copied into the state.
        block: stream larger leaves over blocks of this many coordinates, which keeps the working
            set in cache on a CPU. None treats each leaf at once, which keeps its sharding.

    The state and all arithmetic are float32; updates come back in each gradient's own dtype. An
    infinite gradient is clipped where the spec clips. A NaN stays in its own coordinate, for good;
    wrap with `optax.apply_if_finite` to skip such steps instead.
    """

    def init(params: optax.Params) -> LearnedRuleState:
        def init_leaf(leaf: Any) -> LeafState:
            # The zeros of `init_state`, made from the leaf's own so that they keep its sharding.
            zeros = jnp.zeros_like(leaf, jnp.float32)
            state = jax.eval_shape(lambda: init_state(spec, zeros.shape))
            return jax.tree.map(
                lambda x: jnp.broadcast_to(zeros, x.shape), LeafState(state.carries, state.moments)
            )

        return LearnedRuleState(jnp.zeros((), jnp.int32), jax.tree.map(init_leaf, params))

    def update(
        updates: optax.Updates,
        state: LearnedRuleState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, LearnedRuleState]:
        del params, extra

        def update_leaf(gradient: Any, leaf: LeafState) -> tuple[Array, LeafState]:
            gradient = jnp.asarray(gradient)
            before = RuleState(leaf.carries, leaf.moments, state.count)
            exact = gradient.astype(jnp.float32)
            if block is None or gradient.size <= block:
                direction, after = step(spec, meta_parameters, exact, before)
            else:
                direction, after = _stream_leaf(spec, meta_parameters, exact, before, block)
            return direction.astype(gradient.dtype), LeafState(after.carries, after.moments)

        results = jax.tree.map(update_leaf, updates, state.leaves)
        directions, leaves = (
            jax.tree.map(lambda _, result, i=i: result[i], updates, results) for i in (0, 1)
        )
        return directions, LearnedRuleState(optax.safe_increment(state.count), leaves)

    return optax.GradientTransformationExtraArgs(init, update)


def _stream_leaf(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    block: int,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """`stream_step` on a leaf of any shape."""

    def flatten(x: Array) -> Array:
        return x.reshape(*x.shape[: x.ndim - gradient.ndim], gradient.size) if x.ndim else x

    direction, after = stream_step(
        spec, meta_parameters, flatten(gradient), jax.tree.map(flatten, state), block
    )
    return jax.tree.map(
        lambda x, like: x.reshape(like.shape), (direction, after), (gradient, state)
    )


def learned_optimizer(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    learning_rate: ScalarOrSchedule,
    *,
    block: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The rule as an optimizer: `scale_by_learned_rule`, then `-learning_rate`."""
    return optax.chain(
        scale_by_learned_rule(spec, meta_parameters, block=block),
        optax.scale_by_learning_rate(learning_rate),
    )
