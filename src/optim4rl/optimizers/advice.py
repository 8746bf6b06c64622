"""What users of weights are warned of, the same in JAX and PyTorch."""

import math
import sys
import warnings

# A rate this many times below that of the weights was meant for Adam.
_FAR_BELOW = 10.0
# The modules that a warning looks past for the line that it is about.
_OURS = ("optim4rl.", "torch.", "optax.", "jaxtyping.")


def of_low_rate(name: str, rate: float, step_scale: float, own: float, remedy: str) -> str | None:
    """What to say of a rate far below that of the weights; None where it is not.

    Args:
        name: of the option.
        rate: its value.
        step_scale: what multiplies every update beside it.
        own: the rate of the weights.
        remedy: what to do where no smaller steps are meant.
    """
    reached = _FAR_BELOW * max(rate, rate * step_scale)
    if not 0.0 < reached < own or math.isclose(reached, own, rel_tol=1e-6):
        return None
    return (
        f"{name} = {rate:g} is {own / rate:.0f} times below the rate of these weights, {own:g}: "
        f"{remedy}; where smaller steps are meant, set step_scale instead"
    )


def warn(message: str) -> None:
    """Warn of the line that called into this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
