"""`runs.parquet`: every run of a comparison. All commands share its schema and its reader.

| column | type | meaning |
|---|---|---|
| optimizer | text | name of the contender, "untrained policy" for agents that never update |
| role | text | learned, control, baseline, untrained; in studies reference, replacement, paper |
| change | text | in a study, the field that differs from the reference; otherwise empty |
| suite | text | name of the suite; empty if unknown |
| task | text | name of the environment |
| purpose | text | tuning, tuned (a setting for each task), one (one for all tasks), stress |
| meta_seed | int | index of the meta-training, 0 for a classical optimizer |
| setting | float | learning rate, or step scale of a learned optimizer |
| step_multiple | float | of the tuned setting, in the stress test; 1 elsewhere |
| seed | int | seed of the run |
| auc | float | mean return over all updates; NaN if the run diverged |
| final_return | float | mean return over the last updates; NaN if the run diverged |
| greedy_return | float | mean return of greedy episodes at the end; NaN if diverged or not run |
| seconds | float | time of the run (`evaluation.learning.train_runs`); NaN if not measured |
| diverged_at | int | first update with a number that is not finite; -1 for a healthy run |
| env_steps | list of int | environment steps taken up to each update; empty in tuning runs |
| returns | list of float | mean return of episodes that ended in each update; empty in tuning |

In a study of another method these columns hold the first metric that its runs report. Each further
metric has a column of lists: "metric NAME" if NAME is one of these columns. A metric that is one
number is a list of one.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_file

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "optimizer",
    "role",
    "change",
    "suite",
    "task",
    "purpose",
    "meta_seed",
    "setting",
    "step_multiple",
    "seed",
    "auc",
    "final_return",
    "greedy_return",
    "seconds",
    "diverged_at",
    "env_steps",
    "returns",
)
# Columns that tables of earlier versions lack, and their defaults.
_NEW_COLUMNS = {"suite": "", "greedy_return": float("nan"), "seconds": float("nan")}
# The name of agents that never update.
UNTRAINED = "untrained policy"


class TableError(ValueError):
    """A table of runs cannot be read; the message names the file."""


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
        further = {
            f"metric {name}" if name in COLUMNS else name: x.returns[run].tolist()
            for name, x in extra.items()
        }
        yield {name: row[name] for name in COLUMNS} | further


def write_runs(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Write the table, atomically."""
    import polars as pl

    buffer = io.BytesIO()
    found = list(rows)
    schema = {"returns": pl.List(pl.Float32), "env_steps": pl.List(pl.Int64)}
    table = pl.DataFrame(found, schema_overrides=schema, infer_schema_length=None)
    table.write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def read_runs(path: Path, task: str = "") -> "pl.DataFrame":
    """Read a table of runs; tables of version 0.1.0 are converted to today's columns.

    Args:
        path: the file.
        task: the task of a study of version 0.1.0, whose table does not have it.

    Raises:
        TableError: it is not a table of runs, or version 0.1.0's `evaluate` wrote it in a form that
            cannot be converted.
        OSError: the file cannot be read.
    """
    import polars as pl

    try:
        table = pl.read_parquet(read_file(path))
    except pl.exceptions.PolarsError as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error
    if "step_scale" in table.columns:  # a study of 0.1.0
        table = table.rename({"kind": "role", "step_scale": "step_multiple"}).with_columns(
            pl.lit(task).alias("task"),
            pl.lit(float("nan")).alias("setting"),
            pl.col("run").alias("seed"),
            pl.col("purpose").replace({"evaluation": "tuned"}),
        )
    elif "setting" in table.columns and "role" not in table.columns:  # a suite of 0.1.0
        untrained = pl.col("purpose") == "untrained"
        table = table.with_columns(
            pl.when(untrained).then(pl.lit("untrained")).otherwise(pl.lit("")).alias("role"),
            pl.when(untrained).then(pl.lit("tuned")).otherwise("purpose").alias("purpose"),
            pl.lit("").alias("change"),
            pl.lit(1.0).alias("step_multiple"),
        )
    table = table.with_columns(
        pl.lit(value).alias(name)
        for name, value in _NEW_COLUMNS.items()
        if name not in table.columns
    )
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise TableError(
            f"{path}: not a table of runs: it has no column {', '.join(missing)}. `evaluate` of "
            "version 0.1.0 wrote another form; run it again"
        )
    return table.select(COLUMNS)


def curves_of(table: "pl.DataFrame") -> Curves:
    """Return the curves of rows that share their environment steps."""
    seconds = table["seconds"]
    return Curves(
        np.stack(table["returns"].to_list()).astype(np.float64),
        table["diverged_at"].to_numpy(),
        np.array(table["env_steps"][0]),
        *(None if x.is_nan().all() else x.to_numpy() for x in (table["greedy_return"], seconds)),
    )
