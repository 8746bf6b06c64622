"""A benchmark against time: the cost of runs, and scores in equal time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optim4rl.benchmark.cost import Cost, area_in_time, run_seconds, task_cost
from optim4rl.benchmark.loop import Reading, Results
from optim4rl.benchmark.scale import Lead, Scale, lead_over
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import Estimate, bootstrap_interval
from optim4rl.pages.claims import lead_cells, task_names
from optim4rl.pages.words import Table, estimate_json, finite, with_interval


@dataclass(frozen=True)
class TimeStanding:
    """Hold a contender's results against time, in a reading.

    Attributes:
        costs: cost on each task.
        areas: AUC on each task within the time of the reference's run.
        lead: lead over the reference by this AUC; None for the reference itself.
    """

    costs: tuple[Cost, ...]
    areas: tuple[Estimate, ...]
    lead: Lead | None

    @property
    def ratio(self) -> float:
        """Return its time divided by the reference's, as the geometric mean over tasks."""
        return float(np.exp(np.mean(np.log([cost.ratio for cost in self.costs]))))


def time_standings(
    found: Mapping[str, Sequence[Sequence[Curves]]], reference: str | None, scale: Scale
) -> dict[str, TimeStanding]:
    """Compare contenders with measured times; empty if the reference's is not measured.

    Args:
        found: contender -> task -> the curves of each member.
        reference: the contender whose time is the budget of all.
        scale: the tasks' scale of AUC.
    """
    found = {
        name: tasks
        for name, tasks in found.items()
        if np.isfinite([run_seconds(members) for members in tasks]).all()
    }
    if reference is None or reference not in found:
        return {}
    budgets = [run_seconds(members) for members in found[reference]]
    areas = {
        name: np.stack([area_in_time(*each) for each in zip(tasks, budgets, strict=True)])
        for name, tasks in found.items()
    }
    return {
        name: TimeStanding(
            tuple(task_cost(*pair) for pair in zip(tasks, found[reference], strict=True)),
            tuple(bootstrap_interval(task[None]) for task in areas[name]),
            None if name == reference else lead_over(areas[name], areas[reference], scale),
        )
        for name, tasks in found.items()
    }


def _time_standings(results: Results, reading: Reading) -> dict[str, TimeStanding]:
    found, reference = results.runs.curves[reading], results.benchmark.reference
    return time_standings(found, reference, results.auc_scale)


def time_table(results: Results, reading: Reading) -> Table | None:
    """Tabulate scores in the reference's time, the cheapest first; None if not measured."""
    found, reference = _time_standings(results, reading), results.benchmark.reference
    if not found:
        return None
    columns = [f"time over {reference}'s", f"minus {reference}", f"P(beats {reference})"]
    ranked = sorted(found.items(), key=lambda item: item[1].ratio)
    rows = [[name, f"{x.ratio:.2f}", *lead_cells(x.lead, "mean")] for name, x in ranked]
    return ["optimizer", *columns], rows


def task_cost_tables(results: Results) -> dict[str, Table]:
    """Tabulate costs on each task, tuned for the task."""
    found, reference = _time_standings(results, "tuned"), results.benchmark.reference
    header = [
        "optimizer",
        "environment steps",
        "seconds",
        f"over {reference}'s",
        f"AUC in {reference}'s time, IQM",
        f"to {reference}'s final return: steps",
        "seconds to it",
        "runs that reach it",
    ]
    return {
        task: (
            header,
            [[name, *_cost(x.costs[index], x.areas[index])] for name, x in found.items()],
        )
        for index, task in enumerate(task_names(results))
        if found
    }


def _cost(cost: Cost, area: Estimate) -> list[str]:
    reached = np.isfinite(cost.env_steps_to_reach)
    return [
        f"{cost.env_steps:,}",
        f"{cost.seconds:.3g}",
        f"{cost.ratio:.2f}",
        with_interval(area),
        f"{cost.env_steps_to_reach:,.0f}" if reached else "-",
        f"{cost.seconds_to_reach:.3g}" if reached else "-",
        f"{cost.reached} of {cost.runs}",
    ]


def cost_values(results: Results, reading: Reading) -> dict[str, Mapping[str, Any]]:
    """Return the costs of each contender as JSON values."""
    return {
        name: {
            "time_over_reference": finite(x.ratio),
            "minus_reference": None if x.lead is None else estimate_json(x.lead.difference.mean),
            "improvement": None if x.lead is None else estimate_json(x.lead.mean_improvement),
            "tasks": {
                task: {
                    "env_steps": cost.env_steps,
                    "seconds": finite(cost.seconds),
                    "auc_in_reference_time": estimate_json(area),
                    "env_steps_to_reference": finite(cost.env_steps_to_reach),
                    "seconds_to_reference": finite(cost.seconds_to_reach),
                    "runs_that_reach": cost.reached,
                }
                for task, cost, area in zip(task_names(results), x.costs, x.areas, strict=True)
            },
        }
        for name, x in _time_standings(results, reading).items()
    }
