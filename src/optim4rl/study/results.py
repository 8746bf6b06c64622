"""The results of a study: plain values that the runner makes and the report reads.

A report never trains, so this module holds everything that a report shows.
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
            a baseline, how it was tuned.
        ablation: title of the plan's ablation that asked for it, if one did.
        curves: reports of its runs on the first metric, one `Curves` for each meta-seed (only one
            if nothing is trained); a number is a curve of length 1.
        stress: short runs at multiples of the step, scale -> `Curves` of all meta-seeds together.
        failures: meta-seeds whose meta-training diverged, with the message.
        settings: the tuned settings ("meta-learning rate": 0.003, "step scale": 1.0, ...).
        at_edge: the tuned settings that lie at an end of their grid, in words.
        seconds: wall-clock time of trainings and runs.
        more: the same as `curves` for every further reported metric.
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
        plan: the parsed plan.
        mapped: its ablations, mapped to components.
        rows: all rows, the reference first.
        floor: return of the untrained policy on the task, the 0 of normalised returns; None if the
            experiment has no such runs.
        ceiling: final return of the best classical optimizer, the 1 of normalised returns; or None.
        identity: the identity experiment, where the plan asks for it.
        task: name of the task.
        scale: name of the scale and all its settings.
        command: the exact command.
        versions: package -> version; "code" -> the start of the hash of the code.
        started: ISO 8601 time at which the study was started.
        method: name of the method.
        metrics: all measured metrics, the one that judges rows first.
        trained: whether rows have meta-seeds; if not, every seed is a whole run of its own.
        steps: unit of the horizontal axis of curves.
        predictions: the plan's expectations for rows, as sealed before the first cell, by key.
        left_out: labels of the rows that did not fit into the budget.
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
