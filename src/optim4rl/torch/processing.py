"""Gradient processing in torch: the formulae of `optim4rl.optimizers.processing`.

Features lead and coordinates trail: an encoding maps `[*shape]` to `[features, *shape]`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

LOG_DOMAIN_LIMIT = 40.0
SQUARE_LIMIT = 1e15


def bounded_exp(x: Float[Tensor, "*shape"], limit: float) -> Float[Tensor, "*shape"]:
    """`exp(x)` with the exponent held to `[-limit, limit]`."""
    return x.clamp(-limit, limit).exp()


def bounded_square(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x**2`, finite for every finite float32."""
    return x.clamp(-SQUARE_LIMIT, SQUARE_LIMIT).square()


@runtime_checkable
class Processing(Protocol):
    """How a gradient is shown to the recurrent cells, coordinate by coordinate."""

    name: ClassVar[str]
    first_features: ClassVar[int]
    second_features: ClassVar[int]

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "features *shape"]:
        """What the cell of the first moment reads."""

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "features *shape"]:
        """What the cell of the second moment reads."""

    def decode(
        self, gradient: Float[Tensor, "*shape"], output: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The first moment that a head's output stands for."""


class _SignedMagnitude:
    """Decoding shared by all but `Raw`: the gradient's sign times a learned magnitude."""

    def decode(
        self, gradient: Float[Tensor, "*shape"], output: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        return gradient.sign() * bounded_exp(output, LOG_DOMAIN_LIMIT)


@dataclass(frozen=True)
class SignLog(_SignedMagnitude):
    """`[sgn g, log(|g| + epsilon)]` and `2 log(|g| + epsilon)`, the log shifted and scaled."""

    epsilon: float = 1e-18
    shift: float = 0.0
    scale: float = 1.0

    name: ClassVar[str] = "sign_log"
    first_features: ClassVar[int] = 2
    second_features: ClassVar[int] = 1

    def _log(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return ((gradient.abs() + self.epsilon).log() + self.shift) * self.scale

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
        return torch.stack([gradient.sign(), self._log(gradient)])

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return 2.0 * self._log(gradient)[None]


@dataclass(frozen=True)
class Raw:
    """No transformation: `g` in, the first moment linear out."""

    name: ClassVar[str] = "raw"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return gradient[None]

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return gradient[None]

    def decode(
        self, gradient: Float[Tensor, "*shape"], output: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        del gradient
        return output


@dataclass(frozen=True)
class RawAndSquare(_SignedMagnitude):
    """`g` for the first moment, `g^2` for the second."""

    name: ClassVar[str] = "raw_and_square"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return gradient[None]

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return bounded_square(gradient)[None]


@dataclass(frozen=True)
class Symlog(_SignedMagnitude):
    """`sgn(g) log(1 + |g| / c)`; second: twice its size."""

    c: float = 1e-3

    name: ClassVar[str] = "symlog"
    first_features: ClassVar[int] = 1
    second_features: ClassVar[int] = 1

    def _log(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (gradient.abs() / self.c).log1p()

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return (gradient.sign() * self._log(gradient))[None]

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "1 *shape"]:
        return 2.0 * self._log(gradient)[None]


@dataclass(frozen=True)
class Andrychowicz(_SignedMagnitude):
    """`(log|g| / p, sgn g)` where `|g| >= exp(-p)`, else `(-1, exp(p) g)`."""

    p: float = 10.0

    name: ClassVar[str] = "andrychowicz"
    first_features: ClassVar[int] = 2
    second_features: ClassVar[int] = 2

    def first(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
        threshold = math.exp(-self.p)
        magnitude = gradient.abs()
        large = magnitude >= threshold
        log_magnitude = magnitude.clamp(min=threshold).log() / self.p
        small = gradient.clamp(-threshold, threshold) * math.exp(self.p)
        return torch.stack(
            [torch.where(large, log_magnitude, -1.0), torch.where(large, gradient.sign(), small)]
        )

    def second(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
        return self.first(bounded_square(gradient))


PROCESSINGS: dict[str, type[Processing]] = {
    cls.name: cls for cls in (SignLog, Raw, Symlog, RawAndSquare, Andrychowicz)
}
