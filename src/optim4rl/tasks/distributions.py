"""Policies' distributions over actions: categorical, and a Gaussian squashed into the bounds.

A network's outputs `[..., outputs]` are the parameters of a distribution over `raw` actions, for
any number of environments at once. Uniform numbers become a sample by inverting the distribution
function. A raw action is the number of a discrete action, or a continuous action before it is
squashed. So its probability is known even where the squashing saturates. `squash` turns it into the
environment's action.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The smallest possible standard deviation, as in Brax.
MIN_SCALE = 0.001

# Uniform numbers are kept this far from 0 and 1: normal ones are within 5.2.
_EDGE = 1e-7


@dataclass(frozen=True)
class Categorical:
    """The softmax policy over `outputs` discrete actions; a raw action is the action's number."""

    outputs: int

    @property
    def uniforms(self) -> int:
        """Return 1 for each action; `jax.random.categorical` takes one for each logit."""
        return 1

    def sample(
        self, uniforms: Float[Array, "*batch 1 E"], outputs: Float[Array, "*batch E actions"]
    ) -> Int[Array, "*batch E"]:
        """Return actions; unrolled sums fuse into one loop over environments."""
        odds = jnp.exp(outputs - jnp.max(outputs, axis=-1, keepdims=True))
        sums = list(itertools.accumulate(jnp.moveaxis(odds, -1, 0)))
        threshold = uniforms[..., 0, :] * sums[-1]
        steps = [(threshold >= x).astype(jnp.int32) for x in sums[:-1]]
        return functools.reduce(jnp.add, steps, jnp.zeros(threshold.shape, jnp.int32))

    def mode(self, outputs: Float[Array, "*batch E actions"]) -> Int[Array, "*batch E"]:
        """Return the most probable action."""
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32)

    def squash(self, raw: Int[Array, "*batch E"]) -> Int[Array, "*batch E"]:
        """Return the actions unchanged: environments take discrete actions as they are."""
        return raw

    def log_prob(
        self, outputs: Float[Array, "*batch E actions"], raw: Int[Array, "*batch E"]
    ) -> Float[Array, "*batch E"]:
        """Return the log-softmax of the sampled actions."""
        chosen = [raw == action for action in range(self.outputs)]
        terms = zip(chosen, _log_softmax(outputs), strict=True)
        return functools.reduce(jnp.add, [jnp.where(here, x, 0.0) for here, x in terms])

    def entropy(
        self, outputs: Float[Array, "*batch E actions"], uniforms: Float[Array, "*batch 1 E"]
    ) -> Float[Array, "*batch E"]:
        """Return the entropy in closed form; the numbers are not used."""
        log_policy = _log_softmax(outputs)
        return -jnp.sum(jnp.exp(log_policy) * log_policy, axis=0)


def _log_softmax(outputs: Float[Array, "*batch actions"]) -> Float[Array, "actions *batch"]:
    """Return log-softmax, actions first: sums over a short last axis do not vectorize."""
    logits = jnp.moveaxis(outputs, -1, 0)
    return logits - jax.nn.logsumexp(logits, axis=0)[None]


@dataclass(frozen=True)
class TanhNormal:
    """Independent Gaussians squashed by tanh, and stretched to the bounds of the actions.

    As in Brax's PPO (brax/training/distribution.py): the first half of the outputs are the means,
    and softplus of the second half plus 0.001 the standard deviations. Probabilities and entropies
    refer to the action in (-1, 1), before it is stretched.

    Attributes:
        low: least value of each number of an action.
        high: largest value of each number.
        shape: shape of one action; its numbers are in C order.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Return 2 for each number of an action: a mean and a scale."""
        return 2 * len(self.low)

    @property
    def uniforms(self) -> int:
        """Return 1 for each number of an action."""
        return len(self.low)

    def sample(
        self, uniforms: Float[Array, "*batch size E"], outputs: Float[Array, "*batch E outputs"]
    ) -> Float[Array, "*batch E size"]:
        """Return Gaussian numbers, before squashing."""
        mean, scale = _mean_and_scale(outputs)
        inside = jnp.clip(jnp.swapaxes(uniforms, -1, -2), _EDGE, 1.0 - _EDGE)
        return mean + scale * math.sqrt(2.0) * jax.scipy.special.erfinv(2.0 * inside - 1.0)

    def mode(self, outputs: Float[Array, "*batch E outputs"]) -> Float[Array, "*batch E size"]:
        """Return the Gaussian's mean, as in Brax."""
        return _mean_and_scale(outputs)[0]

    def squash(self, raw: Float[Array, "*batch E size"]) -> Float[Array, "..."]:
        """Squash into the bounds."""
        low, high = (jnp.asarray(x, jnp.float32) for x in (self.low, self.high))
        middle, reach = (high + low) / 2.0, (high - low) / 2.0
        lead = (1,) * (raw.ndim - 1)
        actions = middle.reshape(*lead, -1) + reach.reshape(*lead, -1) * jnp.tanh(raw)
        return actions.reshape(*raw.shape[:-1], *self.shape)

    def log_prob(
        self, outputs: Float[Array, "*batch E outputs"], raw: Float[Array, "*batch E size"]
    ) -> Float[Array, "*batch E"]:
        """Return the Gaussian's log-density minus the logarithm of tanh's slope."""
        mean, scale = _mean_and_scale(outputs)
        normal = -0.5 * jnp.square((raw - mean) / scale) - jnp.log(scale)
        return jnp.sum(normal - 0.5 * math.log(2 * math.pi) - _log_slope(raw), axis=-1)

    def entropy(
        self,
        outputs: Float[Array, "*batch E outputs"],
        uniforms: Float[Array, "*batch size E"],
    ) -> Float[Array, "*batch E"]:
        """Return the Gaussian's entropy plus the log of the slope at one sample, as in Brax."""
        _, scale = _mean_and_scale(outputs)
        stretch = _log_slope(self.sample(uniforms, outputs))
        return jnp.sum(0.5 * math.log(2 * math.pi * math.e) + jnp.log(scale) + stretch, axis=-1)


def _mean_and_scale(
    outputs: Float[Array, "*batch outputs"],
) -> tuple[Float[Array, "*batch size"], Float[Array, "*batch size"]]:
    mean, scale = jnp.split(outputs, 2, axis=-1)
    return mean, jax.nn.softplus(scale) + MIN_SCALE


def _log_slope(raw: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the log of tanh's slope, `log(1 - tanh(x)^2)`, also where the slope rounds to 0."""
    return 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))


Distribution: TypeAlias = Categorical | TanhNormal
