"""A method in a user's file: from a plan to a study, and one sentence for whatever is wrong."""

import dataclasses
import json
import re
import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from optim4rl.cli.main import main
from optim4rl.jobs.job import Refusal
from optim4rl.jobs.pool import JobError
from optim4rl.jobs.pools import Workers, open_pool
from optim4rl.jobs.store import finished_jobs, has_result
from optim4rl.pages.study import render_report, write_report
from optim4rl.pages.summary import summarise
from optim4rl.plans.mapping import MappedPlan
from optim4rl.plans.plan import PlanError
from optim4rl.study import Choice, Component, Control, Experiment, Metric, runner, source
from optim4rl.study.collecting import collect
from optim4rl.study.cost import predict_given
from optim4rl.study.layout import lay_out, load_study
from optim4rl.study.opening import describe_new_version, open_given
from optim4rl.study.runner import run_study
from optim4rl.study.schedule import expected_jobs
from optim4rl.study.source import read_source
from pretended import PretendedPool

HEAD = """
from dataclasses import dataclass
import numpy as np
from optim4rl.study import Choice, Component, Control, Divergence, Experiment, Metric

@dataclass(frozen=True)
class Settings:
    momentum: float = 0.9
    clip: str = "norm"
    rate: float = 0.1

def settings_and(**further):
    return dict(
        name="clipped momentum",
        reference=Settings(),
        components=(
            Component("momentum", ("momentum",), (Choice(0.9, ("momentum",)),
                Choice(0.0, ("no momentum",)), Choice(0.5, ("half momentum",))), remove=0.0),
            Component("clip", ("clipping",), (Choice("norm", ("norm clipping",)),
                Choice("none", ("no clipping",))), remove="none"),
        ),
        metrics=(Metric("loss", ("loss",), better="lower", unit="nats"),
                 Metric("distance", ("distance",), better="lower")),
        seeds=6, tuning_seeds=2, seconds=30.0,
    ) | further
"""
RUN = """
def run(settings, seed):
    rng = np.random.default_rng(seed)
    losses = np.abs(rng.normal(size=12)) * settings.rate + 1 - settings.momentum
    return {"loss": losses, "distance": float(settings.clip == "none") + rng.normal()}

experiment = Experiment(run=run, grid={"rate": (0.1, 0.3)}, **settings_and())
"""
PLAN = b"""# A plan

### Ablation of momentum
- **Ablated Part**: momentum
- **Action**: REMOVE
- **Metrics**: loss
- **Expected**: worse
- **Tests**: whether it must be heavy
- **Priority**: 2

### Ablation of clipping
- **Ablated Part**: clipping
- **Action**: REPLACE
- **Replacement**: no clipping
- **Metrics**: loss, distance
- **Expected**: same
- **Priority**: 1
"""
ROWS = ["reference", "clip=none", "momentum=0.0"]


@pytest.fixture
def method(tmp_path):
    """Write a user's file; its name as an option has it."""

    def write(source=HEAD + RUN, name="my_method.py"):
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(source)
        return f"{folder / name}:experiment"

    return write


@pytest.fixture
def here(monkeypatch):
    """Jobs are done in this process, and remembered."""
    pool = PretendedPool(lambda folder, job: job.run(folder))
    monkeypatch.setattr(runner, "open_pool", pool.open)
    return pool


def study_of(text, plan=PLAN, skip_unmapped=False, **options):
    return lay_out(plan, open_given(text, **options), skip_unmapped=skip_unmapped)


def run(study, folder, **options):
    return run_study(study, folder, command="optim4rl ablate", **options)


# A whole study


@pytest.mark.usefixtures("here")
def test_every_row_is_tuned_reported_and_judged(method, tmp_path):
    results = run(study_of(method()), tmp_path / "out")
    assert [row.key for row in results.rows] == ROWS
    assert [row.change for row in results.rows[1:]] == ["clip: norm → none", "momentum: 0.9 → 0.0"]
    assert [row.settings for row in results.rows] == [{"rate": 0.1}] * 3
    (curves,) = results.rows[0].curves
    assert curves.returns.shape == (6, 12)
    assert results.rows[0].more["distance"][0].returns.shape == (6, 1)
    summary = summarise(results)
    named = ["loss over the run", "final loss", "distance"]
    assert [score.name for score in summary.reference.scores] == named
    assert summary.reference.primary.iqm.value < summary.rows[2].primary.iqm.value
    # The loss without momentum is higher by 0.9, so that it is the worse one.
    assert [entry.primary.outcome for entry in summary.rows] == ["reference", "unclear", "worse"]
    # Without clipping the distance is larger by 1 with every seed.
    assert summary.rows[1].scores[2].outcome == "worse"
    assert "over 6 seeds" in summary.rows[2].primary.sentence


@pytest.mark.usefixtures("here")
def test_predictions_are_set_against_outcomes(method, tmp_path):
    results = run(study_of(method()), tmp_path)
    found = {x.label: x.fate for x in summarise(results).predictions}
    assert found == {"no clipping": "not contradicted", "momentum: 0.0": "right"}
    assert all(sealed.cells == 0 for sealed in results.predictions.values())
    page = render_report(results)
    assert "Of 2 predictions: 1 right, 1 not contradicted." in page
    assert "whether it must be heavy" in page
    with pytest.raises(PlanError, match=r"better of 'momentum: 0.0': worse was sealed"):
        run(study_of(method(), PLAN.replace(b"worse", b"better")), tmp_path)
    assert (tmp_path / "plan.md").read_bytes() == PLAN


@pytest.mark.usefixtures("here")
def test_the_time_of_the_start_is_recorded(method, tmp_path, monkeypatch):
    hours = iter(range(24))
    clock = SimpleNamespace(now=lambda zone: datetime(2026, 1, 1, next(hours), tzinfo=zone))
    monkeypatch.setattr(runner, "datetime", clock)
    assert run(study_of(method()), tmp_path).started == "2026-01-01T00:00:00+00:00"


@pytest.mark.usefixtures("here")
def test_a_prediction_made_late_is_told(method, tmp_path):
    run(study_of(method(), PLAN.replace(b"- **Expected**: worse\n", b"")), tmp_path)
    results = run(study_of(method()), tmp_path)
    assert results.predictions["momentum=0.0"].cells > 0
    assert "cells were finished" in render_report(results)


def test_the_folder_alone_gives_the_page_again(method, tmp_path, here):
    study = study_of(method())
    results = run(study, tmp_path)
    count = len(here.ran)
    write_report(results, tmp_path / "report.html")
    before = {name: (tmp_path / name).read_bytes() for name in ("report.html", "runs.parquet")}
    write_report(collect(load_study(tmp_path), tmp_path), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before["report.html"]
    run(study, tmp_path)
    assert len(here.ran) == count == len(expected_jobs(study))
    assert (tmp_path / "runs.parquet").read_bytes() == before["runs.parquet"]


@pytest.mark.usefixtures("here")
def test_the_table_has_every_run_and_every_metric(method, tmp_path):
    run(study_of(method()), tmp_path)
    table = pl.read_parquet(tmp_path / "runs.parquet")
    assert table.group_by("purpose").len().sort("purpose").rows() == [("tuned", 18), ("tuning", 12)]
    tuned = table.filter(purpose="tuned", optimizer="clip=none")
    assert [len(x) for x in tuned["returns"]] == [12] * 6
    assert [len(x) for x in tuned["distance"]] == [1] * 6


def test_a_killed_study_goes_on(method, tmp_path, here):
    study = study_of(method())
    whole = run(study, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    lost = expected_jobs(study)[::3]
    for job in lost:
        (tmp_path / "killed" / "jobs" / f"{job.address}.safetensors").unlink()
    here.ran.clear()
    results = run(study, tmp_path / "killed")
    assert {job.address for job in here.ran} == {job.address for job in lost}
    for row, other in zip(results.rows, whole.rows, strict=True):
        np.testing.assert_array_equal(row.curves[0].returns, other.curves[0].returns)


def test_more_seeds_are_added_to_those_that_are_there(method, tmp_path, here):
    run(study_of(method()), tmp_path)
    count = len(here.ran)
    results = run(study_of(method(), seeds=8), tmp_path)
    assert results.rows[0].curves[0].returns.shape[0] == 8
    assert len(here.ran) == count + 2 * len(ROWS)


@pytest.mark.usefixtures("here")
def test_progress_of_a_study_that_goes_on_counts_what_is_left(method, tmp_path):
    """Its seeds differ in their best rate, so that the jobs are only known from the results."""
    study = study_of(method(HEAD + RUN.replace("* settings.rate", "/ settings.rate")))
    results = run(study, tmp_path)
    assert [row.settings["rate"] for row in results.rows] == [0.3] * 3
    lost = [job for job in expected_jobs(study, tmp_path) if "seed 1001" in job.what]
    assert ["rate 0.3" in job.what for job in lost] == [True] * 3
    for job in lost:
        (tmp_path / "jobs" / f"{job.address}.safetensors").unlink()
    said = []
    run(study, tmp_path, on_progress=lambda *x, **left: said.append((*x[:2], left["left"])))
    assert {x[:2] for x in said} == {(27, 30), (28, 30), (29, 30), (30, 30)}
    # Each job took a second of one worker, it is said.
    first = next(left for *_, left in said if left is not None)
    assert first < 4


def test_workers_of_this_machine_do_the_same(method, tmp_path, here, monkeypatch):
    study = study_of(method())
    run(study, tmp_path / "here")
    table = (tmp_path / "here" / "runs.parquet").read_bytes()
    assert here.ran
    monkeypatch.setattr(runner, "open_pool", open_pool)
    run(study, tmp_path / "workers", workers=Workers(2))
    assert (tmp_path / "workers" / "runs.parquet").read_bytes() == table


def test_modules_beside_the_file_belong_to_it(method, tmp_path, here):
    method("SHIFT = 1.0\n", "beside.py")
    text = method("from beside import SHIFT\n" + HEAD + RUN.replace("+ 1 -", "+ SHIFT -"))
    first = study_of(text)
    run(first, tmp_path / "out")
    assert len(here.ran) == len(expected_jobs(first))
    method("SHIFT = 2.0\n", "beside.py")
    second = open_given(text)
    assert second.source is not None
    assert first.opened.source is not None
    assert second.source.address != first.opened.source.address
    assert second.source.modules == ("beside.py",)
    (tmp_path / "out" / first.opened.source.files[1]).unlink()
    method("SHIFT = 1.0\n", "beside.py")
    open_given(text).keep(tmp_path / "out")
    assert (tmp_path / "out" / first.opened.source.files[1]).is_file()


def test_a_folder_of_modules_beside_the_file_is_refused(method, tmp_path):
    text = method("from helpers.a import b\n" + HEAD + RUN)
    (tmp_path / "files" / "helpers").mkdir()
    (tmp_path / "files" / "helpers" / "__init__.py").touch()
    with pytest.raises(ValueError, match=r"my_method.py: import helpers: a study keeps no folder"):
        open_given(text)


def test_the_code_of_this_package_that_a_file_imports_belongs_to_it(method, monkeypatch):
    text, names = method("from optim4rl.meta import trainer\n" + HEAD + RUN), []
    before = read_source(text).address
    monkeypatch.setattr(source, "code_hash", lambda name: names.append(name) or "other code")
    assert read_source(text).address != before
    assert names == ["optim4rl.meta", "optim4rl.meta.trainer", "optim4rl.study"]


def test_an_edited_file_is_another_experiment_in_the_same_process(method):
    text = method("NAME = 'one'\n", "beside.py") and method(
        "from beside import NAME\n" + HEAD + RUN
    )
    method("from beside import NAME\n" + HEAD.replace('"clipped momentum"', "NAME") + RUN)
    assert open_given(text).experiment.name == "one"
    method("NAME = 'another'\n", "beside.py")
    assert open_given(text).experiment.name == "another"


def test_a_file_that_changes_between_runs_has_cells_of_its_own(method, tmp_path, here):
    run(study_of(method()), tmp_path / "out")
    kept = {path.name for path, _, _ in finished_jobs(tmp_path / "out")}
    count = len(here.ran)
    text = method(HEAD + RUN.replace("1 - settings", "2 - settings"), "changed.py")
    results = run(study_of(text), tmp_path / "out")
    assert len(here.ran) == 2 * count
    assert kept < {path.name for path, _, _ in finished_jobs(tmp_path / "out")}
    assert results.rows[0].curves[0].returns.min() > 1


@pytest.mark.usefixtures("here")
def test_a_new_version_of_a_file_is_told(method, tmp_path):
    old = method("SHIFT = 1.0\n", "beside.py") and method("from beside import SHIFT\n" + HEAD + RUN)
    assert describe_new_version(open_given(old), tmp_path) is None
    run(study_of(old), tmp_path)
    assert describe_new_version(open_given(old, seeds=8), tmp_path) is None
    method("SHIFT = 2.0\n", "beside.py")
    study = study_of(old)
    assert describe_new_version(study.opened, tmp_path) == (
        f"beside.py has changed since the last study in {tmp_path}; all runs start anew, and the "
        "finished runs of the old version are kept but not used"
    )
    run(study, tmp_path)
    method("SHIFT = 1.0\n", "beside.py")
    said = describe_new_version(open_given(old), tmp_path)
    assert said is not None
    assert "finished runs of this version are used again" in said
    other = describe_new_version(open_given(method(name="other.py")), tmp_path)
    assert other is not None
    assert other.startswith(f"the last study in {tmp_path} was of my_method.py:experiment; all run")
    method("SHIFT = 2.0\n", "beside.py")
    method("from beside import SHIFT\n" + HEAD + RUN)
    assert study.opened.source is not None
    packages = dataclasses.replace(study.opened.source, packages={"numpy": "0.1"})
    now = dataclasses.replace(study.opened, source=packages)
    assert "have changed since the last study" in str(describe_new_version(now, tmp_path))
    assert "numpy" in str(describe_new_version(now, tmp_path))


# What is learned first

TRAIN = """
def train(settings, meta_seed):
    if settings.momentum == 0.0 and meta_seed == 1:
        raise Divergence("it exploded")
    return {"shift": np.full(3, meta_seed + (settings.rate > 0.2)), "none": np.zeros(0)}

def run(settings, seed, artefact):
    shift = 9.0 if artefact is None else artefact["shift"].mean()
    return {"loss": np.full(5, shift + seed / 1e4), "distance": 0.0}

experiment = Experiment(run=run, train=train, train_grid={"rate": (0.1, 0.3)}, **settings_and(
    meta_seeds=3, tuning_meta_seeds=2, seeds=2,
    controls=(Control("fresh", "Untrained", Settings(), trained=False),)))
"""


@pytest.mark.usefixtures("here")
def test_what_is_trained_has_meta_seeds_and_an_untrained_control(method, tmp_path):
    results = run(study_of(method(HEAD + TRAIN)), tmp_path)
    rows = {row.key: row for row in results.rows}
    assert [row.settings for row in results.rows] == [{"rate": 0.1}] * 3 + [{}]
    assert len(rows["reference"].curves) == 3
    assert rows["momentum=0.0"].failures == {1: "it exploded"}
    assert len(rows["momentum=0.0"].curves) == 2
    means = [curves.returns.mean() for curves in rows["reference"].curves]
    assert [round(mean) for mean in means] == [0, 1, 2]
    assert rows["fresh"].curves[0].returns.min() > 9
    assert "it exploded" in render_report(results)
    table = pl.read_parquet(tmp_path / "runs.parquet").filter(optimizer="momentum=0.0")
    assert sorted(set(table["meta_seed"])) == [0, 2]


@pytest.mark.usefixtures("here")
def test_an_artefact_of_which_all_runs_diverge_is_as_long_as_the_others(method, tmp_path):
    line = '    return {"loss"'
    lost = TRAIN.replace(line, f"    if shift == 1:\n        raise Divergence\n{line}")
    results = run(study_of(method(HEAD + lost)), tmp_path)
    shapes = [curves.returns.shape for curves in results.rows[0].curves]
    assert shapes == [(2, 5)] * 3
    assert np.isnan(results.rows[0].curves[1].returns).all()
    assert "diverged" in render_report(results)


@pytest.mark.usefixtures("here")
def test_a_baseline_of_which_all_trainings_diverge_is_a_row(method, tmp_path):
    other = (
        'Control("other", "Other", Settings(momentum=0.5), "baseline", grid={"rate": (0.1, 0.3)})'
    )
    lost = TRAIN.replace("controls=(", f"controls=({other}, ")
    lost = lost.replace(
        "    if settings.momentum == 0.0 and meta_seed == 1:", "    if settings.momentum == 0.5:"
    )
    results = run(study_of(method(HEAD + lost)), tmp_path)
    rows = {row.key: row for row in results.rows}
    assert (rows["other"].curves, len(rows["other"].failures)) == ((), 3)
    assert "it exploded" in render_report(results)


def test_the_cost_comes_from_a_training_that_is_finite(method, tmp_path):
    lost = TRAIN.replace("settings.momentum == 0.0 and meta_seed == 1", "meta_seed == 0")
    opened = open_given(method(HEAD + lost))
    cost = predict_given(MappedPlan.parse(PLAN, opened.experiment.catalogue), opened, 1, tmp_path)
    assert cost.cells == 2 + 2


# A budget


def test_a_budget_takes_rows_in_order_of_priority(method, tmp_path, here, monkeypatch):
    """A cell takes a second, it is said: 25 seconds are enough for two rows of ten cells."""
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(len(here.ran)))
    study = study_of(method())
    results = run(study, tmp_path, budget=25 / 60, workers=Workers(1))
    assert [row.key for row in results.rows] == ROWS[:2]
    assert results.left_out == ("momentum: 0.0",)
    assert "momentum: 0.0" in render_report(results)
    again = collect(load_study(tmp_path), tmp_path)
    assert again.left_out == results.left_out
    count = len(here.ran)
    results = run(study, tmp_path, budget=10.0, workers=Workers(1))
    assert [row.key for row in results.rows] == ROWS
    assert len(here.ran) > count
    count = len(here.ran)
    assert run(study, tmp_path, budget=1e-6, workers=Workers(1)).left_out == ()
    assert len(here.ran) == count
    # A row that is finished stays, whatever did not fit before it.
    lost = next(job for job in expected_jobs(study, tmp_path) if job.what.startswith("no clipping"))
    (tmp_path / "jobs" / f"{lost.address}.safetensors").unlink()
    assert run(study, tmp_path, budget=1e-6, workers=Workers(1)).left_out == ("no clipping",)


def test_a_budget_counts_on_all_workers_of_the_pool(method, tmp_path, here, monkeypatch):
    """On four workers, as a cluster may have, a row of ten seconds takes two and a half."""
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(len(here.ran)))
    here.size = 4
    results = run(study_of(method()), tmp_path, budget=25 / 60, workers=Workers(cluster="auto"))
    assert [row.key for row in results.rows] == ROWS


# What it would cost


def test_the_cost_comes_from_timed_cells(method, tmp_path):
    opened = open_given(method())
    plan = MappedPlan.parse(PLAN, opened.experiment.catalogue)
    cost = predict_given(plan, opened, 1, tmp_path)
    assert (cost.jobs, cost.trained, cost.cells) == (3 * (2 * 2 + 6), 3, 2)
    cells = [info["seconds"] for _, _, info in finished_jobs(tmp_path)]
    assert cost.cell_seconds == min(cells)
    first = max(cells) - min(cells)
    assert cost.seconds == pytest.approx(cost.jobs * min(cells) + 3 * first)
    assert sum(has_result(tmp_path, job) for job in expected_jobs(study_of(method()))) == 2


def test_a_run_may_start_programs_that_print_and_read(method, tmp_path):
    body = "    import os; os.system('echo hi; cat')\n    return dict(loss=1, distance=1)"
    study = study_of(method(HEAD + BODY.format(body)))
    assert len(run(study, tmp_path / "out", workers=Workers(1)).rows) == len(ROWS)


# What goes wrong

BODY = """
def run(settings, seed):
{}

experiment = Experiment(run=run, **settings_and())
"""
HOSTILE = {
    "raises": (
        "    return {}[seed]",
        r"my_method.py: run\(.*, 1000\) raised KeyError: 1000 \(my_m",
    ),
    "exits": ("    raise SystemExit(3)", r"raised SystemExit: 3"),
    "hangs": ("    import time; time.sleep(99)", r"is not done after 0.3 seconds"),
    "nothing": ("    return None", r"my_method.py: run returned None; a dict with loss, dist"),
    "missing": (
        "    return {'loss': [1.0]}",
        r"my_method.py: run does not report the metric 'distance'; it returned loss",
    ),
    "other": (
        "    return {'loss': 1.0, 'distance': 1.0, 'accuracy': 1.0}",
        r"my_method.py: run reports 'accuracy', which is not a metric of the experiment; its "
        "metrics are loss, distance",
    ),
    "matrix": (
        "    return {'loss': np.ones((2, 3)), 'distance': 1.0}",
        r"reports 'loss' of shape \(2, 3\); a number or a curve",
    ),
    "empty": ("    return {'loss': [], 'distance': 1.0}", r"'loss' of shape \(0,\)"),
    "words": ("    return {'loss': 'low', 'distance': 1.0}", r"'loss' = 'low': numbers are needed"),
    "ragged": (
        "    return {'loss': [[1], [1, 2]], 'distance': 1}",
        r"'loss' = \[\[1\], \[1, 2\]\]",
    ),
    "steps": (
        "    return {'loss': [1, 2], 'distance': 1, 'steps': [3, 3]}",
        r"'steps' = \[3, 3\]; they must ascend",
    ),
    "halves": (
        "    return {'loss': [1, 2], 'distance': 1, 'steps': [0.5, 1.0]}",
        r"'steps' = \[0.5, 1.0\]; they must ascend from 0 in whole numbers",
    ),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("body", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_run_that_cannot_be_used_is_one_sentence(body, said, method, tmp_path):
    source = (HEAD + BODY.format(body)).replace("seconds=30.0", "seconds=0.3")
    with pytest.raises(Refusal, match=said) as error:
        run(study_of(method(source)), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_worker_says_it_without_a_trace_and_keeps_the_rest(method, tmp_path):
    body = """
    if seed == 1003:
        raise ValueError('no such thing')
    return dict(loss=1, distance=1)"""
    with pytest.raises(JobError) as error:
        run(study_of(method(HEAD + BODY.format(body))), tmp_path / "out", workers=Workers(1))
    first, second = str(error.value).splitlines()
    assert first == "clipped momentum, seed 1003 failed; finished results are kept."
    assert re.search(r"raised ValueError: no such thing \(my_method.py, line \d+\)$", second)
    assert len(list(finished_jobs(tmp_path / "out"))) == 3


@pytest.mark.usefixtures("here")
def test_curves_of_other_lengths_are_one_sentence(method, tmp_path):
    body = "    return {'loss': np.ones(3 + seed % 2), 'distance': 1.0}"
    said = r"my_method.py: clipped momentum: metric 'loss' has 3 points with seed 1000 and 4 with"
    with pytest.raises(ValueError, match=said):
        run(study_of(method(HEAD + BODY.format(body))), tmp_path)
    assert len(list(finished_jobs(tmp_path))) == 18


@pytest.mark.usefixtures("here")
def test_steps_that_differ_between_seeds_are_one_sentence(method, tmp_path):
    body = "    return {'loss': [1, 2], 'distance': 1.0, 'steps': [1, 2 + seed % 2]}"
    said = r"metric 'loss' has steps \[1, 3\] with seed 1001 and \[1, 2\] with another"
    with pytest.raises(ValueError, match=said):
        run(study_of(method(HEAD + BODY.format(body))), tmp_path)


@pytest.mark.usefixtures("here")
def test_a_number_may_have_its_step_and_an_array_any_order_of_bytes(method, tmp_path):
    body = "    return {'loss': np.full(1, 1.5, '>f4'), 'distance': 1.0, 'steps': 100}"
    curves = run(study_of(method(HEAD + BODY.format(body))), tmp_path).rows[0].curves[0]
    assert (curves.env_steps.tolist(), curves.returns.tolist()) == ([100], [[1.5]] * 6)


@pytest.mark.usefixtures("here")
def test_a_run_that_diverges_is_an_outcome(method, tmp_path):
    body = """
    if settings.clip == "none":
        if seed % 2:
            raise Divergence
        return {'loss': [1.0, float('inf'), 1.0], 'distance': float('nan')}
    return {'loss': np.linspace(0.2, 0.3 + seed / 1e6, 3), 'distance': 1.0}"""
    results = run(study_of(method(HEAD + BODY.format(body))), tmp_path)
    (lost,) = results.rows[1].curves
    assert lost.diverged_at.tolist() == [1, 0] * 3
    assert np.isnan(lost.returns[0, 1:]).all()
    summary = summarise(results)
    assert summary.rows[1].primary.outcome == "worse"
    assert "diverged" in render_report(results)


FILES = {
    "no Python": ("def", r"my_method.py: SyntaxError: [^(]* \(my_method.py, line 1\)$"),
    "no Python in a string": (
        "x = 1\nexec('def')",
        r"my_method.py: SyntaxError: [^(]* \(my_method.py, line 2\)$",
    ),
    "no Python in a module": (
        "import importlib\nimportlib.import_module('no_' 'python')",
        r"my_method.py: SyntaxError: [^(]* \(no_python.py, line 2\)$",
    ),
    "raises": (
        "x = 1 / 0",
        r"my_method.py: ZeroDivisionError: division by zero \(my_method.py, line 1",
    ),
    "nothing": ("", r"the file has no 'experiment'; its experiments are none"),
    "no experiment": (
        "experiment = {}",
        r"experiment = {}: an optim4rl.study.Experiment is needed",
    ),
    "no field": (
        HEAD
        + BODY.format("    return 1").replace("settings_and()", "settings_and(grid={'x': (1,)})"),
        r"grid: 'x' is not a field; the settings have momentum, clip, rate",
    ),
    "a part tuned": (
        HEAD + BODY.format("    return 1").replace("_and()", "_and(grid={'clip': ('norm',)})"),
        r"'clip' is a component, and components are not tuned",
    ),
    "a column": (
        HEAD.replace('Metric("distance"', 'Metric("seed"') + BODY.format("    return 1"),
        r"metrics: 'seed' is the name of a column of the table of runs",
    ),
    "steps": (
        HEAD.replace('Metric("loss"', 'Metric("steps"') + BODY.format("    return 1"),
        r"metrics: 'steps' is the name of a column of the table of runs",
    ),
}


@pytest.mark.parametrize(("source", "said"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used_is_one_sentence(source, said, method):
    method("x = 1\ndef", "no_python.py")
    with pytest.raises(ValueError, match=said) as error:
        open_given(method(source, "my_method.py"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["optim5rl", "my_method.py", "nowhere.py:experiment", "a.py:b c"])
def test_an_experiment_that_is_not_there_is_named(text):
    with pytest.raises(ValueError, match="experiment = "):
        open_given(text)


@dataclasses.dataclass(frozen=True)
class Small:
    """Settings of a test."""

    size: int = 1
    further: object = None


SIZE = Component("size", ("size",), (Choice(1, ("small",)), Choice(2, ("large",))))
LOSS = Metric("loss", ("loss",))
WRONG = {
    "no dataclass": ({"reference": 3}, "reference = 3: an instance of a frozen dataclass"),
    "no JSON": ({"reference": Small(further={1})}, "reference = Small"),
    "no field": ({"components": (Component("x", ("x",), SIZE.choices),)}, "'x'.*the settings have"),
    "other value": ({"reference": Small(3)}, "value 3 is not among its choices"),
    "no phrase": ({"components": (Component("size", (), SIZE.choices),)}, "phrases are missing"),
    "twice": ({"components": (SIZE, SIZE)}, "components: 'size' is there twice"),
    "no metric": ({"metrics": ()}, "metrics = ()"),
    "other metric": (
        {"default_metrics": ("loss", "return")},
        "default_metrics: 'return' is not a metric; the metrics are loss",
    ),
    "no seeds": ({"seeds": 0}, "seeds = 0"),
    "no word": (
        {"components": (Component("size", ("of",), SIZE.choices),)},
        "component 'size': the phrase 'of' has no word",
    ),
    "no word of a metric": (
        {"metrics": (Metric("loss", ("a",)),)},
        "metric 'loss': the phrase 'a'",
    ),
    "too many meta-seeds": ({"meta_seeds": 101}, "meta_seeds = 101: a whole number from 1 to 100"),
    "letters to tune": ({"grid": {"further": "adam"}}, "grid: 'further' = 'adam': a tuple of at"),
    "another number": (
        {"grid": {"further": (np.float32(1),)}},
        "grid: 'further': .*1.0.* cannot be written as JSON",
    ),
    "a control's field": (
        {"controls": (Control("c", "C", Small(), grid={"typo": (1,)}),)},
        "control 'c': grid: 'typo' is not a field",
    ),
    "a control's grid": (
        {"controls": (Control("c", "C", Small(), grid={"further": ()}),)},
        r"control 'c': grid: 'further' = \(\): a tuple of at least one value",
    ),
    "no settings": (
        {"controls": (Control("c", "C", None),)},
        "control 'c': settings = None: Small is needed",
    ),
    "no removal": (
        {"components": (dataclasses.replace(SIZE, remove=7),)},
        "7 is not among its cho",
    ),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_an_experiment_that_does_not_fit_together_is_refused(change, said):
    right = {
        "name": "a",
        "reference": Small(),
        "components": (SIZE,),
        "metrics": (LOSS,),
        "run": lambda settings, seed: {"loss": 1.0},
    }
    assert Experiment(**right).components[0].study == 1
    with pytest.raises(ValueError, match=said):
        Experiment(**{**right, **change})


def test_a_plan_names_what_the_file_offers_and_nothing_else(method):
    plan = PLAN.replace(b"no clipping", b"os.system('true')")
    with pytest.raises(PlanError, match=r"os.system.*known replacements of clip: norm, none") as e:
        study_of(method(), plan)
    first, *_, last = str(e.value).splitlines()
    assert first.endswith("my_method.py:experiment does not know these parts of the plan:")
    assert last == "Change the plan's words, or leave these parts out with --skip-unmapped."
    assert study_of(method(), plan, skip_unmapped=True).candidates[1].key == "momentum=0.0"
    with pytest.raises(PlanError, match="'clipping': it asks for nothing but clip = 'norm', which"):
        study_of(method(), PLAN.replace(b"no clipping", b"norm clipping"))


def test_the_command_line_does_all_of_it(method, tmp_path, monkeypatch, capsys, here):
    monkeypatch.setattr("optim4rl.cli.main.configure_jax", lambda: None)
    text, plan, out = method(), tmp_path / "plan.md", tmp_path / "out"
    main(["plan", "propose", "--of", text, "--out", str(plan)])
    assert "- **Expected**: worse" in plan.read_text()
    twice = plan.read_text() + "\n" + PLAN.decode().partition("\n\n")[2]
    plan.write_text(twice)
    capsys.readouterr()
    main(["plan", "show", str(plan), "--experiment", text, "--json"])
    assert json.loads(capsys.readouterr().out)["ablations"][0]["component"] == "momentum"
    main(["ablate", str(plan), "--experiment", text, "--out", str(out), "--json"])
    said = capsys.readouterr()
    assert "already replaces clip by none" in said.err
    rows = {row["key"]: row for row in json.loads(said.out)["rows"]}
    assert rows.keys() == {"reference", "momentum=0.0", "momentum=0.5", "clip=none"}
    assert rows["momentum=0.0"]["loss over the run"]["verdict"] == "clearly worse"
    assert here.ran
    count = len(here.ran)
    with open(tmp_path / "files" / "my_method.py", "a") as file:
        file.write("# another version\n")
    main(["ablate", str(plan), "--experiment", text, "--out", str(out), "--json"])
    assert "note: my_method.py has changed since the last study in" in capsys.readouterr().err
    assert len(here.ran) == 2 * count
    plan.write_text(twice.replace("loss, distance", "loss, accuracy"))
    with pytest.raises(SystemExit):
        main(["ablate", str(plan), "--experiment", text, "--out", str(out)])
    said = capsys.readouterr().err
    assert f"error: plan '{plan}': experiment {text} does not know these parts" in said
    assert "'accuracy'" in said
    plan.write_text(twice)
    with pytest.raises(SystemExit):
        main(["ablate", str(plan), "--experiment", text, "--out", str(out), "--scale", "quick"])
    assert (
        "scale = 'quick': this is an option of the experiment optim4rl" in capsys.readouterr().err
    )
