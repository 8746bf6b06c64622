"""Update structures: how the networks' outputs become an update.

A structure says how many networks it needs, what each of them reads, which running moments it keeps
beside their hidden states, and the formula of the update. It returns the step *direction* `d`; the
parameter moves by `-alpha * d`. The last three make features of their own and read no processing.
JAX and PyTorch share these formulae (`arrays`).

| name | direction d | source |
|---|---|---|
| adaptive | `m / sqrt(v)`, both learned | Lan et al. 2024, section 4.3 |
| non_adaptive | `m` alone | the ablation of the division |
| linear | `exp(o1) g + exp(o2) o3` | LinearOptim, Lan et al. 2024 |
| l2l | `exp(o) g` | L2LGD2, Andrychowicz et al. 2016 |
| anchored | `exp(o1) adam + 0.1 o2 g/sqrt(v_hat) + 0.3 o3 slow` | starts as exactly Adam; ours |
| celo2 | `o` of a tensor's Adafactor features | Moudgil et al. 2026 (Celo2-base) |
| star | `exp(o3) adam + 1e-3 o1 exp(o2) / sqrt(v) + decay p` | Harrison et al. 2022 |
| open | `o1 exp(o2) + o3 noise` | OPEN, Goldie et al. 2024 |
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Shaped

from optim4rl.optimizers.arrays import (
    Array,
    constant,
    mean,
    namespace,
    rsqrt,
    stop_gradient,
    to_float32,
)
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


class Extras(NamedTuple):
    """What some structures read beside gradients (`Structure.reads`); all of it is constant.

    Attributes:
        params: the parameters before the update.
        noise: draws from the standard normal distribution, zero outside the actor.
        dormancy: how active the coordinate's neuron is, 1 where as active as the mean of its layer.
    """

    params: Float[Array, "*shape"] | None = None
    noise: Float[Array, "*shape"] | None = None
    dormancy: Float[Array, "*shape"] | None = None


NO_EXTRAS = Extras()
ExtraName = Literal["params", "noise", "dormancy"]


class Reading(NamedTuple):
    """What a rule knows of its coordinates at one step.

    Attributes:
        gradient: the gradient, clipped.
        moments: the running moments, this gradient included.
        age: updates made before this one; in PyTorch one for each coordinate, since parameters
            without a gradient wait, but for features of whole tensors.
        extras: what the structure reads beside them.
    """

    gradient: Float[Array, "*shape"]
    moments: Float[Array, "moments *shape"]
    age: Shaped[Array, "..."]
    extras: Extras = NO_EXTRAS


@runtime_checkable
class Structure(Protocol):
    """An update formula around one or two networks, coordinate by coordinate.

    Attributes:
        name: its name in files and options.
        num_moments: its running moments.
        tensorwise: its features hold statistics of the whole tensor, so that `features` must be
            given all of a tensor, in its shape. Everything else is coordinate-wise.
        reads: the extras that it cannot do without.
    """

    name: ClassVar[str]
    num_moments: ClassVar[int]
    tensorwise: ClassVar[bool]
    reads: ClassVar[tuple[ExtraName, ...]]

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        """The shapes of the networks, in the order of `features` and `outputs`."""

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        """The running moments after this gradient."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        """What each network reads."""

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        """The direction `d` of the update `-alpha * d`."""


class _WithoutMoments:
    """A structure whose only memory is the networks' hidden state."""

    num_moments: ClassVar[int] = 0
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        del gradient
        return moments


class _OneNetwork(_WithoutMoments):
    """A structure of one network, which reads the gradient as a first moment."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        return (processing.first(reading.gradient),)


def straight_through_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-1 or +1 (never 0) going forward, the identity going backward."""
    sign = namespace(x).where(x >= 0, constant(1.0, x), constant(-1.0, x))
    return x + stop_gradient(sign - x)


def _first_moment(
    processing: Processing, gradient: Array, outputs: Float[Array, "outputs *shape"], signed: bool
) -> Float[Array, "*shape"]:
    if not signed:
        return processing.decode(gradient, outputs[0])
    sign = straight_through_sign(namespace(gradient).tanh(outputs[0] + 1.0))
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

    def features(self, processing: Processing, reading: Reading) -> Features:
        return processing.first(reading.gradient), processing.second(reading.gradient)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        first, second = outputs
        m = _first_moment(processing, reading.gradient, first, self.signed)
        v = bounded_exp(second[0], LOG_DOMAIN_LIMIT) + self.epsilon
        return m * rsqrt(v)


@dataclass(frozen=True)
class NonAdaptive(_OneNetwork):
    """Optim4RL without the division: `d = m`, the rest unchanged."""

    signed: bool = True

    name: ClassVar[str] = "non_adaptive"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.first_features, 2 if self.signed else 1),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        return _first_moment(processing, reading.gradient, outputs[0], self.signed)


@dataclass(frozen=True)
class Linear(_OneNetwork):
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
class L2L(_OneNetwork):
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
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

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
        return namespace(gradient).stack([m, v, slow])

    def _ratios(self, reading: Reading) -> tuple[Array, Array, Array]:
        """`m/sqrt(v)`, `g/sqrt(v)` and `s/sqrt(v)`, all moments bias-corrected."""
        gradient, moments, age, _ = reading
        steps = to_float32(age + 1)
        m = moments[0] / (1.0 - self.beta1**steps)
        v = moments[1] / (1.0 - self.beta2**steps)
        slow = moments[2] / (1.0 - self.beta_slow**steps)
        scale = 1.0 / (namespace(v).sqrt(v) + self.epsilon)
        return m * scale, gradient * scale, slow * scale

    def features(self, processing: Processing, reading: Reading) -> Features:
        log_age, ratios = _log_age(reading), self._bounded_ratios(reading)
        first = processing.first(reading.gradient)
        return (namespace(first).concatenate([first, log_age[None], ratios]),)

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


def _log_age(reading: Reading) -> Float[Array, "*shape"]:
    """The logarithm of the age, scaled so that a few hundred updates read about 1."""
    xp = namespace(reading.gradient)
    log_age = xp.log1p(to_float32(reading.age)) / 6.0
    return log_age + xp.zeros_like(reading.gradient)


@dataclass(frozen=True)
class Mirrored(Anchored):
    """`Anchored`, whose network reads nothing that tells a gradient from its negative.

    It reads the size of the gradient, the log of the age, the sizes of the three ratios, and how
    far Adam's ratio agrees with each of the others, as products. So all that it decides is even,
    and the rule is odd: mirrored gradients make mirrored steps, where `Anchored` may learn to
    drift. An extension of this project, not a structure of the paper.
    """

    name: ClassVar[str] = "mirrored"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        return (NetworkShape(processing.second_features + 6, 3),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        xp, log_age = namespace(reading.gradient), _log_age(reading)
        adam, fresh, slow = self._bounded_ratios(reading)
        sizes = [abs(adam), abs(fresh), abs(slow)]
        even = xp.stack([log_age, *sizes, 0.2 * adam * fresh, 0.2 * adam * slow])
        # A processing's second features are those of the squared gradient: twice the logarithm.
        return (xp.concatenate([0.5 * processing.second(abs(reading.gradient)), even]),)


# The decay rates of the running moments behind Adafactor features, and the floor of their squares.
MOMENTUM_BETAS = (0.9, 0.99, 0.999)
FACTORED_BETAS = (0.9, 0.99, 0.999)
_FLOOR = 1e-9


def unit_rms(x: Float[Array, "rows *shape"], epsilon: float) -> Float[Array, "rows *shape"]:
    """Each row scaled to a root mean square of 1 over the tensor."""
    square = mean(namespace(x).square(x), tuple(range(1, x.ndim)))
    return x * rsqrt(square + epsilon)


def decayed(
    betas: tuple[float, ...], moments: Float[Array, "betas *shape"], x: Float[Array, "*shape"]
) -> Float[Array, "betas *shape"]:
    """Exponential moving averages, one for each decay rate."""
    beta = constant(betas, x).reshape(-1, *(1,) * x.ndim)
    return beta * moments + (1.0 - beta) * x[None]


class Factors(NamedTuple):
    """Adafactor's second moments (Shazeer and Stern 2018), one row for each decay rate.

    Attributes:
        rows: means of the second moment over the tensor's longest axis.
        columns: means over its second longest axis.
        scale: what a gradient is multiplied by, `1 / sqrt(rows columns / mean(rows))`.
    """

    rows: Float[Array, "betas *shape"]
    columns: Float[Array, "betas *shape"]
    scale: Float[Array, "betas *shape"]


def factors(v: Float[Array, "betas *shape"]) -> Factors:
    """The factors of a tensor's second moments; of fewer than two axes, the moments themselves.

    A mean over an axis and a moving average commute, so no factor needs a state of its own.
    """
    if v.ndim < 3:
        return Factors(v, v, _bounded_rsqrt(v + _FLOOR))
    *_, second, longest = sorted(range(1, v.ndim), key=lambda axis: v.shape[axis])
    rows, columns = (mean(v, (axis,)) for axis in (longest, second))
    relative = rows / (mean(rows, (second,)) + _FLOOR)
    scale = _bounded_rsqrt(relative) * _bounded_rsqrt(columns)
    return Factors(*(x + namespace(v).zeros_like(v) for x in (rows, columns, scale)))


def _bounded_rsqrt(x: Array) -> Array:
    return rsqrt(namespace(x).maximum(x, constant(_FLOOR, x)))


class _Adafactor:
    """Running moments of Adafactor features: three of the gradient, one and three of its square."""

    beta2: float

    num_moments: ClassVar[int] = len(MOMENTUM_BETAS) + 1 + len(FACTORED_BETAS)
    tensorwise: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def accumulate(self, gradient: Array, moments: Array) -> Float[Array, "moments *shape"]:
        square = bounded_square(gradient)
        m, v, factored = self._split(moments)
        return namespace(gradient).concatenate(
            [
                decayed(MOMENTUM_BETAS, m, gradient),
                decayed((self.beta2,), v, square),
                decayed(FACTORED_BETAS, factored, square),
            ]
        )

    def _split(self, moments: Array) -> tuple[Array, Array, Array]:
        first = len(MOMENTUM_BETAS)
        return moments[:first], moments[first : first + 1], moments[first + 1 :]

    def _features(self, reading: Reading, epsilon: float) -> list[Float[Array, "_ *shape"]]:
        """27 rows: the moments, their ratios and the factored ones, not yet scaled."""
        m, v, factored = self._split(reading.moments)
        scale = rsqrt(v + epsilon)
        rows, columns, factor = factors(factored)
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
            rsqrt(rows + 1e-8),
            rsqrt(columns + 1e-8),
            m * factor,
        ]


@dataclass(frozen=True)
class Celo2(_Adafactor):
    """A small MLP on momentum and second-moment features: `d = o`, in the manner of Celo2-base.

    Its direction is meant to be normalised (`OptimizerSpec.normalise`). The features, each scaled
    to unit root mean square over the tensor: the gradient, plain, clipped to 0.1 and over its root
    mean square; three momenta, plain, over it and over Adafactor's; the second moments, and their
    inverse roots. Moudgil et al. 2026 (arXiv 2602.19142) also read the parameter, and scale
    over a tensor's last two axes.
    """

    beta2: float = 0.95

    name: ClassVar[str] = "celo2"

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(29, 1),)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        _, v, _ = self._split(reading.moments)
        gradient = reading.gradient[None]
        xp = namespace(gradient)
        more = [xp.clip(gradient, -0.1, 0.1), gradient * rsqrt(v + 1e-8)]
        features = xp.concatenate([*self._features(reading, 1e-8), *more])
        return (unit_rms(features, 1e-9),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing, reading
        direction: Array = outputs[0][0]
        return direction


# Exponents of STAR and OPEN are small numbers times an output.
_EXPONENT = 1e-3
_TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)


@dataclass(frozen=True)
class Star(_Adafactor):
    """STAR: a nominal Adam-like term, an MLP on Adafactor features, and weight decay.

    `d = exp(c o3) mean_i(m_i)/sqrt(v) + blackbox_weight o1 exp(c o2)/sqrt(v) + weight_decay p`,
    `c = 1e-3`, with momenta `m_i` of three decay rates, none of them bias-corrected. The network
    reads the gradient, the parameter, the moments and Adafactor's, each scaled to unit root mean
    square over the tensor, and the age as `tanh(age / scale - 1)` of eleven time scales.

    Harrison et al. 2022 (arXiv 2209.11208): both terms are preconditioned by `1/sqrt(v)`, and
    with zero heads the rule is the nominal one. Their decay rates are learned; these are fixed.
    """

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
        params = _given(reading.extras.params)[None]
        xp = namespace(params)
        scaled = unit_rms(xp.concatenate([*self._features(reading, self.epsilon), params]), 1e-5)
        age = to_float32(reading.age)
        time = xp.tanh(age / constant(_TIME_SCALES, age) - 1.0)
        return (xp.concatenate([scaled, _constant_rows(time, scaled)]),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        blackbox, magnitude, nominal = outputs[0]
        m, v, _ = self._split(reading.moments)
        scale = rsqrt(v[0] + self.epsilon)
        adam = bounded_exp(_EXPONENT * nominal, FACTOR_LIMIT) * m.mean(0)
        learned = bounded_exp(_EXPONENT * magnitude, FACTOR_LIMIT) * blackbox
        return scale * (adam + self.blackbox_weight * learned) + (
            self.weight_decay * _given(reading.extras.params)
        )


OPEN_BETAS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Open:
    """OPEN: momenta of six time scales, proportions of training and network, and learned noise.

    `d = o1 exp(c o2) + o3 noise`, `c = 1e-3`; the noise is standard normal in the actor and zero
    elsewhere. The network reads the parameter and sign and log of the momenta and the gradient,
    each scaled to unit root mean square over the tensor; then the proportion of training
    `min(age / horizon, 1)`, that of the batch `(age mod updates_per_batch) / updates_per_batch`
    and the neuron's dormancy, 0 where the agent does not offer it. `inputs=("layer",)` adds the
    layer's.

    Goldie et al. 2024 (arXiv 2407.07082); their step of 1e-3 is the learning rate here. Left out
    are their head's layer normalisation and the mean that they subtract from all updates.
    """

    horizon: float = 1000.0
    updates_per_batch: int = 1

    name: ClassVar[str] = "open"
    num_moments: ClassVar[int] = len(OPEN_BETAS)
    tensorwise: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ("params", "noise")

    def __post_init__(self) -> None:
        for field in ("horizon", "updates_per_batch"):
            value = getattr(self, field)
            if not 1 <= value < float("inf"):
                raise ValueError(f"Open.{field} = {value!r}: at least 1 update is needed")

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(3 + 2 * len(OPEN_BETAS) + 3, 3),)

    def accumulate(self, gradient: Array, moments: Array) -> Float[Array, "moments *shape"]:
        return decayed(OPEN_BETAS, moments, gradient)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        params, m = _given(reading.extras.params)[None], reading.moments
        gradient = reading.gradient[None]
        xp = namespace(gradient)
        rows = [params, xp.sign(m), _log_size(m), xp.sign(gradient), _log_size(gradient)]
        scaled = unit_rms(xp.concatenate(rows), 1e-5)
        age = to_float32(reading.age)
        proportions = xp.stack(
            [
                xp.minimum(age / self.horizon, constant(1.0, age)),
                xp.remainder(age, float(self.updates_per_batch)) / self.updates_per_batch,
            ]
        )
        dormancy = reading.extras.dormancy
        dormancy = xp.zeros_like(params) if dormancy is None else dormancy[None]
        return (xp.concatenate([scaled, _constant_rows(proportions, scaled), dormancy]),)

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        size, magnitude, noise_size = outputs[0]
        drift = bounded_exp(_EXPONENT * magnitude, FACTOR_LIMIT) * size
        return drift + noise_size * _given(reading.extras.noise)


def _given(extra: Array | None) -> Array:
    if extra is None:
        raise ValueError("extras: the structure reads something that was not given (`reads`)")
    return extra


def _log_size(x: Array) -> Array:
    return namespace(x).log(abs(x) + 1e-13)


def _constant_rows(values: Float[Array, " rows"], like: Array) -> Float[Array, "rows *shape"]:
    # Zeros made from an array keep its sharding, as a broadcast would not.
    return values.reshape(-1, *(1,) * (like.ndim - 1)) + namespace(like).zeros_like(like[:1])


STRUCTURES: dict[str, type[Structure]] = {
    cls.name: cls
    for cls in (Adaptive, NonAdaptive, Linear, L2L, Anchored, Mirrored, Celo2, Star, Open)
}
