"""The loop behind every comparison: tune each contender, choose its setting, report it.

There are two readings: each task has its own setting, or all tasks share one setting. Settings are
chosen on tuning seeds and reported on other seeds. Each meta-seed of a contender is tuned
separately, with as many values and seeds as a classical optimizer. If the best value of a grid is
at its edge, the grid is extended, by one rule for all contenders.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from optim4rl.benchmark.contender import UNTRAINED, Contender
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.runs import Batch, job, read_batches, split
from optim4rl.benchmark.scale import Scale, Scores, Standing, choose_for_all, make_scale, stand
from optim4rl.benchmark.scores import SCORES
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.benchmark.tuning import Tuning, best_of_grid, extend
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    final_return,
    stuck_rate,
    worst_first,
)
from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import Stages
from optim4rl.jobs.pools import Workers, open_pool

# The best of these, tuned for the task, is 1 on the task's scale. If none of them is run, the best
# of all baselines is 1.
CEILINGS = ("adam", "adam_ppo", "rmsprop", "adam_raw_rewards")

Reading = Literal["tuned", "one"]
# Contender -> member -> task -> the settings to try.
Grids = Mapping[str, tuple[tuple[tuple[float, ...], ...], ...]]


@dataclass(frozen=True)
class Choice:
    """Hold the settings of one member, chosen on the tuning seeds.

    Attributes:
        each: each task's own setting.
        one: the setting for all tasks.
    """

    each: tuple[Tuning, ...]
    one: Tuning

    def at(self, reading: Reading, task: int) -> float:
        """Return the setting of a task in a reading."""
        return self.each[task].rate if reading == "tuned" else self.one.rate


@dataclass(frozen=True)
class Benchmark:
    """Describe a benchmark: its tasks, contenders and protocol.

    Attributes:
        suite: the tasks.
        contenders: the optimizers to compare; the first classical one is the reference.
        folder: folder of finished runs.
        protocol: how often each contender is run.
        claim: the claim registered before the run, in words; empty if there is none.
    """

    suite: Suite
    contenders: tuple[Contender, ...]
    folder: Path
    protocol: Protocol
    claim: str = ""

    def __post_init__(self) -> None:
        names = [x.name for x in self.contenders]
        if len(set(names)) < len(names):
            raise ValueError(
                f"contenders = {names!r}: each name must occur once; rename a file or a function"
            )

    @property
    def readings(self) -> tuple[Reading, ...]:
        """Return the readings; with a single task the two are the same, so there is one."""
        return ("tuned", "one") if len(self.suite.tasks) > 1 else ("tuned",)

    @property
    def baselines(self) -> tuple[Contender, ...]:
        """Return the classical contenders."""
        return tuple(x for x in self.contenders if x.role == "baseline")

    @property
    def reference(self) -> str | None:
        """Name the first classical contender; all others are compared with it."""
        return next((x.name for x in self.baselines), None)

    @property
    def ceilings(self) -> tuple[str, ...]:
        """Name the contenders whose best, tuned for the task, is 1 on the task's scale."""
        names = tuple(x.name for x in self.baselines)
        return tuple(x for x in names if x in CEILINGS) or names


@dataclass(frozen=True)
class Runs:
    """Hold the curves of a benchmark.

    Attributes:
        benchmark: the benchmark that was run.
        choices: the settings of each contender's members.
        curves: reported curves by reading, contender, task and member.
        untrained: each task's curves of agents that never update, on the reported seeds.
        stress: short runs of all members together, by contender, task and multiple of the tuned
            setting. Tasks without a stress test are left out.
    """

    benchmark: Benchmark
    choices: Mapping[str, tuple[Choice, ...]]
    curves: Mapping[Reading, Mapping[str, tuple[tuple[Curves, ...], ...]]]
    untrained: tuple[Curves, ...]
    stress: Mapping[str, Mapping[str, Mapping[float, Curves]]]


@dataclass(frozen=True)
class Results:
    """Hold the results of a benchmark.

    Attributes:
        runs: the curves.
        auc_scale: the tasks' scale of AUC.
        final_scale: the tasks' scale of final returns.
        scale: the tasks' scale of the suite's own score.
        standings: each contender's standing in each reading.
        stuck: share of stuck runs by contender, task and multiple of the tuned setting; None where
            no baseline learns the task, since "stuck" is not defined there.
    """

    runs: Runs
    auc_scale: Scale
    final_scale: Scale
    scale: Scale
    standings: Mapping[Reading, Mapping[str, Standing]]
    stuck: Mapping[str, Mapping[str, Mapping[float, Estimate | None]]]

    @property
    def benchmark(self) -> Benchmark:
        """Return the benchmark that was run."""
        return self.runs.benchmark


# Which runs are made


def tuning_runs(
    b: Benchmark, task: SuiteTask, contender: Contender, member: int, grid: Sequence[float] = ()
) -> list[Batch]:
    """Return the runs that choose a member's setting on a task; none if its grid has one value."""
    return scoring_runs(b, task, contender, member, grid) if len(contender.grid) > 1 else []


def scoring_runs(
    b: Benchmark, task: SuiteTask, contender: Contender, member: int, grid: Sequence[float] = ()
) -> list[Batch]:
    """Return runs of a member on the tuning seeds, at its grid's settings and added ones.

    Added settings are in separate batches, so that finished batches are found again.
    """
    added = [[value] for value in grid if value not in contender.grid]
    return [
        batch
        for values in (contender.grid, *added)
        for batch in split(
            task.config,
            contender.members[member],
            [contender.unit * value for value in values],
            b.protocol.tuning,
            task.choosing,
            schedule=task.rollouts,
        )
    ]


def tuning_curves(
    b: Benchmark, task: SuiteTask, contender: Contender, member: int, grid: Sequence[float]
) -> list[Curves]:
    """Read a member's curves on the tuning seeds at each setting."""
    found = read_batches(b.folder, scoring_runs(b, task, contender, member, grid))
    return [found[contender.unit * value] for value in grid]


def reported_runs(
    b: Benchmark, task: SuiteTask, contender: Contender, member: int, setting: float
) -> list[Batch]:
    """Return the reported runs of a member at a setting on a task."""
    rates, maker = [contender.unit * setting], contender.members[member]
    return split(task.config, maker, rates, b.protocol.reported, task.rollouts)


def stress_runs(
    b: Benchmark, task: SuiteTask, contender: Contender, member: int, setting: float
) -> list[Batch]:
    """Return a member's short runs at multiples of a setting; none without a stress test."""
    if task.stress_rollouts is None:
        return []
    rates = [contender.unit * setting * scale for scale in b.protocol.stress_scales]
    return split(
        task.config,
        contender.members[member],
        rates,
        b.protocol.stress,
        task.stress_rollouts,
        schedule=task.rollouts,
    )


def untrained_runs(task: SuiteTask, seeds: Sequence[int], rollouts: int) -> list[Batch]:
    """Return runs of agents that never update."""
    return split(task.config, UNTRAINED, [0.0], seeds, rollouts)


def _members(b: Benchmark) -> Iterator[tuple[Contender, int]]:
    for contender in b.contenders:
        for member in range(len(contender.members)):
            yield contender, member


def first_jobs(b: Benchmark) -> list[Job]:
    """Return all jobs that can run before settings are chosen."""
    batches = []
    for task in b.suite.tasks:
        batches += untrained_runs(task, b.protocol.tuning, task.choosing)
        batches += untrained_runs(task, b.protocol.reported, task.rollouts)
        for contender, member in _members(b):
            batches += tuning_runs(b, task, contender, member)
    return [job(batch) for batch in batches]


def second_jobs(b: Benchmark, choices: Mapping[str, tuple[Choice, ...]]) -> list[Job]:
    """Return all jobs at the chosen settings; a run that both readings need is there once."""
    batches = []
    for index, task in enumerate(b.suite.tasks):
        for contender, member in _members(b):
            choice = choices[contender.name][member]
            for reading in b.readings:
                batches += reported_runs(b, task, contender, member, choice.at(reading, index))
            batches += stress_runs(b, task, contender, member, choice.at("tuned", index))
    return [job(batch) for batch in dict.fromkeys(batches)]


def expected_jobs(b: Benchmark) -> list[Job]:
    """Return the largest set of jobs possible; fewer run where both readings share a setting."""
    guesses = {x.name: _unscored(b, x, x.grid[0], x.grid[-1]) for x in b.contenders}
    return [*first_jobs(b), *second_jobs(b, guesses)]


def _unscored(b: Benchmark, contender: Contender, each: float, one: float) -> tuple[Choice, ...]:
    """Return the same choice for all members and tasks, without scores of tuning runs."""
    own, shared = (Tuning(rate, contender.grid, ()) for rate in (each, one))
    return (Choice((own,) * len(b.suite.tasks), shared),) * len(contender.members)


def run(
    b: Benchmark,
    workers: Workers = Workers(),
    update: Callable[..., None] = lambda *_, **__: None,
) -> Results:
    """Run all jobs that are not yet done, and read the results.

    Args:
        b: the benchmark to run.
        workers: the workers to run it on.
        update: called with the jobs done, the jobs in all, and a description of the last one.

    Raises:
        JobError: a run failed; finished runs are kept.
        ClusterError: the cluster does not exist.
    """
    with open_pool(b.folder, workers) as pool:
        return read(run_stages(b, Stages(pool, b.folder, expected_jobs(b), update)))


def run_stages(b: Benchmark, stages: Stages) -> Runs:
    """Tune, choose settings, and make the reported runs.

    Raises:
        JobError: a run failed; finished runs are kept.
    """
    stages.run(first_jobs(b))
    choices = settle(b, stages.run)
    stages.run(second_jobs(b, choices), last=True)
    return collect(b, choices)


# How settings are chosen


def settle(
    b: Benchmark, run: Callable[[Sequence[Job]], None] = lambda jobs: None
) -> dict[str, tuple[Choice, ...]]:
    """Choose settings; extend grids until each best value is inside or the limit is reached.

    The benchmark's `first_jobs` must be done. `run` is called with the jobs of added settings.
    """
    grids: Grids = {
        x.name: ((x.grid,) * len(b.suite.tasks),) * len(x.members) for x in b.contenders
    }
    while True:
        choices = choose(b, grids)
        wider = {
            x.name: tuple(
                tuple(
                    extend(x.grid, own, (choice.one, tuning), b.protocol.extensions)
                    for own, tuning in zip(grid, choice.each, strict=True)
                )
                for grid, choice in zip(grids[x.name], choices[x.name], strict=True)
            )
            for x in b.contenders
        }
        if wider == grids:
            return choices
        grids = wider
        batches = []
        for index, task in enumerate(b.suite.tasks):
            for x, member in _members(b):
                batches += tuning_runs(b, task, x, member, grids[x.name][member][index])
        run([job(batch) for batch in batches])


def scoring_areas(
    b: Benchmark, contender: Contender, member: int, grids: Sequence[Sequence[float]] = ()
) -> list[Float[np.ndarray, "_ seed"]]:
    """Return the suite's score of a member's tuning runs, for each task `[setting, seed]`."""
    each = zip(b.suite.tasks, grids or (contender.grid,) * len(b.suite.tasks), strict=True)
    found = [tuning_curves(b, task, contender, member, grid) for task, grid in each]
    score = SCORES[b.suite.score]
    return [np.stack([score(curves) for curves in task]) for task in found]


def choose(b: Benchmark, grids: Grids) -> dict[str, tuple[Choice, ...]]:
    """Choose every member's settings, from the tuning seeds alone."""
    areas = {
        x.name: [scoring_areas(b, x, m, grids[x.name][m]) for m in range(len(x.members))]
        for x in b.contenders
        if len(x.grid) > 1
    }
    untrained = [
        SCORES[b.suite.score](_only(b, untrained_runs(task, b.protocol.tuning, task.choosing)))
        for task in b.suite.tasks
    ]
    low = np.array([scores.mean() for scores in untrained])
    ceilings = [areas[x][0] for x in b.ceilings if x in areas]
    tuned = [[worst_first(task.mean(axis=1)).max() for task in found] for found in ceilings]
    high = np.max(tuned, axis=0) if tuned else low
    choices = {x.name: _unscored(b, x, x.grid[0], x.grid[0]) for x in b.contenders}
    for name, members in areas.items():
        choices[name] = tuple(
            Choice(tuple(map(best_of_grid, grid, found)), choose_for_all(grid, found, low, high))
            for grid, found in zip(grids[name], members, strict=True)
        )
    return choices


# Results


def collect(b: Benchmark, choices: Mapping[str, tuple[Choice, ...]]) -> Runs:
    """Read the curves of a benchmark whose runs are all finished."""

    def reported(contender: Contender, index: int, reading: Reading) -> tuple[Curves, ...]:
        task = b.suite.tasks[index]
        return tuple(
            _only(b, reported_runs(b, task, contender, member, choice.at(reading, index)))
            for member, choice in enumerate(choices[contender.name])
        )

    tasks = range(len(b.suite.tasks))
    curves = {
        reading: {x.name: tuple(reported(x, task, reading) for task in tasks) for x in b.contenders}
        for reading in b.readings
    }
    untrained = tuple(
        _only(b, untrained_runs(task, b.protocol.reported, task.rollouts)) for task in b.suite.tasks
    )
    stress = {x.name: _stress(b, x, choices[x.name]) for x in b.contenders}
    return Runs(b, choices, curves, untrained, stress)


def _only(b: Benchmark, batches: Sequence[Batch]) -> Curves:
    (curves,) = read_batches(b.folder, batches).values()
    return curves


def _stress(
    b: Benchmark, contender: Contender, choices: Sequence[Choice]
) -> dict[str, dict[float, Curves]]:
    """Read the short runs of all members together, by task and multiple of the tuned setting."""
    found: dict[str, dict[float, Curves]] = {}
    for index, task in enumerate(b.suite.tasks):
        if task.stress_rollouts is None:
            continue
        batches = [
            stress_runs(b, task, contender, member, choice.at("tuned", index))
            for member, choice in enumerate(choices)
        ]
        members = [read_batches(b.folder, own).values() for own in batches]
        together = map(stack, zip(*members, strict=True))
        found[task.name] = dict(zip(b.protocol.stress_scales, together, strict=True))
    return found


def read(runs: Runs) -> Results:
    """Compute the results of the runs."""
    b = runs.benchmark
    areas, finals = (
        {
            reading: {name: scores_of(x, score) for name, x in found.items()}
            for reading, found in runs.curves.items()
        }
        for score in (area_under_curve, final_return)
    )
    auc_scale, final_scale, own_scale = (
        make_scale(
            {name: scores_of(runs.curves["tuned"][name], score)[:, 0] for name in b.ceilings},
            np.stack([score(each) for each in runs.untrained]),
        )
        for score in (area_under_curve, final_return, SCORES[b.suite.score])
    )

    def standing(contender: Contender, reading: Reading) -> Standing:
        name, first = contender.name, b.reference
        return stand(
            areas[reading][name],
            finals[reading][name],
            auc_scale,
            final_scale,
            None if first is None or first == name else areas[reading][first],
            None if contender.control is None else areas[reading][contender.control],
        )

    standings = {
        reading: {x.name: standing(x, reading) for x in b.contenders} for reading in b.readings
    }
    stuck = {
        name: {task: _stuck_rates(b, task, found, final_scale) for task, found in tasks.items()}
        for name, tasks in runs.stress.items()
    }
    return Results(runs, auc_scale, final_scale, own_scale, standings, stuck)


def scores_of(
    curves: Sequence[Sequence[Curves]], score: Callable[[Curves], Float[np.ndarray, " run"]]
) -> Scores:
    """Return the score of every run, from the curves of each task and member."""
    return np.stack([[score(member) for member in task] for task in curves])


def _stuck_rates(
    b: Benchmark, task: str, found: Mapping[float, Curves], scale: Scale
) -> dict[float, Estimate | None]:
    """Compute stuck rates by multiple of the tuned setting."""
    index = [x.name for x in b.suite.tasks].index(task)
    low, high = (float(end[index]) for end in scale.ends)
    return {
        multiple: stuck_rate(curves, low, high) if scale.resolved[index] else None
        for multiple, curves in found.items()
    }
