"""The structures of other groups' learned optimizers: Celo2, STAR and OPEN."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float

from optim4rl.optimizers.arrays import Array, constant, mean, namespace, rsqrt, to_float32, unit_rms
from optim4rl.optimizers.processing import Processing, bounded_exp, bounded_square
from optim4rl.optimizers.structure import ExtraName, Features, NetworkShape, Outputs, Reading, given

# Bound of a learned factor on a gradient of any size: e^10 = 22,026 either way.
FACTOR_LIMIT = 10.0

MOMENTUM_BETAS = (0.9, 0.99, 0.999)
FACTORED_BETAS = (0.9, 0.99, 0.999)
_FLOOR = 1e-9


def decayed(
    betas: tuple[float, ...], moments: Float[Array, "betas *shape"], x: Float[Array, "*shape"]
) -> Float[Array, "betas *shape"]:
    """Return exponential moving averages, one for each decay rate."""
    beta = constant(betas, x).reshape(-1, *(1,) * x.ndim)
    return beta * moments + (1.0 - beta) * x[None]


class Factors(NamedTuple):
    """Adafactor's second moments (Shazeer and Stern 2018), one row for each decay rate.

    Attributes:
        rows: means of the second moment over the tensor's longest axis.
        columns: means over its second longest axis.
        scale: factor for a gradient, `1 / sqrt(rows columns / mean(rows))`.
    """

    rows: Float[Array, "betas *shape"]
    columns: Float[Array, "betas *shape"]
    scale: Float[Array, "betas *shape"]


def factors(v: Float[Array, "betas *shape"]) -> Factors:
    """Factor a tensor's second moments; with fewer than two axes, return the moments themselves.

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
        """Return 27 rows: the moments, their ratios and the factored ones, not yet scaled."""
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

    Use it with a normalised direction (`OptimizerSpec.normalise`). Each feature is scaled to unit
    root mean square over the tensor. The features are the gradient and three momenta, each plain,
    divided by the root of the second moment `v`, and scaled by Adafactor's factors; the gradient
    clipped to 0.1; `v` and Adafactor's row and column means; and the inverse roots of these.
    Moudgil et al. 2026 (arXiv 2602.19142) also read the parameter, and scale over a tensor's last
    two axes.
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


# STAR and OPEN multiply an output by a small number before the exponential.
_EXPONENT = 1e-3
_TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)


@dataclass(frozen=True)
class Star(_Adafactor):
    """STAR: a nominal Adam-like term, an MLP on Adafactor features, and weight decay.

    `d = exp(c o3) mean_i(m_i)/sqrt(v) + blackbox_weight o1 exp(c o2)/sqrt(v) + weight_decay p`,
    `c = 1e-3`, with momenta `m_i` of three decay rates, none of them bias-corrected. The network
    reads the gradient, the parameter, the moments and Adafactor's, each scaled to unit root mean
    square over the tensor, and the age as `tanh(age / scale - 1)` of eleven time scales.

    Harrison et al. 2022 (arXiv 2209.11208) also precondition both terms by `1/sqrt(v)`, and their
    rule with zero heads is the nominal term. Their decay rates are learned; ours are fixed.
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
        params = given(reading.extras.params)[None]
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
            self.weight_decay * given(reading.extras.params)
        )


OPEN_BETAS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Open:
    """OPEN: momenta of six time scales, proportions of training and network, and learned noise.

    `d = o1 exp(c o2) + o3 noise`, `c = 1e-3`; the noise is standard normal in the actor and zero
    elsewhere. The network reads the parameter, and sign and log size of the momenta and the
    gradient, each scaled to unit root mean square over the tensor. It also reads the proportions of
    training and of epochs, and the unit's dormancy. With `inputs=("layer",)` it also reads the
    depth of the tensor's layer, from 0 to 1.

    An agent provides proportions and dormancy (`Extras`). Otherwise proportions are counted in
    updates of a run of `rollouts` x `epochs` x `minibatches`, and every unit is as active as its
    layer. The default run is OPEN's on MinAtar (10 million steps of 64 environments x 128).

    Source: Goldie et al. 2024 (arXiv 2407.07082,
    https://github.com/AlexGoldie/rl-learned-optimization). Their step of 1e-3 is the learning rate
    here. The preset `open` adds layer normalisation, the clip of 0.5 and the subtracted mean.
    """

    rollouts: int = 1220
    epochs: int = 4
    minibatches: int = 8

    name: ClassVar[str] = "open"
    num_moments: ClassVar[int] = len(OPEN_BETAS)
    tensorwise: ClassVar[bool] = True
    reads: ClassVar[tuple[ExtraName, ...]] = ("params", "noise")

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        del processing
        return (NetworkShape(3 + 2 * len(OPEN_BETAS) + 3, 3),)

    def accumulate(self, gradient: Array, moments: Array) -> Float[Array, "moments *shape"]:
        return decayed(OPEN_BETAS, moments, gradient)

    def features(self, processing: Processing, reading: Reading) -> Features:
        del processing
        params, m = given(reading.extras.params)[None], reading.moments
        gradient = reading.gradient[None]
        xp = namespace(gradient)
        rows = [params, xp.sign(m), _log_size(m), xp.sign(gradient), _log_size(gradient)]
        scaled = unit_rms(xp.concatenate(rows), 1e-5)
        proportions = _constant_rows(xp.stack(self._proportions(reading)), scaled)
        dormancy = reading.extras.dormancy
        dormancy = xp.ones_like(params) if dormancy is None else dormancy[None]
        return (xp.concatenate([scaled, proportions, dormancy]),)

    def _proportions(self, reading: Reading) -> list[Float[Array, ""]]:
        """Return the proportions of training and of epochs."""
        updates = reading.age // self.minibatches  # in whole numbers, because a quotient may round
        counted = (
            (updates // self.epochs, self.rollouts, reading.extras.training_proportion),
            (updates % self.epochs, self.epochs, reading.extras.epoch_proportion),
        )
        return [
            to_float32(done) / max(total - 1, 1) if told is None else told
            for done, total, told in counted
        ]

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        del processing
        size, magnitude, noise_size = outputs[0]
        drift = bounded_exp(_EXPONENT * magnitude, FACTOR_LIMIT) * size
        return drift + noise_size * given(reading.extras.noise)


def _log_size(x: Array) -> Array:
    return namespace(x).log(abs(x) + 1e-13)


def _constant_rows(values: Float[Array, " rows"], like: Array) -> Float[Array, "rows *shape"]:
    # Zeros made from an array keep its sharding; a broadcast would not.
    return values.reshape(-1, *(1,) * (like.ndim - 1)) + namespace(like).zeros_like(like[:1])
