"""The work of a study: turns trainings and runs of an experiment into jobs, and reads the results.

The runner decides which rows are trained, tuned and reported; `Work` makes the jobs. There are two
implementations: one job for each run of a user's function (`given`), and batches of agents side by
side for this project's own method (`own`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optim4rl.evaluation.curves import Curves
from optim4rl.jobs.job import Job
from optim4rl.plans.ablation import Expectation
from optim4rl.study.experiment import Grid, RowKind, Values

# The curves of some runs, by the name that reports them; a number is a curve of length one.
Reported = Mapping[str, Curves]


@dataclass(frozen=True)
class Candidate:
    """A row that the study runs.

    Attributes:
        key: short and unique.
        label: name for people.
        kind: why the row is in the study.
        settings: settings of the experiment, with at most one field replaced.
        grid: the grid for tuning its runs.
        change: the difference from the reference.
        ablation: title of the plan's ablation that asked for it, if one did.
        trained: whether the row is trained before it runs, if the experiment trains anything.
        priority: the plan's priority; smaller numbers come first.
        expected: the plan's prediction against the reference, or None.
        tests: what the ablation tests, in the plan's words.
    """

    key: str
    label: str
    kind: RowKind
    settings: Any
    grid: Grid
    change: str = ""
    ablation: str | None = None
    trained: bool = True
    priority: float = 0.0
    expected: Expectation | None = None
    tests: str = ""


@dataclass(frozen=True)
class Member:
    """A candidate after one training; a candidate without training has one member.

    Attributes:
        candidate: the trained candidate.
        meta_seed: seed of the training.
        training: the job; None if nothing is trained.
    """

    candidate: Candidate
    meta_seed: int
    training: Job | None


class Work(ABC):
    """The work of an experiment; by default there is nothing beside trainings and runs."""

    @abstractmethod
    def training(self, candidate: Candidate, values: Values, meta_seed: int) -> Job | None:
        """Return a training at values of the grid of trainings; None if nothing is trained."""

    @abstractmethod
    def runs(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Job]:
        """Return a member's runs at every point with every seed.

        Args:
            folder: holds the training; None: the training is unfinished, and jobs are only counted.
            member: the member to run.
            points: values of the grid of runs.
            seeds: seeds of the runs.
        """

    @abstractmethod
    def read(
        self, folder: Path, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Reported]:
        """Return the reports of the runs, point by point.

        Raises:
            StoreError: a report is missing or damaged.
            ValueError: two reports do not fit together.
        """

    def stress(self, folder: Path | None, member: Member, point: Values) -> list[Job]:
        """Return short runs at multiples of a point; empty if the experiment has no such test."""
        return []

    def read_stress(self, folder: Path, member: Member, point: Values) -> Mapping[float, Curves]:
        """Return the reports of these short runs, by multiple."""
        return {}

    def floor(self) -> list[Job]:
        """Return runs that learn nothing, as the zero of returns; empty if there are none."""
        return []

    def read_floor(self, folder: Path) -> Curves | None:
        """Return the reports of the runs that learn nothing; None if there are none."""
        return None

    def once(self, metrics: frozenset[str]) -> list[Job]:
        """Return jobs that some metrics need once for the whole study."""
        return []
