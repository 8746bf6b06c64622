"""Reset schedules: pipeline training and its ablations.

Pipeline training (Lan et al. 2024, section 4.2) resets agent i of M whenever `t mod I == r_i`, with
r_i evenly spaced over the reset interval I, so that the batch always holds agents of all ages.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

ResetSchedule = Literal["staggered", "random", "synchronous", "never"]
RESET_SCHEDULES: tuple[ResetSchedule, ...] = ("staggered", "random", "synchronous", "never")


def reset_offsets(
    schedule: ResetSchedule, num_agents: int, interval: int, key: PRNGKeyArray
) -> Int[Array, " agents"]:
    """The reset index r_i of each agent, -1 for an agent that is never reset.

    staggered: evenly spaced over the interval (pipeline training). random: drawn uniformly, once.
    synchronous: all at once, every interval. never: all start at once and live on.
    """
    if schedule == "staggered":
        return (jnp.arange(num_agents) * interval) // num_agents
    if schedule == "random":
        return jax.random.randint(key, (num_agents,), 0, interval)
    if schedule == "synchronous":
        return jnp.zeros((num_agents,), jnp.int32)
    if schedule == "never":
        return jnp.full((num_agents,), -1, jnp.int32)
    raise ValueError(f"resets = {schedule!r}: known schedules are {', '.join(RESET_SCHEDULES)}")


def reset_mask(
    iteration: Int[Array, ""], offsets: Int[Array, " agents"], interval: int
) -> Bool[Array, " agents"]:
    """Which agents are re-initialised before this meta-iteration. At iteration 0 all are fresh."""
    return jnp.logical_and(iteration % interval == offsets, iteration > 0)
