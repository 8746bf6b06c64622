"""Laying a study out: from a plan to the variants that are run."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optim4rl.fields import from_json, to_json
from optim4rl.files.atomic import write_atomically
from optim4rl.files.manifest import check_files
from optim4rl.files.reading import read_text
from optim4rl.jobs.provenance import provenance
from optim4rl.jobs.store import StoreError
from optim4rl.plans.mapping import MappedAblation, MappedPlan, require_mapped
from optim4rl.plans.plan import Plan, PlanError, read_plan_bytes
from optim4rl.study.cells import Training, does_the_same
from optim4rl.study.results import RowKind
from optim4rl.study.settings import StudySettings
from optim4rl.study.variant import REFERENCE, Variant, describe_change, replace_field


@dataclass(frozen=True)
class Candidate:
    """A variant that the study runs, and why."""

    key: str
    label: str
    kind: RowKind
    variant: Variant
    ablation: str | None = None
    trained: bool = True


@dataclass(frozen=True)
class Study:
    """A study that is laid out: the plan, what it maps to, and the settings.

    Attributes:
        source: the plan file's bytes.
        plan: the plan as read.
        mapped: all of its ablations, mapped.
        candidates: the variants to run, the reference first.
        identity: whether the plan asks for the identity experiment.
        scale: name of the scale the settings started from.
        settings: the settings.
        skip_unmapped: whether unmapped parts are left out instead of refused.
    """

    source: bytes
    plan: Plan
    mapped: tuple[MappedAblation, ...]
    candidates: tuple[Candidate, ...]
    identity: bool
    scale: str
    settings: StudySettings
    skip_unmapped: bool


def lay_out(
    plan: bytes | MappedPlan,
    scale: str,
    settings: StudySettings,
    *,
    skip_unmapped: bool = False,
) -> Study:
    """Decide what to run of a plan, given as it was mapped or as bytes.

    Raises:
        PlanError: the plan cannot be read, or asks for something the study does not know, or for
            what the reference has at this scale.
    """
    if isinstance(plan, bytes):
        plan = MappedPlan.parse(plan)
    runnable = require_mapped(plan.mapped, skip_unmapped)
    candidates = {"reference": Candidate("reference", "Optim4RL", "reference", REFERENCE)}
    for candidate in _replacements(runnable):
        if _changes_something(candidate.variant, settings):
            candidates.setdefault(candidate.key, candidate)
        elif not skip_unmapped:
            raise PlanError(
                f"replacement {candidate.label!r}: at scale {scale!r} the reference has that "
                f"already ({describe_change(candidate.variant)} changes nothing); take another "
                "scale, or leave this out by skipping unmapped parts"
            )
    no_pipeline = replace_field(REFERENCE, "resets", "never")
    candidates.setdefault(
        "resets=never",
        Candidate("resets=never", "Without pipeline training", "paper", no_pipeline),
    )
    candidates["untrained"] = Candidate(
        "untrained", "Untrained Optim4RL", "control", REFERENCE, trained=False
    )
    identity = any("identity" in entry.metric_keys for entry in runnable)
    variants = tuple(candidates.values())
    return Study(
        plan.source, plan.plan, plan.mapped, variants, identity, scale, settings, skip_unmapped
    )


def _replacements(ablations: Sequence[MappedAblation]) -> Iterator[Candidate]:
    """What the ablations compare with the reference."""
    for entry in ablations:
        for match in entry.replacements:
            if match.key is None or entry.component is None:
                continue
            field = entry.component.field
            if getattr(REFERENCE, field) != match.key:
                yield Candidate(
                    f"{field}={match.key}",
                    match.text or f"{entry.component.key}: {match.key}",
                    "replacement",
                    replace_field(REFERENCE, field, match.key),
                    entry.ablation.title or entry.ablation.part,
                )


def _changes_something(variant: Variant, settings: StudySettings) -> bool:
    """Whether a variant is trained otherwise than the reference, with these settings."""
    reference = make_training(settings, REFERENCE, settings.meta_learning_rates[0], 0)
    return not does_the_same(dataclasses.replace(reference, variant=variant), reference)


def make_training(settings: StudySettings, variant: Variant, rate: float, seed: int) -> Training:
    """A meta-training of a variant with the settings of a study."""
    width = settings.evaluation.width
    return Training(settings.environment, variant, settings.training, width, rate, seed)


def record_study(study: Study, folder: Path, command: str) -> None:
    """Keep what the study was asked to do, so that its report can be made again."""
    record = {
        "command": command,
        "scale": study.scale,
        "settings": to_json(study.settings),
        "skip_unmapped": study.skip_unmapped,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance("optim4rl.study.runner"),
    }
    write_atomically(folder / "plan.md", study.source)
    write_atomically(folder / "study.json", json.dumps(record, indent=1).encode())


def load_study(folder: Path) -> Study:
    """The study that was run in a folder.

    Raises:
        StoreError: no study was run there.
    """
    try:
        check_files(folder, ("study.json", "plan.md"))
        record = json.loads(read_text(folder / "study.json"))
        source = read_plan_bytes(folder / "plan.md")
        settings = from_json(StudySettings, record["settings"])
        return lay_out(
            source, record["scale"], settings, skip_unmapped=bool(record["skip_unmapped"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder}: no study can be read there ({error})") from error
