"""A Muon-like step with learned gains: one small network steers the step of each whole tensor."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float

from optim4rl.optimizers.arrays import Array, mean, namespace, rsqrt
from optim4rl.optimizers.processing import SQUARE_LIMIT, Processing, bounded_exp, bounded_square
from optim4rl.optimizers.structure import (
    ExtraName,
    Features,
    NetworkShape,
    Outputs,
    Reading,
    ThreeMoments,
    given,
    log_age,
)

# The root mean square of a step before its gain: about Adam's ("Muon is Scalable for LLM Training",
# arXiv 2502.16982), so that one learning rate suits both.
STEP_RMS = 0.2
# A gain lies between exp(-4) and exp(4).
_GAIN_LIMIT = 4.0
# Added to mean squares and to their ratios.
_FLOOR = 1e-16


@dataclass(frozen=True)
class Modulated(ThreeMoments):
    """A momentum step of one size in every tensor, times a learned gain: `d = 0.2 exp(o1) u`.

    The direction `u` has a root mean square of 1. In kernels it comes from Nesterov's momentum, in
    vectors from Adam's step, as in Muon. Use it with `normalise="orthogonal"`, which makes kernels
    orthogonal and keeps their size. With zero heads the rule starts as Muon with steps of RMS 0.2
    that fall to 0 over training.

    The network runs once for a tensor, not for each coordinate, so it costs next to nothing. It
    reads numbers of the tensor and of the update that a constant step cannot know. Each field below
    is a part that ablations can leave out. `OptimizerSpec.inputs` adds the tensor's use. An
    extension of this project, not a structure of the paper.

    Attributes:
        beta1, beta2, beta_slow: decay rates of the momentum, of the squares and of a slower
            momentum.
        epsilon: added to the root of the second moment.
        decay: let the step fall linearly to 0 in the last rollout, as PPO users let their rate. If
            the agent does not tell the share of training that is done, the step does not fall.
        training: read the share of training that is done. If the agent does not tell it, the rule
            keeps the first rollout's gains for the whole run.
        epochs: read the share of the rollout's epochs that is done (PPO). If the agent does not
            tell it, the rule assumes the first epoch.
        age: read the logarithm of the number of updates.
        noise: read signal against noise: the size of both momenta against the root of the second
            moment, and whether the new gradient agrees with the slow momentum.
        size: read the size of the tensor's parameters, because a step is large or small relative to
            them.
        directions: learn the direction, too. Three more outputs mix the slow momentum and the fresh
            gradient into `u`, and decide how much it is divided by the root of the second moment.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    beta_slow: float = 0.99
    epsilon: float = 1e-8
    decay: bool = True
    training: bool = True
    epochs: bool = True
    age: bool = True
    noise: bool = True
    size: bool = True
    directions: bool = True

    name: ClassVar[str] = "modulated"
    tensorwise: ClassVar[bool] = True
    per_tensor: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ("params",)

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        inputs = self.training + self.epochs + self.age + 3 * self.noise + self.size
        return (NetworkShape(inputs, 4 if self.directions else 1),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        """Return the network's features, `[features, 1, ..., 1]`: one column for the tensor."""
        del processing
        xp, extras = namespace(reading.gradient), reading.extras
        zero = xp.zeros_like(_mean(reading.gradient))
        shares = (self.training, extras.training_proportion), (self.epochs, extras.epoch_proportion)
        rows = [(0.0 if share is None else share) + zero for read, share in shares if read]
        if self.age:
            rows.append(log_age(reading) + zero)
        if self.noise:
            rows += self._signal(reading)
        if self.size:
            size = xp.sqrt(_mean_square(given(extras.params)))
            rows.append(0.5 * xp.log(size + 1e-3) + 1.5)
        return (xp.stack(rows) if rows else xp.stack([zero])[:0],)

    def _signal(self, reading: Reading) -> list[Array]:
        """Return log sizes of both momenta against the noise, and the cosine with the gradient."""
        xp = namespace(reading.gradient)
        m, v, slow = self._corrected(reading)
        noise = _mean(v) + _FLOOR
        cosine = _mean(_unit(reading.gradient) * _unit(slow))
        ratios = [0.5 * xp.log((_mean_square(x) + 1e-4 * noise) / noise) for x in (m, slow)]
        return [*ratios, cosine]

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        xp, gradient, output = namespace(reading.gradient), reading.gradient, outputs[0]
        m, v, slow = self._corrected(reading)
        step = self.beta1 * m + (1.0 - self.beta1) * gradient
        # The share of Adam's division: none in kernels, all in vectors.
        power: Array | float = 0.0 if gradient.ndim > 1 else 1.0
        if self.directions:
            step = step + 0.3 * output[1] * slow + 0.1 * output[2] * gradient
            power = xp.clip(power + 0.3 * output[3], 0.0, 1.0)
        step = _bounded(step) * xp.exp(-power * xp.log(xp.sqrt(v) + self.epsilon))
        gain = bounded_exp(output[0], _GAIN_LIMIT)
        if self.decay and reading.extras.training_proportion is not None:
            gain = gain * (1.0 - reading.extras.training_proportion)
        return STEP_RMS * gain * _unit(step)


def _bounded(x: Array) -> Array:
    """Clip numbers whose squares would overflow."""
    return namespace(x).clip(x, -SQUARE_LIMIT, SQUARE_LIMIT)


def _mean(x: Array) -> Array:
    """Return the mean of a tensor, with all axes kept at length 1."""
    return mean(x, tuple(range(x.ndim)))


def _mean_square(x: Array) -> Array:
    return _mean(bounded_square(x))


def _unit(x: Array) -> Array:
    """Scale a tensor to a root mean square of 1; zeros stay."""
    x = _bounded(x)
    return x * rsqrt(_mean_square(x) + _FLOOR)
