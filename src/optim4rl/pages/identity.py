"""Write the identity experiment as a page, and prepare its part of a study's page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from optim4rl.files.atomic import write_atomically
from optim4rl.pages import figures
from optim4rl.pages.figures import Axis, Frame, Series
from optim4rl.pages.page import page_template
from optim4rl.pages.words import percent
from optim4rl.study.identity_results import (
    Histogram,
    IdentityResult,
    IdentityRow,
    networks,
    over_recordings,
)

INPUT_NAMES = {"raw": "raw g", "sign_log": "sign and log", "symlog": "symlog"}
OUTPUT_NAMES = {"linear": "linear", "sign_exp": "sgn · exp", "symexp": "symexp"}
PAPER_PAIRS = (("raw", "linear"), ("sign_log", "sign_exp"))


_Cell = tuple[float, tuple[float, float]]  # accuracy, and its lowest and highest over seeds


@dataclass(frozen=True)
class _Grid:
    """Hold one table of accuracies by input and output.

    Attributes:
        title: the measure.
        note: how it is measured.
        outputs: names of the columns.
        crossed: an input's name with a cell for each output; None if the pair was not run.
        others: pairs of input and output that are not crossed with others.
    """

    title: str
    note: str
    outputs: tuple[str, ...]
    crossed: tuple[tuple[str, tuple[_Cell | None, ...]], ...]
    others: tuple[tuple[str, _Cell], ...]


@dataclass(frozen=True)
class IdentityView:
    """Hold all that a page shows of the identity experiment."""

    result: IdentityResult
    words: tuple[str, ...]
    grids: tuple[_Grid, ...]
    decades: tuple[tuple[str, Markup], ...]
    curves: tuple[tuple[str, Markup], ...]
    histogram: Markup | None
    input_names: Mapping[str, str]
    output_names: Mapping[str, str]


def write_identity(result: IdentityResult, path: Path) -> None:
    """Write the identity experiment as a page of its own: HTML that loads nothing."""
    html = page_template("identity.html.jinja").render(identity=identity_view(result))
    write_atomically(path, html.encode())


def identity_view(result: IdentityResult) -> IdentityView:
    """Make the identity experiment's tables, charts and words."""
    means = over_recordings(result.rows)
    schedules = list(dict.fromkeys(row.schedule for row in means))
    by_schedule = {name: [r for r in means if r.schedule == name] for name in schedules}
    return IdentityView(
        result=result,
        words=tuple(identity_words(result)),
        grids=tuple(_grids(means)),
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


def identity_words(result: IdentityResult) -> Iterable[str]:
    """Say in sentences what the experiment shows."""
    of_network = networks(result.rows)
    count = len({row.recording for row in result.rows})
    if count > 1:
        yield (
            f"{count} agents were recorded, and each recording has networks of its own. Accuracies "
            "are means over the recordings; their ranges are over all seeds of all recordings. A "
            "pair is ahead in a recording if each of its seeds is above each of the other pair's."
        )
    means = {(x.input, x.output, x.schedule): x for x in over_recordings(result.rows)}
    raw, processed = ((*pair, "constant") for pair in PAPER_PAIRS)
    if raw in means and processed in means:
        ahead, of = _ahead(of_network[processed], of_network[raw], "online")
        yield (
            "Measured as in the paper (all targets, while training, constant learning rate), the "
            f"processed pair (sgn · exp out) reaches {_reached(means[processed].online)}, and the "
            f"raw pair (linear out) {_reached(means[raw].online)}: the published picture "
            f"{'reproduces' if ahead else 'does not reproduce'}"
            f"{f' in {ahead} of {of} recordings' if ahead and of > 1 else ''}."
        )
    spread = "; ".join(
        f"in {h.label} {percent(h.zeros)} of the gradients are exactly zero, and the others span "
        f"{h.decades:.1f} decades (1st to 99th percentile)"
        for h in result.histograms
    )
    yield (
        "This measure hides two things. It changes input and output at once; the crossed tables "
        "separate them. And sgn(0) · exp(o) is exactly 0 whatever the network says. So this output "
        "hits every target that is exactly zero, and a linear output hardly ever does."
        f"{f' Here, {spread}.' if spread else ''}"
    )
    raw, processed = ((*pair, "annealed") for pair in PAPER_PAIRS)
    if raw in means and processed in means:
        yield (
            "On non-zero targets (frozen networks, held-out gradients, annealed learning rate), "
            f"the processed pair reaches {_reached(means[processed].frozen_nonzero)}, and the raw "
            f"pair {_reached(means[raw].frozen_nonzero)}: "
            f"{_who_is_ahead(of_network[processed], of_network[raw])}."
        )


def _reached(accuracy: float) -> str:
    return (
        "no accuracy (a run diverged or had no targets)"
        if math.isnan(accuracy)
        else percent(accuracy)
    )


def _who_is_ahead(processed: Sequence[IdentityRow], raw: Sequence[IdentityRow]) -> str:
    ahead, of = _ahead(processed, raw, "frozen_nonzero")
    behind, _ = _ahead(raw, processed, "frozen_nonzero")
    if of > 1:
        return (
            f"the processed pair is ahead in {ahead} of {of} recordings, the raw pair in {behind}"
        )
    if ahead:
        return "the processed pair is ahead here too"
    if behind:
        return "raw gradients are ahead"
    return "their ranges over seeds overlap, and neither is ahead"


def _ahead(x: Sequence[IdentityRow], y: Sequence[IdentityRow], measure: str) -> tuple[int, int]:
    """Return in how many recordings every seed of X is above every seed of Y, and of how many."""
    pairs = list(zip(x, y, strict=True))
    return sum(_spread(a, measure)[0] > _spread(b, measure)[1] for a, b in pairs), len(pairs)


_SHARES = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
_MOST_TICKS = 10
_WIDE = Frame(width=540.0, height=260.0, right=190.0)


def _series(row: IdentityRow, x: np.ndarray, y: np.ndarray, *, dots: bool = False) -> Series:
    style = f"input-{row.input} output-{row.output}"
    return Series(_pair_name(row.input, row.output), style, x, y, dots=dots)


def _decade_chart(rows: Sequence[IdentityRow]) -> Markup:
    decades = sorted({decade for row in rows for decade in row.by_decade})
    x = _SHARES
    if decades:
        first, last = decades[0], decades[-1]
        ticks = range(last, first - 1, -max(1, (last - first) // _MOST_TICKS + 1))
        x = Axis(first - 0.3, last + 0.3, tuple(map(float, reversed(ticks))))
    places = np.array(decades, float)
    shares = [np.array([row.by_decade.get(d, math.nan) for d in decades]) for row in rows]
    series = [_series(row, places, y, dots=True) for row, y in zip(rows, shares, strict=True)]
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
        _series(row, np.linspace(0.0, 100.0, row.curve.size), row.curve.astype(np.float64))
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
    """Draw histograms as outlines on one axis, so that readers can compare where they overlap."""
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
