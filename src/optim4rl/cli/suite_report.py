"""A suite's results for people and programs: what can be claimed, tables, runs, pictures."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.cli.evaluate import estimate_values
from optim4rl.cli.plots import plot_profiles, plot_suite
from optim4rl.cli.runtime import print_table
from optim4rl.cli.suite_pieces import config_to_dict
from optim4rl.cli.suite_runs import (
    CEILINGS,
    READINGS,
    REFERENCE,
    Choice,
    Entry,
    Reading,
    Results,
    read_stress,
)
from optim4rl.evaluation.benchmark import MIN_META_SEEDS, Lead, Normalised, Scale, Standing
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import Estimate, area_under_curve, final_return
from optim4rl.evaluation.tuning import Tuning
from optim4rl.optimizers.files import write_atomically
from optim4rl.study.provenance import provenance

# Below these, the report says that intervals are too narrow.
FEW_SEEDS = 10
FEW_META_SEEDS = 6
TITLES: dict[Reading, str] = {
    "tuned": "tuned for each task",
    "one": "one setting for all tasks",
}


def write_report(results: Results, command: str) -> None:
    """Write results.md, results.json, runs.parquet, curves.svg and profile.svg."""
    folder = results.benchmark.folder
    record = {"command": command, **provenance()}
    document = {**to_json(results), **record}
    write_atomically(folder / "results.json", json.dumps(document, indent=1).encode())
    write_atomically(folder / "results.md", to_markdown(results, record).encode())
    write_runs(results, folder / "runs.parquet")
    names = [task.name for task in results.benchmark.suite.tasks]
    curves = results.curves["tuned"]
    panels = {
        task: {name: found[index] for name, found in curves.items()}
        for index, task in enumerate(names)
    }
    floors = results.final_scale.ends[0]
    behind = [e.name for e in results.benchmark.entries if e.role == "baseline"]
    behind.remove(REFERENCE)
    plot_suite(
        panels,
        dict(zip(names, floors.tolist(), strict=True)),
        folder / "curves.svg",
        background=behind,
    )
    profiles = {
        TITLES[reading]: {
            name: standing.profile
            for name, standing in found.items()
            if standing.profile is not None
        }
        for reading, found in results.standings.items()
    }
    plot_profiles(profiles, folder / "profile.svg", background=behind)


# Claims


def claims(results: Results) -> list[str]:
    """What these runs show and what they cannot, one sentence each, the most important first."""
    entries = results.benchmark.entries
    said = []
    for entry in entries:
        if entry.role == "learned":
            said += _claims_about(results, entry)
    said += _caveats(results)
    return said


def _claims_about(results: Results, entry: Entry) -> list[str]:
    name, count = f"**{entry.name}**", len(entry.members)
    said = []
    if count < MIN_META_SEEDS:
        said.append(
            f"{name}: nothing can be claimed about the recipe, since {count} of the "
            f"{MIN_META_SEEDS} meta-seeds that this takes "
            f"{'is' if count == 1 else 'are'} there; the figures speak of these weights alone."
        )
    for reading in READINGS:
        standing = results.standings[reading][entry.name]
        said.append(f"{name}, {TITLES[reading]}: {_against_one(results, standing)}")
        for lead, other in ((standing.lead, REFERENCE), (standing.learned, "itself untrained")):
            if lead is not None:
                said.append(
                    f"{name}, {TITLES[reading]}: a run of it beats one of {other} "
                    f"({TITLES[reading]}) with probability {interval(lead.mean_improvement)}, "
                    f"{_position(lead.mean_improvement, 0.5)}; the difference in mean normalised "
                    f"AUC is {interval(lead.auc.mean)}, {_position(lead.auc.mean, 0.0)}."
                )
    return said


def _against_one(results: Results, standing: Standing) -> str:
    """Where a standing is against the best baseline of each task."""
    tasks = [task.name for task in results.benchmark.suite.tasks]
    below, above = (
        [
            task
            for task, x in zip(tasks, standing.auc.tasks, strict=True)
            if x and _position(x, 1.0).startswith(side)
        ]
        for side in ("below", "above")
    )
    final = standing.final.mean
    return (
        f"mean normalised AUC {interval(standing.auc.mean)}, {_position(standing.auc.mean, 1.0)}; "
        f"significantly below 1 on {', '.join(below) or 'no task'}; "
        f"above 1 on {', '.join(above) or 'no task'}; "
        f"final return {interval(final)}, {_position(final, 1.0)}; "
        f"{standing.diverged} of {standing.runs} runs diverged."
    )


def _position(estimate: Estimate | None, null: float) -> str:
    """Where an interval lies."""
    if estimate is None:
        return "no scale"
    if estimate.low > null:
        return f"above {null:g}"
    # Diverged runs have neither a mean nor an upper end: they are below anything.
    if estimate.high < null or np.isnan(estimate.value):
        return f"below {null:g}"
    return f"not to be told from {null:g}"


def _caveats(results: Results) -> list[str]:
    suite = results.benchmark.suite
    said = []
    for scale, score in ((results.auc_scale, "AUC"), (results.final_scale, "final return")):
        lost = [task.name for task, ok in zip(suite.tasks, scale.resolved, strict=True) if not ok]
        if lost:
            said.append(
                f"No baseline is clearly better than the untrained policy by {score} on "
                f"{', '.join(lost)}: there is no scale there, and no mean has these tasks in it."
            )
    edges = [
        f"{entry.name} ({', '.join(found)})"
        for entry in results.benchmark.entries
        if (found := _edges(results, entry))
    ]
    if edges:
        said.append(
            "The best setting is at an edge of its grid, so that these may be better than shown: "
            f"{'; '.join(edges)}."
        )
    if results.benchmark.seeds == 1:
        said.append("One seed shows no spread: there are no intervals, and nothing is certain.")
    elif results.benchmark.seeds < FEW_SEEDS:
        said.append(f"{results.benchmark.seeds} seeds are few: intervals are too narrow.")
    few = [len(entry.members) for entry in results.benchmark.entries if entry.role == "learned"]
    if any(MIN_META_SEEDS <= count < FEW_META_SEEDS for count in few):
        said.append(
            "With so few meta-seeds a bootstrap interval is somewhat too narrow (with four it "
            "covers the truth about 90 % of the time): look at each meta-seed, too."
        )
    said.append(
        "Intervals of single tasks are not corrected for their number: of 20 tasks without any "
        "difference one is expected to look significant."
    )
    return said


def _edges(results: Results, entry: Entry) -> list[str]:
    tasks = [task.name for task in results.benchmark.suite.tasks]
    choices = results.choices[entry.name]
    found = [
        task for index, task in enumerate(tasks) if any(c.each[index].at_edge for c in choices)
    ]
    return found + ["one setting"] * any(choice.one.at_edge for choice in choices)


def _lead(lead: Lead | None) -> list[str]:
    """A lead in a table: the difference, and the probability."""
    if lead is None:
        return ["-", "-"]
    return [interval(lead.auc.mean), interval(lead.mean_improvement)]


def interval(estimate: Estimate | None) -> str:
    """An estimate in a table."""
    if estimate is None:
        return "-"
    if np.isnan(estimate.value):
        return "diverged"
    if not estimate.has_interval:
        return f"{estimate.value:.3f} (no interval)"
    low, high = ("-inf" if np.isnan(x) else f"{x:.2f}" for x in (estimate.low, estimate.high))
    return f"{estimate.value:.3f} ({low} to {high})"


# Tables

Table = tuple[list[str], list[list[str]]]


def summary_table(results: Results, reading: Reading) -> Table:
    """One row for each optimizer, the best mean normalised AUC first."""
    header = [
        "optimizer",
        "normalised AUC",
        "by meta-seed",
        f"minus {REFERENCE}",
        f"P(beats {REFERENCE})",
        "normalised final return",
        "diverged",
    ]
    entries = sorted(results.benchmark.entries, key=lambda x: -_rank(results, reading, x))
    rows = []
    for entry in entries:
        standing = results.standings[reading][entry.name]
        rows.append(
            [
                entry.name,
                interval(standing.auc.mean),
                _by_member(standing) if entry.role == "learned" else "",
                *_lead(standing.lead),
                interval(standing.final.mean),
                f"{standing.diverged} of {standing.runs}",
            ]
        )
    return header, rows


def _by_member(standing: Standing) -> str:
    return " / ".join("diverged" if np.isnan(x) else f"{x:.3f}" for x in standing.members)


def _rank(results: Results, reading: Reading, entry: Entry) -> float:
    mean = results.standings[reading][entry.name].auc.mean
    return -np.inf if mean is None or np.isnan(mean.value) else mean.value


def _task_table(results: Results, columns: Mapping[str, Sequence[str]]) -> Table:
    """One row for each task, one column for each optimizer."""
    tasks = [task.name for task in results.benchmark.suite.tasks]
    rows = [list(row) for row in zip(tasks, *columns.values(), strict=True)]
    return ["task", *columns], rows


def _settings_table(results: Results) -> Table:
    """The settings chosen, a star where one is at an edge of its grid."""

    def text(tunings: Iterable[Tuning]) -> str:
        return " / ".join(f"{x.rate:g}{'*' * x.at_edge}" for x in tunings)

    columns = {
        name: [text(tunings) for tunings in zip(*(c.each for c in choices), strict=True)]
        for name, choices in results.choices.items()
    }
    header, rows = _task_table(results, columns)
    one = [text(choice.one for choice in choices) for choices in results.choices.values()]
    return header, [*rows, ["one for all", *one]]


def _scale_table(results: Results) -> Table:
    rows = []
    for index, task in enumerate(results.benchmark.suite.tasks):
        row = [task.name, f"{results.untrained[index].env_steps[-1]:,}"]
        for scale in (results.auc_scale, results.final_scale):
            low, high = (float(end[index]) for end in scale.ends)
            row.append(f"{low:.4g}")
            row.append(f"{high:.4g}, {scale.best[index]}" if scale.resolved[index] else "none")
        rows.append(row)
    return ["task", "env steps", "AUC: 0 is", "1 is", "final return: 0 is", "1 is"], rows


def _stuck_table(results: Results) -> Table:
    scales = results.benchmark.stress_scales
    header = ["optimizer", "task", *(f"x {scale:g}" for scale in scales)]
    rows = []
    for name, tasks in results.stuck.items():
        for task, rates in tasks.items():
            cells = [
                "-" if x is None else f"{x.value:.1%} ({x.low:.1%} to {x.high:.1%})"
                for x in rates.values()
            ]
            rows.append([name, task, *cells])
    return header, rows


def to_markdown(results: Results, record: dict[str, Any]) -> str:
    """The report: first what can be claimed and what cannot."""
    benchmark = results.benchmark
    parts = [f"# Suite {benchmark.suite.name}: {len(benchmark.suite.tasks)} tasks", ""]
    parts += [f"- {claim}" for claim in claims(results)]
    parts += ["", "    " + record["command"], "", _protocol(results)]
    for reading in READINGS:
        parts += _section(f"All tasks, {TITLES[reading]}", summary_table(results, reading))
    for reading in READINGS:
        parts += _reading_sections(results, reading)
    title = "Settings, one for each meta-seed (* an edge of the grid)"
    parts += _section(title, _settings_table(results))
    if any(results.stuck.values()):
        parts += _section("Stuck runs, by multiple of the tuned setting", _stuck_table(results))
    parts += _section("The scale of each task", _scale_table(results))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts += ["", "![Learning curves](curves.svg)", "", "![Performance profile](profile.svg)"]
    parts += ["", f"Made with {versions}; code {record['code'][:16]}.", ""]
    return "\n".join(parts)


def _reading_sections(results: Results, reading: Reading) -> list[str]:
    """What one reading says of each task."""
    standings = results.standings[reading]
    tables: dict[str, dict[str, tuple[Estimate | None, ...]]] = {
        "Normalised AUC": {name: x.auc.tasks for name, x in standings.items()},
        "Normalised final return": {name: x.final.tasks for name, x in standings.items()},
        f"Probability to beat {REFERENCE}": {
            name: x.lead.improvement for name, x in standings.items() if x.lead is not None
        },
    }
    parts = []
    for title, columns in tables.items():
        texts = {name: [interval(x) for x in found] for name, found in columns.items()}
        parts += _section(f"{title}, {TITLES[reading]}", _task_table(results, texts))
    raw = {name: [_raw(x) for x in found] for name, found in results.curves[reading].items()}
    title = f"AUC as it is, and the worst run's, {TITLES[reading]}"
    return parts + _section(title, _task_table(results, raw))


def _raw(members: Sequence[Curves]) -> str:
    """Mean and lowest AUC of all runs on a task."""
    areas = np.concatenate([area_under_curve(curves) for curves in members])
    if np.isnan(areas).any():
        return "diverged"
    return f"{areas.mean():.4g}, {areas.min():.4g}"


def _protocol(results: Results) -> str:
    benchmark = results.benchmark
    suite = benchmark.suite
    rates, scales = (", ".join(f"{x:g}" for x in grid) for grid in (suite.rates, suite.step_scales))
    return (
        f"Every optimizer is tuned over {len(suite.rates)} values with {benchmark.tuning_seeds} "
        f"seeds on every task (learning rates {rates}; step scales {scales}) and reported on "
        f"{benchmark.seeds} others. Settings are chosen by AUC, the mean return over a run; the "
        "one setting for all tasks by its mean normalised AUC on the tuning seeds. 0 is the "
        f"untrained policy, 1 the best of {', '.join(CEILINGS)}, tuned for the task. Rewards are "
        "normalised but for adam_raw_rewards. Intervals are 95 % bootstrap intervals that resample "
        "seeds, with them the runs that 0 and 1 are made of, and meta-seeds where there are "
        "several."
    )


def _section(title: str, table: Table) -> list[str]:
    header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    text = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines]
    return ["", f"## {title}", "", *text]


def print_summary(results: Results) -> None:
    """The most important on stdout."""
    for reading in READINGS:
        header, rows = summary_table(results, reading)
        print_table(f"Suite {results.benchmark.suite.name}, {TITLES[reading]}", header, rows)
    for claim in claims(results):
        print(f"- {claim.replace('**', '')}")
    print(f"\n{results.benchmark.folder / 'results.md'}")


# For programs


def to_json(results: Results) -> dict[str, Any]:
    """All numbers but the curves; None where a run diverged or a task has no scale."""
    benchmark = results.benchmark
    tasks = [task.name for task in benchmark.suite.tasks]
    return {
        "suite": benchmark.suite.name,
        "claims": claims(results),
        "seeds": benchmark.seeds,
        "tuning_seeds": benchmark.tuning_seeds,
        "tasks": {
            task.name: {
                **config_to_dict(task.config),
                "rollouts": task.rollouts,
                "auc_scale": _scale_values(results.auc_scale, index),
                "final_scale": _scale_values(results.final_scale, index),
            }
            for index, task in enumerate(benchmark.suite.tasks)
        },
        "optimizers": {
            entry.name: {
                "role": entry.role,
                "meta_seeds": len(entry.members),
                "grid": list(entry.grid),
                "unit": entry.unit,
                "settings": [_choice_values(c, tasks) for c in results.choices[entry.name]],
                **{
                    reading: _standing_values(results.standings[reading][entry.name], tasks)
                    for reading in READINGS
                },
                "stuck": {
                    task: {f"{x:g}": rate and estimate_values(rate) for x, rate in rates.items()}
                    for task, rates in results.stuck[entry.name].items()
                },
            }
            for entry in benchmark.entries
        },
    }


def _choice_values(choice: Choice, tasks: list[str]) -> dict[str, Any]:
    each = dict(zip(tasks, choice.each, strict=True))
    return {
        "tuned": {task: tuning.rate for task, tuning in each.items()},
        "one": choice.one.rate,
        "at_edge": [task for task, tuning in each.items() if tuning.at_edge],
        "one_at_edge": choice.one.at_edge,
    }


def _scale_values(scale: Scale, index: int) -> dict[str, Any]:
    low, high = (float(end[index]) for end in scale.ends)
    ceiling = high if np.isfinite(high) else None
    resolved = bool(scale.resolved[index])
    return {"low": low, "high": ceiling, "best": scale.best[index], "resolved": resolved}


def _standing_values(standing: Standing, tasks: list[str]) -> dict[str, Any]:
    def values(found: Normalised | None) -> Any:
        if found is None:
            return None
        each = [x and estimate_values(x) for x in found.tasks]
        return {
            "mean": found.mean and estimate_values(found.mean),
            "tasks": dict(zip(tasks, each, strict=True)),
        }

    def improvement(lead: Lead | None) -> Any:
        if lead is None:
            return None
        each = [estimate_values(x) for x in lead.improvement]
        return {
            "mean": estimate_values(lead.mean_improvement),
            "tasks": dict(zip(tasks, each, strict=True)),
        }

    lead, learned = standing.lead, standing.learned
    return {
        "auc": values(standing.auc),
        "final": values(standing.final),
        f"minus_{REFERENCE}": values(lead.auc if lead else None),
        f"improvement_over_{REFERENCE}": improvement(lead),
        "minus_untrained": values(learned.auc if learned else None),
        "improvement_over_untrained": improvement(learned),
        "auc_of_meta_seeds": [x if np.isfinite(x) else None for x in standing.members],
        "diverged": standing.diverged,
        "runs": standing.runs,
    }


# Runs


def write_runs(results: Results, path: Path) -> None:
    """One Parquet file, one row for each run, its curve in list columns."""
    import polars as pl

    buffer = io.BytesIO()
    pl.DataFrame(list(_rows(results))).write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for labels, curves, seeds in _labelled(results):
        areas, finals = area_under_curve(curves), final_return(curves)
        for run, seed in enumerate(seeds):
            yield {
                **labels,
                "seed": seed,
                "auc": float(areas[run]),
                "final_return": float(finals[run]),
                "diverged_at": int(curves.diverged_at[run]),
                "env_steps": curves.env_steps.tolist(),
                "returns": curves.returns[run].astype(np.float32).tolist(),
            }


def _labelled(results: Results) -> Iterator[tuple[dict[str, Any], Curves, range]]:
    """All reported curves and those of the stress test, what they are, and their seeds."""
    benchmark = results.benchmark
    for index, task in enumerate(benchmark.suite.tasks):
        labels = _labels("untrained policy", task.name, "untrained", 0, 0.0)
        yield labels, results.untrained[index], benchmark.evaluation_range
        for entry in benchmark.entries:
            for member, choice in enumerate(results.choices[entry.name]):
                for reading in READINGS:
                    setting = choice.at(reading, index)
                    labels = _labels(entry.name, task.name, reading, member, setting)
                    curves = results.curves[reading][entry.name][index][member]
                    yield labels, curves, benchmark.evaluation_range
                setting = choice.at("tuned", index)
                stress = read_stress(benchmark, task, entry, member, setting)
                for multiple, curves in stress.items():
                    labels = _labels(entry.name, task.name, "stress", member, setting * multiple)
                    yield labels, curves, benchmark.stress_range


def _labels(
    optimizer: str, task: str, purpose: str, member: int, setting: float
) -> dict[str, str | int | float]:
    return {
        "optimizer": optimizer,
        "task": task,
        "purpose": purpose,
        "meta_seed": member,
        "setting": setting,
    }
