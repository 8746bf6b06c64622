"""The table of runs: one schema, read as it was written, and what version 0.1.0 wrote."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optim4rl.benchmark.contender import Contender, Maker, baseline
from optim4rl.benchmark.loop import Benchmark, Runs, Stages, run_stages
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.rows import table_rows
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.benchmark.table import (
    COLUMNS,
    TableError,
    curves_of,
    read_runs,
    run_rows,
    write_runs,
)
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.jobs.job import Result
from optim4rl.tasks import TaskConfig
from pretended import PretendedPool, made_up

DOCS = Path(__file__).parents[2] / "docs"
TASKS = (SuiteTask(TaskConfig(), 30, 7), SuiteTask(TaskConfig("small_dense_short"), 25))
CONTENDERS = (
    Contender("rule", "learned", (Maker(None, "a"), Maker(None, "b")), (1.0, 3.0), 0.02, "rule 0"),
    Contender("rule 0", "control", (Maker(None, "c"),), (1.0, 3.0), 0.02),
    baseline("adam", (0.01, 0.1)),
    baseline("adam_ppo", (0.5,)),
)
PROTOCOL = Protocol(seeds=5, tuning_seeds=2, stress_scales=(1.0, 2.0), stress_seeds=3)


def diverging(folder, job):
    """One run of each batch of the rule diverges in its third rollout."""
    found = made_up(folder, job)
    if job.files:
        found.arrays["returns"][0, 2:], found.arrays["diverged_at"][0] = np.nan, 2
    return Result(found.arrays, found.info)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Made up, on two tasks, of which one has a stress test."""
    folder = tmp_path_factory.mktemp("runs")
    pool = PretendedPool(diverging).open(folder, None)
    suite = Suite("two", TASKS, (0.1, 1.0), (0.1, 1.0))
    return run_stages(Benchmark(suite, CONTENDERS, folder, PROTOCOL), Stages(pool, folder))


@pytest.fixture(scope="module")
def table(runs, tmp_path_factory):
    """Written and read."""
    path = tmp_path_factory.mktemp("table") / "runs.parquet"
    write_runs(table_rows(runs, {"rule": {"role": "reference", "change": "none"}}), path)
    return read_runs(path)


def test_the_table_is_read_as_it_was_written(runs, table):
    rows = list(table_rows(runs, {"rule": {"role": "reference", "change": "none"}}))
    assert table.height == len(rows)
    assert table.columns == list(rows[0])
    for found, row in zip(table.iter_rows(named=True), rows, strict=True):
        np.testing.assert_equal(found, row)


def test_every_run_is_there_once(runs, table):
    keys = ("optimizer", "task", "purpose", "meta_seed", "setting", "step_multiple", "seed")
    assert table.unique(keys).height == table.height
    members = sum(len(x.members) for x in CONTENDERS)
    tuned = sum(len(x.members) * len(x.grid) for x in CONTENDERS if len(x.grid) > 1)
    counts = dict(table.group_by("purpose").len().iter_rows())
    assert counts == {
        "tuning": 2 * 2 * tuned,
        "tuned": 2 * 5 * (members + 1),
        "one": 2 * 5 * members,
        "stress": 2 * 3 * members,
    }


def same(found: pl.DataFrame, curves: Curves) -> None:
    """The rows are those of the curves."""
    again = curves_of(found)
    for field in ("returns", "diverged_at", "env_steps"):
        np.testing.assert_array_equal(getattr(again, field), getattr(curves, field))
    np.testing.assert_array_equal(found["auc"], area_under_curve(curves))
    np.testing.assert_array_equal(found["final_return"], final_return(curves))


def test_rows_are_the_runs(runs, table):
    b = runs.benchmark
    for index, task in enumerate(TASKS):
        of_task = table.filter(task=task.name)
        same(of_task.filter(role="untrained"), runs.untrained[index])
        for contender in CONTENDERS:
            mine = of_task.filter(optimizer=contender.name)
            for member, choice in enumerate(runs.choices[contender.name]):
                own = mine.filter(meta_seed=member)
                for reading in b.readings:
                    found = own.filter(purpose=reading)
                    same(found, runs.curves[reading][contender.name][index][member])
                    assert set(found["setting"]) == {choice.at(reading, index)}
                    assert found["seed"].to_list() == list(PROTOCOL.reported)
                tuning = own.filter(purpose="tuning")
                assert set(tuning["setting"].round(12)) == set(
                    contender.grid if len(contender.grid) > 1 else ()
                )
                assert set(tuning["returns"].list.len()) <= {0}
                assert set(tuning["seed"]) <= set(PROTOCOL.tuning)
            for multiple, curves in runs.stress[contender.name].get(task.name, {}).items():
                found = mine.filter(purpose="stress", step_multiple=multiple)
                same(found, curves)
                assert set(found["seed"]) == set(PROTOCOL.stress)
    assert set(table.filter(purpose="stress")["task"]) == {"catch"}
    assert table.filter(optimizer="rule")["role"].unique().to_list() == ["reference"]
    broken = table.filter(optimizer="rule", diverged_at=2)
    assert broken.height > 0
    assert broken["auc"].is_nan().all()


# What version 0.1.0 wrote


def test_a_suite_of_0_1_0_is_read():
    path = DOCS / "results" / "ppo-generalist-bare" / "runs.parquet"
    before, found = pl.read_parquet(path), read_runs(path)
    assert found.height == before.height
    untrained = found.filter(role="untrained")
    assert untrained.height == before.filter(purpose="untrained").height > 0
    assert set(untrained["purpose"]) == {"tuned"}
    assert set(found["purpose"]) == set(before["purpose"]) - {"untrained"}
    for name in ("optimizer", "task", "seed", "auc", "final_return", "returns", "diverged_at"):
        assert found[name].equals(before[name], null_equal=True), name
    (task, *_) = found["task"].unique(maintain_order=True)
    rows = found.filter(pl.col("role") == "", task=task, purpose="tuned", meta_seed=0)
    name = rows["optimizer"][0]
    curves = curves_of(rows.filter(optimizer=name))
    np.testing.assert_allclose(area_under_curve(curves), rows.filter(optimizer=name)["auc"], 1e-5)


STUDIES = [
    path
    for path in sorted((DOCS / "studies").glob("*/*.parquet"))
    if "kind" in pl.read_parquet_schema(path)
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_study_of_0_1_0_is_read(path):
    assert len(STUDIES) >= 4
    before, found = pl.read_parquet(path), read_runs(path, "catch")
    assert found.height == before.height
    assert set(found["task"]) == {"catch"}
    assert set(found["purpose"]) == {"tuned", "stress"}
    assert found["role"].equals(before["kind"])
    assert found["step_multiple"].equals(before["step_scale"])
    reference = found.filter(optimizer="reference", purpose="tuned", meta_seed=0)
    curves = curves_of(reference)
    np.testing.assert_allclose(area_under_curve(curves), reference["auc"], rtol=1e-5)


def test_an_evaluation_of_0_1_0_is_refused_in_a_sentence(tmp_path):
    curves = Curves(np.zeros((2, 3)), np.full(2, -1), np.arange(1, 4))
    curves.to_table(optimizer="adam", meta_seed=0).write_parquet(tmp_path / "runs.parquet")
    message = r"runs.parquet: not a table of runs: it has no column .*`evaluate` of version 0.1.0"
    with pytest.raises(TableError, match=message):
        read_runs(tmp_path / "runs.parquet")


def test_a_metric_named_like_a_column_stands_beside_it():
    curves, more = (Curves(np.full((1, 2), x), np.array([-1]), np.arange(2)) for x in (1.0, 7.0))
    labels = dict.fromkeys(COLUMNS, "")
    (row,) = run_rows(labels, curves, [3], extra={"auc": more, "loss": more})
    assert (row["auc"], row["metric auc"], row["loss"]) == (1.0, [7.0, 7.0], [7.0, 7.0])


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "runs.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(TableError, match=r"runs.parquet: not a readable Parquet file"):
        read_runs(tmp_path / "runs.parquet")
