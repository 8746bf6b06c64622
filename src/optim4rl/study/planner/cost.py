"""Predicts what a plan costs to run, from the study's cells and from the times of such cells."""

import json
import statistics
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from optim4rl.study.cells import Cell, ClassicalCell, IdentityCell, cell_to_dict
from optim4rl.study.mapping import MappedPlan
from optim4rl.study.planner.text import PlannerError
from optim4rl.study.runner import Study, lay_out, report_cells, tuning_cells
from optim4rl.study.settings import SCALES
from optim4rl.study.variant import Variant

# Seconds of one cell whose programs are compiled, and to compile the programs of one optimizer, on
# one core of an AMD EPYC with AVX-512. docs/planner.md says what was measured and what was not.
CELL_SECONDS: Final[Mapping[str, Mapping[str, float]]] = {
    "smoke": {"compile": 8, "trained": 0.5, "untrained": 0.1, "classical": 0.1, "identity": 2},
    "quick": {"compile": 20, "trained": 6, "untrained": 3, "classical": 4, "identity": 25},
    "standard": {
        "compile": 20,
        "trained": 17,
        "tune": 12,
        "untrained": 15,
        "classical": 6,
        "identity": 25,
    },
    "paper": {
        "compile": 25,
        "trained": 150,
        "tune": 110,
        "untrained": 75,
        "classical": 60,
        "identity": 1500,
    },
}

# The seconds that finished cells took, by what they did apart from the optimizer and the seed.
Measured = Mapping[str, list[float]]


@dataclass(frozen=True)
class Cost:
    """What a study of a plan takes at one scale.

    Attributes:
        scale: its name.
        cells: independent pieces of work.
        trained: number of optimizers that are meta-trained: the reference, the plan's, the paper's.
        seconds: predicted, with that many workers and an empty compilation cache.
        measured: number of cells whose time comes from finished cells and not from the table.
    """

    scale: str
    cells: int
    trained: int
    seconds: float
    measured: int


def predict(plan: bytes | MappedPlan, jobs: int, measured: Measured | None = None) -> list[Cost]:
    """The cost, at every scale, of all that a study can run of a plan.

    Args:
        plan: the plan, or its bytes.
        jobs: worker processes.
        measured: times of finished cells (`read_measured`), used where a cell does the same work.

    Raises:
        PlanError: a study can run nothing of the plan.
        PlannerError: jobs < 1.
    """
    if jobs < 1:
        raise PlannerError(f"jobs = {jobs!r}: at least one worker is needed")
    if isinstance(plan, bytes):
        plan = MappedPlan.parse(plan)
    return [
        _predict(lay_out(plan, scale, settings, skip_unmapped=True), jobs, measured or {})
        for scale, settings in SCALES.items()
    ]


def _predict(study: Study, jobs: int, measured: Measured) -> Cost:
    rates = {c.key: study.settings.meta_learning_rates[0] for c in study.comparisons}
    cells = [*tuning_cells(study), *report_cells(study, rates)]
    known = [cell for cell in cells if _work(cell_to_dict(cell)) in measured]
    other = [cell for cell in cells if cell not in known]
    table = CELL_SECONDS[study.scale]
    seconds = sum(statistics.fmean(measured[_work(cell_to_dict(cell))]) for cell in known)
    seconds += sum(table[_kind(cell)] for cell in other)
    # Cells that were measured compiled their programs in that time.
    seconds += table["compile"] * len({_optimizer(cell) for cell in other})
    trained = sum(comparison.trained for comparison in study.comparisons)
    return Cost(study.scale, len(cells), trained, seconds / jobs, len(known))


def _kind(cell: Cell) -> str:
    """The cell's column of the table."""
    if isinstance(cell, ClassicalCell | IdentityCell):
        return cell.kind
    if not cell.trained:
        return "untrained"
    return "tune" if cell.purpose == "tune" else "trained"


def _optimizer(cell: Cell) -> Variant | str:
    """What programs are compiled for; the untrained control runs those of the reference."""
    if isinstance(cell, ClassicalCell):
        return cell.name
    return cell.kind if isinstance(cell, IdentityCell) else cell.variant


def _work(cell: Mapping[str, Any]) -> str:
    """How much a cell does: all of it but the optimizer, the rate and the seed."""
    varied = ("variant", "name", "meta_learning_rate", "meta_seed")
    return json.dumps({k: x for k, x in cell.items() if k not in varied}, sort_keys=True)


def read_measured(folder: Path) -> Measured:
    """The times of a study's finished cells.

    Raises:
        PlannerError: there are none, or one cannot be read.
    """
    measured: dict[str, list[float]] = {}
    for path in sorted((folder / "cells").glob("*.safetensors")):
        try:
            cell, seconds = _read_time(path)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise PlannerError(f"{path}: this result cannot be read ({error})") from error
        measured.setdefault(_work(cell), []).append(seconds)
    if not measured:
        raise PlannerError(f"measured = {str(folder)!r}: no finished cell of a study is there")
    return measured


def _read_time(path: Path) -> tuple[Mapping[str, Any], float]:
    """A cell and its seconds, from the file's header alone."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("its header is cut off")
        metadata = json.loads(file.read(length))["__metadata__"]
    return dict(json.loads(metadata["cell"])), float(json.loads(metadata["info"])["seconds"])
