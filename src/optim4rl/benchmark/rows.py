"""The rows of `runs.parquet`, one for each run. `table` has the schema and the reader."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optim4rl.benchmark.loop import Runs, tuning_curves
from optim4rl.benchmark.table import COLUMNS
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, final_return

UNTRAINED = "untrained policy"


def table_rows(
    runs: Runs, labels: Mapping[str, Mapping[str, str]] = {}
) -> Iterator[dict[str, Any]]:
    """Yield a row for every run of a benchmark.

    Args:
        runs: the runs.
        labels: contender -> values to put into its columns ("role", "change").
    """
    b = runs.benchmark
    for index, task in enumerate(b.suite.tasks):
        of_task = {"suite": b.suite.name, "task": task.name, "change": "", "step_multiple": 1.0}
        untrained = {"optimizer": UNTRAINED, "role": "untrained", "purpose": "tuned"}
        yield from run_rows(
            {**of_task, **untrained, "meta_seed": 0, "setting": 0.0},
            runs.untrained[index],
            b.protocol.reported,
        )
        for contender in b.contenders:
            whose = {**of_task, "optimizer": contender.name, "role": contender.role}
            whose |= labels.get(contender.name, {})
            for member, choice in enumerate(runs.choices[contender.name]):
                named = {**whose, "meta_seed": member}
                grid = choice.each[index].rates if len(contender.grid) > 1 else ()
                tuning = tuning_curves(b, task, contender, member, grid) if grid else []
                for setting, curves in zip(grid, tuning, strict=True):
                    row = {**named, "purpose": "tuning", "setting": setting}
                    yield from run_rows(row, curves, b.protocol.tuning, with_curves=False)
                for reading in b.readings:
                    row = {**named, "purpose": reading, "setting": choice.at(reading, index)}
                    curves = runs.curves[reading][contender.name][index][member]
                    yield from run_rows(row, curves, b.protocol.reported)
                stress = runs.stress[contender.name].get(task.name, {})
                for multiple, together in stress.items():
                    size = b.protocol.stress_seeds
                    own = slice(member * size, (member + 1) * size)
                    row = {**named, "purpose": "stress", "step_multiple": multiple}
                    row["setting"] = choice.at("tuned", index) * multiple
                    yield from run_rows(row, together.take(own), b.protocol.stress)


def run_rows(
    labels: Mapping[str, Any],
    curves: Curves,
    seeds: Sequence[int],
    *,
    with_curves: bool = True,
    extra: Mapping[str, Curves] = {},
) -> Iterator[dict[str, Any]]:
    """Yield a row for each run of some curves.

    Args:
        labels: columns with the same value in all rows.
        curves: the curves of the runs.
        seeds: the seeds of the runs.
        with_curves: whether to write the curves; if False, only scores are written.
        extra: curves of further metrics; each becomes a column of lists.
    """
    areas, finals = area_under_curve(curves), final_return(curves)
    unknown = np.full(len(seeds), np.nan)
    greedy, seconds = (unknown if x is None else x for x in (curves.greedy, curves.seconds))
    for run, seed in enumerate(seeds):
        row = {
            **labels,
            "seed": seed,
            "auc": float(areas[run]),
            "final_return": float(finals[run]),
            "greedy_return": float(greedy[run]),
            "seconds": float(seconds[run]),
            "diverged_at": int(curves.diverged_at[run]),
            "env_steps": curves.env_steps.tolist() if with_curves else [],
            "returns": curves.returns[run].astype(np.float32).tolist() if with_curves else [],
        }
        further = {name: x.returns[run].tolist() for name, x in extra.items()}
        yield {name: row[name] for name in COLUMNS} | further
