"""Put an optimizer's response into a few words and numbers."""

import math

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.response import SIZES, TYPICAL, VANISHES_AT, Response


def relative(kernel: Float[np.ndarray, " lag"]) -> Float[np.ndarray, " lag"]:
    """Divide a kernel by its largest entry."""
    largest = np.abs(kernel).max()
    return kernel / largest if largest > 0 else kernel


def at_size(response: Response, age: int, size: float = TYPICAL) -> float:
    """Return the step at an age under constant gradients of a size; -1 is the last age."""
    return float(response.constant[0, age, index(size)])


def index(size: float) -> int:
    """Return the index of a size among the sizes shown."""
    return int(np.argmin(np.abs(np.log(SIZES / size))))


def momentum(response: Response) -> str:
    """Return the implied momentum late in life."""
    late = float(response.implied_momentum[-1])
    return "not clear" if math.isnan(late) else f"{late:.2f}".replace("-", "−")


def change(first: float, last: float) -> str:
    """Say how a step changes from the first to the last."""
    return f"goes from {number(first)} to {number(last)}"


def tenth_after(response: Response) -> int | None:
    """Return the updates after the gradient's end until the step has fallen to a tenth."""
    before, after = response.vanishing[VANISHES_AT - 1], response.vanishing[VANISHES_AT:]
    small = np.abs(after) <= 0.1 * abs(before)
    # The last update that is not small, so that a passing zero does not count.
    large = np.flatnonzero(~small)
    if large.size == after.size or (large.size and large[-1] == after.size - 1):
        return None
    return int(large[-1]) + 2 if large.size else 1


def after_the_end(response: Response) -> str:
    """Say what the rule does when gradients have become zero."""
    updates = tenth_after(response)
    if updates is None:
        return "This rule’s step does not fall to a tenth."
    return f"This rule’s step falls to a tenth in {updates} update{'s' * (updates > 1)}."


def forgets(constant: float) -> str:
    """Say how soon a state with this time constant forgets; NaN if that is not clear."""
    if math.isnan(constant):
        return "forgets in a time that is not clear"
    return f"forgets in {brief(constant)} updates" if constant < 1e4 else "does not forget"


def brief(constant: float) -> str:
    """Format a time constant."""
    if math.isnan(constant):
        return "not clear"
    if constant >= 1e4:
        return "never"
    return f"{constant:.0f}" if constant >= 10 else f"{constant:.1f}"


def number(value: float) -> str:
    """Format a number with three digits, large and small numbers as powers of ten."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = superscript(int(exponent))
    mantissa = mantissa.removesuffix(".0").replace("-", "−")
    return f"10{power}" if mantissa == "1" else f"{mantissa} · 10{power}"


def power(exponent: int) -> str:
    """Format a power of ten."""
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return f"10{superscript(exponent)}"


def superscript(number: int) -> str:
    """Format a whole number in superscript digits."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
