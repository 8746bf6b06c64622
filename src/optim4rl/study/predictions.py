"""Seals the predictions of a plan before the study that tests them has a single result.

`predictions.json` in a study's folder records the plan's expectation for each row, the time of
writing, and the number of cells finished by then. Sealed predictions never change.
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
    """A sealed prediction of one row.

    Attributes:
        expected: the expected outcome against the reference, by the first metric.
        tests: what the ablation tests, in the plan's words.
        time: ISO 8601 time of sealing.
        cells: finished cells of the folder at that time; 0 means a prediction made beforehand.
    """

    expected: Expectation
    tests: str
    time: str
    cells: int


def seal(candidates: Sequence[Candidate], folder: Path) -> None:
    """Write down the plan's expectations for rows that have no sealed prediction yet.

    Raises:
        PlanError: the plan's expectation for a row differs from the sealed one.
        StoreError: the sealed predictions cannot be read.
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
                f"sealed in {folder / FILE} at {known.time}, and sealed predictions never change; "
                "take another folder"
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
    """Read the sealed predictions of a study's folder, by row; empty if there is no file.

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
