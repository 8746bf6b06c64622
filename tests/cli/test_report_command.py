"""`optim4rl report`: one folder or several, a page and the same numbers on the terminal."""

import json

import numpy as np
import pytest

from optim4rl.cli import main as cli
from optim4rl.cli.main import main
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.files.manifest import write_manifest
from toys import write_benchmark


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


def evaluation(folder, level, updates=40):
    """The folder of an evaluation of Adam on Catch."""
    returns = level + 0.01 * np.arange(6)[:, None] + np.zeros(updates)
    curves = Curves(returns, np.full(6, HEALTHY), np.arange(1, updates + 1))
    return str(write_benchmark(folder, {"adam": [curves]}, tuning_seeds=updates))


def test_several_runs_are_compared(tmp_path, capsys):
    folders = [evaluation(tmp_path / "a", 0.1), evaluation(tmp_path / "b", 0.3, updates=20)]
    main(["report", *folders])
    said = capsys.readouterr().out
    assert "settings that differ: tuning_seeds" in said
    assert "adam on catch: AUC" in said
    assert "2 runs side by side" in (tmp_path / "comparison.html").read_text("utf-8")


def test_the_numbers_come_as_json_and_the_page_where_it_is_wanted(tmp_path, capsys):
    folders = [evaluation(tmp_path / "a", 0.1), evaluation(tmp_path / "b", 0.3)]
    main(["report", *folders, "--out", "pages/both.html", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == folders
    assert [round(value, 3) for value, _, _ in found["adam on catch: AUC"]] == [0.125, 0.325]
    assert (tmp_path / "pages" / "both.html").is_file()


def test_a_single_run_has_its_page_in_its_folder(tmp_path):
    main(["report", evaluation(tmp_path / "a", 0.1)])
    assert (tmp_path / "a" / "report.html").is_file()


def test_a_damaged_study_gets_no_new_checksums(tmp_path, capsys):
    for name in ("study.json", "runs.parquet"):
        (tmp_path / name).write_text("{}")
    write_manifest(tmp_path)
    before = (tmp_path / "SHA256SUMS").read_text()
    (tmp_path / "runs.parquet").write_text("[]")
    with pytest.raises(SystemExit) as exit:
        main(["report", str(tmp_path)])
    assert exit.value.code == 2
    assert "runs.parquet: damaged or changed" in capsys.readouterr().err
    assert (tmp_path / "SHA256SUMS").read_text() == before


@pytest.mark.parametrize("words", [[], ["nowhere"], ["a", "nowhere"], ["a", "./a"]])
def test_what_cannot_be_compared_is_refused(words, tmp_path, capsys):
    evaluation(tmp_path / "a", 0.1)
    with pytest.raises(SystemExit) as exit:
        main(["report", *words])
    assert exit.value.code == 2
    assert not list(tmp_path.rglob("*.html"))
    assert capsys.readouterr().err
