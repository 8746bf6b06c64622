"""The interface of structures: the formula that turns the networks' outputs into a step."""

from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Shaped

from optim4rl.optimizers.arrays import Array, constant, namespace, stop_gradient, to_float32
from optim4rl.optimizers.processing import Processing, bounded_square

# Axes of length 1 where the networks run once for a tensor.
Outputs = tuple[Float[Array, "_ *#shape"], ...]
Features = tuple[Float[Array, "_ *#shape"], ...]


class NetworkShape(NamedTuple):
    """Sizes of one network of a structure: numbers that it reads and writes per coordinate."""

    inputs: int
    outputs: int


class Extras(NamedTuple):
    """Further inputs of some structures, beside gradients (`Structure.reads`); all are constants.

    Attributes:
        params: the parameters before the update.
        noise: draws from the standard normal distribution, zero outside the actor.
        dormancy: activity of the coordinate's unit; 1 is the mean of its layer.
        training_proportion: share of training done, 0 in the first rollout and 1 in the last.
        epoch_proportion: share of the rollout's epochs done, 0 in the first and 1 in the last.
    """

    params: Float[Array, "*shape"] | None = None
    noise: Float[Array, "*shape"] | None = None
    dormancy: Float[Array, "*shape"] | None = None
    training_proportion: Float[Array, ""] | None = None
    epoch_proportion: Float[Array, ""] | None = None


NO_EXTRAS = Extras()
ExtraName = Literal["params", "noise", "dormancy"]


class Reading(NamedTuple):
    """A rule's inputs at one step, for its coordinates.

    Attributes:
        gradient: the gradient, clipped.
        moments: the running moments, including this gradient.
        age: number of earlier updates. In PyTorch there is one for each coordinate, because
            parameters without a gradient wait, except for features of whole tensors.
        extras: further inputs of the structure.
    """

    gradient: Float[Array, "*shape"]
    moments: Float[Array, "moments *shape"]
    age: Shaped[Array, "..."]
    extras: Extras = NO_EXTRAS


@runtime_checkable
class Structure(Protocol):
    """An update formula around one or two networks, coordinate by coordinate.

    A structure that also sets `per_tensor = True` runs its networks once for a tensor, not for each
    coordinate. Its features and outputs have axes of length 1 in place of the tensor's.

    Attributes:
        name: its name in files and options.
        num_moments: number of its running moments.
        tensorwise: whether its features hold statistics of the whole tensor. Then `features` needs
            all of a tensor, in its shape. Everything else is coordinate-wise.
        reads: names of the extras that it needs.
    """

    name: ClassVar[str]
    num_moments: ClassVar[int]
    tensorwise: ClassVar[bool]
    reads: ClassVar[tuple[ExtraName, ...]]

    def networks(self, processing: Processing) -> tuple[NetworkShape, ...]:
        """Return the shapes of the networks, in the order of `features` and `outputs`."""

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        """Return the running moments after this gradient."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        """Return each network's features."""

    def direction(
        self, processing: Processing, reading: Reading, outputs: Outputs
    ) -> Float[Array, "*shape"]:
        """Return the direction `d` of the update `-alpha * d`."""


def given(extra: Array | None) -> Array:
    """Return an extra that a structure reads.

    Raises:
        ValueError: it is missing.
    """
    if extra is None:
        raise ValueError("extras: the structure reads an input that was not given (`reads`)")
    return extra


class WithoutMoments:
    """A structure whose only memory is the networks' hidden state."""

    num_moments: ClassVar[int] = 0
    tensorwise: ClassVar[bool] = False
    reads: ClassVar[tuple[ExtraName, ...]] = ()

    def accumulate(
        self, gradient: Float[Array, "*shape"], moments: Float[Array, "moments *shape"]
    ) -> Float[Array, "moments *shape"]:
        del gradient
        return moments


class OneNetwork(WithoutMoments):
    """A structure with one network, which reads the gradient as a first moment."""

    def features(self, processing: Processing, reading: Reading) -> Features:
        return (processing.first(reading.gradient),)


class ThreeMoments:
    """A structure with Adam's two moments and a slower momentum.

    Attributes:
        beta1, beta2, beta_slow: decay rates of the momentum, of the squares and of the slower
            momentum.
    """

    beta1: float
    beta2: float
    beta_slow: float

    num_moments: ClassVar[int] = 3

    def accumulate(self, gradient: Array, moments: Array) -> Float[Array, "moments *shape"]:
        m = self.beta1 * moments[0] + (1.0 - self.beta1) * gradient
        v = self.beta2 * moments[1] + (1.0 - self.beta2) * bounded_square(gradient)
        slow = self.beta_slow * moments[2] + (1.0 - self.beta_slow) * gradient
        return namespace(gradient).stack([m, v, slow])

    def _corrected(self, reading: Reading) -> tuple[Array, Array, Array]:
        """Return momentum, second moment and slow momentum, bias-corrected."""
        steps = to_float32(reading.age + 1)
        return (
            reading.moments[0] / (1.0 - self.beta1**steps),
            reading.moments[1] / (1.0 - self.beta2**steps),
            reading.moments[2] / (1.0 - self.beta_slow**steps),
        )


def log_age(reading: Reading) -> Array:
    """Return the logarithm of the age, scaled so that a few hundred updates give about 1."""
    return namespace(reading.gradient).log1p(to_float32(reading.age)) / 6.0


def straight_through_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return -1 or +1 (never 0); the derivative is the identity's."""
    sign = namespace(x).where(x >= 0, constant(1.0, x), constant(-1.0, x))
    return x + stop_gradient(sign - x)


def first_moment(
    processing: Processing, gradient: Array, outputs: Float[Array, "outputs *shape"], signed: bool
) -> Float[Array, "*shape"]:
    """Return the first moment m from the outputs, with its own sign if `signed`."""
    if not signed:
        return processing.decode(gradient, outputs[0])
    sign = straight_through_sign(namespace(gradient).tanh(outputs[0] + 1.0))
    return sign * processing.decode(gradient, outputs[1])
