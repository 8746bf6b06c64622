"""Finished runs side by side on one self-contained page: their settings and their results.

A run is the output folder of a command. All folders are read into one form, so that meta-trainings,
benchmarks and studies can be on one page. Nothing is trained here.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.benchmark.table import curves_of, read_runs
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import Estimate, area_under_curve, bootstrap_interval, final_return
from optim4rl.files.atomic import write_atomically
from optim4rl.files.manifest import check_files
from optim4rl.files.reading import read_text
from optim4rl.jobs.store import StoreError
from optim4rl.optimizers.weight_files import read_weights
from optim4rl.pages import figures
from optim4rl.pages.figures import Frame, Series
from optim4rl.pages.page import CURVE_POINTS, iqm_band, page_template, read_progress

# Colours of a page's lines; further runs use them again, dashed.
STYLES = 6
_FRAME = Frame(width=540.0, height=250.0, right=150.0)


class Heading(NamedTuple):
    """Hold the title of a picture, and the label of its horizontal axis."""

    title: str
    x_label: str


class Line(NamedTuple):
    """Hold a curve, with the ends of its 95 % interval if there are several runs."""

    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"] | None = None
    high: Float[np.ndarray, " points"] | None = None


@dataclass(frozen=True)
class FinishedRun:
    """Hold the contents of a command's output folder.

    Attributes:
        folder: the folder.
        kind: kind of run, for example "meta-training".
        settings: every setting by its dotted name ("meta.iterations").
        lines: the curves.
        numbers: results by name: an estimate, a plain number, or words.
    """

    folder: Path
    kind: str
    settings: Mapping[str, Any]
    lines: Mapping[Heading, Line]
    numbers: Mapping[str, Estimate | float | str]


# Reading


# Files that are read from a folder, if they exist.
FILES = ("progress.csv", "results.json", "runs.parquet", "settings.json", "study.json")


def read_run(folder: Path) -> FinishedRun:
    """Read the output folder of `train`, `evaluate` or `ablate`.

    Raises:
        StoreError: the folder has no output of a command, or it cannot be read.
    """
    readers = {
        "progress.csv": _read_training,
        "study.json": _read_study,
        "results.json": _read_benchmark,
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            try:
                check_files(folder, FILES)
                return read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{folder}: this run cannot be read ({error})") from error
    raise StoreError(f"{folder}: no finished run: it has none of the files {', '.join(readers)}")


def _read_training(folder: Path) -> FinishedRun:
    columns, returns = read_progress(folder / "progress.csv")
    if not columns:
        raise ValueError("progress.csv has no finished iteration yet")
    iterations, norms = columns["iteration"], columns["meta_gradient_norm"]
    settings = json.loads(read_text(folder / "settings.json"))
    lines = {
        Heading(f"Return of the agents on {task}", "meta-iteration"): _bins(iterations, values)
        for task, values in returns.items()
    }
    shown = norms != 0  # Zero has no logarithm; a value that is not finite is drawn as a cross.
    logarithms = np.log10(np.where(np.isfinite(norms), norms, np.nan)[shown])
    heading = Heading("Meta-gradient: log₁₀ of its norm", "meta-iteration")
    lines[heading] = Line(iterations[shown], logarithms)
    wanted = settings["meta"]["iterations"]
    numbers: dict[str, Estimate | float | str] = {"iterations": f"{iterations.size} of {wanted}"}
    for task, values in returns.items():
        last = values[-max(1, len(values) // 10) :]
        known = last[np.isfinite(last)]
        mean = float(known.mean()) if known.size else "no episode ended"
        numbers[f"return on {task}, last tenth"] = mean
    if not np.isfinite(norms[-1]):
        numbers["stopped"] = f"no finite numbers from iteration {int(iterations[-1])} on"
    weights = folder / "weights.safetensors"
    if weights.is_file():
        card = read_weights(weights).card
        if card["training_seconds"] is not None:  # It is None after a resumed training.
            numbers["seconds"] = float(card["training_seconds"])
        settings = {**settings, "versions": card["versions"]}
    else:
        numbers.setdefault("stopped", "not finished: no weights yet")
    return FinishedRun(folder, "meta-training", _flat(settings), lines, numbers)


def _bins(x: Float[np.ndarray, " time"], y: Float[np.ndarray, " time"]) -> Line:
    """Average neighbouring points that have a value."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    groups = np.array_split(np.arange(x.size), min(CURVE_POINTS, x.size)) if x.size else []
    return Line(
        np.array([x[group].mean() for group in groups], float),
        np.array([y[group].mean() for group in groups], float),
    )


def _read_study(folder: Path) -> FinishedRun:
    record = json.loads(read_text(folder / "study.json"))
    # In 0.1 the task was a setting: the only experiment was this project's own.
    task = record["task"] if "task" in record else record["settings"]["environment"]
    settings = {key: record[key] for key in ("scale", "settings", "versions")}
    return _evaluated(folder, "ablation study", settings, task)


def _read_benchmark(folder: Path) -> FinishedRun:
    record = json.loads(read_text(folder / "results.json"))
    keys = ("suite", "seeds", "tuning_seeds", "versions", "code")
    settings = {key: record[key] for key in keys}
    settings["tasks"] = list(record["tasks"])
    return _evaluated(folder, "benchmark", settings, "")


def _read_curves(path: Path, task: str) -> dict[tuple[str, str], list[Curves]]:
    """Read reported curves by task and optimizer, one for each meta-seed."""
    import polars as pl

    table = read_runs(path, task).filter(
        (pl.col("purpose") == "tuned") & (pl.col("role") != "untrained")
    )
    found: dict[tuple[str, str], list[Curves]] = {}
    keys = ("task", "optimizer", "meta_seed")
    for (name, optimizer, _), rows in table.group_by(*keys, maintain_order=True):
        found.setdefault((str(name), str(optimizer)), []).append(curves_of(rows))
    return found


def _evaluated(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    task_of_study: str,
) -> FinishedRun:
    lines, numbers = {}, {}
    found = _read_curves(folder / "runs.parquet", task_of_study)
    for (task, optimizer), members in found.items():
        lines[Heading(f"{optimizer} on {task}", "environment steps")] = Line(*iqm_band(members))
        for name, score in (("AUC", area_under_curve), ("final return", final_return)):
            scores = np.stack([score(each) for each in members])[None]
            numbers[f"{optimizer} on {task}: {name}"] = bootstrap_interval(scores)
    return FinishedRun(folder, kind, _flat(settings), lines, numbers)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# Comparing


def short_names(runs: Sequence[FinishedRun]) -> list[str]:
    """Name each run by its folder, or by its whole path if two folders share a name."""
    names = [run.folder.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


def differing_settings(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ, with a value for each run.

    The value is None if a run does not have the setting, for example a run of another command.
    """
    differing = {}
    for name in _union(run.settings for run in runs):
        found = [run.settings[name] for run in runs if name in run.settings]
        if any(x != found[0] for x in found):
            differing[name] = [run.settings.get(name) for run in runs]
    return differing


def _shared(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the settings that all runs share, with the same value."""
    first, *others = (run.settings for run in runs)
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _alone(run: FinishedRun, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the settings that not all runs have, and that do not differ where they are."""
    shown = {*_shared(runs), *differing_settings(runs)}
    return {name: value for name, value in run.settings.items() if name not in shown}


def numbers_by_name(runs: Sequence[FinishedRun]) -> dict[str, list[Estimate | float | str | None]]:
    """Return each result by name, with a value for each run; None if a run lacks it."""
    return {
        name: [run.numbers.get(name) for run in runs] for name in _union(r.numbers for r in runs)
    }


def _union(mappings: Iterable[Mapping[Any, Any]]) -> list[Any]:
    """Return all keys, in order of first occurrence."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def write_comparison(runs: Sequence[FinishedRun], path: Path) -> None:
    """Write the page to `path`.

    Raises:
        ValueError: see `render_comparison`.
    """
    write_atomically(path, render_comparison(runs).encode("utf-8", "replace"))


def render_comparison(runs: Sequence[FinishedRun]) -> str:
    """Return the page as HTML.

    Raises:
        ValueError: there is no run, or a run is given twice.
    """
    if not runs:
        raise ValueError("runs: at least one finished run is needed")
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"runs = {[str(run.folder) for run in runs]!r}: give each run once")
    names = short_names(runs)
    differing = differing_settings(runs)
    return page_template("comparison.html.jinja").render(
        runs=runs,
        names=names,
        numbers=numbers_by_name(runs),
        differing=differing,
        shared=_shared(runs),
        alone=[_alone(run, runs) for run in runs],
        panels=list(_panels(runs, names)),
        is_estimate=lambda value: isinstance(value, Estimate),
        figure=_figure,
    )


def _panels(runs: Sequence[FinishedRun], names: Sequence[str]) -> Iterator[tuple[Heading, Markup]]:
    for heading in _union(run.lines for run in runs):
        series = []
        for index, (run, name) in enumerate(zip(runs, names, strict=True)):
            line = run.lines.get(heading)
            if line is not None and line.x.size:
                style = f"run-{index % STYLES}{' again' if index >= STYLES else ''}"
                series.append(Series(name, style, *line))
        if not series:
            continue
        ends = [end for one in series for end in (one.low, one.y, one.high) if end is not None]
        x = figures.axis([float(x) for one in series for x in one.x[[0, -1]]], ticks=5, margin=0.0)
        y = figures.axis([float(x) for end in ends for x in end], ticks=4)
        label = f"{heading.title}: {', '.join(one.label for one in series)}"
        chart = figures.line_chart(series, x, y, x_label=heading.x_label, label=label, frame=_FRAME)
        yield heading, chart


def _figure(value: float) -> str:
    """Format a number with four significant digits."""
    return "diverged" if math.isnan(value) else f"{value:.4g}".replace("-", "−")
