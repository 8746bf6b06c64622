"""Rebuild a benchmark from its table of runs: `runs.parquet` has everything that its page says.

A table does not have the inputs of the runs (weights, users' files, task settings). So a rebuilt
benchmark can be read, judged and shown, but not run again.
"""

from typing import TYPE_CHECKING

import numpy as np

from optim4rl.benchmark.contender import (
    ACCOMPANIED,
    BASELINES,
    CONTROL,
    Contender,
    Maker,
    Role,
    split_parts,
)
from optim4rl.benchmark.loop import Benchmark, Choice, Reading, Runs
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.benchmark.table import UNTRAINED, TableError, curves_of
from optim4rl.benchmark.tuning import Tuning, best_of_grid
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.tasks import TaskConfig

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def retell(table: "pl.DataFrame", folder: "Path", name: str = "suite") -> Runs:
    """Rebuild the runs of a benchmark from its table.

    Args:
        table: from `table.read_runs`.
        folder: the table's folder.
        name: name of the suite.

    Raises:
        TableError: the table has no runs of the untrained policy, for example because it is a
            study's, or the members of an optimizer were run on different seeds.
    """
    untrained = table.filter(optimizer=UNTRAINED)
    if untrained.is_empty():
        raise TableError(f"{folder}: no runs of the {UNTRAINED}: this is no benchmark's table")
    tasks = untrained["task"].unique(maintain_order=True).to_list()
    names = table.filter(table["optimizer"] != UNTRAINED)["optimizer"]
    of_each = {x: table.filter(optimizer=x) for x in names.unique(maintain_order=True)}
    contenders = tuple(_contender(x, rows, list(of_each)) for x, rows in of_each.items())
    readings: tuple[Reading, ...] = ("tuned", "one") if len(tasks) > 1 else ("tuned",)
    curves = {
        reading: {
            x: tuple(_members(rows.filter(purpose=reading, task=task), folder) for task in tasks)
            for x, rows in of_each.items()
        }
        for reading in readings
    }
    floor = tuple(curves_of(untrained.filter(task=task)) for task in tasks)
    suite_tasks = tuple(
        SuiteTask(TaskConfig(task), len(found.env_steps))
        for task, found in zip(tasks, floor, strict=True)
    )
    return Runs(
        Benchmark(Suite(name, suite_tasks, (1.0,), (1.0,)), contenders, folder, _protocol(table)),
        {x: _choices(rows, tasks) for x, rows in of_each.items()},
        curves,
        floor,
        {x: _stress(rows.filter(purpose="stress")) for x, rows in of_each.items()},
    )


def _contender(name: str, rows: "pl.DataFrame", names: list[str]) -> Contender:
    role: Role = rows["role"][0] or _role(name)
    grid = sorted(rows.filter(purpose="tuning")["setting"].unique()) or [1.0]
    members = tuple(Maker("sgd") for _ in range(rows["meta_seed"].n_unique()))
    base, _ = split_parts(name.removesuffix(ACCOMPANIED))
    suffix = name.removeprefix(base)
    # As `evaluate` and as `replicate` name them: "Version A untrained, step tuned".
    controls = {f"{base}{CONTROL}{suffix}", name.replace(",", f"{CONTROL},", 1)} - {name}
    known = next((x for x in names if x in controls), None) if role == "learned" else None
    return Contender(name, role, members, tuple(grid), control=known)


def _role(name: str) -> Role:
    """Guess the role: tables of version 0.1.0 do not have it."""
    if name in BASELINES:
        return "baseline"
    return "control" if name.endswith(CONTROL) else "learned"


def _protocol(table: "pl.DataFrame") -> Protocol:
    def seeds(purpose: str) -> list[int]:
        return sorted(table.filter(purpose=purpose)["seed"].unique())

    reported = seeds("tuned")
    multiples = sorted(table.filter(purpose="stress")["step_multiple"].unique()) or [1.0]
    return Protocol(
        seeds=len(reported),
        tuning_seeds=len(seeds("tuning")) or 1,
        stress_scales=tuple(multiples),
        stress_seeds=len(seeds("stress")) or 1,
        first_seed=reported[0],
    )


def _members(rows: "pl.DataFrame", folder: "Path") -> tuple[Curves, ...]:
    found = rows.partition_by("meta_seed", maintain_order=True)
    if len({tuple(x["seed"]) for x in found}) != 1:
        raise TableError(f"{folder}: the members of an optimizer are not run on the same seeds")
    return tuple(map(curves_of, found))


def _choices(rows: "pl.DataFrame", tasks: list[str]) -> tuple[Choice, ...]:
    """Read the settings of each member, and its grids if the table has the tuning runs."""
    choices = []
    for member in rows["meta_seed"].unique(maintain_order=True):
        own = rows.filter(meta_seed=member)
        each = tuple(_tuning(own.filter(task=task), "tuned") for task in tasks)
        one = _tuning(own, "one" if len(tasks) > 1 else "tuned")
        choices.append(Choice(each, one))
    return tuple(choices)


def _tuning(rows: "pl.DataFrame", purpose: str) -> Tuning:
    rate = float(rows.filter(purpose=purpose)["setting"][0])
    tuning = rows.filter(purpose="tuning")
    grids = [set(x["setting"]) for x in tuning.partition_by("task")]
    grid = sorted(set.intersection(*grids)) if grids else []
    if len(grids) != 1:  # AUC has no mean over several tasks; no task has no scores.
        return Tuning(rate, tuple(grid) or (rate,), ())
    areas = np.stack([tuning.filter(setting=value)["auc"].to_numpy() for value in grid])
    return Tuning(rate, tuple(grid), best_of_grid(grid, areas).scores)


def _stress(rows: "pl.DataFrame") -> dict[str, dict[float, Curves]]:
    return {
        task: {
            multiple: stack([curves_of(rows.filter(task=task, step_multiple=multiple))])
            for multiple in sorted(rows.filter(task=task)["step_multiple"].unique())
        }
        for task in rows["task"].unique(maintain_order=True)
    }
