"""The identity experiment's curves as files, and all tables in the hands of pandas."""

import dataclasses
import json
import subprocess
import venv

import numpy as np
import polars as pl
import pytest
from test_trackers import read_scalars

from documented import columns
from optim4rl.cli import main as cli
from optim4rl.cli.main import main
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.study import identity
from optim4rl.study.identity import IdentityResult, IdentityRow


def row(schedule, curve):
    numbers = {"online": 0.5, "online_nonzero": 0.4, "frozen": 0.3, "frozen_nonzero": 0.2}
    ends = {name: (x, x) for name, x in numbers.items()}
    by_size = {-3: 0.1}
    return IdentityRow(
        "raw", "linear", schedule, 3e-3, 0.5, 0.4, 0.3, 0.2, by_size, np.array(curve), 2, ends
    )


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The folder of an experiment, all but its networks."""
    rows = (row("constant", [0.1, 0.3, 0.5]), row("annealed", [0.2, 0.6]))
    result = IdentityResult("catch", rows, (), {"updates": 3})
    monkeypatch.setattr(identity, "identity_experiment", lambda *_: result)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    out = tmp_path / "identity.json"
    main(["identity", "--scale=smoke", "--out", str(out), "--tracker=tensorboard", "--json"])
    return tmp_path


@pytest.mark.parametrize("name", ["x.parquet", "x.html"])
def test_a_result_is_not_written_over_by_its_own_table_or_page(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    with pytest.raises(SystemExit) as exit:
        main(["identity", "--scale=smoke", "--out", str(tmp_path / name)])
    assert exit.value.code == 2
    assert f"{name}': the name of a JSON file is needed" in capsys.readouterr().err


def test_another_seed_is_another_recording(tmp_path, monkeypatch):
    asked = []

    def experiment(task, name, config, keep):
        asked.append(config)
        return IdentityResult("catch", (row("constant", [0.1]),), (), {})

    monkeypatch.setattr(identity, "identity_experiment", experiment)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    for option in ("--seed=3", "--recordings=4"):
        main(["identity", "--scale=smoke", option, "--out", str(tmp_path / "x.json")])
    changes = ({"seed": 3}, {"recordings": 4})
    assert asked == [dataclasses.replace(identity.SMOKE, **change) for change in changes]


def test_the_curves_are_a_table_and_in_tensorboard(written):
    table = pl.read_parquet(written / "identity.parquet")
    assert table.columns == columns("identity")
    annealed = table.filter(schedule="annealed")
    assert annealed["progress"].to_list() == [0.0, 1.0]
    assert annealed["accuracy"].to_list() == [0.2, 0.6]
    accuracies = pl.read_parquet(written / "identity.accuracies.parquet")
    assert accuracies.columns == columns("accuracies")
    assert accuracies["frozen_nonzero"].to_list() == [0.2, 0.2]
    scalars = read_scalars(written / "tensorboard")
    assert scalars["accuracy/constant/raw-linear"] == [
        (step, pytest.approx(x)) for step, x in ((0, 0.1), (500, 0.3), (1000, 0.5))
    ]
    assert json.loads((written / "identity.json").read_text())["task"] == "catch"
    page = (written / "identity.html").read_text()
    assert "<title>The identity experiment on catch</title>" in page
    assert "<td>constant <small>0.003</small></td>" in page  # the table of all networks


@pytest.mark.slow
def test_pandas_opens_the_tables(written, tmp_path):
    """In an environment of its own, for pandas needs pyarrow, and nothing else here does."""
    curves = Curves(np.zeros((2, 3)), np.full(2, HEALTHY), np.arange(1, 4))
    long = curves.to_table(optimizer="adam", meta_seed=0)
    long.write_parquet(written / "long.parquet")
    lists = long.group_by("run").agg("env_steps", "return")
    lists.write_parquet(written / "lists.parquet")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "pandas", "pyarrow"], check=True)
    program = """
import pandas, sys
for name in ("identity", "long", "lists"):
    table = pandas.read_parquet(f"{sys.argv[1]}/{name}.parquet")
    print(name, len(table), *table.columns)
"""
    result = subprocess.run(
        [python, "-c", program, written], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [
        "identity 5 recording input output schedule progress accuracy",
        "long 6 optimizer meta_seed run update env_steps return diverged",
        "lists 2 run env_steps return",
    ]
