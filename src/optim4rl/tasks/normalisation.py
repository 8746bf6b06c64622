"""Running statistics that normalise an agent's observations and rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# The clip of scaled rewards. Before the first rewards of a sparse task the scale is 0.
REWARD_LIMIT = 10.0
# Observations are clipped this many standard deviations from the mean.
OBSERVATION_LIMIT = 10.0
_EPSILON = 1e-8


class Moments(NamedTuple):
    """Number, mean and variance of all data so far, elementwise over `*shape`."""

    seen: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


def init_moments(shape: tuple[int, ...]) -> Moments:
    """Return the moments before any data."""
    return Moments(jnp.float32(0.0), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def update_moments(moments: Moments, batch: Float[Array, "batch *shape"]) -> Moments:
    """Add a batch to the moments (Chan, Golub, LeVeque 1979)."""
    size = jnp.float32(batch.shape[0])
    mean, variance = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
    seen = moments.seen + size
    share = size / seen
    difference = mean - moments.mean
    return Moments(
        seen,
        moments.mean + share * difference,
        (1.0 - share) * moments.variance
        + share * variance
        + share * (1.0 - share) * jnp.square(difference),
    )


class RunningReturns(NamedTuple):
    """Statistics of an agent's returns, which scale its rewards.

    Attributes:
        discounted: in each environment the discounted sum of the rewards so far,
            `R_t = gamma R_{t-1} + r_t`, which starts from 0 in each episode.
        moments: moments of all these sums.
    """

    discounted: Float[Array, "E"]
    moments: Moments


def init_returns(num_envs: int) -> RunningReturns:
    """Return the statistics before any data."""
    return RunningReturns(jnp.zeros(num_envs, jnp.float32), init_moments(()))


def scale_rewards(
    returns: RunningReturns,
    reward: Float[Array, "T E"],
    done: Bool[Array, "T E"],
    gamma: float,
) -> tuple[RunningReturns, Float[Array, "T E"]]:
    """Divide a rollout's rewards by the standard deviation of all discounted sums so far.

    This is Gymnasium's `NormalizeReward`, but once for a whole rollout. The scaled rewards are
    clipped to `[-REWARD_LIMIT, REWARD_LIMIT]`.
    """

    def accumulate(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = step
        total = gamma * total + reward
        return jnp.where(done, 0.0, total), total

    discounted, sums = jax.lax.scan(accumulate, returns.discounted, (reward, done))
    moments = update_moments(returns.moments, sums.reshape(-1))
    scaled = reward * jax.lax.rsqrt(moments.variance + _EPSILON)
    return RunningReturns(discounted, moments), jnp.clip(scaled, -REWARD_LIMIT, REWARD_LIMIT)


def normalise(moments: Moments, x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Normalise to mean 0 and variance 1 with the moments, and clip to `OBSERVATION_LIMIT`.

    The last axes of `x` are the moments' axes. Before any data, only clip.
    """
    scale = jnp.where(moments.seen > 0, jax.lax.rsqrt(moments.variance + _EPSILON), 1.0)
    lead = (1,) * (x.ndim - scale.ndim)
    normal = (x - moments.mean.reshape(*lead, *scale.shape)) * scale.reshape(*lead, *scale.shape)
    return jnp.clip(normal, -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
