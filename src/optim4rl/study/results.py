"""What a study found: plain values between the runner, which makes them, and the report.

A report never trains, so everything that it shows is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optim4rl.evaluation.curves import Curves
from optim4rl.plans.mapping import MappedAblation
from optim4rl.plans.plan import Plan
from optim4rl.study.identity import IdentityResult

# reference: the method as it is. replacement: asked for by the plan. paper: an ablation of the
# paper's own. control: the reference, untrained. baseline: a classical optimizer, tuned.
RowKind = Literal["reference", "replacement", "paper", "control", "baseline"]


@dataclass(frozen=True)
class Row:
    """One optimizer of the study with all its runs.

    Attributes:
        key: short and unique, for files and tables ("structure=linear", "adam").
        label: for people ("Linear update function").
        kind: why it is in the study.
        change: the one field that differs from the reference ("structure: adaptive -> linear"); for
            a baseline how it was tuned.
        ablation: title of the plan's ablation that asked for it, if one did.
        curves: evaluation curves, one `Curves` for each meta-seed (one in all for a baseline).
        stress: short runs at multiples of the step, scale -> `Curves` of all meta-seeds together.
        failures: meta-seeds whose meta-training ran out of finite numbers, with the message.
        settings: what it was tuned to ("meta-learning rate": 0.003, "step scale": 1.0, ...).
        at_edge: those of them that are an end of their grid, in words.
        seconds: wall-clock time of meta-training and evaluation.
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


@dataclass(frozen=True)
class StudyResults:
    """Everything that a report shows.

    Attributes:
        plan: the plan as read.
        mapped: its ablations, mapped to components.
        rows: the reference first.
        floor: return of the untrained policy on the task, the 0 of normalised returns.
        ceiling: final return of the best classical optimizer, the 1 of them.
        identity: the identity experiment, where the plan asks for it.
        task: name of the task.
        scale: name of the scale and all its settings.
        command: the exact command.
        versions: package -> version; "code" -> the start of the hash of the code.
        started: ISO 8601 time at which the study was started.
    """

    plan: Plan
    mapped: tuple[MappedAblation, ...]
    rows: tuple[Row, ...]
    floor: float
    ceiling: float
    identity: IdentityResult | None
    task: str
    scale: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    started: str
