"""Advantage actor-critic as the paper runs it: TD(lambda) errors as advantages, one loss.

`loss = policy gradient + 0.5 TD^2 - 0.01 entropy`, means over the rollout (Lan et al. 2024,
appendix; Mnih et al. 2016, arXiv 1602.01783).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from optim4rl.fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check_fields
from optim4rl.tasks.backprop import BatchNetwork
from optim4rl.tasks.distributions import Distribution
from optim4rl.tasks.learner import Rollout


@dataclass(frozen=True)
class A2CConfig:
    """Settings of the inner learner.

    Attributes:
        rollout: environment steps T between updates, in each environment.
        gamma: discount factor.
        lam: lambda of the TD(lambda) errors.
        value_weight: weight of the squared error.
        entropy_weight: weight of the policy's entropy.
        reward_scale: rewards are multiplied by this before learning; reported returns are not.
    """

    rollout: int = 20
    gamma: float = 0.995
    lam: float = 0.95
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            rollout=COUNT,
            gamma=SHARE,
            lam=SHARE,
            value_weight=NOT_NEGATIVE,
            entropy_weight=NOT_NEGATIVE,
            reward_scale=POSITIVE,
        )


class Transitions(NamedTuple):
    """A rollout of T steps in E environments.

    Attributes:
        observation: what the agent saw.
        action: what it did, before any squashing.
        reward: what it got, scaled for learning.
        terminated: the step ended the episode in a terminal state, whose value is 0.
        truncated: the step hit a time limit; the state it led to still has a value.
        value: the critic's value of `observation`.
        next_value: the critic's value of the state that the step led to, before any reset.
    """

    observation: Float[Array, "T E *observation"]
    action: Num[Array, "T E ..."]
    reward: Float[Array, "T E"]
    terminated: Bool[Array, "T E"]
    truncated: Bool[Array, "T E"]
    value: Float[Array, "T E"]
    next_value: Float[Array, "T E"]


def lambda_returns(
    reward: Float[Array, "T E"],
    terminated: Bool[Array, "T E"],
    truncated: Bool[Array, "T E"],
    next_value: Float[Array, "T E"],
    gamma: float,
    lam: float,
) -> Float[Array, "T E"]:
    """TD(lambda) targets `G_t = r + gamma (1 - terminated) ((1 - lam_t) V(s') + lam_t G_{t+1})`.

    `lam_t` is 0 where an episode ends, so that a truncated step bootstraps from the state that it
    led to and nothing leaks over a reset (Sutton and Barto 2018, section 12.3).
    """
    discount = gamma * (1.0 - terminated.astype(jnp.float32))
    trace = lam * (1.0 - jnp.logical_or(terminated, truncated).astype(jnp.float32))

    def backward(target: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        r, d, t, v = step
        target = r + d * ((1.0 - t) * v + t * target)
        return target, target

    _, targets = jax.lax.scan(
        backward, next_value[-1], (reward, discount, trace, next_value), reverse=True
    )
    return targets


def a2c_loss(
    distribution: Distribution,
    config: A2CConfig,
    outputs: Float[Array, "N outputs"],
    value: Float[Array, "N"],
    action: Num[Array, "N ..."],
    uniforms: Float[Array, "numbers N"],
    target: Float[Array, "N"],
) -> Float[Array, ""]:
    """The whole loss. The targets are constants, and so is the advantage in the policy gradient."""
    error = jax.lax.stop_gradient(target) - value
    log_prob = distribution.log_prob(outputs, action)
    return (
        jnp.mean(-jax.lax.stop_gradient(error) * log_prob)
        + config.value_weight * jnp.mean(jnp.square(error))
        - config.entropy_weight * jnp.mean(distribution.entropy(outputs, uniforms))
    )


@dataclass(frozen=True)
class A2C:
    """One update for each rollout, from what the network gave while it was played."""

    config: A2CConfig
    network: BatchNetwork
    distribution: Distribution

    @property
    def updates_per_rollout(self) -> int:
        """A rollout is learned from once."""
        return 1

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> Rollout:
        """All of it."""
        return rollout

    def gradient(self, params: Any, batch: Rollout) -> Any:
        """The gradient of the whole loss, by the parameters that the rollout was made with."""
        cotangents = jax.grad(a2c_loss, argnums=(2, 3))(
            self.distribution,
            self.config,
            *(batch.outputs, batch.value, batch.action, batch.uniforms, batch.target),
        )
        prepared = self.network.prepare(params, batch.live)
        return self.network.backward(prepared, batch.observation, batch.cache, *cotangents)

    def minibatch_gradient(self, params: Any, batch: Rollout, index: Int[Array, ""]) -> Any:
        """The gradient of the whole loss: there is one update."""
        return self.gradient(params, batch)
