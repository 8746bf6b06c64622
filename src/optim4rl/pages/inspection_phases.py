"""Draw a learned optimizer's steps by phase of training and by the use of the tensor."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.phases import Phases, classical_sizes
from optim4rl.pages import figures
from optim4rl.pages.figures import Series
from optim4rl.pages.inspection_pictures import UNIT, Picture
from optim4rl.pages.inspection_words import number

# Classical optimizers whose kernels are drawn beside: title -> name.
BESIDE = {"Muon": "muon_rms", "Adam": "adam"}
_STYLES = ("run-0", "run-1", "run-2", "run-3")


def phases_json(phases: Phases) -> dict[str, Any]:
    """Return the numbers behind the pictures as JSON values."""
    return {
        "share": phases.share.tolist(),
        "first_epoch": {use: x.tolist() for use, x in phases.first_epoch.items()},
        "last_epoch": {use: x.tolist() for use, x in phases.last_epoch.items()},
    }


def phase_pictures(phases: Phases) -> Iterable[Picture]:
    """Draw the rule in the first and the last epoch of a rollout, beside Muon and Adam."""
    classical = {title: classical_sizes(name) for title, name in BESIDE.items()}
    drawn = {
        "The first epoch of a rollout": phases.first_epoch,
        "The last epoch of a rollout": phases.last_epoch,
        **classical,
    }
    top = max(float(np.nanmax(x, initial=0.0)) for uses in drawn.values() for x in uses.values())
    for title, uses in drawn.items():
        words = f"{_change(uses)} " + (
            "The rate falls to 0 over the training."
            if title in classical
            else f"Muon’s kernels start at {number(float(classical['Muon']['kernel'][0]))}."
        )
        series = [
            Series(use, style, phases.share, sizes)
            for style, (use, sizes) in zip(_STYLES, uses.items(), strict=True)
        ]
        drawing = figures.line_chart(
            series,
            figures.axis([0.0, 1.0], ticks=4, margin=0.0),
            figures.axis([0.0, top]),
            x_label="share of the training that is done",
            label=f"{title}: size of steps by use of the tensor",
        )
        yield Picture(title, UNIT, drawing, words)


def _change(uses: Mapping[str, Float[np.ndarray, " window"]]) -> str:
    """Say how each use's steps change from the start to the middle of the training."""
    middle = len(next(iter(uses.values()))) // 2
    ends = {use: (number(float(x[0])), number(float(x[middle]))) for use, x in uses.items()}
    changes = [f"{use} {first}, {halfway}" for use, (first, halfway) in ends.items()]
    return f"At the start and halfway: {'; '.join(changes)}."
