"""Tasks: an environment, an agent network and A2C, as pure functions of parameters and an actor."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.tasks.a2c import A2CConfig, Transitions, a2c_loss, lambda_returns
from optim4rl.tasks.environments.adapters import check_environment, make_environment
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.episodes import VectorState, reset_batch, step_batch
from optim4rl.tasks.networks import ActorCritic, MapOrder, TorsoKind, make_network


@dataclass(frozen=True)
class TaskConfig:
    """A task by name, with all its settings as plain values.

    Attributes:
        environment: a name from `environment_names()`, or "gymnax:NAME".
        num_envs: environments that one agent learns from at once.
        torso: "dense" or "conv".
        width: units of the dense layer.
        maps: order of the observation's maps in a convolution; "rows" is the paper's release.
        a2c: settings of the learner.
    """

    environment: str = "catch"
    num_envs: int = 64
    torso: TorsoKind = "dense"
    width: int = 256
    maps: MapOrder = "channels"
    a2c: A2CConfig = A2CConfig()

    def __post_init__(self) -> None:
        for field in ("num_envs", "width"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} = {value!r}: a whole number of at least 1 is needed")


class RolloutStats(NamedTuple):
    """What a rollout reports: undiscounted, unscaled returns of the episodes that ended in it."""

    return_sum: Float[Array, ""]
    episode_count: Int[Array, ""]


@dataclass(frozen=True, eq=False)
class Task:
    """An agent's task: start one, and take the gradient of one rollout of it.

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

    @property
    def can_truncate(self) -> bool:
        """Whether a time limit can end an episode; a game of Catch ends by itself before it."""
        game = self.environment
        limit = int(self.env_params.max_steps_in_episode)
        return not (type(game) is Catch and game.rows - 1 <= limit)

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps that one gradient takes."""
        return self.config.num_envs * self.config.a2c.rollout

    def init_params(self, key: PRNGKeyArray) -> ActorCritic:
        """A fresh agent network."""
        config = self.config
        return make_network(
            config.torso,
            self.observation_shape,
            self.environment.action_space(self.env_params).n,
            width=config.width,
            maps=config.maps,
            key=key,
        )

    def init_actor(self, key: PRNGKeyArray) -> VectorState:
        """Fresh environments."""
        return reset_batch(self.environment, self.env_params, key, self.config.num_envs)

    def gradient(
        self, params: ActorCritic, actor: VectorState, key: PRNGKeyArray
    ) -> tuple[ActorCritic, VectorState, RolloutStats]:
        """One rollout and the gradient of the whole A2C loss on it, like `params`."""
        actor, transitions, stats = self.rollout(params, actor, key)
        config = self.config.a2c
        target = lambda_returns(
            transitions.reward,
            transitions.terminated,
            transitions.truncated,
            transitions.next_value,
            config.gamma,
            config.lam,
        )

        def loss(params: ActorCritic) -> Float[Array, ""]:
            logits, value = jax.vmap(jax.vmap(params))(transitions.observation)
            return a2c_loss(logits, value, transitions.action, target, config)

        return jax.grad(loss)(params), actor, stats

    def rollout(
        self, params: ActorCritic, actor: VectorState, key: PRNGKeyArray
    ) -> tuple[VectorState, Transitions, RolloutStats]:
        """T steps in every environment."""

        def act(
            actor: VectorState, key: PRNGKeyArray
        ) -> tuple[VectorState, tuple[Transitions, RolloutStats]]:
            key_action, key_step = jax.random.split(key)
            logits, value = jax.vmap(params)(actor.observation)
            action = jax.random.categorical(key_action, logits)
            after, result = step_batch(self.environment, self.env_params, key_step, actor, action)
            next_value = (
                jax.vmap(params)(result.final_observation)[1] if self.can_truncate else value
            )
            transition = Transitions(
                actor.observation,
                action,
                result.reward * self.config.a2c.reward_scale,
                result.terminated,
                result.truncated,
                value,
                next_value,
            )
            return after, (transition, RolloutStats(result.return_sum, result.episode_count))

        keys = jax.random.split(key, self.config.a2c.rollout)
        actor, (transitions, stats) = jax.lax.scan(act, actor, keys)
        if not self.can_truncate:
            # Every step that goes on leads to the next observation, whose value is there already.
            last = jax.vmap(params)(actor.observation)[1]
            next_value = jnp.concatenate([transitions.value[1:], last[None]])
            transitions = transitions._replace(next_value=next_value)
        return actor, transitions, jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)


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
