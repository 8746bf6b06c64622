"""Collects the results of a study's finished jobs, and writes its table of runs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.benchmark.table import UNTRAINED, run_rows, write_runs
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import area_under_curve, final_return, interquartile_mean
from optim4rl.files.reading import read_text
from optim4rl.jobs.job import Job
from optim4rl.jobs.store import get_result
from optim4rl.study import identity_results
from optim4rl.study.experiment import Grid, Values, points
from optim4rl.study.layout import Study
from optim4rl.study.predictions import read_sealed_predictions
from optim4rl.study.results import Row, StudyResults
from optim4rl.study.schedule import (
    Choice,
    alive,
    choose,
    choose_trainings,
    edges,
    failure,
    members,
    reported_jobs,
    trainings,
    tuning_jobs,
)
from optim4rl.study.work import Candidate, Member, Reported


def collect(study: Study, folder: Path) -> StudyResults:
    """Return the results of a study whose jobs are all done.

    Raises:
        StoreError: a job is not done, or its result is damaged.
        ValueError: the reports of different runs do not fit together.
    """
    chosen = choose_trainings(study, folder)
    rows = tuple(_row(study, folder, x, chosen[x.key]) for x in study.candidates)
    record = json.loads(read_text(folder / "study.json"))
    floor = study.work.read_floor(folder)
    finals = [
        interquartile_mean(final_return(row.curves[0]))
        for row in rows
        if row.kind == "baseline" and row.curves
    ]
    return StudyResults(
        plan=study.plan,
        mapped=study.mapped,
        rows=rows,
        floor=None if floor is None else float(area_under_curve(floor).mean()),
        ceiling=None if floor is None else max(filter(np.isfinite, finals), default=None),
        identity=_identity(study, folder),
        task=study.experiment.task,
        scale=study.opened.shown(),
        command=record["command"],
        versions={**record["versions"], "code": record["code"][:12]},
        started=record["started"],
        method=study.experiment.name,
        metrics=study.experiment.metrics,
        trained=study.experiment.trains,
        steps=study.experiment.steps,
        predictions=read_sealed_predictions(folder),
        left_out=tuple(x.label for x in study.left_out),
    )


def _identity(study: Study, folder: Path) -> identity_results.IdentityResult | None:
    """Return the identity experiment's result if the plan asks for it."""
    for job in study.work.once(study.metrics):
        return identity_results.from_json(get_result(folder, job).info["identity"])
    return None


@dataclass(frozen=True)
class _Shown:
    """A member, its chosen point, and the reports of its runs at this point."""

    member: Member
    choice: Choice
    reported: Reported


def _shown(study: Study, folder: Path, candidate: Candidate, values: Values) -> list[_Shown]:
    """Return the members of a candidate that could be run."""
    shown = []
    for member in alive(folder, members(study, candidate, values)):
        choice = choose(study, folder, member)
        seeds = study.experiment.protocol.reported
        (reported,) = study.work.read(folder, member, [choice.point], seeds)
        shown.append(_Shown(member, choice, reported))
    return shown


def _row(study: Study, folder: Path, candidate: Candidate, values: Values) -> Row:
    shown = _shown(study, folder, candidate, values)
    every = members(study, candidate, values)
    failures = {x.meta_seed: failure(folder, x) for x in every}
    first, *others = [metric.key for metric in study.experiment.metrics if metric.reported]
    is_trained = any(member.training is not None for member in every)
    train_grid = study.experiment.train_grid if is_trained else {}
    values = values if candidate.trained else dict.fromkeys(values)
    choices = [x.choice for x in shown]
    jobs = trainings(every)
    for x in shown:
        jobs += tuning_jobs(study, folder, x.member, x.choice.grid)
        jobs += reported_jobs(study, folder, x.member, x.choice.point)
    return Row(
        key=candidate.key,
        label=candidate.label,
        kind=candidate.kind,
        change=_change(candidate, choices),
        ablation=candidate.ablation,
        curves=_of_one_length([x.reported[first] for x in shown]),
        stress=_stress(study, folder, shown),
        failures={seed: message for seed, message in failures.items() if message is not None},
        settings={
            **{name: values[name] for name in train_grid},
            **_settings(candidate.grid, choices, each=is_trained),
        },
        at_edge=(
            *(edges(values, points(train_grid)) if candidate.trained and train_grid else ()),
            *_edges(candidate.grid, choices, each=is_trained),
        ),
        seconds=_seconds(folder, jobs),
        more={name: _of_one_length([x.reported[name] for x in shown]) for name in others},
    )


def _of_one_length(found: Sequence[Curves]) -> tuple[Curves, ...]:
    """Give members of which every run diverged the length of the others: they reported nothing."""
    steps = max((x.env_steps for x in found), key=len, default=np.ones(0, int))

    def of_this_length(x: Curves) -> Curves:
        if x.env_steps.size > 1 or not x.diverged.all():
            return x
        lost = np.full((x.diverged_at.size, steps.size), np.nan)
        return Curves(lost, np.zeros_like(x.diverged_at), steps)

    return tuple(map(of_this_length, found))


def _change(candidate: Candidate, choices: list[Choice]) -> str:
    """Describe the difference from the reference; for a baseline also how it was tuned."""
    change = candidate.change
    if candidate.kind == "reference":
        return "the method as it is"
    if candidate.kind == "baseline" and choices:
        tuned = [_tuned(name, choices[0]) for name in candidate.grid]
        change = "; ".join(filter(None, [change, *tuned]))
    return change or "nothing in the settings"


def _tuned(name: str, choice: Choice) -> str:
    edge = ", at the edge of the grid" if name in choice.at_edge else ""
    grid = ", ".join(_number(x) for x in dict.fromkeys(point[name] for point in choice.grid))
    return f"{name} {_number(choice.point[name])}, best of {grid}{edge}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(grid: Grid, choices: list[Choice], *, each: bool) -> dict[str, Any]:
    """Return the tuned settings of a row's runs: one set per meta-seed if there are meta-seeds."""
    tuned = {name: [choice.point[name] for choice in choices] for name in grid}
    return {name: found if each else found[0] for name, found in tuned.items()}


def _edges(grid: Grid, choices: list[Choice], *, each: bool) -> tuple[str, ...]:
    """Describe which choices lie at an end of their grid."""
    ends = {name: sum(name in choice.at_edge for choice in choices) for name in grid}
    return tuple(
        f"{name} of {count} of {len(choices)} meta-seeds" if each else name
        for name, count in ends.items()
        if count
    )


def _stress(study: Study, folder: Path, shown: list[_Shown]) -> dict[float, Curves]:
    """Return the short runs of all members together, by multiple."""
    found = [study.work.read_stress(folder, x.member, x.choice.point) for x in shown]
    multiples: Iterable[float] = found[0] if found else ()
    return {multiple: stack([each[multiple] for each in found]) for multiple in multiples}


def _seconds(folder: Path, jobs: list[Job]) -> float:
    """Return the wall-clock time of finished jobs, including compilation."""
    unique = {job.address: job for job in jobs}.values()
    return sum((float(get_result(folder, job).info["seconds"]) for job in unique), 0.0)


# The table


def write_table(study: Study, folder: Path, results: StudyResults) -> None:
    """Write `runs.parquet`: every run of the study, in the format that all commands share."""
    write_runs(_table(study, folder, results), folder / "runs.parquet")


def _table(study: Study, folder: Path, results: StudyResults) -> Iterator[dict[str, Any]]:
    experiment, protocol = study.experiment, study.experiment.protocol
    suite = study.opened.source.file if study.opened.source else experiment.task
    of_task = {"suite": suite, "task": experiment.task, "change": "", "step_multiple": 1.0}
    floor = study.work.read_floor(folder)
    if floor is not None:
        named = {"optimizer": UNTRAINED, "role": "untrained", "purpose": "tuned"}
        labels = {**of_task, **named, "meta_seed": 0, "setting": 0.0}
        yield from run_rows(labels, floor, protocol.reported)
    chosen = choose_trainings(study, folder)
    for candidate, row in zip(study.candidates, results.rows, strict=True):
        whose = {**of_task, "optimizer": row.key, "role": row.kind, "change": row.change}
        for x in _shown(study, folder, candidate, chosen[candidate.key]):
            yield from _member_rows(study, folder, {**whose, "meta_seed": x.member.meta_seed}, x)


def _member_rows(
    study: Study, folder: Path, named: Mapping[str, Any], x: _Shown
) -> Iterator[dict[str, Any]]:
    """Yield the tuning, reported and stress runs of a member."""
    protocol, grid = study.experiment.protocol, x.choice.grid
    metric = study.experiment.metrics[0].key
    if len(grid) > 1:
        tuning = study.work.read(folder, x.member, grid, protocol.tuning)
        for values, found in zip(grid, tuning, strict=True):
            row = {**named, "purpose": "tuning", "setting": _setting(values)}
            yield from run_rows(row, found[metric], protocol.tuning, with_curves=False)
    setting = _setting(x.choice.point)
    row = {**named, "purpose": "tuned", "setting": setting}
    extra = {key: curves for key, curves in x.reported.items() if key != metric}
    yield from run_rows(row, x.reported[metric], protocol.reported, extra=extra)
    for multiple, curves in study.work.read_stress(folder, x.member, x.choice.point).items():
        row = {**named, "purpose": "stress", "step_multiple": multiple}
        yield from run_rows({**row, "setting": setting * multiple}, curves, protocol.stress)


def _setting(values: Values) -> float:
    """Return the tuned number; NaN if there is none, or if there are several."""
    found = [float(x) for x in values.values() if isinstance(x, (int, float))]
    return found[0] if len(found) == len(values) == 1 else float(np.nan)
