"""Write a study as one self-contained HTML page: no script, and no font or picture to load.

`summary` computes, `figures` draws, and the templates lay out; this module puts them together. A
report never trains, and the same results give the same bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from optim4rl.evaluation.stability import METRICS
from optim4rl.files.atomic import write_atomically
from optim4rl.pages import figures
from optim4rl.pages.figures import Series
from optim4rl.pages.identity import identity_view
from optim4rl.pages.page import iqm_band, page_template
from optim4rl.pages.predictions import tally
from optim4rl.pages.scores import OUTCOMES, RowSummary, Score, ScoreKind
from optim4rl.pages.summary import Summary, summarise
from optim4rl.pages.words import interval, number
from optim4rl.study.results import RowKind, StudyResults

GROUPS: dict[RowKind, str] = {
    "reference": "Reference",
    "replacement": "The plan’s replacements",
    "paper": "The paper’s own ablation",
    "control": "Controls",
    "baseline": "Baselines",
}
MAX_REASONING = 50_000  # characters of a plan's prose that are shown


def write_report(results: StudyResults, path: Path) -> None:
    """Write a study's report to `path`.

    Raises:
        ValueError: there is nothing to report; see `summarise`.
    """
    # A plan may hold unpaired surrogates, which UTF-8 cannot encode: they become question marks.
    write_atomically(path, render_report(results).encode("utf-8", "replace"))


def render_report(results: StudyResults) -> str:
    """Return the report's HTML."""
    summary = summarise(results)
    views = [_score_view(summary, index) for index in range(len(summary.places))]
    return page_template("report.html.jinja").render(
        results=results,
        summary=summary,
        groups=list(_groups(summary)),
        views=views,
        predictions=summary.predictions,
        tally=tally(summary.predictions),
        reasoning=results.plan.reasoning[:MAX_REASONING],
        cut=max(0, len(results.plan.reasoning) - MAX_REASONING),
        panels=list(_panels(summary, results.steps)),
        metrics=METRICS,
        step_scales=sorted({step for entry in summary.rows for step in entry.stuck}),
        setting_names=list(
            dict.fromkeys(name for entry in summary.rows for name in entry.row.settings)
        ),
        identity=identity_view(results.identity) if results.identity else None,
        outcomes=OUTCOMES,
        stability=any(entry.stability for entry in summary.rows),
        seconds=sum(entry.row.seconds for entry in summary.rows),
    )


def _groups(summary: Summary) -> Iterable[tuple[str, list[tuple[int, RowSummary]]]]:
    for kind, title in GROUPS.items():
        members = [(i, entry) for i, entry in enumerate(summary.rows) if entry.row.kind == kind]
        if members:
            yield title, members


# Scores


@dataclass(frozen=True)
class _ScoreView:
    """Hold the strips of one score, in the order of the rows.

    Attributes:
        kind: the kind of score.
        places: number of decimals.
        scale: the axis above the strips of `intervals`.
        intervals: interquartile mean and interval of each row.
        seed_scale: the axis above the strips of `seeds`.
        seeds: meta-seed means of each row.
        scores: the scores themselves.
    """

    kind: ScoreKind
    places: int
    scale: Markup
    intervals: tuple[Markup, ...]
    seed_scale: Markup
    seeds: tuple[Markup, ...]
    scores: tuple[Score, ...]


def _score_view(summary: Summary, index: int) -> _ScoreView:
    scores = [entry.scores[index] for entry in summary.rows]
    places = summary.places[index]
    guides = [("reference", scores[0].iqm.value)]
    if summary.adam is not None:
        guides.append(("adam", scores[summary.rows.index(summary.adam)].iqm.value))
    estimates = [score.iqm for score in scores]
    scale = figures.axis([x for e in estimates for x in (e.value, e.low, e.high)], ticks=4)
    seed_scale = figures.axis([mean for score in scores for mean in score.meta_seed_means], ticks=4)
    return _ScoreView(
        kind=scores[0].kind,
        places=places,
        scale=figures.scale_strip(scale),
        intervals=tuple(
            figures.interval_strip(
                scale, score.iqm, score.outcome, guides, _strip_label(score, places)
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


def _strip_label(score: Score, places: int) -> str:
    shown = number(score.iqm.value, places)
    ends = interval(score.iqm, places)
    return f"{score.name} {shown}, {'95 % interval ' if score.iqm.has_interval else ''}{ends}"


# Learning curves


def _panels(summary: Summary, steps_label: str) -> Iterable[tuple[RowSummary, Markup | None]]:
    """Draw each row's curve with the reference's and Adam's; None for a row without a curve."""
    ends = [e.curves.env_steps[[0, -1]] for e in summary.rows if e.curves is not None]
    if all(first == last for first, last in ends):
        return  # Numbers have no curves.
    bands = {entry.row.key: iqm_band(entry.row.curves) for entry in summary.rows if entry.curves}
    values = [x for _, *lines in bands.values() for line in lines for x in line]
    x = figures.axis([0.0, *(float(end) for each in ends for end in each)], ticks=4, margin=0.0)
    y = figures.axis(values, ticks=4)
    backdrop = [(summary.reference, "Reference", "reference")]
    if summary.adam is not None:
        backdrop.append((summary.adam, summary.adam.row.label, "adam"))
    and_adam = "" if summary.adam is None else " and Adam"
    shared = [
        Series(label, style, *bands[entry.row.key])
        for entry, label, style in backdrop
        if entry.row.key in bands
    ]
    for entry in summary.rows[1:]:
        chart: Markup | None = None
        if (key := entry.row.key) in bands:
            series = shared
            if entry is not summary.adam:
                name = key.rpartition("=")[2].replace("_", " ")
                series = [*shared[::-1], Series(name, "variant", *bands[key])]
            label = f"Learning curve of {entry.row.label}, with the reference{and_adam}"
            chart = figures.line_chart(series, x, y, x_label=steps_label, label=label)
        yield entry, chart
