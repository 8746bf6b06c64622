"""Evolution strategies: the meta-gradient from agents that learn with perturbed rules.

Nothing is differentiated, so a life of any length counts as a whole. An agent's loss is minus its
mean return over its life. The estimate is the gradient of this loss, smoothed by a Gaussian of
standard deviation `sigma` around the rule. Agents come in antithetic pairs: agents i and i + M/2
have opposite perturbations, and share their first parameters, environments and all random numbers.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from optim4rl.meta.agents import (
    Agents,
    extras_of,
    gradients_of,
    init_agents,
    layout_of,
    met,
    play,
)
from optim4rl.meta.estimators import Estimate, EstimatorState, GradientEstimator
from optim4rl.meta.population import reset_agents, share_out
from optim4rl.meta.resets import reset_intervals, reset_mask, reset_offsets
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.rule import MetaParameters
from optim4rl.tasks.interface import InnerTask


class Learners(NamedTuple):
    """Agents and their last returns.

    Attributes:
        agents: the agents.
        returns: the mean return of the episodes that ended last; 0 before any has ended.
    """

    agents: Agents
    returns: Float[Array, " M"]


@dataclass(frozen=True)
class _Evolution(GradientEstimator):
    """Shared part of both strategies; the task must report returns."""

    def __post_init__(self) -> None:
        if not _reports_returns(self.meta_task.task):
            raise ValueError(
                f"estimator = {self.config.estimator!r}: it needs returns, so a task whose "
                "rollouts report return_sum and episode_count (tasks.interface.EvaluationTask)"
            )

    def live(
        self,
        rules: MetaParameters,
        learners: Learners,
        keys: Key[Array, " M"],
        lives: Int[Array, " M"],
    ) -> tuple[Learners, Float[Array, " M"], Any]:
        """Let agents learn from the rollouts of one estimate, each with its own rule.

        Args:
            rules: the meta-parameters of each agent, every array with a leading axis of size M.
            learners: the agents.
            keys: one key for each agent; its rollouts depend on no other.
            lives: each agent's whole life in rollouts; its rule is told how much of it is done.

        Returns:
            The agents afterwards; their losses; and the task's stats, summed over rollouts and
            agents. A loss is minus the mean return over rollouts, mixed with the mean over their
            last tenth (`MetaConfig.final_share`). The return of a rollout is the mean over the
            episodes that ended in it; if none ended, it is the return of the last rollout in which
            one did. The loss is NaN if a parameter is not finite.
        """
        spec, task = self.spec, self.meta_task.task
        kernel = choose(spec, self.execution.kernel)
        step = jax.vmap(partial(kernel.step, spec, layout=layout_of(task)))

        def learn(batch: Any, agents: Agents, index: Array) -> tuple[Agents, None]:
            gradients = gradients_of(task, agents.params, batch, index)
            extras = extras_of(spec, task, agents, keys, batch, index, lives)
            directions, rule = step(rules, met(gradients, extras), agents.rule)
            params = agents.params - self.meta_task.learning_rate * directions
            return agents._replace(params=params, rule=rule), None

        def play_and_learn(learners: Learners, index: Array) -> tuple[Learners, tuple[Array, Any]]:
            batch, actor, stats = play(task, learners.agents, keys, index)
            ended = stats.return_sum / jnp.maximum(stats.episode_count, 1)
            returns = jnp.where(stats.episode_count > 0, ended, learners.returns)
            agents = learners.agents._replace(actor=actor)
            indices = jnp.arange(task.updates_per_rollout)
            agents, _ = jax.lax.scan(partial(learn, batch), agents, indices)
            return Learners(agents, returns), (returns, stats)

        indices = jnp.arange(self.rollouts)
        learners, (curves, stats) = jax.lax.scan(play_and_learn, learners, indices)
        stats = jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), stats)
        # A policy with NaN still acts, and its returns are finite but meaningless.
        finite = jnp.isfinite(learners.agents.params).all(axis=1)
        last, share = curves[-max(self.rollouts // 10, 1) :].mean(axis=0), self.config.final_share
        score = (1.0 - share) * curves.mean(axis=0) + share * last
        return learners, jnp.where(finite, -score, jnp.nan), stats


@dataclass(frozen=True)
class EvolutionStrategies(_Evolution):
    """Evolution strategies over whole lives (Salimans et al. 2017, arXiv 1703.03864).

    In each estimate every agent starts fresh and lives for `reset_interval` times K inner updates
    under one perturbed rule. The two agents of a pair differ only in the perturbation.
    """

    @property
    def rollouts(self) -> int:
        """Return the rollouts of a life."""
        return super().rollouts * self.config.reset_interval

    def init(self, meta_parameters: MetaParameters, key: PRNGKeyArray) -> EstimatorState:
        """Return a state without agents, because no agent lives on."""
        del meta_parameters, key
        never = jnp.full((self.config.agents,), -1, jnp.int32)
        return EstimatorState((), never, jnp.zeros((), jnp.int32))

    def estimate(
        self, meta_parameters: MetaParameters, state: EstimatorState, key: PRNGKeyArray
    ) -> Estimate:
        """Return the mean over agents of loss (or rank) times perturbation, over sigma squared."""
        config, (mean, unravel) = self.config, ravel_pytree(meta_parameters)
        key_draw, key_agents = jax.random.split(key)
        pairs = config.agents // 2
        drawn = jax.random.normal(key_draw, (pairs, mean.size))
        rules = mean[None] + config.sigma * jnp.concatenate([drawn, -drawn])
        keys = _paired(jax.random.split(key_agents, pairs))
        stats, losses = share_out(
            self._lives,
            (),
            jnp.zeros(config.agents),
            (jax.vmap(unravel)(rules), keys),
            self.execution,
        )
        if self.config.fitness == "ranks":
            losses = rank_pairs(losses)
        # Perturbations as float32 has rounded them in the rules.
        perturbations = (rules - mean[None]) / config.sigma
        gradient = unravel(losses @ perturbations / (config.agents * config.sigma))
        return Estimate(gradient, state._replace(iteration=state.iteration + 1), stats)

    def _lives(
        self,
        shared: tuple[()],
        losses: Float[Array, " chunk"],
        given: tuple[MetaParameters, Key[Array, " chunk"]],
    ) -> tuple[Any, Float[Array, " chunk"]]:
        """Run whole lives of a chunk of agents."""
        del shared
        rules, keys = given
        key_init, key_rollouts = jax.vmap(jax.random.split, out_axes=1)(keys)
        agents = init_agents(self.spec, self.meta_task.task, key_init)
        learners = Learners(agents, jnp.zeros_like(losses))
        lives = jnp.full(losses.shape, self.rollouts)
        _, losses, stats = self.live(rules, learners, key_rollouts, lives)
        return stats, losses


class Persistent(NamedTuple):
    """Agents that live on under perturbed rules.

    Attributes:
        learners: the agents and their returns.
        perturbation: the sum of each agent's perturbations in its life so far.
    """

    learners: Learners
    perturbation: Float[Array, "M meta_parameters"]


@dataclass(frozen=True)
class PersistentEvolutionStrategies(_Evolution):
    """Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, arXiv 2112.13835).

    In each estimate every agent lives on for K inner updates under a freshly perturbed rule. Its
    loss counts towards all perturbations of its life so far (algorithm 2 of the paper), so the
    influence of earlier updates is kept, unlike with truncation. The schedule resets each pair on
    its own, with its sum of perturbations.
    """

    def init(self, meta_parameters: MetaParameters, key: PRNGKeyArray) -> EstimatorState:
        """Return fresh pairs, without a perturbation."""
        keys = _paired(jax.random.split(key, self.config.agents // 2))
        agents = init_agents(self.spec, self.meta_task.task, keys)
        perturbation = jnp.zeros((keys.size, ravel_pytree(meta_parameters)[0].size))
        population = Persistent(Learners(agents, jnp.zeros(keys.size)), perturbation)
        offsets = _paired(reset_offsets(self.config.resets, self._intervals, key))
        return EstimatorState(population, offsets, jnp.zeros((), jnp.int32))

    def estimate(
        self, meta_parameters: MetaParameters, state: EstimatorState, key: PRNGKeyArray
    ) -> Estimate:
        """Return the mean over agents of loss times summed perturbations, over sigma squared."""
        fresh = reset_mask(state.iteration, state.offsets, np.tile(self._intervals, 2))
        keys = _paired(jax.random.split(key, self._intervals.size))
        signs = jnp.repeat(jnp.array([1.0, -1.0]), self._intervals.size)
        lives = self.rollouts * jnp.tile(jnp.asarray(self._intervals), 2)
        (gradient, stats), population = share_out(
            self._window, meta_parameters, state.agents, (fresh, signs, keys, lives), self.execution
        )
        after = EstimatorState(population, state.offsets, state.iteration + 1)
        return Estimate(gradient, after, stats)

    @property
    def _intervals(self) -> Int[np.ndarray, " pairs"]:
        config = self.config
        return reset_intervals(config.agents // 2, config.reset_interval, config.shortest_interval)

    def _window(
        self,
        meta_parameters: MetaParameters,
        population: Persistent,
        given: tuple[Bool[Array, " M"], Float[Array, " M"], Key[Array, " M"], Int[Array, " M"]],
    ) -> tuple[tuple[MetaParameters, Any], Persistent]:
        """Return the contribution of a chunk of agents to the estimate and the stats."""
        fresh, signs, keys, lives = given
        sigma = self.config.sigma
        key_init, key_rollouts, key_draw = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(
            keys
        )
        (agents, returns), total = population
        agents = reset_agents(self.spec, self.meta_task.task, agents, fresh, key_init)
        returns = jnp.where(fresh, 0.0, returns)
        total = jnp.where(fresh[:, None], 0.0, total)
        mean, unravel = ravel_pytree(meta_parameters)
        drawn = jax.vmap(lambda key: jax.random.normal(key, mean.shape))(key_draw)
        drawn = sigma * signs[:, None] * drawn
        rules = jax.vmap(unravel)(mean[None] + drawn)
        learners, losses, stats = self.live(rules, Learners(agents, returns), key_rollouts, lives)
        total += drawn
        gradient = losses @ total / (sigma**2 * self.config.agents)
        return (unravel(gradient), stats), Persistent(learners, total)


def rank_pairs(losses: Float[Array, " M"]) -> Float[Array, " M"]:
    """Rank agents i and i + M/2: -0.5 for the smaller loss, 0.5 for the other, 0 for both if equal.

    A diverged life, whose loss is NaN, is worse than any other. Only the order within a pair
    counts, and the agents of a pair share all random numbers. So neither a task's scale nor one
    extreme life decides. OPEN does the same (Goldie et al. 2024, arXiv 2407.07082).
    """
    first, second = jnp.split(jnp.where(jnp.isnan(losses), jnp.inf, losses), 2)
    rank = 0.5 * ((first > second).astype(jnp.float32) - (first < second).astype(jnp.float32))
    return jnp.concatenate([rank, -rank])


def _paired(x: Any) -> Any:
    """Return one entry for each agent, from one for each pair."""
    return jnp.concatenate([x, x])


@lru_cache(maxsize=64)
def _reports_returns(task: InnerTask) -> bool:
    """Return whether a rollout's stats hold returns (`tasks.interface.EvaluationTask`)."""

    def stats(key: PRNGKeyArray) -> Any:
        return task.rollout(task.init_params(key), task.init_actor(key), key)[2]

    reported = jax.eval_shape(stats, jax.random.key(0))
    return all(hasattr(reported, name) for name in ("return_sum", "episode_count"))
