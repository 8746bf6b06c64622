"""Advantage actor-critic as in the paper: TD(lambda) errors as advantages, one loss.

`loss = policy gradient + 0.5 TD^2 - 0.01 entropy`, means over the rollout (Lan et al. 2024,
appendix; Mnih et al. 2016, arXiv 1602.01783).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks.backprop import BatchNetwork
from optim4rl.tasks.config import A2CConfig as A2CConfig
from optim4rl.tasks.distributions import Distribution
from optim4rl.tasks.learner import Rollout


def lambda_returns(
    reward: Float[Array, "T E"],
    terminated: Bool[Array, "T E"],
    truncated: Bool[Array, "T E"],
    next_value: Float[Array, "T E"],
    gamma: float,
    lam: float,
) -> Float[Array, "T E"]:
    """Return the targets `G_t = r + gamma (1 - terminated) ((1 - lam_t) V(s') + lam_t G_{t+1})`.

    These are TD(lambda) targets (Sutton and Barto 2018, section 12.3). `lam_t` is 0 at the end of
    an episode. So a truncated step bootstraps from its next state, and nothing leaks over a reset.
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
    """Return the whole loss.

    Targets are constants, and so are advantages in the policy gradient.
    """
    error = jax.lax.stop_gradient(target) - value
    log_prob = distribution.log_prob(outputs, action)
    return (
        jnp.mean(-jax.lax.stop_gradient(error) * log_prob)
        + config.value_weight * jnp.mean(jnp.square(error))
        - config.entropy_weight * jnp.mean(distribution.entropy(outputs, uniforms))
    )


@dataclass(frozen=True)
class A2C:
    """A2C: one update for each rollout, from the network's outputs during the rollout."""

    config: A2CConfig
    network: BatchNetwork
    distribution: Distribution

    @property
    def updates_per_rollout(self) -> int:
        """Return 1: each rollout serves one update."""
        return 1

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> Rollout:
        """Return the rollout itself."""
        return rollout

    def loss(self, params: Any, batch: Rollout, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return the loss on the whole rollout, at any parameters."""
        del index
        prepared = self.network.prepare(params, batch.live)
        outputs, value, _ = self.network.forward(prepared, batch.observation)
        return a2c_loss(
            *(self.distribution, self.config, outputs, value),
            *(batch.action, batch.uniforms, batch.target),
        )

    def gradient(self, params: Any, batch: Rollout) -> Any:
        """Return the gradient of the whole loss, at the parameters that played the rollout."""
        cotangents = jax.grad(a2c_loss, argnums=(2, 3))(
            self.distribution,
            self.config,
            *(batch.outputs, batch.value, batch.action, batch.uniforms, batch.target),
        )
        prepared = self.network.prepare(params, batch.live)
        return self.network.backward(prepared, batch.observation, batch.cache, *cotangents)

    def minibatch_gradient(self, params: Any, batch: Rollout, index: Int[Array, ""]) -> Any:
        """Return the gradient of the whole loss: there is only one update."""
        return self.gradient(params, batch)

    def extras(self, params: Any, batch: Rollout, index: Int[Array, ""]) -> dict[str, Any]:
        """Return the dormancy on the rollout, and 0 for its only epoch."""
        prepared = self.network.prepare(params, batch.live)
        return {
            "dormancy": self.network.dormancy(prepared, batch.observation),
            "epoch_proportion": jnp.zeros(()),
        }
