"""Draw the pictures of the pages that no command draws: `python docs/pictures.py`.

The response surfaces of docs/method.md are measured with the library itself. The pictures of the
studies are drawn from their committed runs.
"""

from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib.figure import Figure

from optim4rl.benchmark.table import read_runs
from optim4rl.evaluation.response import CLASSICAL, measure, respond
from optim4rl.optimizers import load_weights
from optim4rl.pages.inspection import surface_figure

DOCS = Path(__file__).parent
WEIGHTS = "anchored-catch"
STUDIES = {
    "plan-on-catch": "catch",
    "plan-on-a-grid-world": "small_dense_long",
    "recipe-on-catch": "catch",
}


def response_figure() -> Figure:
    """Draw the response surfaces of Adam and of shipped weights, side by side."""
    responses = {"Adam": measure(CLASSICAL["Adam"]), WEIGHTS: respond(load_weights(WEIGHTS))}
    return surface_figure(responses)


def study_figure(study: str, task: str) -> Figure:
    """Draw one dot for each meta-seed's mean AUC, and a bar for their mean, a row an optimizer."""
    runs = read_runs(DOCS / "studies" / study / "runs.parquet", task).filter(purpose="tuned")
    names = runs["optimizer"].unique(maintain_order=True).to_list()
    means = runs.group_by("optimizer", "meta_seed").agg(pl.col("auc").mean())
    figure = Figure(figsize=(7, 0.34 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        dots = means.filter(optimizer=name).sort("meta_seed")["auc"].to_numpy()
        colour = "#d55e00" if name == "reference" else "#0072b2"
        axes.plot(dots, [row] * len(dots), "o", color=colour, alpha=0.55, markersize=6)
        axes.plot([dots.mean()], [row], "|", color=colour, markersize=18, markeredgewidth=2)
    reference = means.filter(optimizer="reference")["auc"].to_numpy().mean()
    axes.axvline(reference, color="#d55e00", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), [name.replace("=", ": ") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("mean AUC of each meta-seed; bar: mean")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, the same bytes each time."""
    figure.savefig(path, format="svg", metadata={"Date": None})


def draw() -> None:
    """Draw all pictures."""
    with mpl.rc_context({"svg.hashsalt": "optim4rl", "svg.fonttype": "none", "font.size": 11}):
        save(response_figure(), DOCS / "images" / "response.svg")
        for study, task in STUDIES.items():
            save(study_figure(study, task), DOCS / "studies" / study / "auc.svg")


if __name__ == "__main__":
    draw()
