"""Update structures: how the networks' outputs become an update.

A structure defines its number of networks, the features that each network reads, its running
moments beside the hidden states, and the formula of the update. It returns the step *direction*
`d`; the parameter moves by `-alpha * d`. The last four compute their own features and use no
processing. JAX and PyTorch share these formulae (`arrays`).

| name | direction d | source |
|---|---|---|
| adaptive | `m / sqrt(v)`, both learned | Lan et al. 2024, section 4.3 |
| non_adaptive | `m` alone | the ablation of the division |
| linear | `exp(o1) g + exp(o2) o3` | LinearOptim, Lan et al. 2024 |
| l2l | `exp(o) g` | L2LGD2, Andrychowicz et al. 2016 |
| anchored | `exp(o1) adam + 0.1 o2 g/sqrt(v_hat) + 0.3 o3 slow` | starts as exactly Adam; ours |
| mirrored | the same, and odd: its network cannot tell a gradient from its negative | ours |
| modulated | `0.2 exp(o1) u`: Muon's step, its gain learned for each tensor | ours |
| celo2 | `o` of a tensor's Adafactor features | Moudgil et al. 2026 (Celo2-base) |
| star | `exp(o3) adam + 1e-3 o1 exp(o2) / sqrt(v) + decay p` | Harrison et al. 2022 |
| open | `o1 exp(o2) + o3 noise` | OPEN, Goldie et al. 2024 |
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float

from optim4rl.optimizers.arrays import Array, namespace, rsqrt
from optim4rl.optimizers.modulated import Modulated as Modulated
from optim4rl.optimizers.processing import LOG_DOMAIN_LIMIT, Processing, bounded_exp
from optim4rl.optimizers.published import (
    FACTOR_LIMIT,
    Celo2 as Celo2,
    Open as Open,
    Star as Star,
    factors as factors,
)
from optim4rl.optimizers.structure import (
    NO_EXTRAS as NO_EXTRAS,
    ExtraName as ExtraName,
    Extras as Extras,
    Features as Features,
    NetworkShape as NetworkShape,
    OneNetwork,
    Outputs as Outputs,
    Reading as Reading,
    Structure as Structure,
    ThreeMoments,
    WithoutMoments,
    first_moment,
    log_age,
    straight_through_sign as straight_through_sign,
)


@dataclass(frozen=True)
class Adaptive(WithoutMoments):
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

    def features(self, processing: Processing, reading: Reading) -> Features:
        return processing.first(reading.gradient), processing.second(reading.gradient)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        first, second = outputs
        m = first_moment(processing, reading.gradient, first, self.signed)
        v = bounded_exp(second[0], LOG_DOMAIN_LIMIT) + self.epsilon
        return m * rsqrt(v)


@dataclass(frozen=True)
class NonAdaptive(OneNetwork):
    """Optim4RL without the division: `d = m`, the rest unchanged."""

    signed: bool = True

    name: ClassVar[str] = "non_adaptive"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 2 if self.signed else 1),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        return first_moment(processing, reading.gradient, outputs[0], self.signed)


@dataclass(frozen=True)
class Linear(OneNetwork):
    """LinearOptim: `d = exp(o1) g + exp(o2) o3`, one network."""

    name: ClassVar[str] = "linear"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 3),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        gain, offset_gain, offset = outputs[0]
        return bounded_exp(gain, FACTOR_LIMIT) * reading.gradient + (
            bounded_exp(offset_gain, FACTOR_LIMIT) * offset
        )


@dataclass(frozen=True)
class L2L(OneNetwork):
    """L2LGD2 as the paper runs it: `d = exp(o) g`, one network."""

    name: ClassVar[str] = "l2l"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 1),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        return bounded_exp(outputs[0][0], FACTOR_LIMIT) * reading.gradient


@dataclass(frozen=True)
class Anchored(ThreeMoments):
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
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features + 4, 3),)

    def _ratios(self, reading: Reading) -> tuple[Array, Array, Array]:
        """Return `m/sqrt(v)`, `g/sqrt(v)` and `s/sqrt(v)`, all moments bias-corrected."""
        m, v, slow = self._corrected(reading)
        scale = 1.0 / (namespace(v).sqrt(v) + self.epsilon)
        return m * scale, reading.gradient * scale, slow * scale

    def features(self, processing: Processing, reading: Reading) -> Features:
        age, ratios = _log_ages(reading), self._bounded_ratios(reading)
        first = processing.first(reading.gradient)
        return (namespace(first).concatenate([first, age[None], ratios]),)

    def _bounded_ratios(self, reading: Reading) -> Float[Array, "3 *shape"]:
        xp = namespace(reading.gradient)
        return xp.clip(xp.stack(self._ratios(reading)), -5.0, 5.0)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        adam, fresh, slow = self._ratios(reading)
        gain, fresh_mix, slow_mix = outputs[0]
        return (
            bounded_exp(gain, FACTOR_LIMIT) * adam
            + self.fresh_weight * fresh_mix * fresh
            + self.slow_weight * slow_mix * slow
        )


def _log_ages(reading: Reading) -> Float[Array, "*shape"]:
    return log_age(reading) + namespace(reading.gradient).zeros_like(reading.gradient)


@dataclass(frozen=True)
class Mirrored(Anchored):
    """`Anchored`, with a network that cannot tell a gradient from its negative.

    The network reads the size of the gradient, the log of the age, the sizes of the three ratios,
    and the products of Adam's ratio with the others. So its outputs are even and the rule is odd:
    mirrored gradients make mirrored steps. `Anchored` may learn to drift; this rule cannot. An
    extension of this project, not a structure of the paper.
    """

    name: ClassVar[str] = "mirrored"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.second_features + 6, 3),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        xp, age = namespace(reading.gradient), _log_ages(reading)
        ratios = self._bounded_ratios(reading)
        adam, fresh, slow = (ratios[i] for i in range(3))  # iteration would lose its sharding
        sizes = [abs(adam), abs(fresh), abs(slow)]
        even = xp.stack([age, *sizes, 0.2 * adam * fresh, 0.2 * adam * slow])
        # A processing's second features read the squared gradient: twice the logarithm.
        return (xp.concatenate([0.5 * processing.second(abs(reading.gradient)), even]),)


STRUCTURES: dict[str, type[Structure]] = {
    cls.name: cls
    for cls in (
        *(Adaptive, NonAdaptive, Linear, L2L),
        *(Anchored, Mirrored, Modulated),
        *(Celo2, Star, Open),
    )
}
