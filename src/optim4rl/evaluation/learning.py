"""Learning curves: agents trained with an optimizer, many seeds and rates in one program."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.optimizers.presets import classical
from optim4rl.optimizers.replay import BLOCK
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.transform import learned_optimizer


@dataclass(frozen=True)
class Classical:
    """A classical optimizer by name, as a function of its learning rate."""

    name: str

    def __call__(self, parameters: Any, rate: Float[Array, ""]) -> optax.GradientTransformation:
        del parameters
        return classical(self.name, rate)


@dataclass(frozen=True)
class Learned:
    """A learned rule as a function of its meta-parameters and its rate alpha."""

    spec: OptimizerSpec

    def __call__(
        self, parameters: MetaParameters | None, rate: Float[Array, ""]
    ) -> optax.GradientTransformation:
        if parameters is None:
            raise ValueError("parameters = None: a learned rule needs its meta-parameters")
        return learned_optimizer(self.spec, parameters, rate, block=BLOCK)


# Frozen and hashable: one compiled program serves all parameters, rates and seeds.
Family = Classical | Learned


class EvaluationTask(Protocol):
    """What evaluation asks of a task."""

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps that one gradient takes."""

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Fresh agent parameters."""

    def init_actor(self, key: PRNGKeyArray) -> Any:
        """Fresh environments."""

    def gradient(self, params: Any, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        """One rollout: (gradient, actor, stats with `return_sum` and `episode_count`)."""


def learning_curves(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    updates: int,
) -> tuple[Curves, ...]:
    """Train an agent for every rate and seed.

    The same seed gives the same agent and the same environments at every rate and for every
    optimizer, so that comparisons are paired.

    Args:
        task: what is learned.
        family: the optimizer, but for its parameters and rate.
        parameters: meta-parameters of a learned rule, None for a classical optimizer.
        rates: learning rates; for a learned rule its alpha times a step scale.
        seeds: one agent for each.
        updates: gradient steps of each agent.

    Returns:
        One `Curves` for each rate, with one run for each seed.
    """
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    sums, counts, finite = _train_agents(
        task, family, updates, parameters, jnp.asarray(rates, jnp.float32), keys
    )
    env_steps = task.env_steps_per_update * np.arange(1, updates + 1)
    return tuple(
        Curves.from_episodes(
            np.asarray(s, np.float64), np.asarray(c), _first_divergence(np.asarray(f)), env_steps
        )
        for s, c, f in zip(sums, counts, finite, strict=True)
    )


@partial(jax.jit, static_argnames=("task", "family", "updates"))
def _train_agents(
    task: EvaluationTask,
    family: Family,
    updates: int,
    parameters: MetaParameters | None,
    rates: Float[Array, " rates"],
    keys: PRNGKeyArray,
) -> tuple[
    Float[Array, "rate run time"], Int[Array, "rate run time"], Bool[Array, "rate run time"]
]:
    run = partial(_train_agent, task, family, updates, parameters)
    over_seeds = jax.vmap(run, in_axes=(None, 0))
    # Rates one after the other: a batch of all seeds is as much as a core's cache can take.
    return jax.lax.map(lambda rate: over_seeds(rate, keys), rates)


def _train_agent(
    task: EvaluationTask,
    family: Family,
    updates: int,
    parameters: MetaParameters | None,
    rate: Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[Float[Array, " time"], Int[Array, " time"], Bool[Array, " time"]]:
    """Episode returns and counts of each update, and whether the parameters are still finite."""
    key_params, key_actor, key_rollouts = jax.random.split(key, 3)
    optimizer = family(parameters, rate)
    params = task.init_params(key_params)

    def update(carry: Any, key: PRNGKeyArray) -> tuple[Any, tuple[Array, Array, Array]]:
        params, state, actor = carry
        gradient, actor, stats = task.gradient(params, actor, key)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]).all()
        return (params, state, actor), (stats.return_sum, stats.episode_count, finite)

    start = (params, optimizer.init(params), task.init_actor(key_actor))
    _, outcome = jax.lax.scan(update, start, jax.random.split(key_rollouts, updates))
    return outcome


def _first_divergence(finite: Bool[np.ndarray, "run time"]) -> Int[np.ndarray, " run"]:
    return np.where(finite.all(axis=1), HEALTHY, np.argmin(finite, axis=1))
