"""Tasks: an environment, an agent network and a learner, as pure functions."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.spaces import Discrete
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks.a2c import A2C, lambda_returns
from optim4rl.tasks.backprop import BatchNetwork, SeparateTorsos, SharedTorso
from optim4rl.tasks.config import TaskConfig as TaskConfig, TimeLimit
from optim4rl.tasks.distributions import Categorical, Distribution, TanhNormal
from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.checks import check_environment
from optim4rl.tasks.environments.episodes import (
    GymnaxVector,
    SparseVector,
    StepResult,
    Vectorized,
    VectorState,
)
from optim4rl.tasks.environments.physics import Physics, PhysicsVector
from optim4rl.tasks.environments.sparse import is_sparse
from optim4rl.tasks.inputs import DenseInputs, Inputs, SparseInputs
from optim4rl.tasks.learner import Learner, Rollout
from optim4rl.tasks.normalisation import (
    Moments,
    RunningReturns,
    init_moments,
    init_returns,
    normalise,
    scale_rewards,
    update_moments,
)
from optim4rl.tasks.ppo import PPO, PPOConfig

# Folded into a rollout's key for the learner's draws. Environments split the key into a few, and
# `split(key)[i]` is `fold_in(key, i)`, so a small number would give one of theirs.
LEARNER = 2**31 - 2


class RolloutStats(NamedTuple):
    """Undiscounted, unscaled returns of the episodes that ended in a rollout."""

    return_sum: Float[Array, ""]
    episode_count: Int[Array, ""]


class Actor(NamedTuple):
    """State that an agent carries from rollout to rollout, besides its parameters.

    Attributes:
        episodes: its environments.
        live: 1 for the units of its dense layer and 0 for units that only fill the array; None if
            all agents have the same width.
        returns: statistics that scale its rewards; None if rewards are not normalised.
        seen: statistics that normalise its observations; None if they are not normalised.
    """

    episodes: VectorState
    live: Float[Array, "width"] | None
    returns: RunningReturns | None
    seen: Moments | None


class _Step(NamedTuple):
    """One step of E environments, with the network's outputs; a rollout stacks T of them.

    The observations are not normalised yet; the network reads them normalised.
    """

    observation: Num[Array, "..."]
    outputs: Float[Array, "*T E outputs"]
    value: Float[Array, "*T E"]
    cache: Any
    uniforms: Float[Array, "*T numbers E"]
    action: Num[Array, "..."]
    result: StepResult


@dataclass(frozen=True, eq=False)
class Task:
    """A task that starts an agent, plays rollouts, and takes gradients of the learner's loss.

    Attributes:
        environment: a gymnax environment, or a wrapper with the same methods.
        env_params: its parameters.
        config: network and learner; `config.environment` is a label here.
        reward_factor: multiplies the rewards that its agents learn from; may be traced.
    """

    environment: Any
    env_params: Any
    config: TaskConfig
    reward_factor: float | Float[Array, ""] = 1.0

    def with_reward_factor(self, factor: Float[Array, ""]) -> "Task":
        """Return the task with the rewards that agents learn from multiplied by this factor."""
        return dataclasses.replace(self, reward_factor=factor)

    @cached_property
    def observation_shape(self) -> tuple[int, ...]:
        """Return the shape of one observation."""
        observation, _ = jax.eval_shape(
            lambda: self.environment.reset(jax.random.key(0), self.env_params)
        )
        return tuple(observation.shape)

    @property
    def time_limit(self) -> TimeLimit:
        """Return the kind of state after a step that hits the time limit (see `TaskConfig`)."""
        if self.config.time_limit is not None:
            return self.config.time_limit
        own = getattr(self.environment, "time_limit", None)
        return "terminal" if isinstance(own, str) and own == "terminal" else "bootstrap"

    @property
    def _looks_up(self) -> bool:
        """Return whether observations list the places of their ones; normalised ones do not."""
        return is_sparse(self.environment) and not self.config.normalise_observations

    @cached_property
    def vector(self) -> Vectorized:
        """Return the agent's environments."""
        return self.vector_of(self.config.num_envs)

    def vector_of(self, num_envs: int) -> Vectorized:
        """Return `num_envs` copies of the agent's environment."""
        arguments = (self.environment, self.env_params, num_envs)
        if self._looks_up:
            return SparseVector(*arguments, self.observation_shape)
        if type(self.environment) is Physics:  # A subclass may step differently.
            return PhysicsVector(*arguments)
        return GymnaxVector(*arguments)

    @cached_property
    def inputs(self) -> Inputs:
        """Return the reader of `vector`'s observations for the network."""
        arguments = (self.observation_shape, self.config.maps)
        return SparseInputs(*arguments) if self._looks_up else DenseInputs(*arguments)

    @cached_property
    def distribution(self) -> Distribution:
        """Return the distribution that the policy's outputs parametrise."""
        # Often first read inside a compiled function, which would trace new arrays.
        with jax.ensure_compile_time_eval():
            actions = self.environment.action_space(self.env_params)
        if isinstance(actions, Discrete):
            return Categorical(int(actions.n))
        low, high = (np.broadcast_to(x, actions.shape).ravel() for x in (actions.low, actions.high))
        return TanhNormal(tuple(low.tolist()), tuple(high.tolist()), tuple(actions.shape))

    @cached_property
    def network(self) -> BatchNetwork:
        """Return the agent's network."""
        config, outputs = self.config, self.distribution.outputs
        if config.torso == "mlp":
            layers = (config.policy_layers, config.value_layers)
            return SeparateTorsos(
                self.inputs, outputs, *layers, config.activation, config.initialisation
            )
        return SharedTorso(self.inputs, config.torso, outputs, config.widths)

    @cached_property
    def learner(self) -> Learner:
        """Return the inner learner."""
        if isinstance(self.config.learner, PPOConfig):
            return PPO(self.config.learner, self.network, self.distribution)
        return A2C(self.config.learner, self.network, self.distribution)

    @property
    def updates_per_rollout(self) -> int:
        """Return the number of inner updates that one rollout serves."""
        return self.learner.updates_per_rollout

    @property
    def env_steps_per_rollout(self) -> int:
        """Return the number of environment steps in one rollout."""
        return self.config.num_envs * self.config.learner.rollout

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Return a fresh agent network; `key` is the agent's."""
        return self.network.init(key)

    def init_actor(self, key: PRNGKeyArray) -> Actor:
        """Return fresh environments; `key` is the agent's."""
        config = self.config
        return Actor(
            self.vector.reset(jax.random.fold_in(key, 1)),
            self.network.live(key),
            init_returns(config.num_envs) if config.normalise_rewards else None,
            init_moments(self.observation_shape) if config.normalise_observations else None,
        )

    def rollout(
        self, params: Any, actor: Actor, key: PRNGKeyArray
    ) -> tuple[Any, Actor, RolloutStats]:
        """Play one rollout, and return (the learner's batch, next actor, stats)."""
        after, steps, reward = self._play(params, actor, key)
        config = self.config.learner
        target = lambda_returns(
            reward,
            steps.result.terminated,
            steps.result.truncated,
            self._next_values(params, actor, after, steps),
            config.gamma,
            config.lam,
        )
        outputs, value, cache, action, target = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (steps.outputs, steps.value, steps.cache, steps.action, target),
        )
        rollout = Rollout(
            self.inputs.join(_normalised(actor, steps.observation)),
            outputs,
            value,
            cache,
            action,
            jnp.moveaxis(steps.uniforms, 1, 0).reshape(steps.uniforms.shape[1], -1),
            target,
            actor.live,
        )
        return self.learner.batch(rollout, jax.random.fold_in(key, LEARNER)), after, _stats(steps)

    def loss(self, params: Any, batch: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return the loss of the rollout's inner update number `index`, at any parameters."""
        return self.learner.loss(params, batch, index)

    def gradient(self, params: Any, batch: Any) -> Any:
        """Return the gradient of the whole loss, at the parameters that played the rollout."""
        return self.learner.gradient(params, batch)

    def minibatch_gradient(self, params: Any, batch: Any, index: Int[Array, ""]) -> Any:
        """Return the gradient of the rollout's update number `index`."""
        return self.learner.minibatch_gradient(params, batch, index)

    def extras(self, params: Any, batch: Any, index: Int[Array, ""]) -> dict[str, Any]:
        """Return optax's extra arguments for update number `index`."""
        return self.learner.extras(params, batch, index)

    @property
    def greedy_episodes(self) -> int:
        """Return the number of episodes that a finished agent plays."""
        return self.config.greedy_episodes

    def greedy_return(self, params: Any, actor: Actor, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the mean return of the first episode in `greedy_episodes` fresh environments.

        The agent takes its most probable action in every step, and normalises observations by all
        that it has seen. An episode without an end within the environment's limit of steps counts
        with its rewards so far.
        """
        vector = self.vector_of(self.config.greedy_episodes)
        start = vector.reset(jax.random.fold_in(key, 0))
        prepared = self.network.prepare(params, actor.live)

        def step(carry: tuple[Any, ...], chance: Any) -> tuple[tuple[Any, ...], None]:
            episodes, ended, total = carry
            seen = _normalised(actor, episodes.observation)
            outputs = self.network.forward(prepared, seen)[0]
            action = self.distribution.squash(self.distribution.mode(outputs))
            episodes, result = vector.step(chance, episodes, action)
            total = total + jnp.where(ended, 0.0, result.reward)
            return (episodes, ended | result.terminated | result.truncated, total), None

        limit = getattr(self.env_params, "max_steps_in_episode", None)
        if limit is None or limit == float("inf"):
            raise ValueError(
                f"greedy_episodes = {self.config.greedy_episodes}: an environment with a limit of "
                "steps, max_steps_in_episode in its parameters, is needed"
            )
        _, chance = vector.draw(jax.random.fold_in(key, 1), int(limit), self.distribution.uniforms)
        none = jnp.zeros(self.config.greedy_episodes)
        carry = (start, none > 0, none)
        (_, _, total), _ = jax.lax.scan(step, carry, chance)
        return jnp.mean(total)

    def _play(
        self, params: Any, actor: Actor, key: PRNGKeyArray
    ) -> tuple[Actor, _Step, Float[Array, "T E"]]:
        """Play T steps in every environment; return also the rewards that the learner reads."""
        network, distribution = self.network, self.distribution
        prepared = network.prepare(params, actor.live)

        def step(episodes: VectorState, chance: tuple[Array, Any]) -> tuple[VectorState, _Step]:
            uniforms, chance = chance
            seen = episodes.observation
            outputs, value, cache = network.forward(prepared, _normalised(actor, seen))
            action = distribution.sample(uniforms, outputs)
            after, result = self.vector.step(chance, episodes, distribution.squash(action))
            if self.time_limit == "terminal":
                result = result.terminal()
            return after, _Step(seen, outputs, value, cache, uniforms, action, result)

        chance = self.vector.draw(key, self.config.learner.rollout, distribution.uniforms)
        episodes, steps = jax.lax.scan(step, actor.episodes, chance)
        returns, seen, reward = actor.returns, actor.seen, steps.result.reward
        if returns is not None:
            done = steps.result.terminated | steps.result.truncated
            returns, reward = scale_rewards(returns, reward, done, self.config.learner.gamma)
        if seen is not None:
            seen = update_moments(seen, self.inputs.join(steps.observation))
        reward = self.config.learner.reward_scale * self.reward_factor * reward
        return Actor(episodes, actor.live, returns, seen), steps, reward

    def _next_values(
        self, params: Any, actor: Actor, after: Actor, steps: _Step
    ) -> Float[Array, "T E"]:
        """Return the critic's values of the states after each step, before any reset.

        If an episode goes on, this is the value of the next observation. If it is truncated, this
        is the value of the final observation. At most one of `spacing` consecutive steps is
        truncated, so one forward pass serves them all. If it is terminated, the value has no
        meaning and is not used.
        """
        prepared = self.network.prepare(params, actor.live)

        def value(observation: Array) -> Array:
            return self.network.forward(prepared, _normalised(actor, observation))[1]

        following = jnp.concatenate([steps.value[1:], value(after.episodes.observation)[None]])
        spacing = self.vector.steps_between_truncations
        if spacing is None or self.time_limit == "terminal":
            return following
        T, E = steps.value.shape
        spacing = min(spacing, T)
        blocks = -(-T // spacing)
        truncated = jnp.pad(steps.result.truncated, ((0, blocks * spacing - T), (0, 0)))
        which = jnp.argmax(truncated.reshape(blocks, spacing, E), axis=1)
        which += spacing * jnp.arange(blocks, dtype=which.dtype)[:, None]
        final = self.inputs.select(steps.result.final_observation, which)
        last = value(self.inputs.join(final)).reshape(blocks, E)
        return jnp.where(steps.result.truncated, jnp.repeat(last, spacing, axis=0)[:T], following)


def _normalised(actor: Actor, observation: Num[Array, "..."]) -> Num[Array, "..."]:
    """Return the network's inputs, normalised by the statistics before the rollout."""
    return observation if actor.seen is None else normalise(actor.seen, observation)


def _stats(steps: _Step) -> RolloutStats:
    result = steps.result
    return RolloutStats(jnp.sum(result.return_sum), jnp.sum(result.episode_count))


@lru_cache
def make_task(config: TaskConfig) -> Task:
    """Return the task of a config: the same object each time, so that programs compile once.

    Raises:
        ValueError: the environment is unknown; the message names the known ones.
    """
    environment, env_params = make_environment(config.environment)
    return Task(environment, env_params, config)


def task_from_environment(environment: Any, config: TaskConfig, env_params: Any = None) -> Task:
    """Return a task on your own gymnax environment.

    Args:
        environment: a gymnax 1.x `Environment`, or a wrapper with the same methods. Its actions
            are discrete or have bounds, and its observation is one array.
        config: network and learner; its `environment` is the label in results.
        env_params: the environment's parameters; None for its defaults.

    Raises:
        ValueError: the environment cannot be a task (`check_environment`); the message says why.
    """
    environment, params = check_environment(environment, env_params)
    return Task(environment, params, config)
