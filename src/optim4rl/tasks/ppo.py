"""Proximal policy optimization: several epochs of minibatches on each rollout.

`loss = -min(r A, clip(r, 1 - c, 1 + c) A) + 0.5 TD^2 - 0.01 entropy`, means over a minibatch. Here
r is the ratio of the new to the old policy's probability of an action, and A are the advantages by
GAE (Schulman et al. 2017, arXiv 1707.06347; 2016, arXiv 1506.02438). With `value_clip` d the
squared error is the larger of `(G - V)^2` and `(G - V0 - clip(V - V0, -d, d))^2`. Here G is the
target, and V0 is the value in the rollout.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks.backprop import BatchNetwork
from optim4rl.tasks.config import PPOConfig as PPOConfig
from optim4rl.tasks.distributions import Distribution
from optim4rl.tasks.learner import Rollout


class Samples(NamedTuple):
    """The samples that the loss is computed from.

    Attributes:
        observation: the agent's observations, in the form that its network reads.
        action: the sampled raw action.
        uniforms: the uniform numbers that it was sampled with.
        log_prob: its log-probability when it was sampled.
        advantage: the target of the value minus the value in the rollout.
        target: the TD(lambda) target of the value.
    """

    observation: Num[Array, "..."]
    action: Num[Array, "N ..."]
    uniforms: Float[Array, "numbers N"]
    log_prob: Float[Array, "N"]
    advantage: Float[Array, "N"]
    target: Float[Array, "N"]


class PPOBatch(NamedTuple):
    """A rollout, the order in which each epoch takes its samples, and the agent's units."""

    samples: Samples
    order: Int[Array, "epochs N"]
    live: Float[Array, "width"] | None


def ppo_loss(
    distribution: Distribution,
    config: PPOConfig,
    outputs: Float[Array, "N outputs"],
    value: Float[Array, "N"],
    samples: Samples,
) -> Float[Array, ""]:
    """Return the whole loss of a minibatch; normalise its advantages if the config says so."""
    advantage = samples.advantage
    if config.normalise_advantages:
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    ratio = jnp.exp(distribution.log_prob(outputs, samples.action) - samples.log_prob)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    return (
        -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
        + config.value_weight * jnp.mean(_squared_error(config, value, samples))
        - config.entropy_weight * jnp.mean(distribution.entropy(outputs, samples.uniforms))
    )


def _squared_error(
    config: PPOConfig, value: Float[Array, "N"], samples: Samples
) -> Float[Array, "N"]:
    error = jnp.square(samples.target - value)
    if config.value_clip is None:
        return error
    before = samples.target - samples.advantage
    near = before + jnp.clip(value - before, -config.value_clip, config.value_clip)
    return jnp.maximum(error, jnp.square(samples.target - near))


@dataclass(frozen=True)
class PPO:
    """PPO: epochs x minibatches updates for each rollout."""

    config: PPOConfig
    network: BatchNetwork
    distribution: Distribution

    @property
    def updates_per_rollout(self) -> int:
        """Return epochs x minibatches."""
        return self.config.epochs * self.config.minibatches

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> PPOBatch:
        """Return the samples with their old log-probabilities, and a permutation for each epoch."""
        samples = Samples(
            rollout.observation,
            rollout.action,
            rollout.uniforms,
            self.distribution.log_prob(rollout.outputs, rollout.action),
            rollout.target - rollout.value,
            rollout.target,
        )
        bits = jax.random.bits(key, (self.config.epochs, len(rollout.value)), jnp.uint32)
        return PPOBatch(samples, jnp.argsort(bits, axis=1), rollout.live)

    def gradient(self, params: Any, batch: PPOBatch) -> Any:
        """Return the gradient of the loss on all samples."""
        return self._gradient(params, batch.samples, batch.live)

    def minibatch_gradient(self, params: Any, batch: PPOBatch, index: Int[Array, ""]) -> Any:
        """Return the gradient on minibatch `index % minibatches`, epoch `index // minibatches`."""
        return self._gradient(params, self._minibatch(batch, index), batch.live)

    def extras(self, params: Any, batch: PPOBatch, index: Int[Array, ""]) -> dict[str, Any]:
        """Return the dormancy on the minibatch and the proportion of epochs done."""
        prepared = self.network.prepare(params, batch.live)
        samples = self._minibatch(batch, index)
        epoch = index // self.config.minibatches
        return {
            "dormancy": self.network.dormancy(prepared, samples.observation),
            "epoch_proportion": epoch / max(self.config.epochs - 1, 1),
        }

    def loss(self, params: Any, batch: PPOBatch, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return the loss whose gradient is `minibatch_gradient`."""
        samples = self._minibatch(batch, index)
        prepared = self.network.prepare(params, batch.live)
        outputs, value, _ = self.network.forward(prepared, samples.observation)
        return ppo_loss(self.distribution, self.config, outputs, value, samples)

    def _gradient(self, params: Any, samples: Samples, live: Float[Array, "width"] | None) -> Any:
        prepared = self.network.prepare(params, live)
        outputs, value, cache = self.network.forward(prepared, samples.observation)
        cotangents = jax.grad(ppo_loss, argnums=(2, 3))(
            self.distribution, self.config, outputs, value, samples
        )
        return self.network.backward(prepared, samples.observation, cache, *cotangents)

    def _minibatch(self, batch: PPOBatch, index: Int[Array, ""]) -> Samples:
        epoch, number = jnp.divmod(index, self.config.minibatches)
        members = batch.order.reshape(self.config.epochs, self.config.minibatches, -1)
        members = members[epoch, number]
        samples = batch.samples
        return Samples(
            self.network.inputs.take(samples.observation, members),
            samples.action[members],
            samples.uniforms[:, members],
            samples.log_prob[members],
            samples.advantage[members],
            samples.target[members],
        )
