"""What the examples share: the weights that they run with, how long, and a stand-in for Adam."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

# Any name of `optim4rl list weights`, or the path of a file.
WEIGHTS = "anchored-catch"


def steps(default: int) -> int:
    """The option --steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=default, help=f"default: {default}")
    return parser.parse_args().steps


def in_place_of_adam(
    weights: str | None = WEIGHTS, *, own_rate: bool = False
) -> AbstractContextManager[Any]:
    """Stand in for Adam in libraries that call `optax.adam` themselves and take no optimizer.

    Args:
        weights: the weights to use; None leaves Adam alone.
        own_rate: take the rate of the weights, not the library's.
    """
    if weights is None:
        return nullcontext()
    import optax

    import optim4rl

    def adam(learning_rate: Any, **_: Any) -> optax.GradientTransformation:
        return optim4rl.load(weights, None if own_rate else learning_rate)

    return mock.patch.object(optax, "adam", adam)
