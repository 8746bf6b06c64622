"""Advantage actor-critic as the paper runs it: TD(lambda) errors as advantages, one loss.

`loss = policy gradient + 0.5 TD^2 - 0.01 entropy`, means over the rollout (Lan et al. 2024,
appendix; Mnih et al. 2016, arXiv 1602.01783).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
        if self.rollout < 1:
            raise ValueError(f"rollout = {self.rollout!r}: at least one step is needed")
        for field, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"{field} = {value!r}: a number in [0, 1] is needed")


class Transitions(NamedTuple):
    """A rollout of T steps in E environments.

    Attributes:
        observation: what the agent saw.
        action: what it did.
        reward: what it got, scaled for learning.
        terminated: the step ended the episode in a terminal state, whose value is 0.
        truncated: the step hit a time limit; the state it led to still has a value.
        value: the critic's value of `observation`.
        next_value: the critic's value of the state that the step led to, before any reset.
    """

    observation: Float[Array, "T E *observation"]
    action: Int[Array, "T E"]
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
    logits: Float[Array, "T E actions"],
    value: Float[Array, "T E"],
    action: Int[Array, "T E"],
    target: Float[Array, "T E"],
    config: A2CConfig,
) -> Float[Array, ""]:
    """The whole loss. The targets are constants, and so is the advantage in the policy gradient."""
    # Actions first: sums over a short last axis do not vectorize.
    logits = jnp.moveaxis(logits, -1, 0)
    log_policy = logits - jax.nn.logsumexp(logits, axis=0)[None]
    actions = jnp.arange(len(logits), dtype=action.dtype)[:, None, None]
    log_prob = jnp.sum(jnp.where(action[None] == actions, log_policy, 0.0), axis=0)
    error = jax.lax.stop_gradient(target) - value
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=0)
    return (
        jnp.mean(-jax.lax.stop_gradient(error) * log_prob)
        + config.value_weight * jnp.mean(jnp.square(error))
        - config.entropy_weight * jnp.mean(entropy)
    )
