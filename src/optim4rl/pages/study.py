"""A study as one self-contained HTML page: no script, no font, no picture from anywhere else.

`summary` computes, `figures` draws, the templates lay out; here they are put together. A report
never trains, and the same results give the same bytes.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import bootstrap_interval
from optim4rl.evaluation.stability import METRICS
from optim4rl.files.atomic import write_atomically
from optim4rl.pages import figures
from optim4rl.pages.figures import Axis, Frame, Series
from optim4rl.pages.summary import (
    OUTCOMES,
    RowSummary,
    Score,
    Summary,
    summarise,
    summary_table,
)
from optim4rl.pages.words import interval, number, p_value
from optim4rl.study.identity import Histogram, IdentityResult, IdentityRow
from optim4rl.study.results import RowKind, StudyResults

__all__ = ["render_report", "summary_table", "write_report"]

GROUPS: dict[RowKind, str] = {
    "reference": "Reference",
    "replacement": "The plan’s replacements",
    "paper": "The paper’s own ablation",
    "control": "Control: never meta-trained",
    "baseline": "Classical baselines",
}
CURVE_POINTS = 100
BAND_RESAMPLES = 400
MAX_REASONING = 50_000  # characters of a plan's prose that are shown


def write_report(results: StudyResults, path: Path) -> None:
    """Writes a study's report to `path`.

    Raises:
        ValueError: there is nothing to report; see `summarise`.
    """
    # A plan may hold what UTF-8 cannot: unpaired surrogates become question marks.
    write_atomically(path, render_report(results).encode("utf-8", "replace"))


def render_report(results: StudyResults) -> str:
    """The report's HTML."""
    summary = summarise(results)
    auc, final = (
        _score_view(summary, [getattr(entry, name) for entry in summary.rows])
        for name in ("auc", "final")
    )
    return page_template("report.html.jinja").render(
        results=results,
        summary=summary,
        places=summary.decimals,
        groups=list(_groups(summary)),
        auc=auc,
        final=final,
        reasoning=results.plan.reasoning[:MAX_REASONING],
        cut=max(0, len(results.plan.reasoning) - MAX_REASONING),
        panels=list(_panels(summary)),
        metrics=METRICS,
        step_scales=sorted({step for entry in summary.rows for step in entry.stuck}),
        setting_names=list(
            dict.fromkeys(name for entry in summary.rows for name in entry.row.settings)
        ),
        identity=_identity_view(results.identity) if results.identity else None,
        outcomes=OUTCOMES,
        seconds=sum(entry.row.seconds for entry in summary.rows),
    )


@functools.cache
def page_template(name: str) -> jinja2.Template:
    """A page's template, which escapes what it is given and has the filters of all pages."""
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
        percent=_percent,
        percent_range=lambda ends: _percent_range(*ends),
        rate_interval=lambda rate: _percent_range(rate.low, rate.high),
        plain=_plain,
        duration=_duration,
        badge=_badge,
    )
    return environment.get_template(name)


def _groups(summary: Summary) -> Iterable[tuple[str, list[tuple[int, RowSummary]]]]:
    for kind, title in GROUPS.items():
        members = [(i, entry) for i, entry in enumerate(summary.rows) if entry.row.kind == kind]
        if members:
            yield title, members


# Scores


@dataclass(frozen=True)
class _ScoreView:
    """The strips of one score, in the order of the rows.

    Attributes:
        scale: the axis above the strips of `intervals`.
        intervals: interquartile mean and interval of each row.
        seed_scale: the axis above the strips of `seeds`.
        seeds: meta-seed means of each row.
        scores: the scores themselves.
    """

    scale: Markup
    intervals: tuple[Markup, ...]
    seed_scale: Markup
    seeds: tuple[Markup, ...]
    scores: tuple[Score, ...]


def _score_view(summary: Summary, scores: Sequence[Score]) -> _ScoreView:
    guides = [("reference", scores[0].iqm.value)]
    if summary.adam is not None:
        guides.append(("adam", scores[summary.rows.index(summary.adam)].iqm.value))
    estimates = [score.iqm for score in scores]
    scale = figures.axis([x for e in estimates for x in (e.value, e.low, e.high)], ticks=4)
    seed_scale = figures.axis([mean for score in scores for mean in score.meta_seed_means], ticks=4)
    return _ScoreView(
        scale=figures.scale_strip(scale),
        intervals=tuple(
            figures.interval_strip(
                scale, score.iqm, score.outcome, guides, _strip_label(score, summary)
            )
            for score in scores
        ),
        seed_scale=figures.scale_strip(seed_scale),
        seeds=tuple(
            figures.dot_strip(seed_scale, score.meta_seed_means, [], "the same as dots")
            for score in scores
        ),
        scores=tuple(scores),
    )


def _strip_label(score: Score, summary: Summary) -> str:
    shown = number(score.iqm.value, summary.decimals)
    ends = interval(score.iqm, summary.decimals)
    return f"{score.name} {shown}, {'95 % interval ' if score.iqm.has_interval else ''}{ends}"


def _badge(outcome: str) -> Markup:
    path = figures.tag("path", d=figures.MARKS[outcome], class_=f"mark {outcome}")
    return figures.tag("svg", path, viewBox="-8 -8 16 16", class_="badge", aria_hidden="true")


# Learning curves


def _panels(summary: Summary) -> Iterable[tuple[RowSummary, Markup | None]]:
    """Each row against the reference and Adam; None where it has no curve."""
    bands = {
        entry.row.key: iqm_band(entry.row.curves, CURVE_POINTS)
        for entry in summary.rows
        if entry.curves is not None
    }
    values = [x for low, mid, high in bands.values() for x in (*low, *mid, *high)]
    steps = [float(x) for e in summary.rows if e.curves for x in e.curves.env_steps[[0, -1]]]
    x, y = figures.axis([0.0, *steps], ticks=4, margin=0.0), figures.axis(values, ticks=4)
    backdrop = [(summary.reference, "Reference", "reference")]
    if summary.adam is not None:
        backdrop.append((summary.adam, summary.adam.row.label, "adam"))
    shared = [
        _curve(entry, bands[entry.row.key], label, style)
        for entry, label, style in backdrop
        if entry.row.key in bands
    ]
    for entry in summary.rows[1:]:
        if entry.row.key not in bands:
            yield entry, None
            continue
        own = entry is summary.adam
        series = (
            shared
            if own
            else [*shared[::-1], _curve(entry, bands[entry.row.key], _short_name(entry), "variant")]
        )
        yield (
            entry,
            figures.line_chart(
                series,
                x,
                y,
                x_label="environment steps",
                label=f"Learning curve of {entry.row.label}, with the reference and Adam",
            ),
        )


def _short_name(entry: RowSummary) -> str:
    return entry.row.key.rpartition("=")[2].replace("_", " ")


def _curve(
    entry: RowSummary,
    band: tuple[Float[np.ndarray, " points"], ...],
    label: str,
    style: str,
) -> Series:
    assert entry.curves is not None
    low, middle, high = band
    steps = entry.curves.thin(CURVE_POINTS).env_steps.astype(np.float64)
    return Series(label, style, steps, middle, low, high)


def iqm_band(curves: Sequence[Curves], points: int) -> tuple[Float[np.ndarray, " points"], ...]:
    """Interquartile mean over runs at each point of time, between the ends of its interval.

    Args:
        curves: those of each meta-seed.
        points: of time, at most.

    Returns:
        Low end, mean, high end.
    """
    returns = np.stack([_thinned(each, points) for each in curves])
    estimates = [
        bootstrap_interval(returns[None, :, :, time], resamples=BAND_RESAMPLES)
        for time in range(returns.shape[2])
    ]
    low, middle, high = (
        np.array([getattr(estimate, name) for estimate in estimates])
        for name in ("low", "value", "high")
    )
    return low, middle, high


def _thinned(curves: Curves, points: int) -> Float[np.ndarray, "run points"]:
    return curves.thin(points).returns.astype(np.float64)


# The identity experiment

INPUT_NAMES = {"raw": "raw g", "sign_log": "sign and log", "symlog": "symlog"}
OUTPUT_NAMES = {"linear": "linear", "sign_exp": "sgn · exp", "symexp": "symexp"}
PAPER_PAIRS = (("raw", "linear"), ("sign_log", "sign_exp"))


_Cell = tuple[float, tuple[float, float]]  # accuracy, and its lowest and highest over seeds


@dataclass(frozen=True)
class _Grid:
    """Accuracies by input and output, one table.

    Attributes:
        title: what is measured.
        note: how.
        outputs: names of the columns.
        crossed: name of an input, then a cell per output; None where it was not run.
        others: input and output that belong together and are crossed with nothing.
    """

    title: str
    note: str
    outputs: tuple[str, ...]
    crossed: tuple[tuple[str, tuple[_Cell | None, ...]], ...]
    others: tuple[tuple[str, _Cell], ...]


@dataclass(frozen=True)
class _IdentityView:
    """The identity experiment, ready to be laid out."""

    result: IdentityResult
    words: tuple[str, ...]
    grids: tuple[_Grid, ...]
    decades: tuple[tuple[str, Markup], ...]
    curves: tuple[tuple[str, Markup], ...]
    histogram: Markup | None
    input_names: Mapping[str, str]
    output_names: Mapping[str, str]


def _identity_view(result: IdentityResult) -> _IdentityView:
    schedules = list(dict.fromkeys(row.schedule for row in result.rows))
    by_schedule = {name: [r for r in result.rows if r.schedule == name] for name in schedules}
    return _IdentityView(
        result=result,
        words=tuple(_identity_words(result)),
        grids=tuple(_grids(result.rows)),
        decades=tuple((name, _decade_chart(rows)) for name, rows in by_schedule.items()),
        curves=tuple((name, _accuracy_chart(rows)) for name, rows in by_schedule.items()),
        histogram=_histogram(result.histograms) if result.histograms else None,
        input_names=INPUT_NAMES,
        output_names=OUTPUT_NAMES,
    )


def _grids(rows: Sequence[IdentityRow]) -> Iterable[_Grid]:
    online = "all targets, counted while training"
    frozen = "targets that are not zero, frozen network, held-out gradients"
    for title, note, schedule, measure in (
        ("The paper’s measure", online, "constant", "online"),
        ("Without zeros, annealed", frozen, "annealed", "frozen_nonzero"),
        ("Without zeros, constant", frozen, "constant", "frozen_nonzero"),
    ):
        cells = {
            (row.input, row.output): (getattr(row, measure), _spread(row, measure))
            for row in rows
            if row.schedule == schedule
        }
        if cells:
            yield _grid(title, f"{note}, {schedule} learning rate", cells)


def _grid(title: str, note: str, cells: Mapping[tuple[str, str], _Cell]) -> _Grid:
    inputs, outputs = zip(*PAPER_PAIRS, strict=True)
    crossed = {
        pair: cell for pair, cell in cells.items() if pair[0] in inputs and pair[1] in outputs
    }
    others = {pair: cell for pair, cell in cells.items() if pair not in crossed}
    return _Grid(
        title,
        note,
        tuple(OUTPUT_NAMES[name] for name in outputs),
        tuple(
            (INPUT_NAMES[name], tuple(crossed.get((name, output)) for output in outputs))
            for name in inputs
        ),
        tuple((_pair_name(*pair), cell) for pair, cell in others.items()),
    )


def _spread(row: IdentityRow, measure: str) -> tuple[float, float]:
    value = getattr(row, measure)
    return row.spread.get(measure, (value, value))


def _pair_name(input: str, output: str) -> str:
    return f"{INPUT_NAMES.get(input, input)} → {OUTPUT_NAMES.get(output, output)}"


def _identity_words(result: IdentityResult) -> Iterable[str]:
    rows = {(r.input, r.output, r.schedule): r for r in result.rows}
    raw, processed = (rows.get((*pair, "constant")) for pair in PAPER_PAIRS)
    if processed and raw:
        found = "reproduces" if _ahead(processed, raw, "online") else "does not reproduce"
        yield (
            "Measured as in the paper, over all targets, while training, at a constant learning "
            f"rate, processed gradients in and sgn · exp out reach {_percent(processed.online)}, "
            f"raw in and linear out {_percent(raw.online)}: the published picture {found}."
        )
    spread = "; ".join(
        f"of the {h.label}, {_percent(h.zeros)} are exactly zero and the others span "
        f"{h.decades:.1f} decades (1st to 99th percentile)"
        for h in result.histograms
    )
    yield (
        "That figure hides two things. It changes input and output at once, which the crossed "
        "tables keep apart. And sgn(0) · exp(o) is exactly 0 whatever the network says, so that "
        "every target that is exactly zero is a hit for that output, and hardly ever one for a "
        f"linear output.{f' Here, {spread}.' if spread else ''}"
    )
    raw, processed = (rows.get((*pair, "annealed")) for pair in PAPER_PAIRS)
    if processed and raw:
        if _ahead(processed, raw, "frozen_nonzero"):
            found = "the processed pair is ahead here too"
        elif _ahead(raw, processed, "frozen_nonzero"):
            found = "raw gradients are ahead"
        else:
            found = "their ranges over seeds overlap, and neither is ahead"
        yield (
            "On the targets that are not zero, by frozen networks on held-out gradients after an "
            "annealed learning rate, the processed pair reaches "
            f"{_percent(processed.frozen_nonzero)} and the raw one "
            f"{_percent(raw.frozen_nonzero)}: {found}."
        )


def _ahead(x: IdentityRow, y: IdentityRow, measure: str) -> bool:
    """Whether every seed of X is above every seed of Y."""
    return _spread(x, measure)[0] > _spread(y, measure)[1]


_SHARES = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
_WIDE = Frame(width=540.0, height=260.0, right=190.0)


def _identity_style(row: IdentityRow) -> str:
    return f"input-{row.input} output-{row.output}"


def _decade_chart(rows: Sequence[IdentityRow]) -> Markup:
    decades = sorted({decade for row in rows for decade in row.by_decade})
    x = (
        Axis(decades[0] - 0.3, decades[-1] + 0.3, tuple(map(float, decades)))
        if decades
        else _SHARES
    )
    series = [
        Series(
            _pair_name(row.input, row.output),
            _identity_style(row),
            np.array(decades, float),
            np.array([row.by_decade.get(decade, math.nan) for decade in decades]),
            dots=True,
        )
        for row in rows
    ]
    return figures.line_chart(
        series,
        x,
        _SHARES,
        x_label="decade of |g|, as the exponent of its lower end",
        label="Frozen accuracy on non-zero targets by decade of the gradient’s size",
        frame=_WIDE,
    )


def _accuracy_chart(rows: Sequence[IdentityRow]) -> Markup:
    series = [
        Series(
            _pair_name(row.input, row.output),
            _identity_style(row),
            np.linspace(0.0, 100.0, row.curve.size),
            row.curve.astype(np.float64),
        )
        for row in rows
    ]
    return figures.line_chart(
        series,
        Axis(0.0, 100.0, (0.0, 25.0, 50.0, 75.0, 100.0)),
        _SHARES,
        x_label="share of training done, %",
        label="Accuracy on all targets while training",
        frame=_WIDE,
    )


def _histogram(histograms: Sequence[Histogram]) -> Markup:
    """Histograms as outlines on one axis, so that they can be compared where they overlap."""
    styles = ("variant", "reference", "adam")
    series = [
        Series(
            h.label,
            styles[i % len(styles)],
            np.repeat(h.edges, 2).astype(np.float64),
            np.concatenate([[0.0], np.repeat(h.share, 2), [0.0]]),
        )
        for i, h in enumerate(histograms)
    ]
    edges = [float(e) for h in histograms for e in h.edges[[0, -1]]]
    return figures.line_chart(
        series,
        figures.axis(edges, ticks=6, margin=0.0),
        figures.axis([0.0, *(float(h.share.max()) for h in histograms)], ticks=4, margin=0.02),
        x_label="log10 |g| of the non-zero gradients",
        label="Histograms of gradient sizes: " + ", ".join(h.label for h in histograms),
        frame=_WIDE,
    )


# Words


def _percent(value: float) -> str:
    if math.isnan(value):
        return "–"
    shown = f"{100 * value:.0f}"
    # Never round what is not all, or not nothing, to all or nothing.
    if shown in ("0", "100") and value not in (0.0, 1.0):
        shown = f"{100 * value:.1f}"
    return f"{shown} %"


def _percent_range(low: float, high: float) -> str:
    return f"{_percent(low).removesuffix(' %')} to {_percent(high)}"


def _plain(value: Any) -> str:
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
                f"{str(key).replace('_', ' ')} {_plain(entry)}" for key, entry in value.items()
            )
        case Iterable():
            return ", ".join(_plain(entry) for entry in value)
        case _:
            return str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
