"""Evolution strategies: the meta-gradient from agents that learn with perturbed rules.

Nothing is differentiated, so a life of any length counts as a whole. An agent's loss is minus its
mean return over its life. The estimate is the gradient of this loss, smoothed by a Gaussian of
standard deviation `sigma` around the rule. Agents come in antithetic pairs: agents i and i + M/2
have opposite perturbations, and share their first parameters, environments and all random numbers.
"""

import math
from dataclasses import dataclass
from functools import partial
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
    stats_shapes,
)
from optim4rl.meta.estimators import Estimate, EstimatorState, GradientEstimator
from optim4rl.meta.population import reset_agents, share_out
from optim4rl.meta.resets import reset_intervals, reset_mask, reset_offsets
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.rule import MetaParameters

# Folded into an estimate's key to draw the length of its lives.
_LENGTH = 2**31 - 4


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
        reported = stats_shapes(self.meta_task.task)
        if not all(hasattr(reported, name) for name in ("return_sum", "episode_count")):
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
        rollouts: int | Int[Array, ""],
    ) -> tuple[Learners, Float[Array, " M"], Any]:
        """Let agents learn from the rollouts of one estimate, each with its own rule.

        Args:
            rules: the meta-parameters of each agent, every array with a leading axis of size M.
            learners: the agents.
            keys: one key for each agent; its rollouts depend on no other.
            lives: each agent's whole life in rollouts; its rule is told how much of it is done.
            rollouts: rollouts of this estimate. It ends earlier if all agents are lost.

        Returns:
            The agents afterwards; their losses; and the task's stats, summed over rollouts and
            agents. A loss is minus the mean return over rollouts, mixed with the mean over their
            last tenth (`MetaConfig.final_share`). The return of a rollout is the mean over the
            episodes that ended in it; if none ended, it is the return of the last rollout in which
            one did. The loss is NaN if a parameter is not finite: the agent is lost.
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

        def play_and_learn(now: _Now) -> _Now:
            agents, index = now.learners.agents, now.rollout
            batch, actor, stats = play(task, agents, keys, index)
            ended = stats.return_sum / jnp.maximum(stats.episode_count, 1)
            returns = jnp.where(stats.episode_count > 0, ended, now.learners.returns)
            agents = agents._replace(actor=actor)
            indices = jnp.arange(task.updates_per_rollout)
            agents, _ = jax.lax.scan(partial(learn, batch), agents, indices)
            total = jax.tree.map(lambda sum, x: sum + x.sum(axis=0), now.stats, stats)
            curves = now.curves.at[index].set(returns)
            return _Now(index + 1, Learners(agents, returns), curves, total)

        def goes_on(now: _Now) -> Bool[Array, ""]:
            return (now.rollout < rollouts) & _finite(now.learners).any()

        stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stats_shapes(task))
        start = _Now(jnp.int32(0), learners, jnp.zeros((self.rollouts, keys.size)), stats)
        now = jax.lax.while_loop(goes_on, play_and_learn, start)
        # A policy with NaN still acts, and its returns are finite but meaningless.
        score = _score(now.curves, rollouts, self.config.final_share)
        return now.learners, jnp.where(_finite(now.learners), -score, jnp.nan), now.stats


class _Now(NamedTuple):
    """Agents in the middle of an estimate: the rollouts done, the curves and stats so far."""

    rollout: Int[Array, ""]
    learners: Learners
    curves: Float[Array, "rollouts M"]
    stats: Any


def _finite(learners: Learners) -> Bool[Array, " M"]:
    return jnp.isfinite(learners.agents.params).all(axis=1)


def _score(
    curves: Float[Array, "most M"], rollouts: int | Int[Array, ""], final_share: float
) -> Float[Array, " M"]:
    """Return the mean of the first rollouts, mixed with the mean of their last tenth."""
    tenth = jnp.maximum(rollouts // 10, 1)
    index = jnp.arange(len(curves))[:, None]
    last = jnp.where((index >= rollouts - tenth) & (index < rollouts), curves, 0.0)
    whole = jnp.where(index < rollouts, curves, 0.0)
    mean, end = whole.sum(axis=0) / rollouts, last.sum(axis=0) / tenth
    return (1.0 - final_share) * mean + final_share * end


@dataclass(frozen=True)
class EvolutionStrategies(_Evolution):
    """Evolution strategies over whole lives (Salimans et al. 2017, arXiv 1703.03864).

    In each estimate every agent starts fresh and lives for `reset_interval` times K inner updates
    under one perturbed rule. The two agents of a pair differ only in the perturbation. With
    `shortest_interval` each estimate draws the interval of its lives.
    """

    @property
    def rollouts(self) -> int:
        """Return the rollouts of the longest life."""
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
        rollouts = self._draw_rollouts(jax.random.fold_in(key, _LENGTH))
        drawn = jax.random.normal(key_draw, (config.agents // 2, mean.size))
        rules, losses, stats = self.run_pairs(meta_parameters, drawn, key_agents, rollouts)
        if config.fitness == "ranks":
            losses = rank_pairs(losses)
        # Perturbations as float32 has rounded them in the rules.
        perturbations = (rules - mean[None]) / config.sigma
        gradient = unravel(losses @ perturbations / (config.agents * config.sigma))
        return Estimate(gradient, state._replace(iteration=state.iteration + 1), stats, rollouts)

    def run_pairs(
        self,
        meta_parameters: MetaParameters,
        drawn: Float[Array, "pairs meta_parameters"],
        key: PRNGKeyArray,
        rollouts: Int[Array, ""],
    ) -> tuple[Float[Array, "M meta_parameters"], Float[Array, " M"], Any]:
        """Run whole lives of antithetic pairs under given perturbations, in units of sigma.

        Returns:
            The flattened rule of each agent, its loss (see `live`), and the stats, summed over
            rollouts and agents.
        """
        mean, unravel = ravel_pytree(meta_parameters)
        rules = mean[None] + self.config.sigma * jnp.concatenate([drawn, -drawn])
        keys = _paired(jax.random.split(key, len(drawn)))
        given = (jax.vmap(unravel)(rules), keys)
        zeros = jnp.zeros(self.config.agents)
        stats, losses = share_out(self._lives, rollouts, zeros, given, self.execution)
        return rules, losses, stats

    def _draw_rollouts(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """Draw the rollouts of a life; the interval is uniform in logarithm."""
        shortest, longest = self.config.shortest_interval, self.config.reset_interval
        if shortest is None:
            return jnp.int32(self.rollouts)
        # All whole numbers between the two are possible, and the ends as likely as their share.
        drawn = jax.random.uniform(key, minval=math.log(shortest), maxval=math.log(longest + 1))
        interval = jnp.clip(jnp.exp(drawn).astype(jnp.int32), shortest, longest)
        return self.rollouts // longest * interval

    def _lives(
        self,
        rollouts: Int[Array, ""],
        losses: Float[Array, " chunk"],
        given: tuple[MetaParameters, Key[Array, " chunk"]],
    ) -> tuple[Any, Float[Array, " chunk"]]:
        """Run whole lives of a chunk of agents."""
        rules, keys = given
        key_init, key_rollouts = jax.vmap(jax.random.split, out_axes=1)(keys)
        agents = init_agents(self.spec, self.meta_task.task, key_init)
        learners = Learners(agents, jnp.zeros_like(losses))
        lives = jnp.full(losses.shape, rollouts)
        _, losses, stats = self.live(rules, learners, key_rollouts, lives, rollouts)
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
        return Estimate(gradient, after, stats, jnp.int32(self.rollouts))

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
        learners = Learners(agents, returns)
        learners, losses, stats = self.live(rules, learners, key_rollouts, lives, self.rollouts)
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
