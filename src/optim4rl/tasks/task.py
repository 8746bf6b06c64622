"""Tasks: an environment, an agent network and a learner, as pure functions."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks.a2c import A2CConfig, Transitions, a2c_loss, lambda_returns
from optim4rl.tasks.backprop import backward, forward, join_heads
from optim4rl.tasks.environments.adapters import check_environment, make_environment
from optim4rl.tasks.environments.episodes import (
    GymnaxVector,
    SparseVector,
    StepResult,
    Vectorized,
    VectorState,
)
from optim4rl.tasks.environments.sparse import is_sparse
from optim4rl.tasks.inputs import DenseInputs, Inputs, MapOrder, SparseInputs
from optim4rl.tasks.networks import ActorCritic, TorsoKind, make_network
from optim4rl.tasks.normalisation import RunningReturns, init_returns, scale_rewards


@dataclass(frozen=True)
class TaskConfig:
    """A task by name, with all its settings as plain values.

    Attributes:
        environment: a name from `environment_names()`, or "gymnax:NAME".
        num_envs: environments that one agent learns from at once.
        torso: "dense" or "conv".
        width: units of the dense layer. With several, every fresh agent draws one of them; its
            arrays have the largest size and the units beyond its own are masked out, so that one
            program serves all.
        maps: order of the observation's maps in a convolution; "rows" is the paper's release.
        learner: the inner learner's settings.
        normalise_rewards: each agent divides its rewards by a running scale of its returns;
            reported returns are not scaled.
    """

    environment: str = "catch"
    num_envs: int = 64
    torso: TorsoKind = "dense"
    width: int | tuple[int, ...] = 256
    maps: MapOrder = "channels"
    learner: A2CConfig = A2CConfig()
    normalise_rewards: bool = False

    def __post_init__(self) -> None:
        if not _is_size(self.num_envs):
            raise ValueError(
                f"num_envs = {self.num_envs!r}: a whole number of at least 1 is needed"
            )
        if not self.widths or not all(map(_is_size, self.widths)):
            raise ValueError(
                f"width = {self.width!r}: a whole number of at least 1 is needed, or several"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that agents come in."""
        return self.width if isinstance(self.width, tuple) else (self.width,)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class RolloutStats(NamedTuple):
    """What a rollout reports: undiscounted, unscaled returns of the episodes that ended in it."""

    return_sum: Float[Array, ""]
    episode_count: Int[Array, ""]


class Actor(NamedTuple):
    """What an agent carries on besides its parameters.

    Attributes:
        episodes: its environments.
        live: 1 for the units of its dense layer and 0 for those that only fill the array; None if
            all agents have the same width.
        returns: what scales its rewards; None if nothing does.
    """

    episodes: VectorState
    live: Float[Array, "width"] | None
    returns: RunningReturns | None


class _Step(NamedTuple):
    """One step of E environments and what the network gave on the way; a rollout stacks T."""

    observation: Num[Array, "..."]
    logits: Float[Array, "*T E actions"]
    value: Float[Array, "*T E"]
    hidden: Float[Array, "*T E width"]
    action: Int[Array, "*T E"]
    result: StepResult


class Batch(NamedTuple):
    """What the gradients of a rollout are computed from.

    Attributes:
        steps: the rollout, with the hidden units that its forward passes left.
        target: what the values are to become.
    """

    steps: _Step
    target: Float[Array, "T E"]


@dataclass(frozen=True, eq=False)
class Task:
    """An agent's task: start one, play a rollout, and take the gradients of the learner's loss.

    Attributes:
        environment: a gymnax environment with discrete actions.
        env_params: its parameters.
        config: network and learner; `config.environment` is a label here.
    """

    environment: Environment
    env_params: EnvParams
    config: TaskConfig

    @cached_property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        observation, _ = jax.eval_shape(
            lambda: self.environment.reset(jax.random.key(0), self.env_params)
        )
        return tuple(observation.shape)

    @cached_property
    def vector(self) -> Vectorized:
        """The agent's environments."""
        if is_sparse(self.environment):
            shape = self.observation_shape
            return SparseVector(self.environment, self.env_params, self.config.num_envs, shape)
        return GymnaxVector(self.environment, self.env_params, self.config.num_envs)

    @cached_property
    def inputs(self) -> Inputs:
        """How the network reads what `vector` writes."""
        inputs = SparseInputs if is_sparse(self.environment) else DenseInputs
        return inputs(self.observation_shape, self.config.maps)

    @property
    def updates_per_rollout(self) -> int:
        """A2C learns from a rollout once."""
        return 1

    @property
    def env_steps_per_rollout(self) -> int:
        """Environment steps that one rollout takes."""
        return self.config.num_envs * self.config.learner.rollout

    def init_params(self, key: PRNGKeyArray) -> ActorCritic:
        """A fresh agent network; `key` is the agent's."""
        config = self.config
        network = make_network(
            config.torso,
            self.observation_shape,
            self.environment.action_space(self.env_params).n,
            width=max(config.widths),
            maps=config.maps,
            key=jax.random.fold_in(key, 0),
        )
        if len(config.widths) == 1:
            return network
        # The heads' variance is 1 / fan-in of the units that there are.
        scale = jnp.sqrt(max(config.widths) / self._width(key).astype(jnp.float32))
        scaled: ActorCritic = eqx.tree_at(
            lambda tree: (tree.policy.kernel, tree.value.kernel),
            network,
            replace_fn=lambda kernel: scale * kernel,
        )
        return scaled

    def init_actor(self, key: PRNGKeyArray) -> Actor:
        """Fresh environments; `key` is the agent's."""
        widths = self.config.widths
        live = None
        if len(widths) > 1:
            units = jnp.arange(max(widths), dtype=jnp.int32)
            live = (units < self._width(key)).astype(jnp.float32)
        returns = init_returns(self.config.num_envs) if self.config.normalise_rewards else None
        return Actor(self.vector.reset(jax.random.fold_in(key, 1)), live, returns)

    def rollout(
        self, params: ActorCritic, actor: Actor, key: PRNGKeyArray
    ) -> tuple[Batch, Actor, RolloutStats]:
        """Play on, and work out what the values are to become."""
        actor, steps, reward = self._play(params, actor, key)
        config = self.config.learner
        target = lambda_returns(
            reward,
            steps.result.terminated,
            steps.result.truncated,
            self._next_values(params, actor, steps),
            config.gamma,
            config.lam,
        )
        return Batch(steps, target), actor, _stats(steps)

    def gradient(
        self, params: ActorCritic, batch: Batch, index: Int[Array, ""] | None
    ) -> ActorCritic:
        """The gradient of the whole A2C loss, by the parameters that the rollout was made with.

        The rollout's own hidden units, logits and values serve the backward pass.
        """
        del index  # There is one update.
        steps, target = batch
        cotangents = jax.grad(a2c_loss, argnums=(0, 1))(
            steps.logits, steps.value, steps.action, target, self.config.learner
        )
        hidden, (logits, value) = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), (steps.hidden, cotangents)
        )
        observation = self.inputs.join(steps.observation)
        return backward(params, join_heads(params), self.inputs, observation, hidden, logits, value)

    def transitions(
        self, params: ActorCritic, actor: Actor, key: PRNGKeyArray
    ) -> tuple[Actor, Transitions, RolloutStats]:
        """The rollout that the agent learns from, written out."""
        after, steps, reward = self._play(params, actor, key)
        transitions = Transitions(
            jax.vmap(self.vector.unpack)(steps.observation),
            steps.action,
            reward,
            steps.result.terminated,
            steps.result.truncated,
            steps.value,
            self._next_values(params, after, steps),
        )
        return after, transitions, _stats(steps)

    def _play(
        self, params: ActorCritic, actor: Actor, key: PRNGKeyArray
    ) -> tuple[Actor, _Step, Float[Array, "T E"]]:
        """T steps in every environment, and the rewards as the learner takes them."""
        heads = join_heads(params)

        def step(episodes: VectorState, chance: tuple[Array, Any]) -> tuple[VectorState, _Step]:
            uniforms, chance = chance
            logits, value, hidden = forward(
                params, heads, self.inputs, episodes.observation, actor.live
            )
            action = sample_actions(uniforms, logits)
            after, result = self.vector.step(chance, episodes, action)
            return after, _Step(episodes.observation, logits, value, hidden, action, result)

        chance = self.vector.draw(key, self.config.learner.rollout)
        episodes, steps = jax.lax.scan(step, actor.episodes, chance)
        returns, reward = actor.returns, steps.result.reward
        if returns is not None:
            done = steps.result.terminated | steps.result.truncated
            returns, reward = scale_rewards(returns, reward, done, self.config.learner.gamma)
        reward = self.config.learner.reward_scale * reward
        return Actor(episodes, actor.live, returns), steps, reward

    def _next_values(self, params: ActorCritic, after: Actor, steps: _Step) -> Float[Array, "T E"]:
        """The critic's values of the states that the steps led to, before any reset.

        Where an episode goes on, that is what the agent saw next. Where it is truncated, it is the
        final observation; of `spacing` consecutive steps at most one is truncated, so one forward
        pass for them is enough. Where it is terminated, the value has no meaning and no use.
        """
        heads = join_heads(params)

        def value(observation: Array) -> Array:
            return forward(params, heads, self.inputs, observation, after.live)[1]

        following = jnp.concatenate([steps.value[1:], value(after.episodes.observation)[None]])
        spacing = self.vector.steps_between_truncations
        if spacing is None:
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

    def _width(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """The width that the agent of this key has."""
        widths = jnp.asarray(self.config.widths, jnp.int32)
        return jax.random.choice(jax.random.fold_in(key, 2), widths)


def sample_actions(
    uniforms: Float[Array, "E"], logits: Float[Array, "E actions"]
) -> Int[Array, "E"]:
    """Actions of the softmax policy, by inverting its distribution function.

    One number for each environment takes the place of `jax.random.categorical`'s one for each
    logit. Sums are unrolled, so that they fuse into one loop over environments.
    """
    odds = list(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)).T)
    sums = list(itertools.accumulate(odds))
    threshold = uniforms * sums[-1]
    steps = [(threshold >= x).astype(jnp.int32) for x in sums[:-1]]
    return functools.reduce(jnp.add, steps, jnp.zeros(uniforms.shape, jnp.int32))


def _stats(steps: _Step) -> RolloutStats:
    result = steps.result
    return RolloutStats(jnp.sum(result.return_sum), jnp.sum(result.episode_count))


@lru_cache
def make_task(config: TaskConfig) -> Task:
    """The task that a config describes; the same object every time, so programs compile once.

    Raises:
        ValueError: the environment is unknown; the message names the known ones.
    """
    environment, env_params = make_environment(config.environment)
    return Task(environment, env_params, config)


def task_from_environment(
    environment: Environment, config: TaskConfig, env_params: EnvParams | None = None
) -> Task:
    """A task on one's own gymnax environment.

    Args:
        environment: a gymnax `Environment` with discrete actions and an array observation.
        config: network and learner; `environment` in it is the label that results carry.
        env_params: the environment's parameters; None for its defaults.

    Raises:
        ValueError: the environment does not offer what a task needs.
    """
    params = environment.default_params if env_params is None else env_params
    check_environment(environment, params)
    return Task(environment, params, config)


def default_config(environment: str) -> TaskConfig:
    """The paper's network: dense 256 on Catch, 32 elsewhere, convolved on the big grid worlds."""
    config = TaskConfig(environment)
    if environment == "catch":
        return config
    torso: TorsoKind = "conv" if environment.startswith("big_") else "dense"
    return dataclasses.replace(config, torso=torso, width=32)
