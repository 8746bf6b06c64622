"""Many copies of one environment stepped side by side, with what a learner needs of each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class VectorState(NamedTuple):
    """A batch of episodes in progress; every leaf has the axis of environments first.

    Attributes:
        environment: The environments' own states.
        observation: What the agent sees now, the input of its next action.
        episode_return: Undiscounted sum of the rewards of the current episode so far.
    """

    environment: Any
    observation: Float[Array, "env *observation"]
    episode_return: Float[Array, "env"]


class StepResult(NamedTuple):
    """What one step of all environments gave.

    Attributes:
        reward: Reward of the step.
        terminated: Whether the episode ended by itself, so that nothing follows.
        truncated: Whether the time limit was reached. Both may hold at once.
        final_observation: What the step led to, before any reset: the observation to bootstrap from
            where an episode was truncated.
        return_sum: Sum of the undiscounted returns of the episodes that ended in this step.
        episode_count: How many episodes ended in this step.
    """

    reward: Float[Array, "env"]
    terminated: Bool[Array, "env"]
    truncated: Bool[Array, "env"]
    final_observation: Float[Array, "env *observation"]
    return_sum: Float[Array, ""]
    episode_count: Int[Array, ""]


def reset_batch(
    environment: Environment, params: EnvParams, key: PRNGKeyArray, num_envs: int
) -> VectorState:
    """Start an episode in each of `num_envs` environments."""
    keys = jax.random.split(key, num_envs)
    observation, state = jax.vmap(environment.reset, in_axes=(0, None))(keys, params)
    return VectorState(state, observation, jnp.zeros(num_envs, jnp.float32))


def step_batch(
    environment: Environment,
    params: EnvParams,
    key: PRNGKeyArray,
    state: VectorState,
    actions: Int[Array, "env"],
) -> tuple[VectorState, StepResult]:
    """Step every environment once; those whose episode ended start the next one.

    The observation after a reset is in the new state, the one before it in the result.
    """
    keys = jax.random.split(key, len(actions))
    observation, inner, reward, terminated, truncated, info = jax.vmap(
        environment.step, in_axes=(0, 0, 0, None)
    )(keys, state.environment, actions, params)
    reward = reward.astype(jnp.float32)
    done = terminated | truncated
    episode_return = state.episode_return + reward
    result = StepResult(
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        final_observation=info["final_observation"],
        return_sum=jnp.sum(jnp.where(done, episode_return, 0.0)),
        episode_count=jnp.sum(done, dtype=jnp.int32),
    )
    return VectorState(inner, observation, jnp.where(done, 0.0, episode_return)), result
