"""Gradient processing: how a learned rule reads a gradient, and how it writes a magnitude back.

Gradients of agents span many orders of magnitude, while their absolute values lie in a tiny range.
So a network that reads them raw sees almost nothing (Lan et al. 2024, section 4.1). A processing is
a pair of encodings, for the cell of the first moment and the cell of the second moment, and a
decoding that turns a head's output back into a first moment.

Features lead and coordinates trail: an encoding maps `[*shape]` to `[features, *shape]`. JAX and
PyTorch share these formulae (`arrays`).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float

from optim4rl.optimizers.arrays import Array, constant, namespace

# exp() of larger numbers overflows float32 in products, and no optimizer needs them.
LOG_DOMAIN_LIMIT = 40.0
# Squares of larger numbers overflow float32.
SQUARE_LIMIT = 1e15


def bounded_exp(x: Float[Array, "*shape"], limit: float) -> Float[Array, "*shape"]:
    """Return `exp(x)` with `x` clipped to `[-limit, limit]`, so that its products stay finite."""
    xp = namespace(x)
    return xp.exp(xp.clip(x, -limit, limit))


def bounded_square(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x**2`, finite for every finite float32."""
    xp = namespace(x)
    return xp.square(xp.clip(x, -SQUARE_LIMIT, SQUARE_LIMIT))


@runtime_checkable
class Processing(Protocol):
    """Encodings of a gradient for the recurrent cells, coordinate by coordinate."""

    name: ClassVar[str]
    first_features: ClassVar[int]
    second_features: ClassVar[int]

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "features *shape"]:
        """Return the features for the cell of the first moment."""

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "features *shape"]:
        """Return the features for the cell of the second moment."""

    def decode(
        self, gradient: Float[Array, "*shape"], output: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return the first moment from a head's output."""


class _SignedMagnitude:
    """The decoding of all processings but `Raw`: the gradient's sign times a learned magnitude."""

    def decode(
        self, gradient: Float[Array, "*shape"], output: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return namespace(gradient).sign(gradient) * bounded_exp(output, LOG_DOMAIN_LIMIT)


@dataclass(frozen=True)
class SignLog(_SignedMagnitude):
    """Version A's processing: `[sgn g, log(|g| + epsilon)]` and `2 log(|g| + epsilon)`.

    The paper's form has `epsilon = 1e-18`, `shift = 0`, `scale = 1`. A larger epsilon with
    `(log(|g| + epsilon) + shift) * scale` keeps the input of a zero gradient near the others.
    """

    epsilon: float = 1e-18
    shift: float = 0.0
    scale: float = 1.0

    name: ClassVar[str] = "sign_log"
    first_features: ClassVar[int] = 2
    second_features: ClassVar[int] = 1

    def _log(self, gradient: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        log = namespace(gradient).log(abs(gradient) + self.epsilon)
        return (log + self.shift) * self.scale

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "2 *shape"]:
        xp = namespace(gradient)
        return xp.stack([xp.sign(gradient), self._log(gradient)])

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return 2.0 * self._log(gradient)[None]


@dataclass(frozen=True)
class Raw:
    """No transformation: networks read `g` and write the first moment itself."""

    name: ClassVar[str] = "raw"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return gradient[None]

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return gradient[None]

    def decode(
        self, gradient: Float[Array, "*shape"], output: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        del gradient
        return output


@dataclass(frozen=True)
class RawAndSquare(_SignedMagnitude):
    """Version B's inputs: `g` for the first moment, `g^2` for the second."""

    name: ClassVar[str] = "raw_and_square"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return gradient[None]

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return bounded_square(gradient)[None]


@dataclass(frozen=True)
class Symlog(_SignedMagnitude):
    """Symmetric log: `sgn(g) log(1 + |g| / c)`, continuous through zero; second: twice its size."""

    c: float = 1e-3

    name: ClassVar[str] = "symlog"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def _log(self, gradient: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return namespace(gradient).log1p(abs(gradient) / self.c)

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return (namespace(gradient).sign(gradient) * self._log(gradient))[None]

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "1 *shape"]:
        return 2.0 * self._log(gradient)[None]


@dataclass(frozen=True)
class Andrychowicz(_SignedMagnitude):
    """The two-regime input of Andrychowicz et al. 2016 (arXiv 1606.04474, appendix A).

    `(log|g| / p, sgn g)` where `|g| >= exp(-p)`, else `(-1, exp(p) g)`.
    """

    p: float = 10.0

    name: ClassVar[str] = "andrychowicz"
    first_features: ClassVar[int] = 2
    second_features: ClassVar[int] = 2

    def first(self, gradient: Float[Array, "*shape"]) -> Float[Array, "2 *shape"]:
        xp = namespace(gradient)
        threshold = xp.exp(-constant(self.p, gradient))
        magnitude = abs(gradient)
        large = magnitude >= threshold
        log_magnitude = xp.log(xp.maximum(magnitude, threshold)) / self.p
        # Clip the gradient of the small branch: exp(p) g overflows if the gradient is large.
        small = xp.clip(gradient, -threshold, threshold) * xp.exp(constant(self.p, gradient))
        return xp.stack(
            [xp.where(large, log_magnitude, -1.0), xp.where(large, xp.sign(gradient), small)]
        )

    def second(self, gradient: Float[Array, "*shape"]) -> Float[Array, "2 *shape"]:
        return self.first(bounded_square(gradient))


PROCESSINGS: dict[str, type[Processing]] = {
    cls.name: cls for cls in (SignLog, Raw, Symlog, RawAndSquare, Andrychowicz)
}
