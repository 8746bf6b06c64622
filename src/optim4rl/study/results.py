"""What a study found: plain values between the runner, which makes them, and the report.

A report never trains, so everything that it shows is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optim4rl.evaluation.curves import Curves
from optim4rl.plans.components import Metric
from optim4rl.plans.mapping import MappedAblation
from optim4rl.plans.optim4rl import METRICS
from optim4rl.plans.plan import Plan
from optim4rl.study.experiment import RowKind as RowKind
from optim4rl.study.identity_results import IdentityResult
from optim4rl.study.predictions import Sealed


@dataclass(frozen=True)
class Row:
    """One variant of the study with all its runs.

    Attributes:
        key: short and unique, for files and tables ("structure=linear", "adam").
        label: for people ("Linear update function").
        kind: why it is in the study.
        change: the one field that differs from the reference ("structure: adaptive -> linear"); for
            a baseline how it was tuned.
        ablation: title of the plan's ablation that asked for it, if one did.
        curves: what its runs reported of the first metric, one `Curves` for each meta-seed (one in
            all where nothing is trained); a number is a curve of length 1.
        stress: short runs at multiples of the step, scale -> `Curves` of all meta-seeds together.
        failures: meta-seeds whose meta-training ran out of finite numbers, with the message.
        settings: what it was tuned to ("meta-learning rate": 0.003, "step scale": 1.0, ...).
        at_edge: those of them that are an end of their grid, in words.
        seconds: wall-clock time of trainings and runs.
        more: the same as `curves` for every further metric that is reported.
    """

    key: str
    label: str
    kind: RowKind
    change: str
    ablation: str | None
    curves: tuple[Curves, ...]
    stress: Mapping[float, Curves]
    failures: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    at_edge: tuple[str, ...] = ()
    seconds: float = 0.0
    more: Mapping[str, tuple[Curves, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResults:
    """Everything that a report shows.

    Attributes:
        plan: the plan as read.
        mapped: its ablations, mapped to components.
        rows: the reference first.
        floor: return of the untrained policy on the task, the 0 of normalised returns; None where
            the experiment has no such runs.
        ceiling: final return of the best classical optimizer, the 1 of them; likewise.
        identity: the identity experiment, where the plan asks for it.
        task: name of the task.
        scale: name of the scale and all its settings.
        command: the exact command.
        versions: package -> version; "code" -> the start of the hash of the code.
        started: ISO 8601 time at which the study was started.
        method: name of the method.
        metrics: what the experiment measures, the one that rows are judged by first.
        trained: whether rows have meta-seeds; else every seed is a whole run of its own.
        steps: what the horizontal axis of curves counts.
        predictions: what the plan expects of rows, as sealed before the first cell, by key.
        left_out: labels of the rows that the budget had no time for.
    """

    plan: Plan
    mapped: tuple[MappedAblation, ...]
    rows: tuple[Row, ...]
    floor: float | None
    ceiling: float | None
    identity: IdentityResult | None
    task: str
    scale: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    started: str
    method: str = "Optim4RL"
    metrics: tuple[Metric, ...] = METRICS
    trained: bool = True
    steps: str = "environment steps"
    predictions: Mapping[str, Sealed] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
