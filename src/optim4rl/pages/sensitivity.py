"""Show whether one task carries a lead: leave each task out, and resample tasks."""

from typing import Any

from optim4rl.benchmark.loop import Reading, Results, scores_of
from optim4rl.benchmark.sensitivity import Sensitivity, sensitivity
from optim4rl.evaluation.returns import area_under_curve
from optim4rl.pages.claims import task_names
from optim4rl.pages.words import Table, estimate_json, with_interval


def sensitivities(results: Results, reading: Reading) -> dict[str, Sensitivity]:
    """Compare every contender with the reference; empty without one, or on a single task."""
    b = results.benchmark
    if len(b.suite.tasks) < 2 or b.reference is None:
        return {}
    areas = {
        name: scores_of(curves, area_under_curve)
        for name, curves in results.runs.curves[reading].items()
    }
    return {
        x.name: sensitivity(areas[x.name], areas[b.reference], results.auc_scale)
        for x in b.contenders
        if x.name != b.reference
    }


def sensitivity_tables(results: Results, reading: Reading) -> dict[str, Table]:
    """Tabulate the probability of beating the reference and the difference, without each task."""
    found = sensitivities(results, reading)
    if not found:
        return {}
    without = [f"without {task}" for task in task_names(results)]
    header = ["optimizer", "all tasks (95 %, tasks resampled)", *without]
    reference = results.benchmark.reference

    def table(key: str) -> Table:
        rows = []
        for name, x in found.items():
            parts = (getattr(part, key) for part in x.without)
            cells = ("-" if part is None else f"{part:.3f}" for part in parts)
            rows.append([name, with_interval(getattr(x, key)), *cells])
        return header, rows

    return {
        f"Probability of beating {reference}, by choice of tasks": table("improvement"),
        f"IQM of normalised AUC minus {reference}'s, by choice of tasks": table("difference"),
    }


def sensitivity_json(found: Sensitivity, tasks: list[str]) -> dict[str, Any]:
    """Convert a sensitivity to JSON values."""
    return {
        "improvement": estimate_json(found.improvement),
        "difference": estimate_json(found.difference),
        "without": {
            task: {"improvement": part.improvement, "difference": part.difference}
            for task, part in zip(tasks, found.without, strict=True)
        },
    }
