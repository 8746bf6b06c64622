"""Predictions of a plan, sealed before the study that tests them has a single result.

`predictions.json` in a study's folder says what the plan expects of each row, when that was
written, and how many cells were finished then. What is sealed is never changed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_text
from optim4rl.jobs.store import StoreError, finished_jobs
from optim4rl.plans.ablation import Expectation, PlanError
from optim4rl.study.work import Candidate

FILE = "predictions.json"


@dataclass(frozen=True)
class Sealed:
    """A prediction of one row.

    Attributes:
        expected: the outcome against the reference, by the first metric.
        tests: what the ablation tests, in the plan's words.
        time: ISO 8601 time at which it was sealed.
        cells: how many cells of the folder were finished then; 0 is a prediction made beforehand.
    """

    expected: Expectation
    tests: str
    time: str
    cells: int


def seal(candidates: Sequence[Candidate], folder: Path) -> None:
    """Write down what the plan expects of rows that have no sealed prediction yet.

    Raises:
        PlanError: the plan expects something else of a row than what is sealed.
        StoreError: what is sealed cannot be read.
    """
    sealed = read_sealed_predictions(folder)
    new = {}
    for candidate in candidates:
        if candidate.expected is None:
            continue
        known = sealed.get(candidate.key)
        if known is None:
            new[candidate.key] = candidate
        elif known.expected != candidate.expected:
            raise PlanError(
                f"Expected: {candidate.expected} of {candidate.label!r}: {known.expected} was "
                f"sealed in {folder / FILE} at {known.time}; a prediction is not changed once "
                "cells may be finished: take another folder"
            )
    if not new:
        return
    cells = sum(1 for _ in finished_jobs(folder))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for key, x in new.items():
        assert x.expected is not None
        sealed[key] = Sealed(x.expected, x.tests, now, cells)
    text = json.dumps({key: asdict(x) for key, x in sealed.items()}, indent=1)
    write_atomically(folder / FILE, text.encode())


def read_sealed_predictions(folder: Path) -> dict[str, Sealed]:
    """The sealed predictions of a study's folder, by row; none where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    path = folder / FILE
    try:
        return {key: Sealed(**x) for key, x in json.loads(read_text(path)).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: these predictions cannot be read ({error})") from error
