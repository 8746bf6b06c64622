"""Runs a study: turns a plan into jobs, and jobs into results.

Every row is tuned with an equal budget on tuning seeds, trained if the experiment trains anything,
tuned again, and reported. Finished jobs stay in the folder, so an interrupted study resumes where
it stopped.
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from optim4rl.jobs.pool import Stages
from optim4rl.jobs.pools import Workers, open_pool
from optim4rl.jobs.store import finished_jobs, has_result
from optim4rl.study.collecting import collect, write_table
from optim4rl.study.experiment import points
from optim4rl.study.layout import Study, record_study
from optim4rl.study.predictions import seal
from optim4rl.study.results import StudyResults
from optim4rl.study.schedule import (
    alive,
    choose,
    choose_trainings,
    expected_jobs,
    members,
    opening_jobs,
    reported_jobs,
    scoring_jobs,
    to_tune,
    trainings,
    tuning_jobs,
    tuning_members,
    wider,
)
from optim4rl.study.work import Member


def run_study(
    study: Study,
    folder: Path,
    *,
    command: str,
    workers: Workers = Workers(),
    budget: float | None = None,
    on_progress: Callable[..., None] = lambda *_, **__: None,
) -> StudyResults:
    """Run all unfinished jobs, and collect the results.

    Args:
        study: the study to run.
        folder: receives results, and provides finished ones.
        command: the command to record in the report.
        workers: run the jobs.
        budget: minutes. The reference and the controls come first. Then the plan's replacements run
            in order of priority, each one whole, while the next is likely to finish in time. The
            report names the rows that are left out. None runs all rows, side by side.
        on_progress: called before the first job and after each one, with the finished jobs, all
            jobs, a description and, as `left`, the seconds left.

    Raises:
        JobError: a job failed; all other started jobs are kept.
        ClusterError: the cluster does not exist.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    seal(study.candidates, folder)
    record_study(study, folder, command, started)
    deadline = math.inf if budget is None else time.monotonic() + 60 * budget
    left_out: set[str] = set()
    with open_pool(folder, workers) as pool:
        stages = Stages(pool, folder, expected_jobs(study, folder), on_progress)
        parts = [study] if budget is None else _parts(study)
        for index, part in enumerate(parts):
            # Everything else needs the reference and the controls, so they come first.
            needed = _seconds_needed(part, folder, pool.size) if index else 0.0
            if needed and (left_out or needed > deadline - time.monotonic()):
                left_out |= {x.key for x in part.candidates}
                continue
            _run(part, folder, stages, last=part is parts[-1])
    study = study.without(frozenset(left_out))
    record_study(study, folder, command, started)
    results = collect(study, folder)
    write_table(study, folder, results)
    return results


def _run(study: Study, folder: Path, stages: Stages, *, last: bool) -> None:
    """Tune, train, choose and report some rows, which form a study by themselves."""
    tuned = [member for each in to_tune(study) for member in tuning_members(study, *each)]
    stages.run(trainings(tuned))
    stages.run([x for m in alive(folder, tuned) for x in scoring_jobs(study, folder, m)])
    chosen = choose_trainings(study, folder)
    stages.run(opening_jobs(study, folder, chosen))
    found = [
        member
        for candidate in study.candidates
        for member in alive(folder, members(study, candidate, chosen[candidate.key]))
    ]
    _tune(study, folder, found, stages)
    shown = [(m, choose(study, folder, m).point) for m in found]
    stages.run([x for each in shown for x in reported_jobs(study, folder, *each)], last=last)


def _tune(study: Study, folder: Path, found: Sequence[Member], stages: Stages) -> None:
    """Run every member's grid, and extend it while its best value lies at the edge."""
    grids = [points(member.candidate.grid) for member in found]
    while True:
        each = zip(found, grids, strict=True)
        stages.run([job for m, grid in each for job in tuning_jobs(study, folder, m, grid)])
        further = [wider(study, folder, m, grid) for m, grid in zip(found, grids, strict=True)]
        if further == grids:
            return
        grids = further


# A budget


def _parts(study: Study) -> list[Study]:
    """Return the rows of every study, then the other rows one by one, by priority."""
    replacements = [x.key for x in study.candidates if x.kind == "replacement"]
    every = frozenset(x.key for x in study.candidates)
    return [
        study.without(frozenset(replacements)),
        *(study.without(every - {key}) for key in replacements),
    ]


def _seconds_needed(study: Study, folder: Path, workers: int) -> float:
    """Predict the seconds that some rows take, from the mean time of finished cells."""
    taken: dict[str, list[float]] = {}
    for _, question, info in finished_jobs(folder):
        taken.setdefault(question["function"], []).append(float(info["seconds"]))
    means = {function: float(np.mean(x)) for function, x in taken.items()}
    longest = max(means.values(), default=0.0)
    missing = [job for job in expected_jobs(study, folder) if not has_result(folder, job)]
    at_once = max(1, min(workers, len(missing)))
    return sum(means.get(job.function, longest) for job in missing) / at_once
