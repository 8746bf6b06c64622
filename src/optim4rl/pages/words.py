"""Format numbers, the same way on every page, in every table and in JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optim4rl.evaluation.claims import Claim
from optim4rl.evaluation.returns import Estimate


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Format a number with a true minus sign; NaN, a diverged run's score, gives "diverged"."""
    if math.isnan(value):
        return "diverged"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int, *, signed: bool = False) -> str:
    """Format the 95 % interval of an estimate: "0.91 to 0.97", or "no interval"."""
    if not estimate.has_interval:
        return "no interval"
    low = number(estimate.low, decimals, signed=signed)
    return f"{low} to {number(estimate.high, decimals, signed=signed)}"


def p_value(p: float) -> str:
    """Format a p-value with two significant digits, never in exponent form."""
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.{max(2, 1 - math.floor(math.log10(p)))}f}"


def smallest_found(claim: Claim) -> str:
    """Say which smallest difference these seeds find four times in five, as a clause."""
    if claim.smallest_effect is not None:
        return f"these seeds find a difference of {claim.smallest_effect:.2g} four times in five"
    reason = "a run diverged" if any(claim.comparison.diverged) else "too few runs vary"
    return f"how large a difference these seeds find is not known, because {reason}"


def with_interval(estimate: Estimate | None, decimals: int = 3) -> str:
    """Format an estimate for a table: "0.942 (0.91 to 0.97)", or "-" if there is none."""
    if estimate is None:
        return "-"
    if math.isnan(estimate.value):
        return "diverged"
    if not estimate.has_interval:
        return f"{estimate.value:.{decimals}f} (no interval)"
    ends = (estimate.low, estimate.high)
    low, high = ("-inf" if math.isnan(x) else f"{x:.{decimals - 1}f}" for x in ends)
    return f"{estimate.value:.{decimals}f} ({low} to {high})"


# A header, and rows.
Table = tuple[list[str], list[list[str]]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines]


def estimate_json(estimate: Estimate | None) -> dict[str, float | None] | None:
    """Convert an estimate to JSON; None for no estimate, and for numbers lost to diverged runs."""
    if estimate is None:
        return None
    return {name: finite(getattr(estimate, name)) for name in ("value", "low", "high")}


def finite(value: Any) -> float | None:
    """Convert a number to JSON; None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def percent(value: float) -> str:
    """Format a share in percent; only exact shares of 0 and 1 give 0 % and 100 %."""
    if math.isnan(value):
        return "–"
    if 0.0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1.0:
        return "> 99.9 %"
    near = value not in (0.0, 1.0) and f"{100 * value:.0f}" in ("0", "100")
    return f"{100 * value:.{1 if near else 0}f} %"


def percent_range(low: float, high: float) -> str:
    """Format two shares in percent as a range."""
    return f"{percent(low).removesuffix(' %')} to {percent(high)}"


def plain(value: Any) -> str:
    """Format a setting in words."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}".replace("-", "−")
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
    """Format seconds in words."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
