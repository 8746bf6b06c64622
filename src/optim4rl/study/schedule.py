"""Schedules the jobs of a study, and chooses points of grids on seeds that are never reported."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from optim4rl.benchmark.tuning import Tuning, extend
from optim4rl.evaluation.returns import area_under_curve
from optim4rl.jobs.job import Job
from optim4rl.jobs.store import StoreError, get_result, has_result
from optim4rl.study.experiment import TUNING_META_SEED, Values, points
from optim4rl.study.layout import Study
from optim4rl.study.work import Candidate, Member

# The values of each candidate, by its key, in the grid of trainings.
Chosen = dict[str, Values]


# The jobs


def members(study: Study, candidate: Candidate, values: Values) -> list[Member]:
    """Return the reported trainings of a candidate."""
    # A candidate that is not trained has one member, whatever the number of meta-seeds.
    count = study.experiment.meta_seeds if candidate.trained and study.experiment.trains else 1
    return [_member(study, candidate, values, seed) for seed in range(count)]


def tuning_members(study: Study, candidate: Candidate, values: Values) -> list[Member]:
    """Return the trainings that judge a point of the grid of trainings."""
    seeds = range(TUNING_META_SEED, TUNING_META_SEED + study.experiment.tuning_meta_seeds)
    return [_member(study, candidate, values, seed) for seed in seeds]


def _member(study: Study, candidate: Candidate, values: Values, seed: int) -> Member:
    return Member(candidate, seed, study.work.training(candidate, values, seed))


def to_tune(study: Study) -> list[tuple[Candidate, Values]]:
    """Return the candidates and points of the grid of trainings; empty if there is no choice."""
    grid = points(study.experiment.train_grid)
    if len(grid) == 1 or not study.experiment.trains:
        return []
    return [(x, values) for x in study.candidates if x.trained for values in grid]


def trainings(found: Sequence[Member]) -> list[Job]:
    """Return the training jobs of members."""
    return [member.training for member in found if member.training is not None]


def alive(folder: Path, found: Sequence[Member]) -> list[Member]:
    """Return the members whose training did not diverge.

    Raises:
        StoreError: a training is not finished, or its result is damaged.
    """
    return [x for x in found if failure(folder, x) is None]


def failure(folder: Path, member: Member) -> str | None:
    """Describe how a member's training diverged; None if it did not."""
    if member.training is None:
        return None
    return get_result(folder, member.training).info.get("failure")


def scoring_jobs(study: Study, folder: Path | None, member: Member) -> list[Job]:
    """Return a member's runs at every point of its grid, on the tuning seeds."""
    grid, seeds = points(member.candidate.grid), study.experiment.protocol.tuning
    return study.work.runs(folder, member, grid, seeds)


def tuning_jobs(
    study: Study, folder: Path | None, member: Member, grid: Sequence[Values] = ()
) -> list[Job]:
    """Return the runs that choose a member's point of a grid; may be empty."""
    grid, seeds = grid or points(member.candidate.grid), study.experiment.protocol.tuning
    return study.work.runs(folder, member, grid, seeds) if len(grid) > 1 else []


def reported_jobs(study: Study, folder: Path | None, member: Member, point: Values) -> list[Job]:
    """Return the runs that show a member at a point, and its stress test."""
    seeds = study.experiment.protocol.reported
    return [
        *study.work.runs(folder, member, [point], seeds),
        *study.work.stress(folder, member, point),
    ]


def opening_jobs(study: Study, folder: Path | None, chosen: Chosen) -> list[Job]:
    """Return the trainings, and the jobs that need no training of this study.

    Seeds are the outer loop: workers compile different variants first, and later find each
    other's programs in the compilation cache.
    """
    by_candidate = [members(study, x, chosen[x.key]) for x in study.candidates]
    jobs = [*study.work.once(study.metrics), *study.work.floor()]
    for found in by_candidate:
        jobs += [x for m in found if m.training is None for x in tuning_jobs(study, folder, m)]
    for side_by_side in itertools.zip_longest(*by_candidate):
        jobs += trainings([member for member in side_by_side if member is not None])
    return jobs


def expected_jobs(study: Study, folder: Path | None = None) -> list[Job]:
    """Return all possible jobs of a study, with placeholders for artefacts that do not exist.

    Args:
        study: the study.
        folder: holds finished jobs, whose artefacts and choices replace the placeholders; None: no
            job is finished.
    """
    chosen: Chosen = {x.key: points(study.experiment.train_grid)[0] for x in study.candidates}
    if folder is not None:
        with suppress(StoreError):
            chosen = choose_trainings(study, folder)
    jobs: list[Job] = []
    for candidate, values in to_tune(study):
        found = tuning_members(study, candidate, values)
        jobs += trainings(found)
        for member, where in _expected(folder, found):
            jobs += scoring_jobs(study, where, member)
    jobs += opening_jobs(study, None, chosen)
    for candidate in study.candidates:
        found = members(study, candidate, chosen[candidate.key])
        for member, where in _expected(folder, found):
            jobs += _expected_runs(study, where, member)
    return list({job.address: job for job in jobs}.values())


def _expected(folder: Path | None, found: Sequence[Member]) -> Iterator[tuple[Member, Path | None]]:
    """Yield the members that may run, and the folder if it holds their training, else None."""
    for member in found:
        if folder is None or (member.training and not has_result(folder, member.training)):
            yield member, None
        elif failure(folder, member) is None:
            yield member, folder


def _expected_runs(study: Study, folder: Path | None, member: Member) -> list[Job]:
    """Return a member's tuning and reported runs, at its chosen point if that is known."""
    grid: Sequence[Values] = points(member.candidate.grid)
    point = grid[0]
    if folder is not None:
        with suppress(StoreError):
            choice = choose(study, folder, member)
            grid, point = choice.grid, choice.point
    return [
        *tuning_jobs(study, folder, member, grid),
        *reported_jobs(study, folder, member, point),
    ]


# How points are chosen


@dataclass(frozen=True)
class Choice:
    """A member's point, chosen on the tuning seeds.

    Attributes:
        point: the values.
        at_edge: names of the values at an end of their grid.
        grid: all points that were tried.
    """

    point: Values
    at_edge: tuple[str, ...]
    grid: Sequence[Values]


def scores(
    study: Study, folder: Path, member: Member, grid: Sequence[Values]
) -> Float[np.ndarray, " point"]:
    """Return a member's mean on the tuning seeds at each point; higher is better, -inf: diverged.

    The mean is over a curve of the first metric; a number counts as it is.
    """
    metric = study.experiment.metrics[0]
    found = study.work.read(folder, member, grid, study.experiment.protocol.tuning)
    sign = 1 if metric.better == "higher" else -1
    means = np.array([sign * area_under_curve(x[metric.key]).mean() for x in found])
    return np.where(np.isfinite(means), means, -np.inf)


def wider(study: Study, folder: Path, member: Member, grid: Sequence[Values]) -> list[Values]:
    """Extend a grid of one number beyond its edge if its best value is there (`Tuning.beyond`)."""
    limit, values = study.experiment.protocol.extensions, list(member.candidate.grid.items())
    if len(values) != 1 or len(grid) == 1 or not limit:
        return list(grid)
    ((name, first),) = values
    if not all(isinstance(x, (int, float)) for x in first):
        return list(grid)
    rates = tuple(float(point[name]) for point in grid)
    found = scores(study, folder, member, grid)
    tuning = Tuning(rates[int(np.argmax(found))], rates, tuple(found.tolist()))
    known = {float(point[name]): point for point in grid}
    extended = extend(tuple(map(float, first)), rates, (tuning,), limit)
    return [known.get(rate, {name: rate}) for rate in extended]


def choose(study: Study, folder: Path, member: Member) -> Choice:
    """Choose the point with the best mean on the tuning seeds, which are never reported.

    Raises:
        StoreError: a run is not finished, such as one of an extension of the grid.
    """
    grid = points(member.candidate.grid)
    while (further := wider(study, folder, member, grid)) != grid:
        grid = further
    if len(grid) == 1:
        return Choice(grid[0], (), grid)
    point = grid[int(np.argmax(scores(study, folder, member, grid)))]
    return Choice(point, edges(point, grid), grid)


def edges(point: Values, grid: Sequence[Values]) -> tuple[str, ...]:
    """Return the names of numbers at the first or last of several values: more may be better."""
    ends = []
    for name, value in point.items():
        values = list(dict.fromkeys(x[name] for x in grid))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and len(values) > 1 and value in (values[0], values[-1]):
            ends.append(name)
    return tuple(ends)


def choose_trainings(study: Study, folder: Path) -> Chosen:
    """Choose each candidate's point of the grid of trainings by the mean of its tuning meta-seeds.

    A meta-seed's score is the score of its best point of runs. A point at which a training or a
    run diverged is chosen last.
    """
    grid = points(study.experiment.train_grid)
    found: dict[str, list[float]] = {}
    for candidate, values in to_tune(study):
        tuned = tuning_members(study, candidate, values)
        best = [
            float(scores(study, folder, x, points(x.candidate.grid)).max())
            for x in alive(folder, tuned)
        ]
        whole = len(best) == len(tuned)
        found.setdefault(candidate.key, []).append(float(np.mean(best)) if whole else -np.inf)
    return {
        x.key: grid[int(np.argmax(found[x.key]))] if x.key in found else grid[0]
        for x in study.candidates
    }
