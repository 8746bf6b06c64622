"""A study runs once, goes on where it stopped, and gives the same numbers again."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from optim4rl.benchmark import runs
from optim4rl.benchmark.contender import UNTRAINED
from optim4rl.benchmark.runs import Batch
from optim4rl.benchmark.table import read_runs
from optim4rl.cli.main import main
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.fields import from_json, to_json
from optim4rl.jobs import pool
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.pool import JobError, LocalPool
from optim4rl.jobs.pools import Workers
from optim4rl.jobs.store import StoreError, finished_jobs, get_result, put_result, result_path
from optim4rl.pages.study import write_report
from optim4rl.plans.plan import PlanError
from optim4rl.study import runner
from optim4rl.study.cells import Training, keep_member, training_job
from optim4rl.study.collecting import collect
from optim4rl.study.experiment import points
from optim4rl.study.layout import lay_out, load_study, record_study
from optim4rl.study.opening import open_own
from optim4rl.study.own import META_LEARNING_RATE
from optim4rl.study.runner import run_study
from optim4rl.study.schedule import (
    choose_trainings,
    edges,
    expected_jobs,
    members,
    opening_jobs,
    scoring_jobs,
    to_tune,
    tuning_members,
)
from optim4rl.study.settings import (
    QUICK,
    SCALES,
    EvaluationSettings,
    StudySettings,
    TrainingSettings,
)
from optim4rl.study.variant import REFERENCE
from pretended import PretendedPool, curves, made_up, put_worker
from probes import LongEpisodes, untouched_area

PLAN = b"""# A small study

## Ablation Plan

### Ablation of the schedule
- **Ablated Part**: Pipeline training
- **Action**: REPLACE
- **Replacement**: Synchronous resets
- **Metrics**: Return
"""
UNKNOWN = b"""
### Ablation of the weather
- **Ablated Part**: Cloud cover
- **Action**: REMOVE
- **Metrics**: Return
"""
PUBLISHED = (Path(__file__).parents[2] / "plans" / "optim4rl.md").read_bytes()

SEEDS, META_SEEDS = 2, 2
# One rule and evaluations of two runs each, so that few programs are compiled.
TINY = StudySettings(
    meta_seeds=META_SEEDS,
    identity="smoke",
    training=TrainingSettings(
        width=8, agents=2, envs_per_agent=2, iterations=3, inner_updates=2, reset_interval=2
    ),
    evaluation=EvaluationSettings(
        width=8,
        num_envs=4,
        updates=6,
        seeds=SEEDS,
        tuning_seeds=1,
        classical_rates=(1e-3, 1e-2),
        stress_scales=(2.0,),
        stress_updates=4,
        stress_seeds=2,
    ),
)
STUDY = lay_out(PLAN, open_own("tiny", TINY))
KEYS = ["reference", "resets=synchronous", "resets=never", "untrained"]
BASELINES = ["adam", "rmsprop", "sign_sgd"]
ALPHA = TINY.training.learning_rate
RATES_OF_ALL = {key: {META_LEARNING_RATE: 3e-3} for key in [*KEYS, *BASELINES]}


def trainings(study, candidate, rate=3e-3):
    """The reported meta-trainings of a candidate."""
    found = members(study, candidate, {META_LEARNING_RATE: rate})
    return [from_json(Training, dict(x.training.arguments)) for x in found if x.training]


TRAINED = [x for c in STUDY.candidates for x in trainings(STUDY, c)]
# A batch of agents that never update, three of each baseline, two of each rule.
JOBS = len(TRAINED) + 1 + 3 * len(BASELINES) + 2 * len(TRAINED)


def run(study, folder, **options):
    """The study's results, and what was reported on the way."""
    said = []
    results = run_study(
        study,
        folder,
        command="optim4rl test",
        on_progress=lambda *x, **_: said.append(x),
        **options,
    )
    return results, said


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Where workers keep compiled programs, so that each is compiled once."""
    return tmp_path_factory.mktemp("programs")


def set_up_workers(patch, programs):
    """Workers compile each program once, and in haste: it runs for a moment only."""
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(autouse=True)
def _workers(programs, monkeypatch):
    set_up_workers(monkeypatch, programs)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, programs):
    """The folder of a finished study, its results, and what was reported on the way.

    Test processes side by side share the folder: whoever comes second finds all cells done.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch, (root / "study.lock").open("w") as lock:
        set_up_workers(patch, programs)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return root / "study", *run(STUDY, root / "study", workers=Workers(2))


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished study's folder, to change."""
    return shutil.copytree(finished[0], tmp_path / "study")


def values(results):
    """Results as plain values, to be compared whole."""
    return dataclasses.asdict(results)


def without_seconds(result):
    """The arrays and the info, less the measured times."""
    return tuple(
        {name: x for name, x in found.items() if name != "seconds"}
        for found in (result.arrays, result.info)
    )


# What is laid out

WIDTH = b"""
### How wide need agents be?
- **Ablated Part**: agent width
- **Action**: REPLACE
- **Replacement**: full width
- **Metrics**: Return
"""
RECIPE = (Path(__file__).parents[2] / "plans" / "recipe.md").read_bytes()


def test_what_the_reference_has_at_a_scale_is_refused_or_left_out():
    with pytest.raises(
        PlanError, match=r"'full width': at scale 'tiny'.*narrow → full changes not.*--skip-unm"
    ):
        lay_out(WIDTH, open_own("tiny", TINY))
    left = lay_out(WIDTH, open_own("tiny", TINY), skip_unmapped=True)
    assert [c.key for c in left.candidates] == [
        *("reference", "resets=never", "untrained"),
        *BASELINES,
    ]


@pytest.mark.parametrize("scale", ["smoke", "quick", "standard"])
def test_the_plan_of_the_recipe_can_be_run(scale):
    study = lay_out(RECIPE, open_own(scale, SCALES[scale]))
    assert [c.key for c in study.candidates] == [
        *("reference", "environments=one", "width=full", "validation=last", "life=short"),
        *("structure=anchored", "structure=mirrored", "resets=never", "untrained", *BASELINES),
    ]


# A whole study


def test_every_optimizer_has_a_row(finished):
    _, results, _ = finished
    rows = {row.key: row for row in results.rows}
    assert list(rows) == [*KEYS, *BASELINES]
    assert [row.kind for row in results.rows] == [
        *("reference", "replacement", "paper", "control"),
        *["baseline"] * len(BASELINES),
    ]
    assert rows["resets=synchronous"].change == "resets: staggered → synchronous"
    assert rows["resets=synchronous"].ablation == "Ablation of the schedule"
    assert rows["resets=never"].change == "resets: staggered → never"
    assert rows["untrained"].change == "meta-training: yes → no"
    assert "best of 0.001, 0.01" in rows["adam"].change


def test_a_row_says_what_is_an_end_of_its_grid(finished):
    """Of two learning rates each is one, and of a single step scale none."""
    _, results, _ = finished
    ends = {row.key: row.at_edge for row in results.rows}
    assert ends == dict.fromkeys(KEYS, ()) | dict.fromkeys(BASELINES, ("learning rate",))


def test_choices_at_an_end_of_their_grid_are_told():
    grid = points({"rate": (1.0, 3.0, 10.0), "decay": (0.5,), "form": ("a", "b")})
    said = [edges({"rate": x, "decay": 0.5, "form": "a"}, grid) for x in (1.0, 3.0, 10.0)]
    assert said == [("rate",), (), ("rate",)]


def test_every_row_has_all_its_runs(finished):
    _, results, _ = finished
    updates = TINY.evaluation.updates
    for row in results.rows:
        # An untrained rule does the same whatever its seed: it is one.
        meta_seeds = 1 if row.kind in ("baseline", "control") else META_SEEDS
        assert [c.returns.shape for c in row.curves] == [(SEEDS, updates)] * meta_seeds
        assert row.stress[2.0].returns.shape == (2 * meta_seeds, TINY.evaluation.stress_updates)
        assert np.isfinite(row.curves[0].returns).all()
        assert row.failures == {}
        assert row.seconds > 0
    assert results.identity is None


def test_every_meta_training_gives_other_weights(finished):
    folder, _, _ = finished
    found = [get_result(folder, training_job(x)).arrays for x in TRAINED]
    weights = [
        b"".join(x.tobytes() for name, x in arrays.items() if name != "meta_gradient_norm")
        for arrays in found
    ]
    assert len(set(weights)) == len(TRAINED) == META_SEEDS * 3 + 1
    norms = [arrays["meta_gradient_norm"].size for arrays in found]
    assert norms == [TINY.training.iterations * x.trained for x in TRAINED]


def test_all_optimizers_start_from_the_same_agents(finished):
    folder, results, _ = finished
    starts = [c.returns[:, 0] for row in results.rows for c in row.curves]
    untouched = read_runs(folder / "runs.parquet").filter(role="untrained")
    for start in (*starts, np.stack(untouched["returns"])[:, 0]):
        np.testing.assert_array_equal(start, starts[0])
    assert results.floor == pytest.approx(untouched["auc"].mean())


def test_progress_counts_every_job(finished):
    said = finished[2]
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)
    assert {total for _, total, _ in said} == {JOBS} == {len(expected_jobs(STUDY))}
    assert said[-1][0] == JOBS


def test_the_table_has_every_run(finished):
    folder, results, _ = finished
    table = read_runs(folder / "runs.parquet")
    tuned = table.filter(pl.col("role") != "untrained", purpose="tuned", task="catch")
    assert len(tuned) == SEEDS * (len(TRAINED) + len(BASELINES))
    for row in results.rows:
        whose = table.filter(optimizer=row.key)
        assert set(whose["role"]) == {row.kind}
        assert set(whose["change"]) == {row.change}
        for meta_seed, own in enumerate(row.curves):
            found = tuned.filter(optimizer=row.key, meta_seed=meta_seed)
            shown = own.returns.astype(np.float32)
            np.testing.assert_array_equal(np.stack(found["returns"]), shown)
            np.testing.assert_array_equal(found["env_steps"][0], own.env_steps)
            np.testing.assert_array_equal(found["final_return"], final_return(own))
            np.testing.assert_array_equal(found["auc"], area_under_curve(own))
            np.testing.assert_array_equal(found["diverged_at"], own.diverged_at)
        stress = whose.filter(purpose="stress", step_multiple=2.0)
        shown = row.stress[2.0].returns.astype(np.float32)
        np.testing.assert_array_equal(np.stack(stress["returns"]), shown)


def test_the_folder_alone_gives_the_results_again(finished):
    folder, results, _ = finished
    again = collect(load_study(folder), folder)
    record = json.loads((folder / "study.json").read_text())
    assert again.started == record["started"]
    assert again.versions.keys() >= {"python", "jax", "optim4rl"}
    np.testing.assert_equal(values(again), values(results) | {"started": again.started})


def test_a_finished_study_is_not_run_again(folder, monkeypatch):
    monkeypatch.setattr(pool.subprocess, "Popen", None)  # Starting a worker would fail.
    before = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    table = (folder / "runs.parquet").read_bytes()
    (folder / "runs.parquet").unlink()
    _, said = run(STUDY, folder, workers=Workers(2))
    assert {what for _, _, what in said} == {""}
    assert said[-1] == (JOBS, JOBS, "")
    assert len(before) == JOBS + len(TRAINED)
    assert {path: path.read_bytes() for path in folder.glob("*/*.safetensors")} == before
    assert (folder / "runs.parquet").read_bytes() == table


def test_lost_results_are_made_again_bit_for_bit(folder):
    """A meta-training, runs of its rule, runs of a baseline; by one worker instead of two."""
    lost = {}
    for path, question, _ in finished_jobs(folder):
        asked = question["arguments"]
        maker = asked.get("maker", {"optimizer": asked.get("variant", {}).get("resets")})
        lost[maker["optimizer"]] = path, Job(**question)
    lost = [lost[kind] for kind in ("synchronous", None, "adam")]
    before = [without_seconds(get_result(folder, job)) for _, job in lost]
    table = pl.read_parquet(folder / "runs.parquet").drop("seconds")
    for path, _ in lost:
        path.unlink()
    _, said = run(STUDY, folder, workers=Workers(1))
    assert len([what for _, _, what in said if what]) == len(lost)
    for (_, job), found in zip(lost, before, strict=True):
        np.testing.assert_equal(without_seconds(get_result(folder, job)), found)
    assert pl.read_parquet(folder / "runs.parquet").drop("seconds").equals(table)


def test_the_command_report_writes_the_same_bytes_again(folder, monkeypatch, capsys):
    monkeypatch.setattr("optim4rl.cli.main.configure_jax", lambda: None)
    reports = []
    for _ in range(2):
        main(["report", str(folder), "--json"])
        summary = json.loads(capsys.readouterr().out)
        assert [row["key"] for row in summary["rows"]] == [*KEYS, *BASELINES]
        reports.append((folder / "report.html").read_bytes())
    assert summary["report"] == str(folder / "report.html")
    assert reports[0] == reports[1]
    assert b"Synchronous resets" in reports[0]


# The floor


def test_the_floor_is_agents_that_never_update_over_whole_runs(tmp_path, monkeypatch):
    """Episodes that end in the first rollout are failures here, at -0.9 where the truth is 0.1."""
    monkeypatch.setattr(runs, "make_task", lambda config: LongEpisodes())

    def answer(folder, job):
        untouched = job.arguments.get("maker") == to_json(UNTRAINED)
        return job.run(folder) if untouched else made_up(folder, job)

    monkeypatch.setattr(runner, "open_pool", PretendedPool(answer).open)
    results, _ = run(STUDY, tmp_path)
    assert results.floor == pytest.approx(untouched_area(TINY.evaluation.updates), rel=1e-5)


# What goes wrong


def failing(who):
    """A pool in which meta-trainings of those variants and seeds run out of finite numbers."""

    def answer(folder, job):
        asked = job.arguments
        fails = asked.get("trained") and (asked["variant"]["resets"], asked["meta_seed"]) in who
        message = f"seed {asked.get('meta_seed')} diverged"
        return Result({}, {"failure": message}) if fails else made_up(folder, job)

    return PretendedPool(answer)


@pytest.mark.parametrize(
    ("resets", "seeds"),
    [("never", (0, 1)), ("never", (1,)), ("staggered", (0, 1)), ("staggered", (0,))],
)
def test_a_study_with_diverged_meta_trainings_reports(resets, seeds, tmp_path, monkeypatch):
    """Where all seeds of a variant diverged it has no runs; the others are there as ever."""
    key = {"never": "resets=never", "staggered": "reference"}[resets]
    pretended = failing({(resets, seed) for seed in seeds})
    monkeypatch.setattr(runner, "open_pool", pretended.open)
    results, said = run(STUDY, tmp_path)
    rows = {row.key: row for row in results.rows}
    assert list(rows) == [*KEYS, *BASELINES]
    assert rows[key].failures == {seed: f"seed {seed} diverged" for seed in seeds}
    assert len(rows[key].curves) == META_SEEDS - len(seeds)
    assert bool(rows[key].stress) is (len(seeds) < META_SEEDS)
    for other in set(rows) - {key}:
        assert rows[other].failures == {}
        assert rows[other].curves
    assert said[-1][:2] == (JOBS - 2 * len(seeds),) * 2
    table = read_runs(tmp_path / "runs.parquet")
    assert (key in set(table["optimizer"])) is (len(seeds) < META_SEEDS)
    again = collect(load_study(tmp_path), tmp_path)
    np.testing.assert_equal(values(again), values(results))
    write_report(results, tmp_path / "report.html")
    assert f"seed {seeds[0]} diverged" in (tmp_path / "report.html").read_text()


WORKER = """
import json, os, signal, sys
for line in sys.stdin:
    name = json.loads(line)["arguments"].get("maker", {}).get("optimizer")
    print("x" * 200_000, "last words of", name, file=sys.stderr, flush=True)
    if name == os.environ.get("DIES", "nobody"):
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def pretended_worker(tmp_path, monkeypatch):
    """Workers that compute nothing, print much, and die at the optimizer that DIES names."""
    monkeypatch.setenv("PYTHONPATH", put_worker(tmp_path / "pretended", WORKER))


@pytest.mark.usefixtures("pretended_worker")
def test_a_worker_that_dies_is_named_and_all_else_is_kept(folder, monkeypatch):
    monkeypatch.setenv("DIES", "rmsprop")
    lost = next(x for x in opening_jobs(STUDY, folder, RATES_OF_ALL) if "rmsprop" in x.what)
    result_path(folder, lost).unlink()
    kept = {path: path.read_bytes() for path in folder.glob("jobs/*")}
    message = r"catch: rmsprop 0.001, 0.01 failed; finished results are kept"
    with pytest.raises(JobError, match=message) as died:
        run(STUDY, folder, workers=Workers(2))
    assert f"exit code -{int(signal.SIGKILL)}" in str(died.value)
    assert "last words of rmsprop" in str(died.value)
    assert {path: path.read_bytes() for path in folder.glob("jobs/*")} == kept


@pytest.mark.usefixtures("pretended_worker")
def test_no_job_is_started_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("DIES", "rmsprop")
    said = []
    with pytest.raises(JobError, match=r"catch: rmsprop 0.001, 0.01 failed"):
        run_study(
            STUDY,
            tmp_path,
            command="",
            workers=Workers(1),
            on_progress=lambda *x, **_: said.append(x[2]),
        )
    done = [what for what in said if what]
    # A job of each kind comes first; behind that of RMSProp nothing comes.
    assert not any("rmsprop" in what or "sign_sgd" in what for what in done)
    assert "catch: adam 0.001, 0.01" in done


@pytest.mark.usefixtures("pretended_worker")
@pytest.mark.parametrize("jobs", [1, 3, 100])
def test_every_job_is_asked_for_once_and_much_output_blocks_nobody(jobs, tmp_path):
    said = []
    with pytest.raises(StoreError, match="no such result"):  # The pretended worker keeps none.
        run_study(
            STUDY,
            tmp_path,
            command="",
            workers=Workers(jobs),
            on_progress=lambda *x, **_: said.append(x),
        )
    opening = opening_jobs(STUDY, tmp_path, RATES_OF_ALL)
    done = [(done, total) for done, total, what in said if what]
    assert done == [(index + 1, JOBS) for index in range(len(opening))]
    assert sorted(what for *_, what in said if what) == sorted(job.what for job in opening)


def test_a_job_that_raises_is_named_with_its_error(tmp_path):
    job = Job("optim4rl.study.cells:run_identity", {"scale": "huge"}, "the experiment")
    with LocalPool(tmp_path, 1) as workers, pytest.raises(JobError) as error:
        workers.run([job])
    assert str(error.value).startswith("the experiment failed; finished results are kept.\nTrace")
    assert str(error.value).rstrip().endswith("KeyError: 'huge'")


def test_a_task_that_is_not_there_is_named_before_any_job(tmp_path, monkeypatch):
    monkeypatch.setattr(pool.subprocess, "Popen", None)
    study = lay_out(PLAN, open_own("tiny", dataclasses.replace(TINY, environment="atlantis")))
    with pytest.raises(ValueError, match="atlantis"):
        run(study, tmp_path, workers=Workers(1))


DAMAGES = {
    "no settings": ("study.json", b"{}"),
    "no JSON": ("study.json", b"\xff"),
    "a list": ("study.json", b"[]"),
    "no plan": ("plan.md", b""),
}


@pytest.mark.parametrize(("name", "data"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_by_name(name, data, tmp_path, monkeypatch):
    record = {"settings": to_json(TINY), "scale": "tiny", "skip_unmapped": False}
    (tmp_path / "study.json").write_text(json.dumps(record))
    (tmp_path / "plan.md").write_bytes(PLAN)
    assert load_study(tmp_path) == STUDY
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StoreError, match="no study can be read there") as error:
        load_study(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_folder_without_a_study_is_refused_by_name(tmp_path):
    with pytest.raises(StoreError, match="nowhere: no study can be read there"):
        load_study(tmp_path / "nowhere")


# Laying out


def test_the_published_plan_is_laid_out():
    study = lay_out(PUBLISHED, open_own("quick", QUICK))
    structure, processing = "Ablation of Optimizer Structure", "Ablation of Gradient Processing"
    assert [(x.key, x.label, x.kind, x.ablation) for x in study.candidates] == [
        ("reference", "Optim4RL", "reference", None),
        ("structure=linear", "Linear update function", "replacement", structure),
        ("structure=non_adaptive", "Non-adaptive structure", "replacement", structure),
        ("processing=raw", "No transformation", "replacement", processing),
        ("processing=symlog", "Alternative logarithmic scaling", "replacement", processing),
        ("resets=never", "Without pipeline training", "paper", None),
        ("untrained", "Untrained Optim4RL", "control", None),
        ("adam", "Tuned Adam", "baseline", None),
        ("rmsprop", "Tuned RMSProp", "baseline", None),
        ("sign_sgd", "Tuned sign-SGD", "baseline", None),
    ]
    assert [x.key for x in study.candidates if not x.trained] == ["untrained", *BASELINES]
    assert study.candidates[0].settings == study.candidates[6].settings == REFERENCE
    chosen = {x.key: {META_LEARNING_RATE: 3e-3} for x in study.candidates}
    jobs = opening_jobs(study, None, chosen)
    addresses = {job.address for job in jobs}
    trained = 6 * QUICK.meta_seeds + 1
    assert len(addresses) == len(jobs) == 1 + 1 + 2 * len(BASELINES) + trained
    assert (jobs[0].what, jobs[0].arguments) == ("identity experiment", {"scale": "quick"})
    assert addresses <= {job.address for job in expected_jobs(study)}
    # Seeds are the outer loop, so that different programs are compiled first.
    assert [job.arguments["meta_seed"] for job in jobs[-trained:]] == [0] * 7 + [1] * 6 + [2] * 6


def test_a_plan_that_asks_for_no_pipeline_gets_it_once():
    source = PLAN.replace(b"Synchronous resets", b"No resets")
    candidates = {x.key: x.kind for x in lay_out(source, open_own("tiny", TINY)).candidates}
    assert candidates == {
        "reference": "reference",
        "resets=never": "replacement",
        "untrained": "control",
        **dict.fromkeys(BASELINES, "baseline"),
    }


def test_what_the_reference_has_already_is_no_comparison():
    source = PLAN.replace(b"Pipeline training", b"Validation rollout")
    source = source.replace(b"Synchronous resets", b"Last rollout, dense validation")
    keys = [x.key for x in lay_out(source, open_own("tiny", TINY)).candidates]
    assert keys == ["reference", "validation=last", "resets=never", "untrained", *BASELINES]


def test_an_ablation_that_asks_for_the_reference_alone_is_refused():
    source = PLAN.replace(b"Pipeline training", b"Validation rollout")
    alone = source.replace(b"Synchronous resets", b"Dense validation")
    with pytest.raises(PlanError, match="validation = 'dense', which the reference has"):
        lay_out(alone, open_own("tiny", TINY))
    lay_out(alone, open_own("tiny", TINY), skip_unmapped=True)
    added = source.replace(b"REPLACE", b"ADD").replace(
        b"- **Replacement**: Synchronous resets\n", b""
    )
    keys = [x.key for x in lay_out(added, open_own("tiny", TINY)).candidates]
    assert keys[:2] == ["reference", "validation=last"]


def test_a_baseline_that_diverges_is_no_ceiling(tmp_path, monkeypatch):
    def answer(folder, job):
        found = made_up(folder, job)
        if job.arguments.get("maker", {}).get("optimizer") == "adam":
            found.arrays["returns"][:], found.arrays["diverged_at"][:] = np.nan, 0
        return found

    monkeypatch.setattr(runner, "open_pool", PretendedPool(answer).open)
    results, _ = run(STUDY, tmp_path)
    assert np.isfinite(results.ceiling)


def test_what_is_asked_for_twice_is_run_once():
    study = lay_out(PLAN + PLAN.split(b"\n\n")[-1], open_own("tiny", TINY))
    assert len(study.plan.ablations) == 2
    assert study.candidates == STUDY.candidates


@pytest.mark.parametrize("skip", [False, True])
def test_a_plan_of_nothing_known_is_refused(skip):
    source = b"# Weather\n\n## Ablation Plan\n" + UNKNOWN
    with pytest.raises(PlanError, match="Cloud cover"):
        lay_out(source, open_own("tiny", TINY), skip_unmapped=skip)


def test_unknown_parts_are_refused_or_left_out(tmp_path):
    with pytest.raises(PlanError, match="Cloud cover"):
        lay_out(PLAN + UNKNOWN, open_own("tiny", TINY))
    study = lay_out(PLAN + UNKNOWN, open_own("tiny", TINY), skip_unmapped=True)
    assert study.candidates == STUDY.candidates
    assert [entry.component is None for entry in study.mapped] == [False, True]
    record_study(study, tmp_path, "", "")
    assert load_study(tmp_path) == study


# Meta-learning rates

RATES = (1e-3, 3e-3, 1e-2)
TUNED_SETTINGS = dataclasses.replace(
    TINY,
    meta_learning_rates=RATES,
    tuning_meta_seeds=2,
    evaluation=dataclasses.replace(TINY.evaluation, step_scales=(1.0, 3.0)),
)
TUNED = lay_out(PLAN, open_own("tiny", TUNED_SETTINGS))


def test_one_meta_learning_rate_is_not_tuned(tmp_path):
    assert to_tune(STUDY) == []
    assert choose_trainings(STUDY, tmp_path) == RATES_OF_ALL


def tuned(study):
    """All meta-trainings that choose."""
    return [x for each in to_tune(study) for x in tuning_members(study, *each)]


def training_of(member):
    """Its meta-training."""
    return from_json(Training, dict(member.training.arguments))


def test_meta_learning_rates_are_tuned_on_seeds_that_are_not_reported():
    trained = [x.settings for x in TUNED.candidates if x.trained]
    expected = [(v, rate, seed) for v in trained for rate in RATES for seed in (100, 101)]
    asked = [training_of(x) for x in tuned(TUNED)]
    assert [(x.variant, x.meta_learning_rate, x.meta_seed) for x in asked] == expected
    assert all(x.trained for x in asked)
    for scale in SCALES.values():
        study = lay_out(PUBLISHED, open_own("", scale))
        reported = [x for c in study.candidates for x in trainings(study, c)]
        seeds = {x.meta_seed for x in reported}
        assert seeds.isdisjoint(x.meta_seed for x in tuned(study))
        assert len(seeds) == scale.meta_seeds


def choose(folder, scores):
    """The choice where `scores(variant, rate)` are those of the tuning meta-seeds.

    Of a meta-seed, a score for each step scale, None if an agent diverged; or None if the
    meta-training did.
    """
    by_weights = {}
    for index, training in enumerate(map(training_of, tuned(TUNED))):
        score = scores(training.variant, training.meta_learning_rate)[training.meta_seed - 100]
        arrays = {
            "network0.input": np.full((8, 24), index, np.float32),
            "meta_gradient_norm": np.ones(1, np.float32),
        }
        found = Result(arrays, {}) if score else Result({}, {"failure": "diverged"})
        put_result(folder, training_job(training), found)
        if score:
            by_weights[keep_member(folder, training).weights] = score
    alive = [x for x in tuned(TUNED) if "failure" not in get_result(folder, x.training).info]
    for job in (job for member in alive for job in scoring_jobs(TUNED, folder, member)):
        batch = from_json(Batch, job.arguments)
        levels = by_weights[batch.maker.weights]
        found = curves(batch, lambda batch, rate, seed, x=levels: x[rate > 2 * ALPHA] or 0.0)
        for run, (rate, _) in enumerate(batch.runs):
            if levels[rate > 2 * ALPHA] is None:
                found.arrays["returns"][run], found.arrays["diverged_at"][run] = np.nan, 0
        put_result(folder, job, found)
    return meta_learning_rates(folder)


def meta_learning_rates(folder):
    """Those chosen, of all that is meta-trained or could be."""
    chosen = choose_trainings(TUNED, folder)
    return {key: chosen[key][META_LEARNING_RATE] for key in KEYS}


def test_the_rate_with_the_best_mean_is_chosen_for_each_variant(tmp_path):
    # The best seed of all is not at the rate with the best mean.
    staggered = {1e-3: (0.6, 0.1), 3e-3: (0.4, 0.4), 1e-2: (0.1, 0.1)}

    def scores(variant, rate):
        each = staggered[rate] if variant == REFERENCE else (rate, rate)
        return [[score, score] for score in each]

    assert choose(tmp_path, scores) == {
        "reference": 3e-3,
        "resets=synchronous": 1e-2,
        "resets=never": 1e-2,
        "untrained": 1e-3,
    }


def test_a_meta_seed_counts_by_its_best_step_scale(tmp_path):
    scores = {1e-3: [0.1, 0.2], 3e-3: [None, 0.3], 1e-2: [0.25, None]}
    chosen = choose(tmp_path, lambda variant, rate: [scores[rate], scores[rate]])
    assert chosen["reference"] == 3e-3


@pytest.mark.parametrize("bad", [None, [None, None]])
def test_a_rate_that_diverged_once_is_chosen_last(tmp_path, bad):
    good, poor = [0.99, 0.99], [-0.9, -0.9]
    scores = {1e-3: (good, bad), 3e-3: (poor, poor), 1e-2: (bad, good)}
    assert choose(tmp_path, lambda variant, rate: scores[rate])["reference"] == 3e-3


def test_a_rate_is_chosen_even_where_all_diverged(tmp_path):
    assert choose(tmp_path, lambda variant, rate: (None, None))["reference"] in RATES


def test_meta_learning_rates_are_tuned_before_anything_is_reported(tmp_path, monkeypatch):
    """Nothing that is reported has a tuning seed, and the whole is counted beforehand."""
    pretended = PretendedPool()
    monkeypatch.setattr(runner, "open_pool", pretended.open)
    results, said = run(TUNED, tmp_path)
    trained = [job.arguments for job in pretended.ran if "meta_seed" in job.arguments]
    assert [x["meta_seed"] // 100 for x in trained] == [1] * 18 + [0] * 7
    assert said[-1][:2] == (len(pretended.ran),) * 2
    assert {total for _, total, _ in said} == {len(expected_jobs(TUNED))}
    rates = {row.key: row.settings["meta-learning rate"] for row in results.rows[:4]}
    assert rates == meta_learning_rates(tmp_path) | {"untrained": None}
    assert {len(row.settings["step scale"]) for row in results.rows[:3]} == {META_SEEDS}


def test_a_grid_whose_best_value_is_at_its_edge_is_extended(tmp_path, monkeypatch):
    """By half decades, as often as the settings say; here a larger step is always better."""

    def answer(folder, job):
        if job.function == "optim4rl.benchmark.runs:train_batch":
            return curves(from_json(Batch, dict(job.arguments)), lambda batch, rate, seed: rate)
        return made_up(folder, job)

    evaluation = dataclasses.replace(TINY.evaluation, step_scales=(0.3, 1.0), extensions=2)
    study = lay_out(PLAN, open_own("tiny", dataclasses.replace(TINY, evaluation=evaluation)))
    monkeypatch.setattr(runner, "open_pool", PretendedPool(answer).open)
    results, _ = run(study, tmp_path)
    rows = {row.key: row for row in results.rows}
    assert rows["reference"].settings["step scale"] == [10.0] * META_SEEDS
    assert "0.1, best of 0.001, 0.01, 0.03, 0.1, at the edge" in rows["adam"].change
    np.testing.assert_equal(values(collect(load_study(tmp_path), tmp_path)), values(results))
