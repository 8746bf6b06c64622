"""`optim4rl evaluate`: learned optimizers against tuned classical ones."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from optim4rl.cli.folders import locked
from optim4rl.cli.kept import kept
from optim4rl.cli.plots import plot_curves
from optim4rl.cli.runtime import print_table, progress_bar
from optim4rl.cli.signals import stop_in_order
from optim4rl.cli.suite_pieces import weights_address
from optim4rl.cli.trackers import TrackerName, log_curves, require_tracker, tracking
from optim4rl.evaluation.curves import stack
from optim4rl.evaluation.learning import Classical, Family, Learned
from optim4rl.evaluation.protocol import Evaluation, EvaluationSettings, evaluate
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    bootstrap_interval,
    failure_rate,
    final_return,
    probability_of_improvement,
    stuck_rate,
)
from optim4rl.evaluation.stability import stability
from optim4rl.optimizers.files import write_atomically
from optim4rl.optimizers.rule import MetaParameters
from optim4rl.optimizers.weights import LearnedOptimizer, load_weights
from optim4rl.study.cells import (
    CellResult,
    evaluation_task,
    pack_evaluation,
    unpack_evaluation,
)
from optim4rl.study.manifest import remove_manifest, write_manifest
from optim4rl.study.provenance import provenance
from optim4rl.tasks import Task

Baseline = Literal["adam", "rmsprop", "sgd", "sign_sgd", "muon"]
# What the name of an untrained control ends in.
CONTROL = " untrained"


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare learned optimizers with tuned classical ones and with themselves untrained.

    Every optimizer is tuned on seeds that are not reported, then run on the reported seeds and in
    the stress test (short runs at multiples of its step). Weights of one recipe and several
    meta-seeds can be given together, separated by commas: they count as one optimizer.

    With `--suite NAME` (grid, minatar, classic, brax, mixed) all tasks of a benchmark are run and
    read together; `optim4rl evaluate --suite grid --help` shows what can be chosen then.

    Attributes:
        weights: shipped names, paths, or comma-separated groups of them.
        task: the task; `optim4rl list tasks` names them.
        baselines: classical optimizers to compare with.
        settings: how each optimizer is evaluated.
        out: folder for the table, the curves and their picture; none are written by default.
        tracker: send the learning curves to TensorBoard or Weights & Biases, too; needs a folder.
        json: print the table as JSON.
    """

    weights: Annotated[tuple[str, ...], tyro.conf.Positional]
    task: str = "catch"
    baselines: tuple[Baseline, ...] = ("adam", "rmsprop", "sign_sgd")
    settings: Annotated[EvaluationSettings, tyro.conf.arg(name="")] = EvaluationSettings(
        width=256,
        seeds=10,
        tuning_seeds=5,
        classical_rates=(1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1),
        step_scales=(0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
        stress_seeds=20,
    )
    out: Path | None = None
    tracker: TrackerName | None = None
    json: bool = False


@dataclass(frozen=True)
class Contender:
    """An optimizer to evaluate: one parameter set for each meta-seed."""

    name: str
    family: Family
    parameters: tuple[MetaParameters | None, ...]
    rates: tuple[float, ...]


def contenders(options: EvaluateOptions) -> list[Contender]:
    """All optimizers that the options ask for, each learned one with its untrained control.

    Raises:
        WeightsError: weights cannot be read.
        ValueError: there is nothing to evaluate, something is given twice, or the weights of a
            group do not belong to one recipe.
    """
    names = [*options.weights, *options.baselines]
    if not names:
        raise ValueError("weights = (), baselines = (): at least one optimizer is needed")
    if len(set(names)) < len(names):
        raise ValueError(f"weights, baselines = {names!r}: each optimizer is evaluated once")
    found = [
        _learned(name, members, options.settings)
        for name, members in load_groups(options.weights).items()
    ]
    rates = options.settings.classical_rates
    found += [Contender(name, Classical(name), (None,), rates) for name in options.baselines]
    return found


def load_groups(groups: Sequence[str]) -> dict[str, list[LearnedOptimizer]]:
    """Learned optimizers, one for each meta-seed, by name: every group and its untrained control.

    Args:
        groups: shipped names, paths, or several of one recipe separated by commas.

    Raises:
        WeightsError: weights cannot be read.
        ValueError: the members of a group do not belong to one recipe.
    """
    found = {}
    for group in groups:
        members = [load_weights(name) for name in group.split(",")]
        if len({(m.spec, m.learning_rate) for m in members}) != 1:
            raise ValueError(f"weights = {group!r}: the members of a group must share their spec")
        # With zero heads an untrained rule is the same whatever its seed.
        controls = members[:1] if members[0].spec.zero_head else members
        found[group] = members
        found[f"{group}{CONTROL}"] = [_fresh(member) for member in controls]
    return found


def _learned(name: str, members: list[LearnedOptimizer], settings: EvaluationSettings) -> Contender:
    rates = tuple(members[0].learning_rate * scale for scale in settings.step_scales)
    parameters = tuple(member.meta_parameters for member in members)
    return Contender(name, Learned(members[0].spec), parameters, rates)


def _fresh(member: LearnedOptimizer) -> LearnedOptimizer:
    from optim4rl.optimizers.rule import init_meta_parameters

    seed = int(member.card.get("seed", 0))
    parameters = init_meta_parameters(member.spec, jax.random.key(seed))
    return dataclasses.replace(member, meta_parameters=parameters)


def run(options: EvaluateOptions) -> None:
    """The command."""
    require_tracker(options.tracker, options.out)
    entries = contenders(options)
    task = evaluation_task(options.task, options.settings)
    # A folder that cannot be written is named before the work.
    with locked(options.out) if options.out is not None else nullcontext():
        if options.out is not None:
            remove_manifest(options.out)
        results = _evaluate(options, task, entries)
        rows = summarise(results, options.baselines)
        if options.out is not None:
            _write(results, rows, options, options.out)
    if options.json:
        print(json.dumps(rows))
    else:
        _print(rows, options)


def _evaluate(
    options: EvaluateOptions, task: Task, entries: Sequence[Contender]
) -> dict[str, list[Evaluation]]:
    """Evaluate all that is not kept in the output folder yet.

    Raises:
        StoppedBySignalError: a signal has stopped it; what was finished is in the folder.
    """
    results: dict[str, list[Evaluation]] = {}
    done, total = 0, sum(len(entry.parameters) for entry in entries)
    parts = options.out / "evaluations" if options.out is not None else None
    with (
        tracking(options.tracker, options.out, _settings(options)) as tracker,
        progress_bar(f"evaluating on {options.task}", "trainings") as update,
        stop_in_order("the training in flight is finished") as stop,
    ):
        update(done, total)
        for entry in entries:
            for parameters in entry.parameters:
                evaluation = _kept_evaluation(parts, task, entry, parameters, options.settings)
                results.setdefault(entry.name, []).append(evaluation)
                done += 1
                update(done, total, entry.name)
                if done < total:
                    stop.raise_if_asked()
            log_curves(tracker, {entry.name: [e.curves for e in results[entry.name]]})
    return results


def _kept_evaluation(
    folder: Path | None,
    task: Task,
    entry: Contender,
    parameters: MetaParameters | None,
    settings: EvaluationSettings,
) -> Evaluation:
    """An evaluation, from the folder if it is there."""
    family = entry.family
    question = {
        "task": dataclasses.asdict(task.config),
        "optimizer": weights_address(LearnedOptimizer(family.spec, parameters, 1.0))
        if isinstance(family, Learned) and parameters is not None
        else dataclasses.asdict(family),
        "rates": entry.rates,
        "settings": dataclasses.asdict(settings),
    }

    def make() -> CellResult:
        return pack_evaluation(evaluate(task, family, parameters, entry.rates, settings))

    return unpack_evaluation(kept(folder, question, make), settings)


def _write(
    results: dict[str, list[Evaluation]],
    rows: list[dict[str, Any]],
    options: EvaluateOptions,
    out: Path,
) -> None:
    settings = json.dumps(_settings(options), indent=1)
    write_atomically(out / "settings.json", settings.encode())
    write_atomically(out / "evaluation.json", json.dumps(rows, indent=1).encode())
    _write_curves(results, out / "runs.parquet")
    curves = {name: [e.curves for e in found] for name, found in results.items()}
    plot_curves(f"Learning curves on {options.task}", curves, out / "curves.svg")
    write_manifest(out)


def _settings(options: EvaluateOptions) -> dict[str, Any]:
    """All that decides the result, as JSON values."""
    values = dataclasses.asdict(options)
    for name in ("out", "tracker", "json"):
        del values[name]
    return {**json.loads(json.dumps(values)), **provenance()}


def summarise(
    results: dict[str, list[Evaluation]], baselines: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for each optimizer, best AUC first; numbers as JSON values, None where diverged."""
    reference = baselines[0] if baselines else None
    finals = {
        name: np.stack([final_return(e.curves) for e in found])[None]
        for name, found in results.items()
    }
    areas = {
        name: np.stack([area_under_curve(e.curves) for e in found])[None]
        for name, found in results.items()
    }
    every = [e.curves.returns[:, 0] for found in results.values() for e in found]
    floor = float(np.nanmean(np.concatenate(every)))
    ceiling = max(
        (bootstrap_interval(finals[name]).value for name in baselines), default=float("nan")
    )
    # One scale for all; without a baseline that learned something, returns as they are.
    learned_something = floor < ceiling < float("inf")
    scale = ceiling - floor if learned_something else 1.0
    rows = []
    for name, found in results.items():
        better = (
            probability_of_improvement(areas[name], areas[reference])
            if reference and name != reference
            else None
        )
        worst = float(np.min(areas[name]))
        rows.append(
            {
                "optimizer": name,
                "meta_seeds": len(found),
                "seeds": int(areas[name].shape[-1]),
                "rates": [e.tuning.rate for e in found],
                "rate_at_edge": any(e.tuning.at_edge for e in found),
                "auc": estimate_values(bootstrap_interval(areas[name])),
                "auc_worst": worst if np.isfinite(worst) else None,
                "final": estimate_values(bootstrap_interval(finals[name])),
                "improvement_over": reference if better else None,
                "probability_of_improvement": estimate_values(better) if better else None,
                "failure_rate": _mean([failure_rate(e.curves).value for e in found]),
                "stuck_rates": {
                    f"{multiple:g}": _mean(
                        [stuck_rate(e.stress[multiple], floor, ceiling).value for e in found]
                    )
                    if learned_something
                    else None  # Nothing classical has learned, so nothing says what stuck is.
                    for multiple in found[0].stress
                },
                "stability": _stability(found, scale),
            }
        )
    return sorted(rows, key=lambda row: -(-np.inf if row["auc"][0] is None else row["auc"][0]))


def _stability(found: list[Evaluation], scale: float) -> dict[str, Any]:
    """The five metrics of Chan et al. 2020 over all runs; None where one is undefined."""
    curves = stack([evaluation.curves for evaluation in found])
    if curves.env_steps.size < 2:
        return {}
    values = dataclasses.asdict(stability(curves, scale))
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }


def _mean(values: list[float]) -> float | None:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def estimate_values(estimate: Estimate) -> list[float | None]:
    """Value, low and high as JSON values; None where diverged runs leave none, or one run does."""
    values = (estimate.value, estimate.low, estimate.high)
    return [float(x) if np.isfinite(x) else None for x in values]


def _print(rows: list[dict[str, Any]], options: EvaluateOptions) -> None:
    def interval(values: list[float | None] | None) -> str:
        if values is None:
            return ""
        texts = ["diverged" if x is None else f"{x:.3f}" for x in values]
        if values[1:] == [None, None]:
            return f"{texts[0]} (no interval)"
        return f"{texts[0]} [{texts[1]}, {texts[2]}]"

    table = [
        [
            row["optimizer"],
            ", ".join(f"{rate:.3g}" for rate in row["rates"]) + ("*" * row["rate_at_edge"]),
            interval(row["auc"]),
            interval(row["final"]),
            interval(row["probability_of_improvement"]),
            "diverged" if row["auc_worst"] is None else f"{row['auc_worst']:.3f}",
            f"{row['failure_rate']:.0%}",
            " ".join(
                f"x{scale}: {'-' if rate is None else f'{rate:.0%}'}"
                for scale, rate in row["stuck_rates"].items()
            ),
        ]
        for row in rows
    ]
    s = options.settings
    print_table(
        f"{options.task}: {s.updates} updates, {s.num_envs} environments, width {s.width}; "
        f"{s.seeds} seeds, rates tuned on {s.tuning_seeds} others",
        [
            "optimizer",
            "rate (* edge of grid)",
            "AUC: IQM [95 %]",
            "final return: IQM [95 %]",
            f"P(better than {options.baselines[0] if options.baselines else '-'})",
            "worst AUC",
            "failed",
            "stuck, by step scale",
        ],
        table,
    )


def _write_curves(results: dict[str, list[Evaluation]], path: Path) -> None:
    import io

    import polars as pl

    tables = [
        evaluation.curves.to_table(optimizer=name, meta_seed=index)
        for name, found in results.items()
        for index, evaluation in enumerate(found)
    ]
    buffer = io.BytesIO()
    pl.concat(tables).write_parquet(buffer)
    write_atomically(path, buffer.getvalue())
