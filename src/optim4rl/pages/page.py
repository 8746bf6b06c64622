"""Load templates, read trainings, and compute learning curves with a band, for all pages."""

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import bootstrap_interval
from optim4rl.files.reading import read_text
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


_Points = Float[np.ndarray, " points"]


def iqm_band(curves: Sequence[Curves]) -> tuple[_Points, _Points, _Points, _Points]:
    """Compute the interquartile mean over runs at points of time, with its interval.

    Args:
        curves: the curves of each meta-seed.

    Returns:
        Environment steps of at most `CURVE_POINTS` points, mean, low end, high end.
    """
    thinned = [each.thin(CURVE_POINTS) for each in curves]
    returns = np.stack([each.returns for each in thinned]).astype(np.float64)
    estimates = [
        bootstrap_interval(returns[None, :, :, time], resamples=BAND_RESAMPLES)
        for time in range(returns.shape[2])
    ]
    middle, low, high = (
        np.array([getattr(estimate, name) for estimate in estimates])
        for name in ("value", "low", "high")
    )
    return thinned[0].env_steps.astype(np.float64), middle, low, high


_Columns = dict[str, Float[np.ndarray, " time"]]


def read_progress(log: Path) -> tuple[_Columns, _Columns]:
    """Read the `progress.csv` of a meta-training; NaN where there is no value.

    Returns:
        All columns, and of these the agents' returns by task. Both are empty without an iteration.
    """
    rows = list(csv.DictReader(read_text(log).splitlines()))
    names = rows[0] if rows else ()
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    start = "return_"
    returns = {name.removeprefix(start): x for name, x in columns.items() if name.startswith(start)}
    return columns, returns
