"""The rows of a benchmark in `runs.parquet`. `table` has the schema, the reader and the writer."""

from collections.abc import Iterator, Mapping
from typing import Any

from optim4rl.benchmark.loop import Runs, tuning_curves
from optim4rl.benchmark.table import UNTRAINED, run_rows


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
