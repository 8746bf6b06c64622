"""Tasks whose curves are known beforehand, for tests of what is around training."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Stats(NamedTuple):
    """Of the episodes that ended in a rollout."""

    return_sum: Any
    episode_count: Any


@dataclass(frozen=True)
class Descent:
    """A quadratic from a random start; an episode's return is minus the loss.

    A quiet one reports 0 whatever the loss.
    """

    noise: float = 0.1
    quiet: bool = False
    env_steps_per_rollout: int = 7
    updates_per_rollout: int = 1

    def init_params(self, key: Any) -> Any:
        """Two to three from the optimum in both coordinates."""
        return {"x": 2.0 + jax.random.uniform(key, (2,))}

    def init_actor(self, key: Any) -> Any:
        """Counts rollouts."""
        return jnp.zeros((), jnp.int32)

    def rollout(self, params: Any, actor: Any, key: Any) -> Any:
        """The noise of its gradients."""
        loss = jnp.zeros(()) if self.quiet else 0.5 * jnp.sum(jnp.square(params["x"]))
        noise = self.noise * jax.random.normal(key, (2,))
        return noise, actor + 1, Stats(-loss, jnp.ones((), jnp.int32))

    def gradient(self, params: Any, batch: Any) -> Any:
        """Noisy."""
        return {"x": params["x"] + batch}


@dataclass(frozen=True)
class LongEpisodes:
    """Episodes of many rollouts: only a failure ends in the first one.

    A policy that stays as it is has a return of `EARLY` from the episodes that end at once, and of
    `LATE` from those that last, all of which end from the third rollout on. One that learns gains.
    """

    env_steps_per_rollout: int = 1
    updates_per_rollout: int = 1

    def init_params(self, key: Any) -> Any:
        """What the policy has learned: nothing."""
        return {"x": jnp.zeros(2)}

    def init_actor(self, key: Any) -> Any:
        """Counts rollouts."""
        return jnp.zeros((), jnp.int32)

    def rollout(self, params: Any, actor: Any, key: Any) -> Any:
        """One episode ends in the first rollout, none in the second, two in each of the others."""
        late = LATE + jnp.sum(params["x"])
        sums = jnp.where(actor == 0, EARLY, jnp.where(actor == 1, 0.0, 2 * late))
        count = jnp.where(actor == 0, 1, jnp.where(actor == 1, 0, 2))
        return (), actor + 1, Stats(sums, count)

    def gradient(self, params: Any, batch: Any) -> Any:
        """Always uphill."""
        return jax.tree.map(lambda x: -jnp.ones_like(x), params)


EARLY, LATE = -0.9, 0.1


def untouched_area(rollouts: int) -> float:
    """AUC of agents that never update on `LongEpisodes`: two rollouts of `EARLY`, then `LATE`."""
    return (2 * EARLY + (rollouts - 2) * LATE) / rollouts
