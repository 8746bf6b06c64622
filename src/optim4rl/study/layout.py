"""Lays out a study: turns a plan into the variants to run."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optim4rl.fields import to_json
from optim4rl.files.atomic import write_atomically
from optim4rl.files.manifest import check_files
from optim4rl.files.reading import read_text
from optim4rl.jobs.provenance import provenance
from optim4rl.jobs.store import StoreError
from optim4rl.plans.mapping import MappedAblation, MappedPlan, require_mapped
from optim4rl.plans.plan import Plan, PlanError, read_plan_bytes
from optim4rl.study.experiment import Control, Design, describe_change
from optim4rl.study.opening import Opened, reopen
from optim4rl.study.work import Candidate, Work

FILES = ("study.json", "plan.md", "predictions.json")


@dataclass(frozen=True)
class Study:
    """A laid-out study: the plan, its mapping, and the experiment.

    Attributes:
        source: the plan file's bytes.
        plan: the parsed plan.
        mapped: all of its ablations, mapped.
        candidates: the variants to run, the reference first, then by the plan's priority.
        opened: the experiment, its work, and its origin.
        metrics: keys of the metrics that the plan asks for.
        skip_unmapped: whether unmapped parts are left out instead of refused.
        left_out: variants that did not fit into the budget.
    """

    source: bytes
    plan: Plan
    mapped: tuple[MappedAblation, ...]
    candidates: tuple[Candidate, ...]
    opened: Opened
    metrics: frozenset[str]
    skip_unmapped: bool
    left_out: tuple[Candidate, ...] = ()

    @property
    def experiment(self) -> Design:
        """Return the ablated experiment."""
        return self.opened.experiment

    @property
    def work(self) -> Work:
        """Return the work that runs the experiment."""
        return self.opened.work

    def without(self, keys: frozenset[str]) -> "Study":
        """Return the study without the variants of these keys."""
        rest = tuple(x for x in self.candidates if x.key not in keys)
        gone = tuple(x for x in self.candidates if x.key in keys)
        return dataclasses.replace(self, candidates=rest, left_out=gone)


def lay_out(plan: bytes | MappedPlan, opened: Opened, *, skip_unmapped: bool = False) -> Study:
    """Decide which variants of a plan to run. The plan may be mapped already, or bytes.

    Raises:
        PlanError: the plan cannot be read, names something that the experiment does not know, or
            asks for a replacement that the reference already has.
    """
    experiment = opened.experiment
    if isinstance(plan, bytes):
        plan = MappedPlan.parse(plan, experiment.catalogue)
    runnable = require_mapped(plan.mapped, skip_unmapped, opened.text)
    for entry in () if skip_unmapped else runnable:
        _require_change(entry, opened)
    reference = Candidate(
        "reference", experiment.name, "reference", experiment.reference, experiment.grid
    )
    found: dict[str, Candidate] = {}
    for candidate in _replacements(runnable, experiment):
        if not experiment.same_work(candidate.settings):
            found.setdefault(candidate.key, candidate)
        elif not skip_unmapped:
            raise PlanError(
                f"replacement {candidate.label!r}: {opened.where} it is the reference itself "
                f"({candidate.change} changes nothing); {opened.advice}leave it out with "
                "--skip-unmapped"
            )
    # Python's sort is stable: without priorities, the plan's order is kept.
    ordered = {x.key: x for x in sorted(found.values(), key=lambda x: x.priority)}
    for control in experiment.controls:
        ordered.setdefault(control.key, _candidate(control, experiment))
    metrics = frozenset(key for entry in runnable for key in entry.metric_keys)
    variants = (reference, *ordered.values())
    return Study(plan.source, plan.plan, plan.mapped, variants, opened, metrics, skip_unmapped)


def _require_change(entry: MappedAblation, opened: Opened) -> None:
    """Refuse an ablation that asks for nothing but the value that the reference has."""
    assert entry.component is not None
    own = getattr(opened.experiment.reference, entry.component.field)
    if all(value == own for value in entry.values):
        raise PlanError(
            f"part {entry.ablation.part or entry.ablation.title!r}: it asks for nothing but "
            f"{entry.component.field} = {own!r}, which the reference has; name another "
            "replacement, or leave it out with --skip-unmapped"
        )


def _candidate(control: Control, experiment: Design) -> Candidate:
    return Candidate(
        key=control.key,
        label=control.label,
        kind=control.kind,
        settings=control.settings,
        grid=experiment.grid if control.grid is None else control.grid,
        change=control.change or describe_change(control.settings, experiment.reference),
        trained=control.trained,
    )


def _replacements(ablations: Sequence[MappedAblation], experiment: Design) -> Iterator[Candidate]:
    """Yield the replacements that the ablations compare with the reference."""
    reference = experiment.reference
    for entry in ablations:
        for match in entry.replacements:
            if match.key is None or entry.component is None:
                continue
            field, ablation = entry.component.field, entry.ablation
            if getattr(reference, field) != match.key:
                settings = dataclasses.replace(reference, **{field: match.key})
                yield Candidate(
                    key=f"{field}={match.key}",
                    label=match.text or f"{entry.component.key}: {match.key}",
                    kind="replacement",
                    settings=settings,
                    grid=experiment.grid,
                    change=describe_change(settings, reference),
                    ablation=ablation.title or ablation.part,
                    priority=math.inf if ablation.priority is None else float(ablation.priority),
                    expected=ablation.expected,
                    tests=ablation.tests,
                )


def record_study(study: Study, folder: Path, command: str, started: str) -> None:
    """Record the study's inputs and its start, so that its report can be made again."""
    record = {
        "command": command,
        **study.opened.record(),
        "task": study.experiment.task,
        "skip_unmapped": study.skip_unmapped,
        "left_out": [x.key for x in study.left_out],
        "started": started,
        **provenance("optim4rl.study.runner"),
    }
    study.opened.keep(folder)
    write_atomically(folder / "plan.md", study.source)
    write_atomically(folder / "study.json", json.dumps(to_json(record), indent=1).encode())


def load_study(folder: Path) -> Study:
    """Load the study that was run in a folder.

    Raises:
        StoreError: the folder holds no study.
    """
    try:
        check_files(folder, FILES)
        record = json.loads(read_text(folder / "study.json"))
        source = read_plan_bytes(folder / "plan.md")
        opened = reopen(record, folder)
        study = lay_out(source, opened, skip_unmapped=bool(record["skip_unmapped"]))
        return study.without(frozenset(record.get("left_out", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder}: no study can be read there ({error})") from error
