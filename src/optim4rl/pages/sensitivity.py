"""Show whether one task carries a lead: leave each task out, and resample tasks."""

from typing import Any

from optim4rl.benchmark.loop import Reading, Results, scores_of
from optim4rl.benchmark.sensitivity import Sensitivity, sensitivity
from optim4rl.evaluation.returns import area_under_curve
from optim4rl.pages.claims import task_names
from optim4rl.pages.words import estimate_json, with_interval

Table = tuple[list[str], list[list[str]]]


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
    chances = [
        [name, with_interval(x.improvement), *(f"{part.improvement:.3f}" for part in x.without)]
        for name, x in found.items()
    ]
    differences = [
        [
            name,
            with_interval(x.difference),
            *("-" if p.difference is None else f"{p.difference:.3f}" for p in x.without),
        ]
        for name, x in found.items()
    ]
    return {
        f"Probability of beating {reference}, by choice of tasks": (header, chances),
        f"IQM of normalised AUC minus {reference}'s, by choice of tasks": (header, differences),
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
