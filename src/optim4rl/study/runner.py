"""Running a study: from a plan to cells, from cells to results.

The runner decides what has to be known, lets workers find it out, and puts it together. Finished
cells are in the store, so a study that was stopped goes on where it was.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.protocol import EvaluationSettings
from optim4rl.evaluation.returns import area_under_curve, final_return, interquartile_mean
from optim4rl.evaluation.tuning import is_edge
from optim4rl.optimizers.files import write_atomically
from optim4rl.study.cells import (
    Cell,
    CellResult,
    ClassicalCell,
    IdentityCell,
    LearnedCell,
    does_the_same,
    unpack_curves,
    unpack_identity,
)
from optim4rl.study.manifest import check_files
from optim4rl.study.mapping import MappedAblation, MappedPlan, require_mapped
from optim4rl.study.plan import Plan, PlanError
from optim4rl.study.pool import Job, Pool
from optim4rl.study.pools import Workers, open_pool
from optim4rl.study.provenance import package_versions as package_versions, provenance
from optim4rl.study.results import Row, RowKind, StudyResults
from optim4rl.study.settings import (
    TUNING_META_SEED,
    StudySettings,
    TrainingSettings,
)
from optim4rl.study.store import StoreError, get_result, has_result
from optim4rl.study.variant import REFERENCE, Variant, describe_change, replace_field
from optim4rl.study.worker import question

CLASSICAL_BASELINES = {
    "adam": "Tuned Adam",
    "rmsprop": "Tuned RMSProp",
    "sign_sgd": "Tuned sign-SGD",
}


@dataclass(frozen=True)
class Comparison:
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
        comparisons: the variants to run, the reference first.
        identity: whether the plan asks for the identity experiment.
        scale: name of the scale the settings started from.
        settings: the settings.
        skip_unmapped: whether unmapped parts are left out instead of refused.
    """

    source: bytes
    plan: Plan
    mapped: tuple[MappedAblation, ...]
    comparisons: tuple[Comparison, ...]
    identity: bool
    scale: str
    settings: StudySettings
    skip_unmapped: bool


# Called when a cell is finished: cells done, cells in all, what it was.
OnProgress = Callable[[int, int, str], None]


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
    comparisons = {"reference": Comparison("reference", "Optim4RL", "reference", REFERENCE)}
    for comparison in _replacements(runnable):
        if _changes_something(comparison.variant, settings):
            comparisons.setdefault(comparison.key, comparison)
        elif not skip_unmapped:
            raise PlanError(
                f"replacement {comparison.label!r}: at scale {scale!r} the reference has that "
                f"already ({describe_change(comparison.variant)} changes nothing); take another "
                "scale, or leave this out by skipping unmapped parts"
            )
    no_pipeline = replace_field(REFERENCE, "resets", "never")
    comparisons.setdefault(
        "resets=never",
        Comparison("resets=never", "Without pipeline training", "paper", no_pipeline),
    )
    comparisons["untrained"] = Comparison(
        "untrained", "Untrained Optim4RL", "control", REFERENCE, trained=False
    )
    identity = any("identity" in entry.metric_keys for entry in runnable)
    variants = tuple(comparisons.values())
    return Study(
        plan.source, plan.plan, plan.mapped, variants, identity, scale, settings, skip_unmapped
    )


def _replacements(ablations: Sequence[MappedAblation]) -> Iterator[Comparison]:
    """What the ablations compare with the reference."""
    for entry in ablations:
        for match in entry.replacements:
            if match.key is None or entry.component is None:
                continue
            field = entry.component.field
            if getattr(REFERENCE, field) != match.key:
                yield Comparison(
                    f"{field}={match.key}",
                    match.text or f"{entry.component.key}: {match.key}",
                    "replacement",
                    replace_field(REFERENCE, field, match.key),
                    entry.ablation.title or entry.ablation.part,
                )


def _changes_something(variant: Variant, settings: StudySettings) -> bool:
    """Whether a variant is trained otherwise than the reference, with these settings."""
    reference = _cell(settings, REFERENCE, settings.meta_learning_rates[0], 0)
    return not does_the_same(dataclasses.replace(reference, variant=variant), reference)


def tuning_cells(study: Study) -> list[LearnedCell]:
    """The meta-trainings that choose each variant's meta-learning rate; none where there is one."""
    if len(study.settings.meta_learning_rates) == 1:
        return []
    return [
        _learned_cell(study, comparison, rate, TUNING_META_SEED + seed, tune=True)
        for comparison in study.comparisons
        if comparison.trained
        for rate in study.settings.meta_learning_rates
        for seed in range(study.settings.tuning_meta_seeds)
    ]


def report_cells(study: Study, rates: Mapping[str, float]) -> list[Cell]:
    """The cells that the report shows.

    Seeds are the outer loop, so that workers compile different variants at first and later find
    each other's programs in the compilation cache.
    """
    cells: list[Cell] = [IdentityCell(study.settings.identity)] if study.identity else []
    cells += [
        ClassicalCell(study.settings.environment, name, study.settings.evaluation)
        for name in CLASSICAL_BASELINES
    ]
    cells += [
        _learned_cell(study, comparison, rates[comparison.key], seed)
        for seed in range(study.settings.meta_seeds)
        for comparison in study.comparisons
    ]
    return cells


def _learned_cell(
    study: Study, comparison: Comparison, rate: float, seed: int, *, tune: bool = False
) -> LearnedCell:
    return dataclasses.replace(
        _cell(study.settings, comparison.variant, rate, seed),
        purpose="tune" if tune else "report",
        trained=comparison.trained,
    )


def _cell(settings: StudySettings, variant: Variant, rate: float, seed: int) -> LearnedCell:
    return LearnedCell(
        settings.environment, variant, settings.training, settings.evaluation, rate, seed
    )


def choose_meta_learning_rates(study: Study, folder: Path) -> dict[str, float]:
    """Each variant's meta-learning rate: the best by the mean of its tuning meta-seeds' scores.

    A rate at which a meta-training diverged, or an agent did, is chosen last.
    """
    candidates = study.settings.meta_learning_rates
    if len(candidates) == 1:
        return {comparison.key: candidates[0] for comparison in study.comparisons}
    scores: dict[tuple[Variant, float], list[float]] = {}
    for cell in tuning_cells(study):
        by_scale = get_result(folder, cell).info.get("scores", [])
        best = max((score for score in by_scale if score is not None), default=-np.inf)
        scores.setdefault((cell.variant, cell.meta_learning_rate), []).append(best)
    return {
        comparison.key: max(
            candidates, key=lambda rate: float(np.mean(scores[comparison.variant, rate]))
        )
        for comparison in study.comparisons
    }


def run_study(
    study: Study,
    folder: Path,
    *,
    command: str,
    workers: Workers = Workers(),
    on_progress: OnProgress = lambda done, total, what: None,
) -> StudyResults:
    """Run all that is not yet done, and collect the results.

    Args:
        study: what to run.
        folder: where results go, and where finished ones are found.
        command: the command to record in the report.
        workers: who runs it.
        on_progress: called before the first cell and after each one.

    Raises:
        JobError: a cell failed; all others that were started are kept.
        ClusterError: there is no such cluster.
    """
    record_study(study, folder, command)
    first = tuning_cells(study)
    # The number of cells does not depend on the rates that are chosen.
    rates = dict.fromkeys((c.key for c in study.comparisons), study.settings.meta_learning_rates[0])
    total = len(first) + len(report_cells(study, rates))
    with open_pool("optim4rl.study.worker", folder, workers) as pool:
        _run_cells(pool, folder, first, lambda done, what: on_progress(done, total, what))
        rates = choose_meta_learning_rates(study, folder)
        second = report_cells(study, rates)
        _run_cells(
            pool, folder, second, lambda done, what: on_progress(len(first) + done, total, what)
        )
    results = collect(study, folder)
    write_table(results, folder / "runs.parquet")
    return results


def _run_cells(
    pool: Pool, folder: Path, cells: Sequence[Cell], on_job: Callable[[int, str], None]
) -> None:
    """Run the cells that are not in the store; those that are count as done."""
    missing = [cell for cell in cells if not has_result(folder, cell)]
    before = len(cells) - len(missing)
    on_job(before, "")
    jobs = [Job(question(cell), describe_cell(cell), _program(cell)) for cell in missing]
    pool.run(jobs, lambda done, what: on_job(before + done, what))


def _program(cell: Cell) -> Cell:
    """Cells of which this is the same share their compiled programs."""
    return dataclasses.replace(cell, meta_seed=0) if isinstance(cell, LearnedCell) else cell


def describe_cell(cell: Cell) -> str:
    """A cell in a few words, for people."""
    if isinstance(cell, IdentityCell):
        return "identity experiment"
    if isinstance(cell, ClassicalCell):
        return f"tuned {cell.name}"
    change = describe_change(cell.variant) or ("reference" if cell.trained else "untrained")
    verb = "tuning" if cell.purpose == "tune" else "meta-seed"
    return f"{change}, {verb} {cell.meta_seed}"


def collect(study: Study, folder: Path) -> StudyResults:
    """The results of a study whose cells are all in the store."""
    rates = choose_meta_learning_rates(study, folder)
    learned = [
        _learned_row(study, comparison, rates[comparison.key], folder)
        for comparison in study.comparisons
    ]
    classical = [
        _classical_row(study, name, label, folder) for name, label in CLASSICAL_BASELINES.items()
    ]
    record = json.loads((folder / "study.json").read_text())
    identity = None
    if study.identity:
        info = get_result(folder, IdentityCell(study.settings.identity)).info
        identity = unpack_identity(info["identity"])
    return StudyResults(
        plan=study.plan,
        mapped=study.mapped,
        rows=(*learned, *classical),
        floor=_floor(classical),
        ceiling=max(interquartile_mean(final_return(row.curves[0])) for row in classical),
        identity=identity,
        task=study.settings.environment,
        scale={"name": study.scale, **dataclasses.asdict(study.settings)},
        command=record["command"],
        versions={**record["versions"], "code": record["code"][:12]},
        started=record["started"],
    )


def _floor(classical: Sequence[Row]) -> float:
    """The untrained policy's return: what the first rollout gives, before any update."""
    return float(np.nanmean([row.curves[0].returns[:, 0] for row in classical]))


def _learned_row(study: Study, comparison: Comparison, rate: float, folder: Path) -> Row:
    results = {
        seed: get_result(folder, _learned_cell(study, comparison, rate, seed))
        for seed in range(study.settings.meta_seeds)
    }
    good = [result for result in results.values() if "failure" not in result.info]
    meta_learning_rate = rate if comparison.trained else None
    settings = {
        "meta-learning rate": meta_learning_rate,
        "step scale": [
            float(f"{result.info['rate'] / study.settings.training.learning_rate:.3g}")
            for result in good
        ],
    }
    return Row(
        key=comparison.key,
        label=comparison.label,
        kind=comparison.kind,
        change=describe_change(comparison.variant)
        or ("the method as it is" if comparison.trained else "meta-training: yes → no"),
        ablation=comparison.ablation,
        curves=tuple(unpack_curves("curves", result.arrays) for result in good),
        stress=_stress(study.settings.evaluation, good),
        failures={
            seed: result.info["failure"]
            for seed, result in results.items()
            if "failure" in result.info
        },
        settings=settings,
        at_edge=settings_at_edge(study.settings, meta_learning_rate, good),
        seconds=sum(result.info["seconds"] for result in results.values()),
    )


def settings_at_edge(
    settings: StudySettings, meta_learning_rate: float | None, results: Sequence[CellResult]
) -> tuple[str, ...]:
    """What of a variant's choices is an end of its grid, in words.

    Args:
        settings: the study's, with its grids.
        meta_learning_rate: the one chosen; None where nothing is trained.
        results: evaluations, one for each meta-seed.
    """
    chosen_end = is_edge(meta_learning_rate, settings.meta_learning_rates)
    ends = sum(bool(result.info["at_edge"]) for result in results)
    of_meta_seeds = (f"step scale of {ends} of {len(results)} meta-seeds",) if ends else ()
    return (("meta-learning rate",) if chosen_end else ()) + of_meta_seeds


def _classical_row(study: Study, name: str, label: str, folder: Path) -> Row:
    evaluation = study.settings.evaluation
    result = get_result(folder, ClassicalCell(study.settings.environment, name, evaluation))
    grid = ", ".join(f"{rate:g}" for rate in evaluation.classical_rates)
    edge = ", at the edge of the grid" if result.info.get("at_edge") else ""
    return Row(
        key=name,
        label=label,
        kind="baseline",
        change=f"learning rate {result.info['rate']:g}, best of {grid}{edge}",
        ablation=None,
        curves=(unpack_curves("curves", result.arrays),),
        stress=_stress(evaluation, [result]),
        settings={"learning rate": result.info["rate"]},
        at_edge=("learning rate",) if edge else (),
        seconds=result.info["seconds"],
    )


def _stress(settings: EvaluationSettings, results: Sequence[CellResult]) -> dict[float, Curves]:
    return {
        scale: stack([unpack_curves(f"stress/{scale:g}", result.arrays) for result in results])
        for scale in settings.stress_scales
        if results
    }


def record_study(study: Study, folder: Path, command: str) -> None:
    """Keep what the study was asked to do, so that its report can be made again."""
    record = {
        "command": command,
        "scale": study.scale,
        "settings": dataclasses.asdict(study.settings),
        "skip_unmapped": study.skip_unmapped,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(),
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
        record = json.loads((folder / "study.json").read_text())
        source = (folder / "plan.md").read_bytes()
        settings = settings_from_dict(record["settings"])
        return lay_out(
            source, record["scale"], settings, skip_unmapped=bool(record["skip_unmapped"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder}: no study can be read there ({error})") from error


def settings_from_dict(values: Mapping[str, Any]) -> StudySettings:
    """The settings from plain JSON values."""

    def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}

    return StudySettings(
        **{
            **tuples(values),
            "training": TrainingSettings(**tuples(values["training"])),
            "evaluation": EvaluationSettings(**tuples(values["evaluation"])),
        }
    )


def write_table(results: StudyResults, path: Path) -> None:
    """One Parquet file with every run: one row a run, its curve in a list column."""
    import io

    import polars as pl

    buffer = io.BytesIO()
    pl.DataFrame(list(_table_rows(results))).write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def _table_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    for row in results.rows:
        runs = [("evaluation", 1.0, seed, curves) for seed, curves in enumerate(row.curves)]
        runs += [("stress", scale, -1, curves) for scale, curves in row.stress.items()]
        for purpose, scale, meta_seed, curves in runs:
            finals, areas = final_return(curves), area_under_curve(curves)
            for run in range(len(curves.returns)):
                yield {
                    "optimizer": row.key,
                    "kind": row.kind,
                    "change": row.change,
                    "purpose": purpose,
                    "step_scale": scale,
                    "meta_seed": meta_seed,
                    "run": run,
                    "final_return": float(finals[run]),
                    "auc": float(areas[run]),
                    "diverged_at": int(curves.diverged_at[run]),
                    "env_steps": curves.env_steps.tolist(),
                    "returns": curves.returns[run].tolist(),
                }
