"""A page from a table of runs alone: the same figures, and those that were published."""

from pathlib import Path

import pytest

from optim4rl.benchmark.loop import read
from optim4rl.benchmark.retell import retell
from optim4rl.benchmark.rows import table_rows
from optim4rl.benchmark.table import TableError, read_runs, write_runs
from optim4rl.pages.benchmark import claims, raw_table, summary_table, to_json
from toys import playing, run_toys, save_rules

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("changes", [{}, {"only": ("catch",)}], ids=["suite", "task"])
def test_a_table_tells_what_its_benchmark_told(changes, tmp_path):
    """Claims, tables, settings, grids and stress runs."""
    weights = save_rules(tmp_path, 3)
    asked = [",".join(weights), f"{weights[0]}+clip0.5"]
    results = run_toys(tmp_path / "out", asked, baselines=("adam", "muon_ppo"), **changes)
    write_runs(table_rows(results.runs), tmp_path / "runs.parquet")
    name = results.benchmark.suite.name
    with playing():  # As many resamples.
        told = read(retell(read_runs(tmp_path / "runs.parquet"), tmp_path, name))
    assert claims(told) == claims(results)
    for reading in results.benchmark.readings:
        assert summary_table(told, reading) == summary_table(results, reading)
    assert raw_table(told, "tuned", 0) == raw_table(results, "tuned", 0)
    found, expected = to_json(told), to_json(results)
    for x in (found, expected):
        x.pop("tasks")  # Settings of tasks, and units of rules, are in no table.
        for optimizer in x["optimizers"].values():
            optimizer.pop("unit")
    assert found == expected


def test_an_arm_with_a_tuned_step_has_its_control(tmp_path):
    results = run_toys(tmp_path / "out", save_rules(tmp_path, 1), baselines=("adam",))
    write_runs(table_rows(results.runs), tmp_path / "runs.parquet")
    table = read_runs(tmp_path / "runs.parquet")
    names = {"rule-0": "A, step tuned", "rule-0 untrained": "A untrained, step tuned"}
    told = retell(table.with_columns(table["optimizer"].replace(names)), tmp_path)
    assert {x.name: x.control for x in told.benchmark.contenders} == {
        "A, step tuned": "A untrained, step tuned",
        "A untrained, step tuned": None,
        "adam": None,
    }


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("ppo-generalist-bare/runs.parquet", "weights +2", "1.222 (1.05 to 1.53)"),
        ("ppo-generalist-bare/control.parquet", "weights +2 untrained", "1.052 (0.97 to 1.18)"),
        ("unseen/runs.parquet", "scaled-generalist +2", "0.888 (0.75 to 1.10)"),
        (
            "scaled-generalist/control.parquet",
            "scaled-generalist untrained",
            "1.227 (1.11 to 1.36)",
        ),
    ],
)
def test_published_tables_tell_their_pages(file, name, expected):
    """Those of version 0.1.0 do not say roles, and have no tuning runs."""
    told = read(retell(read_runs(RESULTS / file), RESULTS / file))
    rows = {row[0]: row for row in summary_table(told, "one")[1]}
    assert rows[name][1] == expected
    assert told.benchmark.reference == "adam"
    assert claims(told)


def test_a_studys_table_is_refused():
    path = RESULTS.parent / "studies" / "plan-on-catch" / "runs.parquet"
    with pytest.raises(TableError, match="no runs of the untrained policy"):
        retell(read_runs(path, "catch"), path)
