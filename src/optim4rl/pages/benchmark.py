"""A benchmark's results for people and programs: claims, tables, runs and pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optim4rl.benchmark.contender import Contender
from optim4rl.benchmark.loop import Benchmark, Choice, Reading, Results, scores_of
from optim4rl.benchmark.rows import table_rows
from optim4rl.benchmark.scale import Lead, Normalised, Scale, Standing
from optim4rl.benchmark.scores import SCORE_WORDS, greedy_return
from optim4rl.benchmark.table import write_runs
from optim4rl.benchmark.tuning import Tuning
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    bootstrap_interval,
    failure_rate,
    final_return,
)
from optim4rl.evaluation.stability import METRICS, stability
from optim4rl.fields import to_json as settings_json
from optim4rl.files.atomic import write_atomically
from optim4rl.jobs.provenance import provenance
from optim4rl.pages.claims import (
    TITLES as TITLES,
    LeadClaim,
    auc_order,
    claims as claims,
    counted,
    lead_cells,
    lead_claims as lead_claims,
    task_names,
    tuning_budget,
)
from optim4rl.pages.costs import cost_values, task_cost_tables, time_table
from optim4rl.pages.plots import plot_profiles, plot_suite
from optim4rl.pages.sensitivity import sensitivities, sensitivity_json, sensitivity_tables
from optim4rl.pages.words import Table, estimate_json, finite, markdown_table, with_interval


def write_report(results: Results, command: str) -> None:
    """Write results.md, results.json, runs.parquet, curves.svg and profile.svg."""
    b, folder = results.benchmark, results.benchmark.folder
    record = {"command": command, **provenance("optim4rl.benchmark.loop")}
    document = {**to_json(results), **record}
    write_atomically(folder / "results.json", json.dumps(document, indent=1).encode())
    write_atomically(folder / "results.md", to_markdown(results, record).encode())
    write_runs(table_rows(results.runs), folder / "runs.parquet")
    names = task_names(results)
    curves = results.runs.curves["tuned"]
    panels = {
        task: {name: found[index] for name, found in curves.items()}
        for index, task in enumerate(names)
    }
    floors = dict(zip(names, results.final_scale.ends[0].tolist(), strict=True))
    behind = [x.name for x in b.baselines if x.name != b.reference]
    plot_suite(panels, floors, folder / "curves.svg", background=behind)
    if _is_timed(results):
        plot_suite(panels, floors, folder / "seconds.svg", background=behind, by="seconds")
    profiles = {
        TITLES[reading]: {name: x.profile for name, x in found.items() if x.profile is not None}
        for reading, found in results.standings.items()
    }
    plot_profiles(profiles, folder / "profile.svg", background=behind)


# Tables


def summary_table(results: Results, reading: Reading) -> Table:
    """Make a row for each contender, the best mean normalised AUC first."""
    reference = results.benchmark.reference
    leads = [f"IQM minus {reference}'s", f"P(beats {reference})"] * (reference is not None)
    header = ["optimizer", "normalised AUC", "its IQM", "by meta-seed", *leads]
    header += ["normalised final return", "diverged"]
    standings = results.standings[reading]
    ranked = sorted(results.benchmark.contenders, key=lambda x: auc_order(standings[x.name]))
    rows = []
    for contender in ranked:
        standing = standings[contender.name]
        members = [f"{x:.3f}" if np.isfinite(x) else "diverged" for x in standing.members]
        rows.append(
            [
                contender.name,
                with_interval(standing.auc.mean),
                with_interval(standing.auc.iqm),
                " / ".join(members) if contender.role == "learned" else "",
                *lead_cells(standing.lead, "iqm")[: len(leads)],
                with_interval(standing.final.mean),
                f"{standing.diverged} of {standing.runs}",
            ]
        )
    return header, rows


def raw_table(results: Results, reading: Reading, task: int) -> Table:
    """Tabulate each contender's AUC and final return on a task, in the task's own units."""
    greedy = results.benchmark.suite.tasks[task].config.greedy_episodes > 0
    rows = []
    for contender in results.benchmark.contenders:
        members = results.runs.curves[reading][contender.name][task]
        areas, finals = (scores_of([members], score) for score in (area_under_curve, final_return))
        mean, worst = (
            "diverged" if np.isnan(x) else f"{x:.4g}" for x in (areas.mean(), areas.min())
        )
        rows.append(
            [
                contender.name,
                with_interval(bootstrap_interval(areas)),
                mean,
                worst,
                with_interval(bootstrap_interval(finals)),
                f"{failure_rate(stack(members)).value:.0%}",
            ]
        )
        if greedy:
            found = scores_of([members], greedy_return)
            rows[-1].append(with_interval(bootstrap_interval(found, statistic="mean")))
    header = ["optimizer", "AUC, IQM (95 %)", "mean", "worst run", "final return, IQM", "diverged"]
    return header + ["greedy return, mean"] * greedy, rows


def stability_table(results: Results, task: int) -> Table:
    """Tabulate the five metrics of Chan et al. 2020 on a task, in units of its scale."""
    low, high = (float(end[task]) for end in results.final_scale.ends)
    unit = high - low if results.final_scale.resolved[task] else 1.0
    header = ["optimizer", *(metric.label for metric in METRICS)]
    rows = []
    for contender in results.benchmark.contenders:
        curves = stack(results.runs.curves["tuned"][contender.name][task])
        if curves.env_steps.size < 2:
            continue
        found = stability(curves, unit)
        values = [getattr(found, metric.key) for metric in METRICS]
        rows.append([contender.name, *(f"{x:.3f}" if np.isfinite(x) else "-" for x in values)])
    return header, rows


def _task_table(results: Results, columns: Mapping[str, Sequence[str]]) -> Table:
    """Make a row for each task, and a column for each contender."""
    rows = [list(row) for row in zip(task_names(results), *columns.values(), strict=True)]
    return ["task", *columns], rows


def _settings_table(results: Results) -> Table:
    """Tabulate the chosen settings; a star marks an edge of the grid."""

    def text(tunings: Iterable[Tuning]) -> str:
        return " / ".join(f"{x.rate:g}{'*' * x.at_edge}" for x in tunings)

    chosen = results.runs.choices
    columns = {
        name: [text(tunings) for tunings in zip(*(c.each for c in choices), strict=True)]
        for name, choices in chosen.items()
    }
    header, rows = _task_table(results, columns)
    if len(results.benchmark.readings) > 1:
        one = [text(choice.one for choice in choices) for choices in chosen.values()]
        rows.append(["one for all", *one])
    return header, rows


def _budget_table(results: Results) -> Table:
    """Tabulate the number of tuning runs, and the values tried on a task."""
    spent, rows = tuning_budget(results), []
    for contender in results.benchmark.contenders:
        grids = [x.rates for c in results.runs.choices[contender.name] for x in c.each]
        tried = sorted({len(grid) for grid in grids})
        widest = sorted({x for grid in grids for x in grid})
        values = f"{tried[0]} to {tried[-1]}" if len(tried) > 1 else str(tried[0])
        ends = f"{widest[0]:g} to {widest[-1]:g}"
        rows.append([contender.name, str(spent[contender.name]), values, ends])
    return ["optimizer", "tuning runs", "values on a task", "from and to"], rows


def _scale_table(results: Results) -> Table:
    rows = []
    for index, task in enumerate(task_names(results)):
        row = [task, f"{results.runs.untrained[index].env_steps[-1]:,}"]
        for scale in (results.auc_scale, results.final_scale):
            low, high = (float(end[index]) for end in scale.ends)
            row.append(f"{low:.4g}")
            row.append(f"{high:.4g}, {scale.best[index]}" if scale.resolved[index] else "none")
        rows.append(row)
    return ["task", "env steps", "AUC: 0 is", "1 is", "final return: 0 is", "1 is"], rows


def _stuck_table(results: Results) -> Table:
    scales = results.benchmark.protocol.stress_scales
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


def to_markdown(results: Results, record: Mapping[str, Any]) -> str:
    """Write the report as Markdown: first what can be claimed and what cannot."""
    b = results.benchmark
    suite, readings = b.suite, b.readings
    parts = [f"# {suite.name}: {counted(len(suite.tasks), 'task')}", ""]
    parts += [f"- {claim}" for claim in claims(results)]
    if results.benchmark.claim:
        parts += ["", results.benchmark.claim]
    parts += ["", "    " + record["command"], "", _protocol(results)]
    whole = "All tasks" if len(suite.tasks) > 1 else task_names(results)[0]
    for reading in readings:
        parts += _section(f"{whole}, {TITLES[reading]}", summary_table(results, reading))
        timed = time_table(results, reading)
        if timed is not None:
            parts += _section(f"{whole} in {b.reference}'s time, {TITLES[reading]}", timed)
    for reading in readings:
        for title, table in sensitivity_tables(results, reading).items():
            parts += _section(f"{title}, {TITLES[reading]}", table)
    for reading in readings:
        parts += _reading_sections(results, reading)
    for task, table in task_cost_tables(results).items():
        parts += _section(f"{task}: costs, {TITLES['tuned']}", table)
    for index, task in enumerate(task_names(results)):
        title = f"{task}: stability (Chan et al. 2020), {TITLES['tuned']}"
        parts += _section(title, stability_table(results, index))
    title = "Settings, one for each meta-seed (* an edge of the grid)"
    parts += _section(title, _settings_table(results))
    parts += _section("Tuning budget", _budget_table(results))
    if any(results.stuck.values()):
        parts += _section("Stuck runs, by multiple of the tuned setting", _stuck_table(results))
    parts += _section("The scale of each task", _scale_table(results))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts += ["", "![Learning curves](curves.svg)", "", "![Performance profile](profile.svg)"]
    if _is_timed(results):
        parts += ["", "![Learning curves against seconds](seconds.svg)"]
    parts += ["", f"Made with {versions}; code {record['code'][:16]}.", ""]
    return "\n".join(parts)


def _is_timed(results: Results) -> bool:
    return all(
        member.seconds is not None
        for tasks in results.runs.curves["tuned"].values()
        for members in tasks
        for member in members
    )


def _reading_sections(results: Results, reading: Reading) -> list[str]:
    """Write the sections of one reading about each task."""
    standings = results.standings[reading]
    tables: dict[str, dict[str, tuple[Estimate | None, ...]]] = {
        "Normalised AUC": {name: x.auc.tasks for name, x in standings.items()},
        "Normalised final return": {name: x.final.tasks for name, x in standings.items()},
        f"Probability of beating {results.benchmark.reference}": {
            name: x.lead.improvement for name, x in standings.items() if x.lead is not None
        },
    }
    parts = []
    for title, columns in tables.items():
        texts = {name: [with_interval(x) for x in found] for name, found in columns.items()}
        if columns:
            parts += _section(f"{title}, {TITLES[reading]}", _task_table(results, texts))
    for index, task in enumerate(task_names(results)):
        title = f"{task}: raw returns, {TITLES[reading]}"
        parts += _section(title, raw_table(results, reading, index))
    return parts


def _protocol(results: Results) -> str:
    b = results.benchmark
    one = ""
    if len(b.readings) > 1:
        one = (
            " The one setting for all tasks has the best mean normalised "
            f"{SCORE_WORDS[b.suite.score]} on the tuning seeds."
        )
    return (
        f"{_tuning(b)} 0 is the untrained policy: agents that never update. "
        f"1 is the best of {', '.join(b.ceilings) or 'no baseline'}, tuned for the task.{one} "
        "The 95 % bootstrap intervals resample seeds, with them the runs that define 0 and 1, and "
        "meta-seeds if there are several."
    )


def _tuning(b: Benchmark) -> str:
    """Say how settings are chosen."""
    protocol = b.protocol
    grids = dict.fromkeys(
        ("step scale" if x.role in ("learned", "control") else "learning rate", x.grid)
        for x in b.contenders
    )
    shown = "; ".join(
        f"{counted(len(grid), what)}: {', '.join(f'{x:g}' for x in grid)}" for what, grid in grids
    )
    reported = counted(protocol.seeds, "seed")
    fixed = [len(grid) == 1 for _, grid in grids]
    if all(fixed):
        return f"Nothing is tuned ({shown}). Every optimizer is reported on {reported}."
    every = f"Every optimizer{' with several values' * any(fixed)}"
    return (
        f"{every} is tuned with {counted(protocol.tuning_seeds, 'seed')} on every task "
        f"({shown}) and reported on {reported} that chose no setting. The setting with the best "
        f"{SCORE_WORDS[b.suite.score]} is chosen. {_extension(protocol.extensions)}"
        f"{_short_tuning(b)}"
    )


def _short_tuning(b: Benchmark) -> str:
    short = [
        f"{task.choosing:,} of {task.rollouts:,} rollouts on {task.name}"
        for task in b.suite.tasks
        if task.choosing < task.rollouts
    ]
    if not short:
        return ""
    return (
        f" Tuning runs stop early, after {', '.join(short)}. So tuning favours settings that learn "
        "early, and does not see a run that fails later."
    )


def _extension(limit: int) -> str:
    if not limit:
        return "Grids are not extended."
    return (
        "If the best value is at the edge of a grid and better than its neighbour, the next half "
        f"decade is tried, too, up to {counted(limit, 'time')} on each side. This holds for all "
        "optimizers."
    )


def _section(title: str, table: Table) -> list[str]:
    return ["", f"## {title}", "", *markdown_table(*table)]


# For programs


def to_json(results: Results) -> dict[str, Any]:
    """Return all numbers except curves; None if a run diverged or a task has no scale."""
    b = results.benchmark
    by_tasks = {reading: sensitivities(results, reading) for reading in b.readings}
    return {
        "suite": b.suite.name,
        "reference": b.reference,
        "registered": b.claim or None,
        "claims": claims(results),
        "comparisons": [_claim_values(x) for x in lead_claims(results)],
        "seeds": b.protocol.seeds,
        "first_seed": b.protocol.first_seed,
        "tuning_seeds": b.protocol.tuning_seeds,
        "tasks": {
            task.name: {
                **settings_json(task.config),
                "rollouts": task.rollouts,
                "tuning_rollouts": task.choosing,
                "auc_scale": _scale_values(results.auc_scale, index),
                "final_scale": _scale_values(results.final_scale, index),
            }
            for index, task in enumerate(b.suite.tasks)
        },
        "by_choice_of_tasks": {
            reading: {name: sensitivity_json(x, task_names(results)) for name, x in found.items()}
            for reading, found in by_tasks.items()
        },
        "optimizers": {x.name: _contender_values(results, x) for x in b.contenders},
        "costs": {reading: cost_values(results, reading) for reading in b.readings},
    }


def _claim_values(each: LeadClaim) -> dict[str, Any]:
    return {
        "contender": each.contender,
        "other": each.other,
        "reading": each.reading,
        "score": each.score,
        "difference": estimate_json(each.lead.difference.iqm),
        "difference_of_means": estimate_json(each.lead.difference.mean),
        "improvement": estimate_json(each.lead.mean_improvement),
        "p": each.claim.comparison.test.p,
        "p_corrected": each.claim.p,
        "verdict": each.claim.verdict,
        "smallest_effect": each.claim.smallest_effect,
    }


def _contender_values(results: Results, contender: Contender) -> dict[str, Any]:
    tasks = task_names(results)
    name, b = contender.name, results.benchmark
    return {
        "role": contender.role,
        "meta_seeds": len(contender.members),
        "grid": list(contender.grid),
        "tuning_runs": tuning_budget(results)[name],
        "unit": contender.unit,
        "settings": [_choice_values(choice, tasks) for choice in results.runs.choices[name]],
        **{
            reading: _standing_values(results.standings[reading][name], tasks)
            for reading in b.readings
        },
        "raw": {
            task: _raw_values(results.runs.curves["tuned"][name][index])
            for index, task in enumerate(tasks)
        },
        "stuck": {
            task: {f"{x:g}": estimate_json(rate) for x, rate in rates.items()}
            for task, rates in results.stuck[name].items()
        },
    }


def _raw_values(members: Sequence[Curves]) -> dict[str, Any]:
    """Compute interquartile means in the task's own units, and the mean of greedy returns."""
    values = {
        key: estimate_json(bootstrap_interval(scores_of([members], score)))
        for key, score in (("auc", area_under_curve), ("final", final_return))
    }
    if all(curves.greedy is not None for curves in members):
        found = scores_of([members], greedy_return)
        values["greedy_mean"] = estimate_json(bootstrap_interval(found, statistic="mean"))
    return values


def _choice_values(choice: Choice, tasks: list[str]) -> dict[str, Any]:
    each = dict(zip(tasks, choice.each, strict=True))
    return {
        "tuned": {task: tuning.rate for task, tuning in each.items()},
        "tried": {task: list(tuning.rates) for task, tuning in each.items()},
        "one": choice.one.rate,
        "at_edge": [task for task, tuning in each.items() if tuning.at_edge],
        "one_at_edge": choice.one.at_edge,
    }


def _scale_values(scale: Scale, index: int) -> dict[str, Any]:
    low, high = (finite(end[index]) for end in scale.ends)
    resolved = bool(scale.resolved[index])
    return {"low": low, "high": high, "best": scale.best[index], "resolved": resolved}


def _standing_values(standing: Standing, tasks: list[str]) -> dict[str, Any]:
    def by_task(found: Sequence[Estimate | None]) -> dict[str, Any]:
        return dict(zip(tasks, map(estimate_json, found), strict=True))

    def values(found: Normalised | None) -> Any:
        if found is None:
            return None
        mean, iqm = estimate_json(found.mean), estimate_json(found.iqm)
        return {"mean": mean, "iqm": iqm, "tasks": by_task(found.tasks)}

    def improvement(lead: Lead | None) -> Any:
        if lead is None:
            return None
        return {"mean": estimate_json(lead.mean_improvement), "tasks": by_task(lead.improvement)}

    lead, learned = standing.lead, standing.learned
    return {
        "auc": values(standing.auc),
        "final": values(standing.final),
        "minus_reference": values(lead.difference if lead else None),
        "improvement_over_reference": improvement(lead),
        "minus_untrained": values(learned.difference if learned else None),
        "improvement_over_untrained": improvement(learned),
        "auc_of_meta_seeds": [finite(x) for x in standing.members],
        "diverged": standing.diverged,
        "runs": standing.runs,
    }
