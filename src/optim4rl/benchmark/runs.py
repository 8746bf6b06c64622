"""The runs of a suite: which there must be, how settings are chosen, and what they come to.

Two readings of the same runs: every task with a setting of its own, and one setting for all. Both
are chosen on tuning seeds and shown on others. Each member of a group of weights is tuned by
itself, as each classical optimizer is, with as many values and seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from optim4rl.benchmark.pieces import UNTRAINED, Method, Piece, get_curves, split
from optim4rl.benchmark.protocol import EVALUATION_SEED, STRESS_SEED, TUNING_SEED
from optim4rl.benchmark.scale import (
    Scale,
    Scores,
    Standing,
    choose_for_all,
    choose_for_each,
    make_scale,
    stand,
)
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.benchmark.tuning import Tuning
from optim4rl.benchmark.worker import run_pieces
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    final_return,
    stuck_rate,
    worst_first,
)
from optim4rl.jobs.pools import Workers, open_pool

BASELINES: dict[str, Method] = {
    "adam": Method("adam"),
    "rmsprop": Method("rmsprop"),
    "sign_sgd": Method("sign_sgd"),
    "muon": Method("muon"),
    "adam_decay": Method("adam", decay=True),
    "adam_raw_rewards": Method("adam", raw_rewards=True),
}
REFERENCE = "adam"
# The best of these, tuned for the task, is 1 on the task's scale.
CEILINGS = ("adam", "rmsprop", "adam_raw_rewards")

Role = Literal["learned", "control", "baseline"]
Reading = Literal["tuned", "one"]
READINGS: tuple[Reading, ...] = ("tuned", "one")


@dataclass(frozen=True)
class Entry:
    """An optimizer in a suite.

    Attributes:
        name: what tables call it.
        role: a control is a learned optimizer with fresh weights.
        members: one for each meta-seed; a classical optimizer has one.
        grid: the settings it is tuned over: learning rates, or step scales.
        unit: what a setting is a multiple of: 1, or a learned optimizer's own rate.
        control: name of the entry that is this one untrained, if there is one.
    """

    name: str
    role: Role
    members: tuple[Method, ...]
    grid: tuple[float, ...]
    unit: float = 1.0
    control: str | None = None


@dataclass(frozen=True)
class Choice:
    """The settings of one member, chosen on the tuning seeds.

    Attributes:
        each: every task's own.
        one: the one for all tasks.
    """

    each: tuple[Tuning, ...]
    one: Tuning

    def at(self, reading: Reading, task: int) -> float:
        """The setting of a task in a reading."""
        return self.each[task].rate if reading == "tuned" else self.one.rate


@dataclass(frozen=True)
class Benchmark:
    """All that is to be run.

    Attributes:
        suite: the tasks.
        entries: the optimizers.
        folder: where runs are kept.
        seeds: reported runs of an optimizer on a task.
        tuning_seeds: runs that each setting is judged by on a task.
        stress_scales: multiples of the tuned setting in the stress test.
        stress_seeds: stress runs at each of them.
    """

    suite: Suite
    entries: tuple[Entry, ...]
    folder: Path
    seeds: int
    tuning_seeds: int
    stress_scales: tuple[float, ...]
    stress_seeds: int

    @property
    def evaluation_range(self) -> range:
        """The reported seeds."""
        return range(EVALUATION_SEED, EVALUATION_SEED + self.seeds)

    @property
    def tuning_range(self) -> range:
        """The seeds that choose."""
        return range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)

    @property
    def stress_range(self) -> range:
        """The seeds of the stress test."""
        return range(STRESS_SEED, STRESS_SEED + self.stress_seeds)


@dataclass(frozen=True)
class Results:
    """What a suite's runs say.

    Attributes:
        benchmark: what was run.
        choices: the settings of each entry's members.
        curves: for each reading and entry, the reported curves of each task's members.
        untrained: each task's curves of agents that never update, on the reported seeds.
        auc_scale: the tasks' scale of AUC.
        final_scale: that of final returns.
        standings: of each entry in each reading.
        stuck: for each entry, task and multiple of the tuned setting the share of stuck runs; None
            where no baseline learns the task, so that nothing says what stuck is.
    """

    benchmark: Benchmark
    choices: Mapping[str, tuple[Choice, ...]]
    curves: Mapping[Reading, Mapping[str, tuple[tuple[Curves, ...], ...]]]
    untrained: tuple[Curves, ...]
    auc_scale: Scale
    final_scale: Scale
    standings: Mapping[Reading, Mapping[str, Standing]]
    stuck: Mapping[str, Mapping[str, Mapping[float, Estimate | None]]]


# What is run


def tuning_pieces(benchmark: Benchmark, task: SuiteTask, entry: Entry, member: int) -> list[Piece]:
    """The runs that choose a member's setting on a task."""
    rates = [entry.unit * value for value in entry.grid]
    return split(task.config, entry.members[member], rates, benchmark.tuning_range, task.rollouts)


def report_pieces(
    benchmark: Benchmark, task: SuiteTask, entry: Entry, member: int, setting: float
) -> list[Piece]:
    """The runs that show a member at a setting on a task."""
    rates, seeds = [entry.unit * setting], benchmark.evaluation_range
    return split(task.config, entry.members[member], rates, seeds, task.rollouts)


def stress_pieces(
    benchmark: Benchmark, task: SuiteTask, entry: Entry, member: int, setting: float
) -> list[Piece]:
    """The short runs of a member at multiples of a setting; none if the task has no such test."""
    if task.stress_rollouts is None:
        return []
    rates = [entry.unit * setting * scale for scale in benchmark.stress_scales]
    return split(
        task.config,
        entry.members[member],
        rates,
        benchmark.stress_range,
        task.stress_rollouts,
        schedule=task.rollouts,
    )


def untrained_pieces(benchmark: Benchmark, task: SuiteTask, seeds: Sequence[int]) -> list[Piece]:
    """Runs of agents that never update."""
    return split(task.config, UNTRAINED, [0.0], seeds, task.rollouts)


def _members(benchmark: Benchmark) -> Iterator[tuple[Entry, int]]:
    for entry in benchmark.entries:
        for member in range(len(entry.members)):
            yield entry, member


def first_pieces(benchmark: Benchmark) -> list[Piece]:
    """All that can be run before settings are chosen."""
    pieces = []
    for task in benchmark.suite.tasks:
        for seeds in (benchmark.tuning_range, benchmark.evaluation_range):
            pieces += untrained_pieces(benchmark, task, seeds)
        for entry, member in _members(benchmark):
            pieces += tuning_pieces(benchmark, task, entry, member)
    return pieces


def second_pieces(benchmark: Benchmark, choices: Mapping[str, tuple[Choice, ...]]) -> list[Piece]:
    """All that is run at the settings chosen; what both readings show is there once."""
    pieces = []
    for index, task in enumerate(benchmark.suite.tasks):
        for entry, member in _members(benchmark):
            choice = choices[entry.name][member]
            for reading in READINGS:
                setting = choice.at(reading, index)
                pieces += report_pieces(benchmark, task, entry, member, setting)
            pieces += stress_pieces(benchmark, task, entry, member, choice.at("tuned", index))
    return list(dict.fromkeys(pieces))


def run_benchmark(
    benchmark: Benchmark,
    workers: Workers = Workers(),
    update: Callable[..., None] = lambda *_: None,
) -> Results:
    """Run all that is not yet done, and read the results.

    Args:
        benchmark: what to run.
        workers: who runs it.
        update: called with pieces done, pieces in all, and what the last one was.

    Raises:
        JobError: a run failed; all that is finished is kept.
        ClusterError: there is no such cluster.
    """
    first = first_pieces(benchmark)
    # At most: where one setting is also the task's own, less.
    total = len(first) + len(second_pieces(benchmark, _guess(benchmark)))
    folder = benchmark.folder
    with open_pool("optim4rl.benchmark.worker", folder, workers) as pool:
        run_pieces(pool, folder, first, lambda done, what: update(done, total, what))
        choices = choose(benchmark)
        second = second_pieces(benchmark, choices)
        total = len(first) + len(second)
        run_pieces(pool, folder, second, lambda done, what: update(len(first) + done, total, what))
    return collect(benchmark, choices)


def _guess(benchmark: Benchmark) -> dict[str, tuple[Choice, ...]]:
    """Choices with as many runs as there can be."""
    guesses = {}
    for entry in benchmark.entries:
        each, one = (Tuning(rate, entry.grid, ()) for rate in (entry.grid[0], entry.grid[-1]))
        choice = Choice((each,) * len(benchmark.suite.tasks), one)
        guesses[entry.name] = (choice,) * len(entry.members)
    return guesses


# What the runs say


def _read(benchmark: Benchmark, pieces: Sequence[Piece]) -> dict[float, Curves]:
    """Finished curves, all seeds together, by rate."""
    parts: dict[float, list[Curves]] = {}
    for piece in pieces:
        for rate, curves in zip(piece.rates, get_curves(benchmark.folder, piece), strict=True):
            parts.setdefault(rate, []).append(curves)
    return {rate: stack(found) for rate, found in parts.items()}


def read_untrained(benchmark: Benchmark, seeds: Sequence[int]) -> tuple[Curves, ...]:
    """Each task's curves of agents that never update."""
    return tuple(
        _read(benchmark, untrained_pieces(benchmark, task, seeds))[0.0]
        for task in benchmark.suite.tasks
    )


def _ceilings(benchmark: Benchmark) -> list[str]:
    names = [entry.name for entry in benchmark.entries]
    return [name for name in CEILINGS if name in names]


def _tuning_areas(
    benchmark: Benchmark, entry: Entry, member: int
) -> Float[np.ndarray, "task value seed"]:
    return np.stack(
        [
            [
                area_under_curve(curves)
                for curves in _read(
                    benchmark, tuning_pieces(benchmark, task, entry, member)
                ).values()
            ]
            for task in benchmark.suite.tasks
        ]
    )


def choose(benchmark: Benchmark) -> dict[str, tuple[Choice, ...]]:
    """Every member's settings, from tuning seeds alone."""
    areas = {
        entry.name: [_tuning_areas(benchmark, entry, m) for m in range(len(entry.members))]
        for entry in benchmark.entries
    }
    low = np.array(
        [area_under_curve(x).mean() for x in read_untrained(benchmark, benchmark.tuning_range)]
    )
    tuned = [worst_first(areas[name][0].mean(axis=2)).max(axis=1) for name in _ceilings(benchmark)]
    high = np.max(tuned, axis=0)
    return {
        entry.name: tuple(
            Choice(choose_for_each(entry.grid, x), choose_for_all(entry.grid, x, low, high))
            for x in areas[entry.name]
        )
        for entry in benchmark.entries
    }


def collect(benchmark: Benchmark, choices: Mapping[str, tuple[Choice, ...]]) -> Results:
    """The results of a benchmark whose runs are all there."""
    curves = {
        reading: {
            entry.name: tuple(
                tuple(
                    _reported(benchmark, task, entry, member, choice.at(reading, index))
                    for member, choice in enumerate(choices[entry.name])
                )
                for index, task in enumerate(benchmark.suite.tasks)
            )
            for entry in benchmark.entries
        }
        for reading in READINGS
    }
    untrained = read_untrained(benchmark, benchmark.evaluation_range)
    areas, finals = (
        {
            reading: {name: _score(x, score) for name, x in found.items()}
            for reading, found in curves.items()
        }
        for score in (area_under_curve, final_return)
    )
    auc_scale, final_scale = (
        make_scale(
            {name: scores["tuned"][name][:, 0] for name in _ceilings(benchmark)},
            np.stack([score(each) for each in untrained]),
        )
        for scores, score in ((areas, area_under_curve), (finals, final_return))
    )
    standings = {
        reading: {
            entry.name: stand(
                areas[reading][entry.name],
                finals[reading][entry.name],
                auc_scale,
                final_scale,
                None if entry.name == REFERENCE else areas[reading][REFERENCE],
                None if entry.control is None else areas[reading][entry.control],
            )
            for entry in benchmark.entries
        }
        for reading in READINGS
    }
    stuck = {
        entry.name: _stuck(benchmark, entry, choices[entry.name], final_scale)
        for entry in benchmark.entries
    }
    return Results(benchmark, choices, curves, untrained, auc_scale, final_scale, standings, stuck)


def _reported(
    benchmark: Benchmark, task: SuiteTask, entry: Entry, member: int, setting: float
) -> Curves:
    (curves,) = _read(benchmark, report_pieces(benchmark, task, entry, member, setting)).values()
    return curves


def _score(
    curves: Sequence[Sequence[Curves]], score: Callable[[Curves], Float[np.ndarray, " run"]]
) -> Scores:
    return np.stack([[score(member) for member in task] for task in curves])


def _stuck(
    benchmark: Benchmark, entry: Entry, choices: Sequence[Choice], scale: Scale
) -> dict[str, dict[float, Estimate | None]]:
    """Stuck rates of all members together, by task and multiple of the tuned setting."""
    rates: dict[str, dict[float, Estimate | None]] = {}
    for index, task in enumerate(benchmark.suite.tasks):
        if task.stress_rollouts is None:
            continue
        low, high = (float(end[index]) for end in scale.ends)
        runs = [
            read_stress(benchmark, task, entry, member, choice.at("tuned", index))
            for member, choice in enumerate(choices)
        ]
        rates[task.name] = {
            multiple: stuck_rate(stack([found[multiple] for found in runs]), low, high)
            if scale.resolved[index]
            else None
            for multiple in benchmark.stress_scales
        }
    return rates


def read_stress(
    benchmark: Benchmark, task: SuiteTask, entry: Entry, member: int, setting: float
) -> dict[float, Curves]:
    """The stress test's curves by multiple of the setting; none if the task has no such test."""
    curves = _read(benchmark, stress_pieces(benchmark, task, entry, member, setting)).values()
    return dict(zip(benchmark.stress_scales, curves, strict=False))
