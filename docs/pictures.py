"""Draws the picture of docs/method.md with the library itself: python docs/pictures.py."""

from pathlib import Path

import matplotlib as mpl

from optim4rl.evaluation.response import CLASSICAL, measure, respond
from optim4rl.optimizers import load_weights
from optim4rl.pages.inspection import surface_figure

WEIGHTS = "anchored-catch"
PATH = Path(__file__).parent / "images" / "response.svg"


def draw(path: Path = PATH) -> None:
    """Write the response surfaces of Adam and of shipped weights, side by side."""
    responses = {"Adam": measure(CLASSICAL["Adam"]), WEIGHTS: respond(load_weights(WEIGHTS))}
    with mpl.rc_context({"svg.hashsalt": "optim4rl", "svg.fonttype": "none", "font.size": 11}):
        surface_figure(responses).savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw()
