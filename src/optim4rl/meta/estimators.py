"""A task of meta-training, and the estimators of its meta-gradient.

The trainer sees only `GradientEstimator`. Estimators that perturb the rule instead of
differentiating through it are in `evolution`.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray

from optim4rl.fields import COUNT, POSITIVE, check_fields
from optim4rl.meta.agents import Agents, init_agents, num_rollouts
from optim4rl.meta.config import EstimatorName, MetaConfig
from optim4rl.meta.meta_gradient import truncated_meta_gradient
from optim4rl.meta.population import Execution, reset_agents, share_out
from optim4rl.meta.resets import reset_intervals, reset_mask, reset_offsets
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.tasks.interface import InnerTask


@dataclass(frozen=True)
class MetaTask:
    """One task of meta-training.

    Attributes:
        task: the task.
        learning_rate: alpha, the rule's inner learning rate on this task.
        window: K of this task; None: the config's. A window sees only its rollouts, so a learner
            with many updates for each rollout needs a longer window.
        estimator: estimator of this task's meta-gradient; None: the config's.
        agents: M of this task; None: the config's.
    """

    task: InnerTask
    learning_rate: float
    window: int | None = None
    estimator: EstimatorName | None = None
    agents: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, learning_rate=POSITIVE, window=COUNT, agents=COUNT)

    def settings(self, config: MetaConfig) -> MetaConfig:
        """Return the config with this task's own values.

        Raises:
            ValueError: the task's estimator cannot work with this number of agents.
        """
        estimator = self.estimator or config.estimator
        return dataclasses.replace(
            config,
            inner_updates=self.window or config.inner_updates,
            estimator=estimator,
            agents=self.agents or config.agents,
            fitness=config.fitness if estimator == "es" else "returns",
        )


class EstimatorState(NamedTuple):
    """State that an estimator carries from one estimate to the next.

    Attributes:
        agents: arrays with one entry for each agent, sharded over the devices.
        offsets: the reset index of each agent.
        iteration: number of estimates made.
    """

    agents: Any
    offsets: Int[Array, " M"]
    iteration: Int[Array, ""]


class Estimate(NamedTuple):
    """The result of an estimator.

    Attributes:
        gradient: an estimate of the meta-gradient.
        state: the estimator's state after it.
        stats: the task's stats, summed over rollouts and agents.
        rollouts: the rollouts that each agent may have played.
    """

    gradient: MetaParameters
    state: EstimatorState
    stats: Any
    rollouts: Int[Array, ""]


@dataclass(frozen=True)
class GradientEstimator(ABC):
    """An estimator of one task's meta-gradient.

    Attributes:
        spec: the rule.
        meta_task: the task.
        config: its settings (`MetaTask.settings`).
        execution: devices, chunks of agents, kernel.
    """

    spec: OptimizerSpec
    meta_task: MetaTask
    config: MetaConfig
    execution: Execution

    @property
    def rollouts(self) -> int:
        """Return the most rollouts of an agent in one estimate: the rollouts of K updates."""
        return num_rollouts(self.meta_task.task, self.config.inner_updates)

    @abstractmethod
    def init(self, meta_parameters: MetaParameters, key: PRNGKeyArray) -> EstimatorState:
        """Return the state before the first estimate."""

    @abstractmethod
    def estimate(
        self, meta_parameters: MetaParameters, state: EstimatorState, key: PRNGKeyArray
    ) -> Estimate:
        """Reset the agents that are due, let all agents learn, and estimate the meta-gradient.

        Raises:
            ValueError: the number of agents is not a multiple of the devices, or the kernel cannot
                run the rule.
        """


@dataclass(frozen=True)
class TruncatedMetaGradient(GradientEstimator):
    """The exact gradient through K inner updates (`meta_gradient`).

    Earlier updates are constants.
    """

    @property
    def rollouts(self) -> int:
        """Return the rollouts of the K updates, plus the validation."""
        return super().rollouts + 1

    def init(self, meta_parameters: MetaParameters, key: PRNGKeyArray) -> EstimatorState:
        """Return fresh agents."""
        del meta_parameters
        keys = jax.random.split(key, self.config.agents)
        agents = init_agents(self.spec, self.meta_task.task, keys)
        offsets = reset_offsets(self.config.resets, self._intervals, key)
        return EstimatorState(agents, offsets, jnp.zeros((), jnp.int32))

    def estimate(
        self, meta_parameters: MetaParameters, state: EstimatorState, key: PRNGKeyArray
    ) -> Estimate:
        """Return the mean of all agents' truncated meta-gradients."""
        fresh = reset_mask(state.iteration, state.offsets, self._intervals)
        keys = jax.random.split(key, self.config.agents)
        lives = (self.rollouts - 1) * self._intervals  # a life has no validation
        given = (fresh, keys, jnp.asarray(lives))
        (gradient, stats), agents = share_out(
            self._window, meta_parameters, state.agents, given, self.execution
        )
        after = EstimatorState(agents, state.offsets, state.iteration + 1)
        return Estimate(gradient, after, stats, jnp.int32(self.rollouts))

    @property
    def _intervals(self) -> Int[np.ndarray, " M"]:
        config = self.config
        return reset_intervals(config.agents, config.reset_interval, config.shortest_interval)

    def _window(
        self,
        meta_parameters: MetaParameters,
        agents: Agents,
        given: tuple[Bool[Array, " chunk"], Key[Array, " chunk"], Int[Array, " chunk"]],
    ) -> tuple[tuple[MetaParameters, Any], Agents]:
        """Return the contribution of a chunk of agents to the mean meta-gradient and the stats."""
        fresh, keys, lives = given
        key_init, key_rollouts = jax.vmap(jax.random.split, out_axes=1)(keys)
        agents = reset_agents(self.spec, self.meta_task.task, agents, fresh, key_init)
        result = truncated_meta_gradient(
            self.spec,
            meta_parameters,
            self.meta_task.task,
            agents,
            key_rollouts,
            learning_rate=self.meta_task.learning_rate,
            inner_updates=self.config.inner_updates,
            lives=lives,
            validation=self.config.validation,
            kernel=choose(self.spec, self.execution.kernel),
        )
        share = fresh.shape[0] / self.config.agents
        gradient = jax.tree.map(lambda x: share * x, result.gradient)
        stats = jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), result.stats)
        return (gradient, stats), result.agents
