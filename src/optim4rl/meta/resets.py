"""Reset schedules: pipeline training and its ablations.

Pipeline training (Lan et al. 2024, section 4.2) resets agent i of M whenever `t mod I == r_i`, with
r_i evenly spaced over the reset interval I, so that the batch always holds agents of all ages. With
lives of mixed length, every agent has an interval I_i of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from optim4rl.meta.config import ResetSchedule

# Folded into the key of the offsets: the agents' first keys are split from that key, too.
OFFSETS = 2**31 - 3


def reset_intervals(
    num_agents: int, longest: int, shortest: int | None = None
) -> Int[np.ndarray, " agents"]:
    """Return the reset interval I_i of each agent, evenly spread in logarithm between the two.

    Neighbours have lives of different lengths, so that staggered agents of every age have lives of
    all lengths. With `shortest` None, all have the longest.
    """
    if shortest is None or num_agents == 1:
        return np.full(num_agents, longest, np.int32)
    # Multiples of the golden ratio, modulo 1, never cluster.
    rank = np.argsort(np.argsort(np.arange(num_agents) * (np.sqrt(5) - 1) / 2 % 1))
    lengths = shortest * (longest / shortest) ** (rank / (num_agents - 1))
    return np.rint(lengths).astype(np.int32)


def reset_offsets(
    schedule: ResetSchedule, intervals: Int[np.ndarray, " agents"], key: PRNGKeyArray
) -> Int[Array, " agents"]:
    """Return the reset index r_i of each agent, -1 for an agent that is never reset.

    staggered: evenly spaced over the interval (pipeline training). random: drawn uniformly, once.
    synchronous: at every multiple of the interval. never: all start at once and live on.
    """
    num_agents = intervals.size
    if schedule == "staggered":
        return jnp.asarray(np.arange(num_agents, dtype=np.int32) * intervals // num_agents)
    if schedule == "random":
        return jax.random.randint(jax.random.fold_in(key, OFFSETS), (num_agents,), 0, intervals)
    if schedule == "synchronous":
        return jnp.zeros((num_agents,), jnp.int32)
    return jnp.full((num_agents,), -1, jnp.int32)


def reset_mask(
    iteration: Int[Array, ""],
    offsets: Int[Array, " agents"],
    intervals: Int[np.ndarray, " agents"],
) -> Bool[Array, " agents"]:
    """Return which agents are reset before this meta-iteration. At iteration 0 all are fresh."""
    return jnp.logical_and(iteration % intervals == offsets, iteration > 0)
