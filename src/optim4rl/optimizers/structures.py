"""Update structures: how the networks' outputs become an update.

A structure says how many networks it needs, what each of them reads, which running moments it keeps
beside their hidden states, and the formula of the update. It returns the step *direction* `d`; the
parameter moves by `-alpha * d`.

| name | direction d | source |
|---|---|---|
| adaptive | `m / sqrt(v)`, both learned | Lan et al. 2024, section 4.3 |
| non_adaptive | `m` alone | the ablation of the division |
| linear | `exp(o1) g + exp(o2) o3` | LinearOptim, Lan et al. 2024 |
| l2l | `exp(o) g` | L2LGD2, Andrychowicz et al. 2016 |
| anchored | `exp(o1) adam + 0.1 o2 g/sqrt(v_hat) + 0.3 o3 slow` | starts as exactly Adam; ours |
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optim4rl.optimizers.processing import (
    LOG_DOMAIN_LIMIT,
    Processing,
    bounded_exp,
    bounded_square,
)

# Bound of a learned factor on a gradient of any size: e^10 = 22,026 either way.
FACTOR_LIMIT = 10.0

Outputs = tuple[Float[Array, "_ *shape"], ...]
Features = tuple[Float[Array, "_ *shape"], ...]


class NetworkShape(NamedTuple):
    """What one network of a structure reads and writes, per coordinate."""

    inputs: int
    outputs: int


@runtime_checkable
class Structure(Protocol):
    """An update formula around one or two recurrent networks, coordinate by coordinate.

    `gradient` has the coordinates' shape, `moments` one row per running moment, `age` is the
    number of updates made before this one.
    """

    name: ClassVar[str]
    num_moments: ClassVar[int]

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        """The shapes of the networks, in the order of `features` and `outputs`."""

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        """The running moments after this gradient."""

    def features(
        self,
        processing: Processing,
        gradient: Float[Array, "*shape"],
        moments: Float[Array, "moments *shape"],
        age: Int[Array, ""],
    ) -> Features:
        """What each network reads."""

    def direction(
        self,
        processing: Processing,
        gradient: Float[Array, "*shape"],
        moments: Float[Array, "moments *shape"],
        age: Int[Array, ""],
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        """The direction `d` of the update `-alpha * d`."""


class _WithoutMoments:
    """A structure whose only memory is the networks' hidden state."""

    num_moments: ClassVar[int] = 0

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        del gradient
        return moments


class _OneNetwork(_WithoutMoments):
    """A structure of one network, which reads the gradient as a first moment."""

    def features(
        self, processing: Processing, gradient: Array, moments: Array, age: Array
    ) -> Features:
        del moments, age
        return (processing.first(gradient),)


def straight_through_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-1 or +1 (never 0) going forward, the identity going backward."""
    return x + jax.lax.stop_gradient(jnp.where(x >= 0, 1.0, -1.0) - x)


def _first_moment(
    processing: Processing, gradient: Array, outputs: Float[Array, "outputs *shape"], signed: bool
) -> Float[Array, "*shape"]:
    if not signed:
        return processing.decode(gradient, outputs[0])
    sign = straight_through_sign(jnp.tanh(outputs[0] + 1.0))
    return sign * processing.decode(gradient, outputs[1])


@dataclass(frozen=True)
class Adaptive(_WithoutMoments):
    """Optim4RL: `d = m / sqrt(v)`, `v = exp(o2) + epsilon`.

    With `signed` (Version A) `m = s * decode(o12)`, where `s = sgn(tanh(o11 + 1))` is -1 or +1 with
    a straight-through gradient; without (Version B) `m = decode(o1)`.
    """

    epsilon: float = 1e-18
    signed: bool = True

    name: ClassVar[str] = "adaptive"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (
            NetworkShape(processing.first_features, 2 if self.signed else 1),
            NetworkShape(processing.second_features, 1),
        )

    def features(
        self, processing: Processing, gradient: Array, moments: Array, age: Array
    ) -> Features:
        del moments, age
        return processing.first(gradient), processing.second(gradient)

    def direction(
        self,
        processing: Processing,
        gradient: Array,
        moments: Array,
        age: Array,
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        del moments, age
        first, second = outputs
        m = _first_moment(processing, gradient, first, self.signed)
        v = bounded_exp(second[0], LOG_DOMAIN_LIMIT) + self.epsilon
        return m * jax.lax.rsqrt(v)


@dataclass(frozen=True)
class NonAdaptive(_OneNetwork):
    """Optim4RL without the division: `d = m`, the rest unchanged."""

    signed: bool = True

    name: ClassVar[str] = "non_adaptive"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 2 if self.signed else 1),)

    def direction(
        self,
        processing: Processing,
        gradient: Array,
        moments: Array,
        age: Array,
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        del moments, age
        return _first_moment(processing, gradient, outputs[0], self.signed)


@dataclass(frozen=True)
class Linear(_OneNetwork):
    """LinearOptim: `d = exp(o1) g + exp(o2) o3`, one network."""

    name: ClassVar[str] = "linear"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 3),)

    def direction(
        self,
        processing: Processing,
        gradient: Array,
        moments: Array,
        age: Array,
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        del processing, moments, age
        gain, offset_gain, offset = outputs[0]
        return bounded_exp(gain, FACTOR_LIMIT) * gradient + (
            bounded_exp(offset_gain, FACTOR_LIMIT) * offset
        )


@dataclass(frozen=True)
class L2L(_OneNetwork):
    """L2LGD2 as the paper runs it: `d = exp(o) g`, one network."""

    name: ClassVar[str] = "l2l"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 1),)

    def direction(
        self,
        processing: Processing,
        gradient: Array,
        moments: Array,
        age: Array,
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        del processing, moments, age
        return bounded_exp(outputs[0][0], FACTOR_LIMIT) * gradient


@dataclass(frozen=True)
class Anchored:
    """An update anchored at Adam, with the fresh gradient and a slow momentum beside it.

    `d = exp(o1) m/sqrt(v) + fresh_weight o2 g/sqrt(v) + slow_weight o3 s/sqrt(v)`, where `m`, `v`
    are Adam's bias-corrected moments and `s` a slower momentum. With zero heads it starts as
    exactly Adam(`beta1`, `beta2`, `epsilon`). The network reads the processed gradient, the log of
    the age, and the three ratios. An extension of this project, not a structure of the paper.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    beta_slow: float = 0.98
    epsilon: float = 1e-8
    fresh_weight: float = 0.1
    slow_weight: float = 0.3

    name: ClassVar[str] = "anchored"
    num_moments: ClassVar[int] = 3

    def __post_init__(self) -> None:
        for field in ("beta1", "beta2", "beta_slow"):
            beta = getattr(self, field)
            if not 0 <= beta < 1:
                raise ValueError(f"Anchored.{field} = {beta!r}: a decay rate lies in [0, 1)")

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features + 4, 3),)

    def accumulate(self, gradient: Array, moments: Array) -> Float[Array, "moments *shape"]:
        m = self.beta1 * moments[0] + (1.0 - self.beta1) * gradient
        v = self.beta2 * moments[1] + (1.0 - self.beta2) * bounded_square(gradient)
        slow = self.beta_slow * moments[2] + (1.0 - self.beta_slow) * gradient
        return jnp.stack([m, v, slow])

    def _ratios(self, gradient: Array, moments: Array, age: Array) -> tuple[Array, Array, Array]:
        """`m/sqrt(v)`, `g/sqrt(v)` and `s/sqrt(v)`, all moments bias-corrected."""
        steps = (age + 1).astype(jnp.float32)
        m = moments[0] / (1.0 - self.beta1**steps)
        v = moments[1] / (1.0 - self.beta2**steps)
        slow = moments[2] / (1.0 - self.beta_slow**steps)
        scale = 1.0 / (jnp.sqrt(v) + self.epsilon)
        return m * scale, gradient * scale, slow * scale

    def features(
        self, processing: Processing, gradient: Array, moments: Array, age: Array
    ) -> Features:
        # log(1 + age) scaled so that a few hundred updates read about 1.
        log_age = jnp.broadcast_to(jnp.log1p(age.astype(jnp.float32)) / 6.0, gradient.shape)
        ratios = jnp.clip(jnp.stack(self._ratios(gradient, moments, age)), -5.0, 5.0)
        return (jnp.concatenate([processing.first(gradient), log_age[None], ratios]),)

    def direction(
        self,
        processing: Processing,
        gradient: Array,
        moments: Array,
        age: Array,
        outputs: Outputs,
    ) -> Float[Array, "*shape"]:
        del processing
        adam, fresh, slow = self._ratios(gradient, moments, age)
        gain, fresh_mix, slow_mix = outputs[0]
        return (
            bounded_exp(gain, FACTOR_LIMIT) * adam
            + self.fresh_weight * fresh_mix * fresh
            + self.slow_weight * slow_mix * slow
        )


STRUCTURES: dict[str, type[Structure]] = {
    cls.name: cls for cls in (Adaptive, NonAdaptive, Linear, L2L, Anchored)
}
