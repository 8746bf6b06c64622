"""Load templates with their filters, and compute learning curves with a band, for all pages."""

import functools
from collections.abc import Sequence

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import bootstrap_interval
from optim4rl.pages import figures
from optim4rl.pages.words import duration, interval, number, p_value, percent, percent_range, plain

CURVE_POINTS = 100
BAND_RESAMPLES = 400


@functools.cache
def page_template(name: str) -> jinja2.Template:
    """Load a page's template, which escapes its values and has the filters of all pages."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optim4rl.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        interval=interval,
        p=p_value,
        percent=percent,
        percent_range=lambda ends: percent_range(*ends),
        rate_interval=lambda rate: percent_range(rate.low, rate.high),
        plain=plain,
        duration=duration,
        badge=_badge,
    )
    return environment.get_template(name)


def _badge(outcome: str) -> Markup:
    path = figures.tag("path", d=figures.MARKS[outcome], class_=f"mark {outcome}")
    return figures.tag("svg", path, viewBox="-8 -8 16 16", class_="badge", aria_hidden="true")


def iqm_band(curves: Sequence[Curves], points: int) -> tuple[Float[np.ndarray, " points"], ...]:
    """Compute the interquartile mean over runs at each point of time, with its interval.

    Args:
        curves: the curves of each meta-seed.
        points: number of points of time, at most.

    Returns:
        Low end, mean, high end.
    """
    returns = np.stack([each.thin(points).returns for each in curves]).astype(np.float64)
    estimates = [
        bootstrap_interval(returns[None, :, :, time], resamples=BAND_RESAMPLES)
        for time in range(returns.shape[2])
    ]
    low, middle, high = (
        np.array([getattr(estimate, name) for estimate in estimates])
        for name in ("low", "value", "high")
    )
    return low, middle, high
