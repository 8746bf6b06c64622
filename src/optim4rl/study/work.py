"""The work of a study: how an experiment's trainings and runs become jobs, and are read again.

The runner decides what is trained, tuned and reported; `Work` says how. There are two ways: one job
for each run of a user's function (`given`), and batches of agents side by side for this project's
own method (`own`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from optim4rl.evaluation.curves import Curves
from optim4rl.jobs.job import Job
from optim4rl.plans.ablation import Expectation
from optim4rl.study.experiment import Grid, RowKind, Values

# The curves of some runs by the name under which they are reported; a number is a curve of one.
Reported = Mapping[str, Curves]


@dataclass(frozen=True)
class Candidate:
    """A row that the study runs, and why.

    Attributes:
        key: short and unique.
        label: for people.
        kind: why it is there.
        settings: of the experiment, with at most one field replaced.
        grid: what its runs are tuned over.
        change: what differs from the reference.
        ablation: title of the plan's ablation that asked for it, if one did.
        trained: whether it is trained before it is run, if the experiment trains anything.
        priority: the plan's; a smaller one comes first.
        expected: the plan's prediction against the reference, if it makes one.
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
    """A candidate after one training of it; where nothing is trained there is one of each.

    Attributes:
        candidate: what was trained.
        meta_seed: of the training.
        training: the job; None where there is none.
    """

    candidate: Candidate
    meta_seed: int
    training: Job | None


@runtime_checkable
class Work(Protocol):
    """How the work of an experiment is done."""

    @property
    def module(self) -> str:
        """The module whose code decides the results."""

    def training(self, candidate: Candidate, values: Values, meta_seed: int) -> Job | None:
        """A training at values of the grid of trainings; None where nothing is trained."""

    def runs(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Job]:
        """A member's runs at every point with every seed.

        Args:
            folder: where its training is; None: it is not done, and the jobs are only counted.
            member: what is run.
            points: values of the grid of runs.
            seeds: of the runs.
        """

    def read(
        self, folder: Path, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Reported]:
        """What the runs reported, point by point.

        Raises:
            StoreError: one is missing or damaged.
            ValueError: two of them do not fit together.
        """

    def stress(self, folder: Path | None, member: Member, point: Values) -> list[Job]:
        """Short runs at multiples of a point; none where the experiment has no such test."""

    def read_stress(self, folder: Path, member: Member, point: Values) -> Mapping[float, Curves]:
        """What these reported, by multiple."""

    def floor(self) -> list[Job]:
        """Runs that learn nothing, for a scale of returns; none where there are no such runs."""

    def read_floor(self, folder: Path) -> Curves | None:
        """What these reported."""

    def once(self, metrics: frozenset[str]) -> list[Job]:
        """What some metrics need once for the whole study."""
