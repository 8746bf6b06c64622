"""Predicts the cost of running a plan, from the study's own jobs and the times of similar jobs."""

import json
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import LocalPool, Stages
from optim4rl.jobs.store import finished_jobs
from optim4rl.plans.mapping import MappedPlan
from optim4rl.plans.planner.text import PlannerError
from optim4rl.study.experiment import points
from optim4rl.study.layout import Study, lay_out
from optim4rl.study.opening import Opened, open_own
from optim4rl.study.schedule import alive, expected_jobs, members, trainings
from optim4rl.study.settings import SCALES

# Seconds on one core of an AMD EPYC with AVX-512: to compile a program, to run one compiled job,
# and to run a batch of runs for 1,000 rollouts. docs/planner.md says how we measured.
_QUICK = {"compile": 10.0, "training": 3.0, "untrained": 0.1, "batch": 4.0, "identity": 25.0}
JOB_SECONDS: Final[Mapping[str, Mapping[str, float]]] = {
    "smoke": {"compile": 5.0, "training": 0.2, "untrained": 0.1, "batch": 2.0, "identity": 2.0},
    "quick": _QUICK,
    "standard": _QUICK,
    "paper": {
        "compile": 15.0,
        "training": 80.0,
        "untrained": 0.1,
        "batch": 15.0,
        "identity": 3000.0,
    },
}

# Seconds that finished jobs took, by their work without the optimizer and the seed.
Measured = Mapping[str, list[float]]


@dataclass(frozen=True)
class Cost:
    """The cost of running a study of a plan at one scale.

    Attributes:
        scale: name of the scale.
        jobs: independent pieces of work.
        trained: optimizers to meta-train: the reference, the plan's variants and the paper's own.
        seconds: predicted time with the given number of workers if nothing is compiled yet.
        measured: number of jobs whose time comes from finished jobs instead of the table.
        cells: finished cells that the predicted time of a user's experiment is based on.
        cell_seconds: usual time of one cell.
    """

    scale: str
    jobs: int
    trained: int
    seconds: float
    measured: int
    cells: int = 0
    cell_seconds: float = 0.0


def predict(plan: bytes | MappedPlan, jobs: int, measured: Measured | None = None) -> list[Cost]:
    """Return, for every scale, the cost of all that a study can run of a plan.

    Args:
        plan: the plan, or its bytes.
        jobs: worker processes.
        measured: times of finished jobs (`read_measured`); they replace the table for equal work.

    Raises:
        PlanError: a study cannot run any part of the plan.
        PlannerError: jobs < 1.
    """
    if jobs < 1:
        raise PlannerError(f"jobs = {jobs!r}: at least one worker is needed")
    return [
        _predict(lay_out(plan, open_own(scale, settings), skip_unmapped=True), jobs, measured or {})
        for scale, settings in SCALES.items()
    ]


def _predict(study: Study, workers: int, measured: Measured) -> Cost:
    jobs = expected_jobs(study)
    known = [job for job in jobs if _work(job.question) in measured]
    other = [job for job in jobs if _work(job.question) not in measured]
    table = JOB_SECONDS[study.opened.scale]
    seconds = sum(statistics.fmean(measured[_work(job.question)]) for job in known)
    seconds += sum(_seconds(job, table) for job in other)
    # The measured times of jobs include the compilation of their programs.
    seconds += table["compile"] * len({job.program for job in other})
    trained = sum(candidate.trained for candidate in study.candidates)
    return Cost(study.opened.scale, len(jobs), trained, seconds / workers, len(known))


def predict_given(plan: MappedPlan, opened: Opened, jobs: int, folder: Path | None = None) -> Cost:
    """Return the cost of all that a study can run of a plan with a user's experiment.

    Each cell is predicted to take as long as finished cells of its kind. Each variant is predicted
    to need the same extra time, such as compilation, as its first cell. If no cell is finished, the
    reference is run twice and timed.

    Args:
        plan: the plan.
        opened: the user's experiment.
        jobs: worker processes.
        folder: holds finished cells, and receives the first ones; None: nothing is kept.

    Raises:
        PlanError: a study cannot run any part of the plan.
        JobError: the first cell fails.
    """
    study = lay_out(plan, opened, skip_unmapped=True)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        taken = _times(folder)
        if not taken:
            _run_first_cells(study, folder)
            taken = _times(folder)
    wanted = expected_jobs(study)
    every = {name: [x for cells in found.values() for x in cells] for name, found in taken.items()}
    usual = {name: statistics.median_low(cells) for name, cells in every.items()}
    first = {
        name: statistics.fmean(max(cells) - usual[name] for cells in found.values())
        for name, found in taken.items()
    }
    longest = max(usual.values())
    seconds = sum(usual.get(job.function, longest) for job in wanted)
    programs = {(job.function, job.program) for job in wanted}
    seconds += sum(first.get(function, 0.0) for function, _ in programs)
    return Cost(
        opened.experiment.name,
        len(wanted),
        len(study.candidates),
        seconds / min(jobs, len(wanted)),
        len(wanted),
        sum(map(len, every.values())),
        longest,
    )


def _run_first_cells(study: Study, folder: Path) -> None:
    """Run the reference twice, in the same way as a worker, after a training that is finite."""
    reference, values = study.candidates[0], points(study.experiment.train_grid)[0]
    study.opened.keep(folder)
    with LocalPool(folder, 1) as pool:
        stages = Stages(pool, folder)
        for member in members(study, reference, values):
            stages.run(trainings([member]))
            if alive(folder, [member]):
                point = points(reference.grid)[0]
                seeds = study.experiment.protocol.reported[:2]
                stages.run(study.work.runs(folder, member, [point], seeds))
                return


def _times(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of finished cells by their function and their settings."""
    taken: dict[str, dict[str, list[float]]] = {}
    for _, question, info in finished_jobs(folder):
        settings = json.dumps(question["arguments"].get("settings"), sort_keys=True)
        cells = taken.setdefault(question["function"], {}).setdefault(settings, [])
        cells.append(float(info["seconds"]))
    return taken


def _seconds(job: Job, table: Mapping[str, float]) -> float:
    """Return the seconds that the table gives for a job."""
    arguments = job.arguments
    if "runs" in arguments:
        return table["batch"] * float(arguments["rollouts"]) / 1000
    if "trained" in arguments:
        return table["training" if arguments["trained"] else "untrained"]
    return table["identity"]


def _work(question: Mapping[str, Any]) -> str:
    """Return the work of a job: everything except the optimizer, the rate and the seed."""
    varied = ("variant", "maker", "runs", "meta_learning_rate", "meta_seed")
    work = {name: x for name, x in question["arguments"].items() if name not in varied}
    return json.dumps([question["function"], work], sort_keys=True)


def read_measured(folder: Path) -> Measured:
    """Return the times of a study's finished jobs.

    Raises:
        PlannerError: no job is finished.
        StoreError: a result cannot be read.
    """
    measured: dict[str, list[float]] = {}
    for _, question, info in finished_jobs(folder):
        measured.setdefault(_work(question), []).append(float(info["seconds"]))
    if not measured:
        raise PlannerError(f"measured = {str(folder)!r}: the folder has no finished job of a study")
    return measured
