"""Warnings for users of weights, the same in JAX and PyTorch."""

import math
import sys
import warnings

# A rate this many times below the weights' own was meant for Adam.
_FAR_BELOW = 10.0
# A warning names the line that called these modules.
_OURS = ("optim4rl.", "torch.", "optax.", "jaxtyping.")


def of_low_rate(name: str, rate: float, step_scale: float, own: float, remedy: str) -> str | None:
    """Return a warning if a rate is far below the weights' own, else None.

    Args:
        name: name of the option.
        rate: its value.
        step_scale: multiplies every update, too.
        own: the rate of the weights.
        remedy: what to do if smaller steps are not intended.
    """
    reached = _FAR_BELOW * max(rate, rate * step_scale)
    if not 0.0 < reached < own or math.isclose(reached, own, rel_tol=1e-6):
        return None
    return (
        f"{name} = {rate:g} is {own / rate:.0f} times below the rate of these weights, {own:g}: "
        f"{remedy}; for smaller steps set step_scale instead"
    )


def warn(message: str) -> None:
    """Warn about the line that called into this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
