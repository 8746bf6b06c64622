"""Many copies of one environment, stepped together, and the results that a learner needs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from gymnax.environments.environment import EnvParams
from jaxtyping import Array, Bool, Float, Int, Key, Num, PRNGKeyArray

from optim4rl.tasks.environments.sparse import SparseEnvironment, uniforms


class VectorState(NamedTuple):
    """A batch of episodes in progress.

    Attributes:
        environment: The environments' own states.
        observation: The current observation, in the form of the `Vectorized`.
        episode_return: Undiscounted sum of the rewards of the current episode so far.
    """

    environment: Any
    observation: Num[Array, "..."]
    episode_return: Float[Array, "env"]


class StepResult(NamedTuple):
    """Results of one step of all environments; stacked over steps, every field gains an axis.

    Attributes:
        reward: Reward of the step.
        terminated: Whether the episode ended in a terminal state.
        truncated: Whether the time limit was reached. A step can be terminated and truncated.
        final_observation: The observation after the step and before any reset. Bootstrap from it if
            an episode was truncated.
        ended_return: Undiscounted return of the episode if it ended in this step, else 0.
    """

    reward: Float[Array, "*steps env"]
    terminated: Bool[Array, "*steps env"]
    truncated: Bool[Array, "*steps env"]
    final_observation: Num[Array, "..."]
    ended_return: Float[Array, "*steps env"]

    def terminal(self) -> "StepResult":
        """Return the same results with every truncation as a termination."""
        return self._replace(
            terminated=self.terminated | self.truncated, truncated=jnp.zeros_like(self.truncated)
        )

    @property
    def return_sum(self) -> Float[Array, "*steps"]:
        """Return the sum of the undiscounted returns of the episodes that ended in the step."""
        return jnp.sum(self.ended_return, axis=-1)

    @property
    def episode_count(self) -> Int[Array, "*steps"]:
        """Return how many episodes ended in the step."""
        return jnp.sum(self.terminated | self.truncated, axis=-1, dtype=jnp.int32)


@runtime_checkable
class Vectorized(Protocol):
    """`num_envs` copies of an environment, which reset when an episode ends."""

    def reset(self, key: PRNGKeyArray) -> VectorState:
        """Start an episode in each environment."""

    def draw(
        self, key: PRNGKeyArray, steps: int, numbers: int
    ) -> tuple[Float[Array, "steps numbers env"], Any]:
        """Draw all random numbers of a rollout; steps are the leading axis of every leaf.

        Args:
            key: source of the numbers.
            steps: steps of the rollout.
            numbers: uniform numbers that sampling one action takes.

        Returns:
            The numbers for the actions, and the numbers for the environments' steps.
        """

    def step(
        self, chance: Any, state: VectorState, actions: Num[Array, "env ..."]
    ) -> tuple[VectorState, StepResult]:
        """Step every environment once; start a new episode wherever one ended.

        The new state holds the observation after a reset, the result holds the observation before.
        """

    @property
    def steps_between_truncations(self) -> int | None:
        """Return the least number of steps between two truncations; None if there are none."""


@contextlib.contextmanager
def numpys_rules() -> Iterator[None]:
    """Let types and ranks mix as in NumPy; code of other packages expects it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@dataclass(frozen=True)
class GymnaxVector:
    """Copies of any gymnax environment, by its own `step`; observations become floats."""

    environment: Any
    params: Any
    num_envs: int

    @property
    def steps_between_truncations(self) -> int | None:
        """Return 1: a gymnax environment may truncate at any step."""
        return 1

    def reset(self, key: PRNGKeyArray) -> VectorState:
        """Start an episode in each environment."""
        keys = jax.random.split(key, self.num_envs)
        with numpys_rules():
            reset = jax.vmap(self.environment.reset, in_axes=(0, None))
            observation, state = reset(keys, self.params)
        zeros = jnp.zeros(self.num_envs, jnp.float32)
        return VectorState(state, observation.astype(jnp.float32), zeros)

    def draw(
        self, key: PRNGKeyArray, steps: int, numbers: int
    ) -> tuple[Float[Array, "steps numbers env"], Key[Array, "steps env"]]:
        """Draw the actions' numbers, and for each environment one key per step."""
        key_actions, key_steps = jax.random.split(key)
        actions = jax.random.uniform(key_actions, (steps, numbers, self.num_envs))
        return actions, jax.random.split(key_steps, (steps, self.num_envs))

    def step(
        self, chance: Key[Array, "env"], state: VectorState, actions: Num[Array, "env ..."]
    ) -> tuple[VectorState, StepResult]:
        """Step every environment with its key."""
        with numpys_rules():
            step = jax.vmap(self.environment.step, in_axes=(0, 0, 0, None))
            observation, inner, reward, *ends, info = step(
                chance, state.environment, actions, self.params
            )
        # Some environments give rewards of shape (1,).
        reward = reward.reshape(self.num_envs).astype(jnp.float32)
        terminated, truncated = (end.astype(jnp.bool) for end in ends)
        episode_return, ended_return = running_returns(state, reward, terminated | truncated)
        result = StepResult(
            reward,
            terminated,
            truncated,
            info["final_observation"].astype(jnp.float32),
            ended_return,
        )
        return VectorState(inner, observation.astype(jnp.float32), episode_return), result


@dataclass(frozen=True)
class SparseVector:
    """Copies of a `SparseEnvironment`; the last axis is over them: observations `[ones, env]`.

    So operations over the few objects in a world run along contiguous memory.
    """

    environment: SparseEnvironment
    params: EnvParams
    num_envs: int
    observation_shape: tuple[int, ...]

    @property
    def steps_between_truncations(self) -> int | None:
        """Return the environment's own number."""
        return self.environment.steps_between_truncations(self.params)

    def reset(self, key: PRNGKeyArray) -> VectorState:
        """Start an episode in each environment."""
        numbers = uniforms(key, (self.environment.reset_uniforms, self.num_envs))
        state = jax.vmap(self.environment.reset_from, -1, -1)(numbers)
        return VectorState(state, self._ones(state), jnp.zeros(self.num_envs, jnp.float32))

    def draw(
        self, key: PRNGKeyArray, steps: int, numbers: int
    ) -> tuple[Float[Array, "steps numbers env"], Float[Array, "steps chance env"]]:
        """Draw uniform numbers for the actions, and for environments' steps and then resets."""
        total = numbers + self.environment.step_uniforms + self.environment.reset_uniforms
        drawn = uniforms(key, (steps, total, self.num_envs))
        return drawn[:, :numbers], drawn[:, numbers:]

    def step(
        self, chance: Float[Array, "numbers env"], state: VectorState, actions: Int[Array, "env"]
    ) -> tuple[VectorState, StepResult]:
        """Step every environment, and reset where an episode ended."""
        inner, after, reward, terminated, truncated = jax.vmap(self._step_one, -1, -1)(
            chance, state.environment, actions
        )
        episode_return, ended_return = running_returns(state, reward, terminated | truncated)
        result = StepResult(reward, terminated, truncated, self._ones(after), ended_return)
        return VectorState(inner, self._ones(inner), episode_return), result

    def _step_one(
        self, numbers: Float[Array, "numbers"], state: Any, action: Int[Array, ""]
    ) -> tuple[Any, Any, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """Return (next state, state before any reset, reward, terminated, truncated)."""
        environment = self.environment
        for_step, for_reset = jnp.split(numbers, [environment.step_uniforms])
        after, reward, terminated = environment.step_from(for_step, state, action)
        truncated = jnp.asarray(False)
        if self.steps_between_truncations is not None:
            truncated = environment.is_truncated(after, self.params)
        fresh = environment.reset_from(for_reset)
        state = jax.tree.map(
            lambda new, old: jnp.where(terminated | truncated, new, old), fresh, after
        )
        return state, after, reward, terminated, truncated

    def _ones(self, state: Any) -> Int[Array, "ones env"]:
        return jax.vmap(self.environment.ones, -1, -1)(state)


def running_returns(
    state: VectorState, reward: Float[Array, "env"], done: Bool[Array, "env"]
) -> tuple[Float[Array, "env"], Float[Array, "env"]]:
    """Return the returns of running episodes, and the returns of ended ones; 0 elsewhere."""
    total = state.episode_return + reward
    return jnp.where(done, 0.0, total), jnp.where(done, total, 0.0)
