"""Draw pictures of evaluations and of meta-training."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from optim4rl.benchmark.contender import CONTROL
from optim4rl.benchmark.cost import run_seconds
from optim4rl.benchmark.scale import PROFILE_POINTS, Profile
from optim4rl.evaluation.curves import Curves
from optim4rl.files.atomic import replacing
from optim4rl.pages.page import read_progress

_T = TypeVar("_T")
Against = Literal["env_steps", "seconds"]

# Inches of a legend: a line with its margins, a letter, and a row.
_HANDLE, _LETTER, _ROW = 0.7, 0.08, 0.23
# Okabe and Ito's palette: every kind of colour vision can tell these colours apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# A training with more tasks has one curve for each environment.
MOST_CURVES = 8
# The lines of the first optimizers, and of those that have the same colours again.
_LINES = ("-", "-.", ":")


def plot_suite(
    tasks: Mapping[str, Mapping[str, Sequence[Curves]]],
    floors: Mapping[str, float],
    path: Path,
    *,
    background: Collection[str] = (),
    by: Against = "env_steps",
) -> None:
    """Draw a suite's learning curves as SVG: one panel for each task, one legend.

    Args:
        tasks: task -> optimizer -> its curves, one for each meta-seed. A line is the mean over all
            runs, its band the middle half of them.
        floors: task -> the untrained policy's return, a dotted line.
        path: file to write.
        background: optimizers drawn thinner, behind the others.
        by: the horizontal axis.
    """
    columns = min(3, len(tasks))
    with _figure(path, columns=columns, rows=-(-len(tasks) // columns)) as panels:
        for axes, (task, curves) in zip(panels, tasks.items(), strict=False):
            _draw_curves(axes, curves, background, by)
            axes.axhline(floors[task], color="0.6", ls=":", lw=1.0)
            axes.set_title(task, fontsize=11)
            axes.ticklabel_format(axis="x", scilimits=(0, 0))
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        figure = panels[0].figure
        figure.supxlabel("seconds" if by == "seconds" else "environment steps", fontsize=11)
        figure.supylabel("episode return", fontsize=11)
        _legend(panels[0])


def plot_profiles(
    readings: Mapping[str, Mapping[str, Profile]],
    path: Path,
    *,
    background: Collection[str] = (),
) -> None:
    """Draw performance profiles side by side as SVG: share of runs above each normalised AUC.

    Args:
        readings: title -> optimizer -> its profile.
        path: file to write.
        background: optimizers drawn thinner, behind the others.
    """
    with _figure(path, columns=len(readings)) as panels:
        for axes, (title, profiles) in zip(panels, readings.items(), strict=True):
            for (name, profile), (line, band) in _with_looks(profiles, background):
                axes.plot(PROFILE_POINTS, profile.share, label=name, **line)
                axes.fill_between(PROFILE_POINTS, profile.low, profile.high, **band)
            if not profiles:
                axes.text(0.5, 0.5, "no task has a scale", ha="center", transform=axes.transAxes)
            axes.set(xlabel="normalised AUC", ylim=(-0.02, 1.02))
            axes.set_title(title, fontsize=11)
        panels[0].set_ylabel("share of runs above it")
        _legend(panels[0])


def _legend(axes: Any) -> None:
    """Draw one legend above the whole figure, as wide as the figure, which grows by its height."""
    figure, (handles, labels) = axes.figure, axes.get_legend_handles_labels()
    column = _HANDLE + _LETTER * max(map(len, labels), default=0)
    columns = max(1, min(4, len(labels), int(figure.get_figwidth() / column)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW * max(0, rows - 2))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _draw_curves(
    axes: Any,
    curves: Mapping[str, Sequence[Curves]],
    background: Collection[str],
    by: Against,
) -> None:
    for (name, found), (line, band) in _with_looks(curves, background):
        thinned = [c.thin(min(130, c.returns.shape[1])) for c in found]
        returns = np.concatenate([c.returns for c in thinned])
        steps: Any = thinned[0].env_steps
        if by == "seconds":
            steps = steps / found[0].env_steps[-1] * run_seconds(found)
        axes.plot(steps, returns.mean(axis=0), label=name, **line)
        low, high = np.quantile(returns, (0.25, 0.75), axis=0)
        axes.fill_between(steps, low, high, **band)


_Look = dict[str, Any]


def _with_looks(
    drawn: Mapping[str, _T], background: Collection[str]
) -> Iterator[tuple[tuple[str, _T], tuple[_Look, _Look]]]:
    """Yield each named item with its line and band; a control is dashed, in its rule's colour."""
    looks = cycle((colour, style) for style in _LINES for colour in _COLOURS)
    taken = dict[str, tuple[str, str]]()
    for index, (name, what) in enumerate(drawn.items()):
        control = CONTROL in name  # Companions may follow.
        behind = control or name in background
        colour, style = taken.get(name.replace(CONTROL, "", 1)) or next(looks)
        taken[name] = colour, style
        style = "--" if control else style
        line = {"color": colour, "lw": 1.2 if behind else 2.0, "ls": style}
        band = {"color": colour, "alpha": 0.05 if behind else 0.18, "lw": 0}
        order = {"zorder": (2 if behind else 3) - index / len(drawn)}
        yield (name, what), (line | order, band | order)


def plot_training(log: Path, path: Path) -> None:
    """Draw a run's progress as SVG: agents' returns and the meta-gradient's norm by iteration.

    Args:
        log: the `progress.csv` of a run.
        path: file to write.
    """
    columns, returns = read_progress(log)
    if len(returns) > MOST_CURVES:
        returns = _of_environments(returns)
    with _figure(path, columns=2) as (left, right):
        for (name, values), colour in zip(returns.items(), cycle(_COLOURS)):
            iterations = columns["iteration"]
            left.plot(iterations, values, color=colour, lw=0.6, alpha=0.4)
            left.plot(iterations, _smooth(values), color=colour, lw=2.0, label=name)
        left.set(title="agents of all ages", xlabel="meta-iteration", ylabel="episode return")
        if returns:
            left.legend(frameon=False)
            right.plot(columns["iteration"], columns["meta_gradient_norm"], color="0.3", lw=0.8)
        right.set(yscale="log", xlabel="meta-iteration", ylabel="norm of the meta-gradient")


def _of_environments(
    returns: Mapping[str, Float[np.ndarray, " time"]],
) -> dict[str, Float[np.ndarray, " time"]]:
    """Return the mean over each environment's tasks: "catch" and "catch (2)" are one."""
    groups: dict[str, list[Float[np.ndarray, " time"]]] = {}
    for name, values in returns.items():
        groups.setdefault(re.sub(r" \(\d+\)$", "", name), []).append(values)
    means = {}
    for name, group in groups.items():
        known = np.isfinite(group)
        total, count = np.where(known, group, 0.0).sum(axis=0), known.sum(axis=0)
        means[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _smooth(values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Return moving means over a twentieth of the run, without missing values."""
    window = max(1, len(values) // 20)
    known = np.isfinite(values)
    sums, counts = (np.cumsum(x) for x in (np.where(known, values, 0.0), known))
    for x in (sums, counts):
        x[window:] = x[window:] - x[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@contextmanager
def _figure(path: Path, columns: int, rows: int = 1) -> Iterator[Any]:
    """Yield axes, row by row, then write the file: the same runs give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "optim4rl", "svg.fonttype": "none", "font.size": 11}):
        size = (8.0 if columns == 1 else 11.0, 4.2 if rows == 1 else 3.0 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        yield axes
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(alpha=0.25)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
