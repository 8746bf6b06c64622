"""Update structures in torch: the formulae of `optim4rl.optimizers.structures`.

An age comes with each coordinate, since parameters without a gradient wait. What a structure reads
of whole tensors (`tensorwise`) it is given one tensor at a time, in its shape.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from optim4rl.torch.processing import (
    LOG_DOMAIN_LIMIT,
    Processing,
    bounded_exp,
    bounded_square,
)

FACTOR_LIMIT = 10.0

ExtraName = Literal["params", "noise", "dormancy"]
Outputs = tuple[Float[Tensor, "_ *shape"], ...]
Features = tuple[Float[Tensor, "_ *shape"], ...]


class NetworkShape(NamedTuple):
    """What one network of a structure reads and writes, per coordinate."""

    inputs: int
    outputs: int


class Reading(NamedTuple):
    """What a rule knows of its coordinates at one step.

    Attributes:
        gradient: the gradient, clipped.
        moments: the running moments, this gradient included.
        age: updates made before this one.
        params: the parameters before the update, where the structure reads them.
        noise: draws from the standard normal distribution, zero outside the actor, likewise.
    """

    gradient: Float[Tensor, "*shape"]
    moments: Float[Tensor, "moments *shape"]
    age: Float[Tensor, "*shape"]
    params: Float[Tensor, "*shape"] | None = None
    noise: Float[Tensor, "*shape"] | None = None


@runtime_checkable
class Structure(Protocol):
    """An update formula around one or two networks; `direction` gives the `d` of `-alpha d`."""

    name: ClassVar[str]
    num_moments: ClassVar[int]
    tensorwise: ClassVar[bool]
    reads: ClassVar[tuple[ExtraName, ...]]

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        """The shapes of the networks, in the order of `features` and `outputs`."""

    def accumulate(
        self, gradient: Float[Tensor, "*shape"], moments: Float[Tensor, "moments *shape"]
    ) -> Float[Tensor, "moments *shape"]:
        """The running moments after this gradient."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        """What each network reads."""

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        """The direction `d` of the update `-alpha * d`."""


class _WithoutMoments:
    """A structure whose only memory is the networks' hidden state."""

    num_moments: ClassVar[int] = 0
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def accumulate(
        self, gradient: Float[Tensor, "*shape"], moments: Float[Tensor, "moments *shape"]
    ) -> Float[Tensor, "moments *shape"]:
        del gradient
        return moments


class _OneNetwork(_WithoutMoments):
    """A structure of one network, which reads the gradient as a first moment."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        return (processing.first(reading.gradient),)


def _first_moment(
    processing: Processing, gradient: Tensor, outputs: Float[Tensor, "outputs *shape"], signed: bool
) -> Float[Tensor, "*shape"]:
    if not signed:
        return processing.decode(gradient, outputs[0])
    magnitude = processing.decode(gradient, outputs[1])
    return torch.where((outputs[0] + 1.0).tanh() >= 0, magnitude, -magnitude)


@dataclass(frozen=True)
class Adaptive(_WithoutMoments):
    """Optim4RL: `d = m / sqrt(v)`, both learned."""

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
    ) -> Float[Tensor, "*shape"]:
        first, second = outputs
        m = _first_moment(processing, reading.gradient, first, self.signed)
        return m * (bounded_exp(second[0], LOG_DOMAIN_LIMIT) + self.epsilon).rsqrt()


@dataclass(frozen=True)
class NonAdaptive(_OneNetwork):
    """Optim4RL without the division: `d = m`."""

    signed: bool = True

    name: ClassVar[str] = "non_adaptive"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 2 if self.signed else 1),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        return _first_moment(processing, reading.gradient, outputs[0], self.signed)


@dataclass(frozen=True)
class Linear(_OneNetwork):
    """LinearOptim: `d = exp(o1) g + exp(o2) o3`."""

    name: ClassVar[str] = "linear"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 3),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing
        gain, offset_gain, offset = outputs[0]
        scaled = bounded_exp(gain, FACTOR_LIMIT) * reading.gradient
        return scaled + bounded_exp(offset_gain, FACTOR_LIMIT) * offset


@dataclass(frozen=True)
class L2L(_OneNetwork):
    """L2LGD2: `d = exp(o) g`."""

    name: ClassVar[str] = "l2l"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 1),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing
        return bounded_exp(outputs[0][0], FACTOR_LIMIT) * reading.gradient


@dataclass(frozen=True)
class Anchored:
    """An update anchored at Adam, with the fresh gradient and a slow momentum beside it."""

    beta1: float = 0.9
    beta2: float = 0.999
    beta_slow: float = 0.98
    epsilon: float = 1e-8
    fresh_weight: float = 0.1
    slow_weight: float = 0.3

    name: ClassVar[str] = "anchored"
    num_moments: ClassVar[int] = 3
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features + 4, 3),)

    def accumulate(self, gradient: Tensor, moments: Tensor) -> Float[Tensor, "moments *shape"]:
        m = self.beta1 * moments[0] + (1.0 - self.beta1) * gradient
        v = self.beta2 * moments[1] + (1.0 - self.beta2) * bounded_square(gradient)
        slow = self.beta_slow * moments[2] + (1.0 - self.beta_slow) * gradient
        return torch.stack([m, v, slow])

    def _ratios(self, reading: Reading) -> Float[Tensor, "3 *shape"]:
        """`m/sqrt(v)`, `g/sqrt(v)` and `s/sqrt(v)`, all moments bias-corrected."""
        steps = reading.age + 1.0
        m = reading.moments[0] / (1.0 - self.beta1**steps)
        v = reading.moments[1] / (1.0 - self.beta2**steps)
        slow = reading.moments[2] / (1.0 - self.beta_slow**steps)
        return torch.stack([m, reading.gradient, slow]) / (v.sqrt() + self.epsilon)

    def features(self, processing: Processing, reading: Reading) -> Features:
        log_age = reading.age.log1p()[None] / 6.0
        ratios = self._ratios(reading).clamp(-5.0, 5.0)
        return (torch.cat([processing.first(reading.gradient), log_age, ratios]),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing
        adam, fresh, slow = self._ratios(reading)
        gain, fresh_mix, slow_mix = outputs[0]
        return (
            bounded_exp(gain, FACTOR_LIMIT) * adam
            + self.fresh_weight * fresh_mix * fresh
            + self.slow_weight * slow_mix * slow
        )


@dataclass(frozen=True)
class Mirrored(Anchored):
    """`Anchored`, whose network reads nothing that tells a gradient from its negative."""

    name: ClassVar[str] = "mirrored"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.second_features + 6, 3),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        log_age = reading.age.log1p()
        adam, fresh, slow = self._ratios(reading).clamp(-5.0, 5.0)
        sizes = [adam.abs(), fresh.abs(), slow.abs()]
        even = torch.stack([log_age / 6.0, *sizes, 0.2 * adam * fresh, 0.2 * adam * slow])
        return (torch.cat([0.5 * processing.second(reading.gradient.abs()), even]),)


MOMENTUM_BETAS = (0.9, 0.99, 0.999)
FACTORED_BETAS = (0.9, 0.99, 0.999)
_FLOOR = 1e-9


def unit_rms(x: Float[Tensor, "rows *shape"], epsilon: float) -> Float[Tensor, "rows *shape"]:
    """Each row scaled to a root mean square of 1 over the tensor."""
    square = x.square().reshape(len(x), -1).mean(1)
    return x * _column((square + epsilon).rsqrt(), x)


def _column(values: Float[Tensor, " rows"], like: Tensor) -> Tensor:
    """One value for each row, shaped to be broadcast over a tensor."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _decayed(
    betas: tuple[float, ...], moments: Float[Tensor, "betas *shape"], x: Float[Tensor, "*shape"]
) -> Float[Tensor, "betas *shape"]:
    """Exponential moving averages, one for each decay rate."""
    beta = _column(moments.new_tensor(betas), moments)
    return beta * moments + (1.0 - beta) * x[None]


def _bounded_rsqrt(x: Tensor) -> Tensor:
    return x.clamp(min=_FLOOR).rsqrt()


def _factors(v: Float[Tensor, "betas *shape"]) -> tuple[Tensor, Tensor, Tensor]:
    """Adafactor's row and column means of second moments, and the scale that they stand for."""
    if v.ndim < 3:
        return v, v, _bounded_rsqrt(v + _FLOOR)
    *_, second, longest = sorted(range(1, v.ndim), key=lambda axis: v.shape[axis])
    rows, columns = (v.mean(axis, keepdim=True) for axis in (longest, second))
    relative = rows / (rows.mean(second, keepdim=True) + _FLOOR)
    scale = _bounded_rsqrt(relative) * _bounded_rsqrt(columns)
    return rows.expand_as(v), columns.expand_as(v), scale.expand_as(v)


class _Adafactor:
    """Running moments of Adafactor features: three of the gradient, one and three of its square."""

    beta2: float

    num_moments: ClassVar[int] = len(MOMENTUM_BETAS) + 1 + len(FACTORED_BETAS)
    tensorwise: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def accumulate(self, gradient: Tensor, moments: Tensor) -> Float[Tensor, "moments *shape"]:
        square = bounded_square(gradient)
        m, v, factored = self._split(moments)
        return torch.cat(
            [
                _decayed(MOMENTUM_BETAS, m, gradient),
                _decayed((self.beta2,), v, square),
                _decayed(FACTORED_BETAS, factored, square),
            ]
        )

    def _split(self, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = len(MOMENTUM_BETAS)
        return moments[:first], moments[first : first + 1], moments[first + 1 :]

    def _features(self, reading: Reading, epsilon: float) -> list[Float[Tensor, "_ *shape"]]:
        """27 rows: the moments, their ratios and the factored ones, not yet scaled."""
        m, v, factored = self._split(reading.moments)
        scale = (v + epsilon).rsqrt()
        rows, columns, factor = _factors(factored)
        gradient = reading.gradient[None]
        return [
            gradient,
            m,
            v,
            m * scale,
            scale,
            gradient * factor,
            rows,
            columns,
            (rows + 1e-8).rsqrt(),
            (columns + 1e-8).rsqrt(),
            m * factor,
        ]


@dataclass(frozen=True)
class Celo2(_Adafactor):
    """A small MLP on momentum and second-moment features: `d = o`."""

    beta2: float = 0.95

    name: ClassVar[str] = "celo2"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(29, 1),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        _, v, _ = self._split(reading.moments)
        gradient = reading.gradient[None]
        more = [gradient.clamp(-0.1, 0.1), gradient * (v + 1e-8).rsqrt()]
        return (unit_rms(torch.cat([*self._features(reading, 1e-8), *more]), 1e-9),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing, reading
        return outputs[0][0]


_EXPONENT = 1e-3
_TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


@dataclass(frozen=True)
class Star(_Adafactor):
    """STAR: a nominal Adam-like term, an MLP on Adafactor features, and weight decay."""

    beta2: float = 0.999
    epsilon: float = 1e-6
    blackbox_weight: float = 1e-3
    weight_decay: float = 1e-3

    name: ClassVar[str] = "star"
    reads: ClassVar[tuple[ExtraName, ...]] = ("params",)

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(28 + len(_TIME_SCALES), 3),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        params = _given(reading.params)[None]
        scaled = unit_rms(torch.cat([*self._features(reading, self.epsilon), params]), 1e-5)
        scales = _column(scaled.new_tensor(_TIME_SCALES), scaled)
        return (torch.cat([scaled, (reading.age / scales - 1.0).tanh()]),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing
        blackbox, magnitude, nominal = outputs[0]
        m, v, _ = self._split(reading.moments)
        adam = bounded_exp(_EXPONENT * nominal, FACTOR_LIMIT) * m.mean(0)
        learned = bounded_exp(_EXPONENT * magnitude, FACTOR_LIMIT) * blackbox
        step = (v[0] + self.epsilon).rsqrt() * (adam + self.blackbox_weight * learned)
        return step + self.weight_decay * _given(reading.params)


OPEN_BETAS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Open:
    """OPEN: momenta of six time scales, the proportion of training, and learned noise.

    Neurons' dormancy is read as 0, as in JAX where the agent does not offer it.
    """

    horizon: float = 1000.0
    updates_per_batch: int = 1

    name: ClassVar[str] = "open"
    num_moments: ClassVar[int] = len(OPEN_BETAS)
    tensorwise: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ("params", "noise")

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(3 + 2 * len(OPEN_BETAS) + 3, 3),)

    def accumulate(self, gradient: Tensor, moments: Tensor) -> Float[Tensor, "moments *shape"]:
        return _decayed(OPEN_BETAS, moments, gradient)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        params, m, age = _given(reading.params)[None], reading.moments, reading.age[None]
        gradient = reading.gradient[None]
        rows = [params, m.sign(), _log_size(m), gradient.sign(), _log_size(gradient)]
        proportions = [
            (age / self.horizon).clamp(max=1.0),
            age.fmod(self.updates_per_batch) / self.updates_per_batch,
        ]
        scaled = unit_rms(torch.cat(rows), 1e-5)
        return (torch.cat([scaled, *proportions, torch.zeros_like(params)]),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Tensor, "*shape"]:
        del processing
        size, magnitude, noise_size = outputs[0]
        drift = bounded_exp(_EXPONENT * magnitude, FACTOR_LIMIT) * size
        return drift + noise_size * _given(reading.noise)


def _given(extra: Tensor | None) -> Tensor:
    if extra is None:
        raise ValueError("the structure reads something that was not given (`reads`)")
    return extra


def _log_size(x: Tensor) -> Tensor:
    return (x.abs() + 1e-13).log()


STRUCTURES: dict[str, type[Structure]] = {
    cls.name: cls
    for cls in (Adaptive, NonAdaptive, Linear, L2L, Anchored, Mirrored, Celo2, Star, Open)
}
