"""Numbers in words, the same on every page, in every table and in JSON."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from optim4rl.evaluation.claims import Claim
from optim4rl.evaluation.returns import Estimate


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; NaN, the score of a diverged run, is "diverged"."""
    if math.isnan(value):
        return "diverged"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int, *, signed: bool = False) -> str:
    """The 95 % interval of an estimate, "0.91 to 0.97", or "no interval"."""
    if not estimate.has_interval:
        return "no interval"
    low = number(estimate.low, decimals, signed=signed)
    return f"{low} to {number(estimate.high, decimals, signed=signed)}"


def p_value(p: float) -> str:
    """A p-value with two significant digits, never in exponent form."""
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.{max(2, 1 - math.floor(math.log10(p)))}f}"


def smallest_found(claim: Claim) -> str:
    """The smallest difference that these seeds find four times in five, as a clause."""
    if claim.smallest_effect is not None:
        return f"these seeds find a difference of {claim.smallest_effect:.2g} four times in five"
    reason = "a run diverged" if any(claim.comparison.diverged) else "too few runs vary"
    return f"how large a difference these seeds find is not known, because {reason}"


def with_interval(estimate: Estimate | None, decimals: int = 3) -> str:
    """An estimate in a table, "0.942 (0.91 to 0.97)"; "-" where there is none."""
    if estimate is None:
        return "-"
    if math.isnan(estimate.value):
        return "diverged"
    if not estimate.has_interval:
        return f"{estimate.value:.{decimals}f} (no interval)"
    ends = (estimate.low, estimate.high)
    low, high = ("-inf" if math.isnan(x) else f"{x:.{decimals - 1}f}" for x in ends)
    return f"{estimate.value:.{decimals}f} ({low} to {high})"


def estimate_json(estimate: Estimate | None) -> dict[str, float | None] | None:
    """An estimate as JSON; None where diverged runs leave no number, or there is no estimate."""
    if estimate is None:
        return None
    return {name: finite(getattr(estimate, name)) for name in ("value", "low", "high")}


def finite(value: Any) -> float | None:
    """A number as JSON; None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def percent(value: float) -> str:
    """A share in percent; what is not all, or not nothing, is never rounded to that."""
    if math.isnan(value):
        return "–"
    shown = f"{100 * value:.0f}"
    # Never round what is not all, or not nothing, to all or nothing.
    if shown in ("0", "100") and value not in (0.0, 1.0):
        shown = f"{100 * value:.1f}"
    return f"{shown} %"


def percent_range(low: float, high: float) -> str:
    """Two shares in percent."""
    return f"{percent(low).removesuffix(' %')} to {percent(high)}"


def plain(value: Any) -> str:
    """A setting in words."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}".replace("-", "−") if abs(value) < 1 else f"{value:g}"
        case str() | int():
            return str(value)
        case None:
            return "–"
        case Mapping():
            return ", ".join(
                f"{str(key).replace('_', ' ')} {plain(entry)}" for key, entry in value.items()
            )
        case Iterable():
            return ", ".join(plain(entry) for entry in value)
        case _:
            return str(value)


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
