"""Judge a plan's predictions by the outcomes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from optim4rl.pages.scores import Outcome, RowSummary, side_of
from optim4rl.study.predictions import Sealed
from optim4rl.study.results import StudyResults

# "not contradicted": the plan expected no difference, and none is clear. This does not show that
# there is none.
Fate = Literal["right", "wrong", "not contradicted", "not decided"]


@dataclass(frozen=True)
class Prediction:
    """Hold a prediction and its fate, by the first score.

    Attributes:
        label: the row's label.
        sealed: the prediction, and when it was made.
        outcome: the row's outcome.
        fate: whether the outcome agrees with the prediction.
    """

    label: str
    sealed: Sealed
    outcome: Outcome
    fate: Fate


def judge_predictions(results: StudyResults, rows: Sequence[RowSummary]) -> tuple[Prediction, ...]:
    """Judge every sealed prediction, in the order of the rows."""
    return tuple(
        Prediction(entry.row.label, sealed, entry.primary.outcome, _fate(sealed, entry))
        for entry in rows
        if (sealed := results.predictions.get(entry.row.key)) is not None
    )


def _fate(sealed: Sealed, entry: RowSummary) -> Fate:
    side = side_of(entry)
    if sealed.expected == "same":
        return "not contradicted" if side == "unclear" else "wrong"
    if side == "unclear":
        return "not decided"
    return "right" if side == sealed.expected else "wrong"


def tally(predictions: Iterable[Prediction]) -> str:
    """Say how often the planner was right."""
    found = Counter(prediction.fate for prediction in predictions)
    fates: tuple[Fate, ...] = ("right", "wrong", "not contradicted", "not decided")
    parts = [f"{found[fate]} {fate}" for fate in fates if found[fate]]
    return f"Of {found.total()} predictions: {', '.join(parts)}."
