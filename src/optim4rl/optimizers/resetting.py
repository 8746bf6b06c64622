"""Optimizers that start anew with every rollout, as data do in on-policy RL.

Adam-Rel (Ellis et al. 2024, "Adam on Local Time", arXiv 2412.17113) is Adam whose time is counted
from the start of each rollout: its moments are kept, and its bias correction begins again.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

Reset = Literal["time", "moments"]


class ResettingState(NamedTuple):
    """State of `resetting`.

    Attributes:
        update: updates made so far.
        inner: the optimizer's own state.
    """

    update: Int[Array, ""]
    inner: Any


def resetting(
    optimizer: optax.GradientTransformation, every: int, what: Reset = "time"
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose state starts anew after every `every` updates.

    Args:
        optimizer: any optimizer; its schedules start anew with its time, so keep schedules outside.
        every: updates of a rollout.
        what: "time": its counters, which are the scalar integers of its state; "moments": all of
            its state.

    Raises:
        ValueError: `every` is not positive.
    """
    if every < 1:
        raise ValueError(f"every = {every!r}: at least 1 is needed")
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> ResettingState:
        return ResettingState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: ResettingState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ResettingState]:
        # Moments start at zero for all parameters, so gradients serve for their shapes.
        fresh = inner.init(updates if params is None else params)
        anew = state.update % every == 0

        def begin(now: Any, first: Any) -> Any:
            return jnp.where(anew, first, now) if what == "moments" or _counts(now) else now

        updates, after = inner.update(
            updates, jax.tree.map(begin, state.inner, fresh), params, **extra
        )
        return updates, ResettingState(optax.safe_increment(state.update), after)

    return optax.GradientTransformationExtraArgs(init, update)


def _counts(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
