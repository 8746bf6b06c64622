"""Finished runs side by side: read from what commands leave, shown truly, on one page alone."""

import json
import re

import numpy as np
import polars as pl
import pytest
from test_report import HOSTILE, make_results

from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.evaluation.returns import area_under_curve, interquartile_mean
from optim4rl.jobs.store import StoreError
from optim4rl.pages.comparison import (
    Heading,
    differing_settings,
    numbers_by_name,
    read_run,
    render_comparison,
    short_names,
    write_comparison,
)
from toys import write_benchmark, write_curves, write_training


def curves(level, *, diverged=False):
    returns = level + 0.01 * np.arange(6)[:, None] + np.linspace(0, 1, 40)
    diverged_at = np.full(6, HEALTHY)
    if diverged:
        returns[:, 20:], diverged_at[:] = np.nan, 20
    return Curves(returns, diverged_at, 100 * np.arange(1, 41))


def evaluation(folder, levels, *, task="catch", diverged=False):
    """The folder of a benchmark: optimizer -> the level of each meta-seed."""
    runs = {
        name: [curves(level, diverged=diverged) for level in members]
        for name, members in levels.items()
    }
    return write_benchmark(folder, runs, task=task)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study, as far as a comparison reads it."""
    folder = tmp_path_factory.mktemp("comparison") / "study"
    folder.mkdir()
    results = make_results()
    labels = {row.key: {"role": row.kind, "change": row.change} for row in results.rows}
    write_curves(folder, {row.key: row.curves for row in results.rows}, labels=labels)
    record = {
        "scale": "quick",
        "settings": {"environment": "catch", "meta_seeds": 4},
        "versions": {"jax": "0.10.2"},
    }
    (folder / "study.json").write_text(json.dumps(record))
    return folder, results


# Reading


def test_a_training_has_its_progress_its_settings_and_its_time(tmp_path):
    run = read_run(write_training(tmp_path / "a"))
    assert run.kind == "meta-training"
    assert run.settings["meta.iterations"] == 4
    assert run.settings["versions.jax"] == "0.10.2"
    assert run.numbers == {
        "iterations": "4 of 4",
        "return on catch, last tenth": 0.9,
        "seconds": 12.5,
    }
    line = run.lines[Heading("Return of the agents on catch", "meta-iteration")]
    assert line.x.tolist() == [1, 3, 4]  # In the second no episode ended.
    assert line.y.tolist() == [-0.5, 0.5, 0.9]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"done": False}, "not finished: no weights yet"),
        ({"done": False, "norms": (1, 2, 3, "nan")}, "no finite numbers from iteration 4 on"),
    ],
)
def test_a_training_that_stopped_says_so(options, said, tmp_path):
    run = read_run(write_training(tmp_path / "a", **options))
    assert run.numbers["stopped"] == said
    assert "seconds" not in run.numbers


def test_an_evaluation_has_every_optimizer_with_its_interval(tmp_path):
    run = read_run(evaluation(tmp_path / "e", {"ours": [0.1, 0.3], "adam": [0.2]}))
    estimate = run.numbers["ours on catch: AUC"]
    areas = np.concatenate([area_under_curve(curves(level)) for level in (0.1, 0.3)])
    assert estimate.value == pytest.approx(interquartile_mean(areas))
    assert estimate.low < estimate.value < estimate.high
    assert {heading.title for heading in run.lines} == {"ours on catch", "adam on catch"}


def test_an_evaluation_that_diverged_has_no_mean(tmp_path):
    run = read_run(evaluation(tmp_path / "e", {"adam": [0.2]}, diverged=True))
    assert np.isnan(run.numbers["adam on catch: AUC"].value)
    assert "diverged" in render_comparison([run])


def test_a_study_has_the_curves_of_its_evaluation(study):
    folder, results = study
    run = read_run(folder)
    assert run.kind == "ablation study"
    for row in results.rows:
        scores = np.concatenate([area_under_curve(each) for each in row.curves])
        found = run.numbers[f"{row.key} on catch: AUC"].value
        assert found == pytest.approx(interquartile_mean(scores))


@pytest.mark.parametrize("content", [None, "", "iteration,meta_gradient_norm\n1,x\n"])
def test_a_folder_without_a_run_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "progress.csv").write_text(content)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        read_run(tmp_path)


# Comparing


def test_only_settings_that_differ_are_shown_as_such(tmp_path):
    runs = [
        read_run(write_training(tmp_path / name, rate=r)) for name, r in (("a", 0.01), ("b", 0.02))
    ]
    assert differing_settings(runs) == {"learning_rate": [[0.01], [0.02]]}
    page = render_comparison(runs)
    assert "1 of 4 settings differ" in page
    assert "<code>learning_rate</code>" in page


def test_runs_of_different_kinds_stand_side_by_side(tmp_path, study):
    runs = [read_run(write_training(tmp_path / "a")), read_run(study[0])]
    numbers = numbers_by_name(runs)
    assert numbers["seconds"] == [12.5, None]
    assert numbers["adam on catch: AUC"][0] is None


def test_runs_of_different_kinds_differ_in_what_both_have(tmp_path):
    """What a meta-training alone has is no difference, however many settings that are."""
    runs = [
        read_run(write_training(tmp_path / "a", rate=0.01)),
        read_run(evaluation(tmp_path / "e", {"adam": [0.2]})),
        read_run(write_training(tmp_path / "b", rate=0.02)),
    ]
    assert differing_settings(runs[:2]) == {}
    assert differing_settings(runs) == {"learning_rate": [[0.01], None, [0.02]]}
    page = render_comparison(runs[:2])
    assert "0 of 1 settings differ" in page
    assert "Settings that not all runs have: a" in page
    # Nor does it vanish where another run has it, too.
    (tmp_path / "c").mkdir()
    runs[2] = read_run(write_training(tmp_path / "c" / "a", rate=0.01))
    page = render_comparison(runs)
    assert page.count("<code>learning_rate</code>") == 2


def test_the_same_optimizer_is_drawn_in_one_picture(tmp_path):
    folders = [evaluation(tmp_path / name, {"adam": [0.1]}) for name in ("one", "two")]
    page = render_comparison([read_run(folder) for folder in folders])
    assert page.count("<figure>") == 1
    assert page.count('class="line run-0"') == page.count('class="line run-1"') == 2


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [read_run(write_training(tmp_path / name / "run", done=False)) for name in ("a", "b")]
    assert short_names(runs) == [str(tmp_path / name / "run") for name in ("a", "b")]


def test_a_run_is_compared_once(tmp_path):
    run = read_run(write_training(tmp_path / "a", done=False))
    with pytest.raises(ValueError, match="once"):
        render_comparison([run, run])
    with pytest.raises(ValueError, match="at least one"):
        render_comparison([])


# The page


def test_the_page_loads_and_runs_nothing(tmp_path):
    folders = [
        evaluation(tmp_path / "a", {HOSTILE: [0.1]}, task=HOSTILE),
        write_training(tmp_path / "<script>b", done=False),
    ]
    path = tmp_path / "page.html"
    write_comparison([read_run(folder) for folder in folders], path)
    page = path.read_text("utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    run = read_run(evaluation(tmp_path / "a", {"adam": [0.1]}))
    assert render_comparison([run]) == render_comparison([run])


def test_many_runs_have_lines_that_can_be_told_apart(tmp_path):
    runs = [read_run(write_training(tmp_path / f"{i}", done=False)) for i in range(8)]
    styles = set(re.findall(r'class="line (run-[^"]+)"', render_comparison(runs)))
    assert len(styles) == 8


# Folders of version 0.1.0


@pytest.fixture
def old_columns():
    """What a table of 0.1.0 has in common: two runs of Adam."""
    found = curves(0.2)
    shared = {"meta_seed": 0, "diverged_at": HEALTHY, "env_steps": found.env_steps.tolist()}
    areas = area_under_curve(found)
    return [
        shared
        | {"optimizer": "adam", "auc": area, "final_return": 0.0, "returns": returns.tolist()}
        for area, returns in zip(areas, found.returns, strict=True)
    ]


def test_a_study_of_0_1_0_is_read(old_columns, tmp_path):
    labels = {"kind": "baseline", "change": "", "step_scale": 1.0}
    rows = [
        {**row, **labels, "run": run, "purpose": purpose}
        for purpose in ("evaluation", "stress")
        for run, row in enumerate(old_columns)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "runs.parquet")
    record = {"scale": "quick", "settings": {"environment": "catch"}, "versions": {}}
    (tmp_path / "study.json").write_text(json.dumps(record))
    run = read_run(tmp_path)
    assert run.numbers["adam on catch: AUC"].value == pytest.approx(
        interquartile_mean(area_under_curve(curves(0.2)))
    )


def test_a_suite_of_0_1_0_is_read(old_columns, tmp_path):
    rows = [
        {**row, "task": "catch", "purpose": purpose, "setting": 0.01, "seed": run}
        for purpose in ("tuned", "untrained")
        for run, row in enumerate(old_columns)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "runs.parquet")
    record = {"suite": "grid", "seeds": 6, "tuning_seeds": 2, "tasks": {"catch": {}}}
    (tmp_path / "results.json").write_text(json.dumps({**record, "versions": {}, "code": "c"}))
    run = read_run(tmp_path)
    assert list(run.numbers) == ["adam on catch: AUC", "adam on catch: final return"]
    assert run.settings["suite"] == "grid"


def test_an_evaluation_of_0_1_0_is_no_finished_run(tmp_path):
    curves(0.2).to_table(optimizer="adam", meta_seed=0).write_parquet(tmp_path / "runs.parquet")
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(StoreError, match="no finished run: it has none"):
        read_run(tmp_path)
