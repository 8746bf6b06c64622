"""A study runs once, goes on where it stopped, and gives the same numbers again."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from optim4rl.study.store import StoreError, get_result, result_path

from optim4rl.benchmark.protocol import EvaluationSettings
from optim4rl.cli.main import main
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.jobs.pool import JobError
from optim4rl.jobs.pools import Workers
from optim4rl.plans.plan import PlanError
from optim4rl.study import runner
from optim4rl.study.cells import CellResult, ClassicalCell, IdentityCell, LearnedCell
from optim4rl.study.runner import (
    choose_meta_learning_rates,
    collect,
    describe_cell,
    lay_out,
    load_study,
    report_cells,
    run_study,
    settings_from_dict,
    tuning_cells,
)
from optim4rl.study.settings import QUICK, SCALES, StudySettings, TrainingSettings
from optim4rl.study.variant import REFERENCE

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
STUDY = lay_out(PLAN, "tiny", TINY)
KEYS = ["reference", "resets=synchronous", "resets=never", "untrained"]
BASELINES = ["adam", "rmsprop", "sign_sgd"]
CELLS = report_cells(STUDY, dict.fromkeys(KEYS, 3e-3))


def run(study, folder, **options):
    """The study's results, and what was reported on the way."""
    said = []
    results = run_study(
        study, folder, command="optim4rl test", on_progress=lambda *x: said.append(x), **options
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
    return dict(result.arrays), {k: v for k, v in result.info.items() if k != "seconds"}


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
        PlanError, match=r"'full width': at scale 'tiny'.*narrow → full changes not"
    ):
        lay_out(WIDTH, "tiny", TINY)
    left = lay_out(WIDTH, "tiny", TINY, skip_unmapped=True)
    assert [c.key for c in left.comparisons] == ["reference", "resets=never", "untrained"]


@pytest.mark.parametrize("scale", ["smoke", "quick", "standard"])
def test_the_plan_of_the_recipe_can_be_run(scale):
    study = lay_out(RECIPE, scale, SCALES[scale])
    assert [c.key for c in study.comparisons] == [
        *("reference", "environments=one", "width=full", "validation=last", "life=short"),
        *("structure=anchored", "structure=mirrored", "resets=never", "untrained"),
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


@pytest.mark.parametrize(
    ("rate", "at_edge", "said"),
    [
        (3e-3, (False, False), ()),
        (1e-3, (False, False), ("meta-learning rate",)),
        (1e-2, (True, False), ("meta-learning rate", "step scale of 1 of 2 meta-seeds")),
        (None, (True, True), ("step scale of 2 of 2 meta-seeds",)),
    ],
)
def test_choices_at_an_end_of_their_grid_are_told(rate, at_edge, said):
    settings = dataclasses.replace(TINY, meta_learning_rates=(1e-3, 3e-3, 1e-2))
    results = [CellResult({}, {"at_edge": end}) for end in at_edge]
    assert runner.settings_at_edge(settings, rate, results) == said


def test_every_row_has_all_its_runs(finished):
    _, results, _ = finished
    updates = TINY.evaluation.updates
    for row in results.rows:
        meta_seeds = 1 if row.kind == "baseline" else META_SEEDS
        assert [c.returns.shape for c in row.curves] == [(SEEDS, updates)] * meta_seeds
        assert row.stress[2.0].returns.shape == (2 * meta_seeds, TINY.evaluation.stress_updates)
        assert np.isfinite(row.curves[0].returns).all()
        assert row.failures == {}
        assert row.seconds > 0
    assert -1 <= results.floor <= 1
    assert results.identity is None


def test_every_meta_training_gives_other_weights(finished):
    folder, results, _ = finished
    cells = [x for x in CELLS if isinstance(x, LearnedCell)]
    weights = [
        np.concatenate([x.ravel() for name, x in arrays.items() if name.startswith("weights/")])
        for arrays in (get_result(folder, cell).arrays for cell in cells)
    ]
    assert len({x.tobytes() for x in weights}) == len(cells) == META_SEEDS * len(KEYS)
    # Heads start at zero: an untrained rule does the same whatever its seed.
    untrained = next(row for row in results.rows if row.key == "untrained")
    np.testing.assert_array_equal(*(curves.returns for curves in untrained.curves))


def test_all_optimizers_start_from_the_same_agents(finished):
    _, results, _ = finished
    starts = [c.returns[:, 0] for row in results.rows for c in row.curves]
    for start in starts[1:]:
        np.testing.assert_array_equal(start, starts[0])
    np.testing.assert_allclose(results.floor, starts[0].mean(), rtol=1e-6)


def test_progress_counts_every_cell(finished):
    said = finished[2]
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)
    assert {total for _, total, _ in said} == {len(CELLS)}
    assert said[-1][0] == len(CELLS)


def test_the_table_has_every_run(finished):
    folder, results, _ = finished
    table = pl.read_parquet(folder / "runs.parquet")
    evaluation = table.filter(pl.col("purpose") == "evaluation")
    assert len(evaluation) == SEEDS * (META_SEEDS * len(KEYS) + len(BASELINES))
    for row in results.rows:
        for meta_seed, curves in enumerate(row.curves):
            runs = evaluation.filter(optimizer=row.key, meta_seed=meta_seed).sort("run")
            np.testing.assert_array_equal(np.stack(runs["returns"].to_list()), curves.returns)
            np.testing.assert_array_equal(runs["env_steps"][0], curves.env_steps)
            np.testing.assert_array_equal(runs["final_return"], final_return(curves))
            np.testing.assert_array_equal(runs["auc"], area_under_curve(curves))
            np.testing.assert_array_equal(runs["diverged_at"], curves.diverged_at)
        stress = table.filter(optimizer=row.key, purpose="stress", step_scale=2.0).sort("run")
        np.testing.assert_array_equal(
            np.stack(stress["returns"].to_list()), row.stress[2.0].returns
        )


def test_the_folder_alone_gives_the_results_again(finished):
    folder, results, _ = finished
    again = collect(load_study(folder), folder)
    record = json.loads((folder / "study.json").read_text())
    assert again.started == record["started"]
    assert again.versions.keys() >= {"python", "jax", "optim4rl"}
    np.testing.assert_equal(values(again), values(results) | {"started": again.started})


def test_a_finished_study_is_not_run_again(folder, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # Starting a worker would fail.
    before = {path: path.read_bytes() for path in folder.glob("cells/*")}
    table = (folder / "runs.parquet").read_bytes()
    (folder / "runs.parquet").unlink()
    _, said = run(STUDY, folder, workers=Workers(2))
    assert set(said) == {(len(CELLS), len(CELLS), ""), (0, len(CELLS), "")}
    assert {path: path.read_bytes() for path in folder.glob("cells/*")} == before
    assert (folder / "runs.parquet").read_bytes() == table


def test_a_lost_result_is_made_again_bit_for_bit(folder):
    cell = next(x for x in CELLS if isinstance(x, LearnedCell) and x.variant != REFERENCE)
    before = without_seconds(get_result(folder, cell))
    table = (folder / "runs.parquet").read_bytes()
    result_path(folder, cell).unlink()
    _, said = run(STUDY, folder, workers=Workers(2))
    assert [what for _, _, what in said if what] == [describe_cell(cell)]
    np.testing.assert_equal(without_seconds(get_result(folder, cell)), before)
    assert (folder / "runs.parquet").read_bytes() == table


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


# What goes wrong

WORKER = """
import json, os, signal, sys
for line in sys.stdin:
    name = json.loads(line)["cell"].get("name")
    print("x" * 200_000, "last words of", name, file=sys.stderr, flush=True)
    if name == os.environ.get("DIES", "nobody"):
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({"done": 1.0}), flush=True)
"""


@pytest.fixture
def pretended_worker(tmp_path, monkeypatch):
    """Workers that compute nothing, print much, and die at the cell that DIES names."""
    package = tmp_path / "pretended" / "optim4rl" / "study"
    package.mkdir(parents=True)
    for path in (package / "__init__.py", package.parent / "__init__.py"):
        path.touch()
    (package / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "pretended"))


@pytest.mark.usefixtures("pretended_worker")
def test_a_worker_that_dies_is_named_and_all_else_is_kept(folder, monkeypatch):
    monkeypatch.setenv("DIES", "rmsprop")
    cell = next(x for x in CELLS if isinstance(x, ClassicalCell) and x.name == "rmsprop")
    result_path(folder, cell).unlink()
    kept = {path: path.read_bytes() for path in folder.glob("cells/*")}
    with pytest.raises(JobError, match="tuned rmsprop failed; finished results are kept") as died:
        run(STUDY, folder, workers=Workers(2))
    assert f"exit code -{int(signal.SIGKILL)}" in str(died.value)
    assert "last words of rmsprop" in str(died.value)
    assert {path: path.read_bytes() for path in folder.glob("cells/*")} == kept


@pytest.mark.usefixtures("pretended_worker")
def test_no_cell_is_started_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("DIES", "rmsprop")
    said = []
    with pytest.raises(JobError, match="tuned rmsprop failed"):
        run_study(
            STUDY,
            tmp_path,
            command="",
            workers=Workers(1),
            on_progress=lambda *x: said.append(x[2]),
        )
    assert said == ["", "", "tuned adam"]


@pytest.mark.usefixtures("pretended_worker")
@pytest.mark.parametrize("jobs", [1, 3, 100])
def test_every_cell_is_asked_for_once_and_much_output_blocks_nobody(jobs, tmp_path):
    said = []
    with pytest.raises(StoreError, match="no such result"):  # The pretended worker keeps none.
        run_study(
            STUDY,
            tmp_path,
            command="",
            workers=Workers(jobs),
            on_progress=lambda *x: said.append(x),
        )
    done = [(done, total) for done, total, what in said if what]
    assert done == [(index + 1, len(CELLS)) for index in range(len(CELLS))]
    assert sorted(what for *_, what in said if what) == sorted(map(describe_cell, CELLS))


def test_a_cell_that_raises_is_named_with_its_error(tmp_path):
    study = lay_out(PLAN, "tiny", dataclasses.replace(TINY, environment="atlantis"))
    with pytest.raises(JobError, match=r"tuned adam failed; .*\n(?s:.*)atlantis"):
        run(study, tmp_path, workers=Workers(1))


DAMAGES = {
    "no settings": ("study.json", b"{}"),
    "no JSON": ("study.json", b"\xff"),
    "a list": ("study.json", b"[]"),
    "no plan": ("plan.md", b""),
}


@pytest.mark.parametrize(("name", "data"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_by_name(name, data, tmp_path, monkeypatch):
    record = {"settings": dataclasses.asdict(TINY), "scale": "tiny", "skip_unmapped": False}
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
    study = lay_out(PUBLISHED, "quick", QUICK)
    structure, processing = "Ablation of Optimizer Structure", "Ablation of Gradient Processing"
    assert [(x.key, x.label, x.kind, x.ablation) for x in study.comparisons] == [
        ("reference", "Optim4RL", "reference", None),
        ("structure=linear", "Linear update function", "replacement", structure),
        ("structure=non_adaptive", "Non-adaptive structure", "replacement", structure),
        ("processing=raw", "No transformation", "replacement", processing),
        ("processing=symlog", "Alternative logarithmic scaling", "replacement", processing),
        ("resets=never", "Without pipeline training", "paper", None),
        ("untrained", "Untrained Optim4RL", "control", None),
    ]
    assert [x.key for x in study.comparisons if not x.trained] == ["untrained"]
    assert study.comparisons[0].variant == study.comparisons[-1].variant == REFERENCE
    assert study.identity
    cells = report_cells(study, dict.fromkeys([x.key for x in study.comparisons], 3e-3))
    assert len(cells) == len(set(cells)) == 1 + len(BASELINES) + 7 * QUICK.meta_seeds
    assert cells[0] == IdentityCell("quick")


def test_a_plan_that_asks_for_no_pipeline_gets_it_once():
    source = PLAN.replace(b"Synchronous resets", b"No resets")
    comparisons = {x.key: x.kind for x in lay_out(source, "tiny", TINY).comparisons}
    assert comparisons == {
        "reference": "reference",
        "resets=never": "replacement",
        "untrained": "control",
    }


def test_what_the_reference_has_already_is_no_comparison():
    source = PLAN.replace(b"Pipeline training", b"Validation rollout")
    source = source.replace(b"Synchronous resets", b"Last rollout, dense validation")
    keys = [x.key for x in lay_out(source, "tiny", TINY).comparisons]
    assert keys == ["reference", "validation=last", "resets=never", "untrained"]


def test_what_is_asked_for_twice_is_run_once():
    study = lay_out(PLAN + PLAN.split(b"\n\n")[-1], "tiny", TINY)
    assert len(study.plan.ablations) == 2
    assert study.comparisons == STUDY.comparisons


@pytest.mark.parametrize("skip", [False, True])
def test_a_plan_of_nothing_known_is_refused(skip):
    source = b"# Weather\n\n## Ablation Plan\n" + UNKNOWN
    with pytest.raises(PlanError, match="Cloud cover"):
        lay_out(source, "tiny", TINY, skip_unmapped=skip)


def test_unknown_parts_are_refused_or_left_out(tmp_path):
    with pytest.raises(PlanError, match="Cloud cover"):
        lay_out(PLAN + UNKNOWN, "tiny", TINY)
    study = lay_out(PLAN + UNKNOWN, "tiny", TINY, skip_unmapped=True)
    assert study.comparisons == STUDY.comparisons
    assert [entry.component is None for entry in study.mapped] == [False, True]
    runner.record_study(study, tmp_path, "")
    assert load_study(tmp_path) == study


@pytest.mark.parametrize("scale", SCALES)
def test_settings_survive_json(scale):
    text = json.dumps(dataclasses.asdict(SCALES[scale]))
    assert settings_from_dict(json.loads(text)) == SCALES[scale]


# Meta-learning rates

RATES = (1e-3, 3e-3, 1e-2)
TUNED = lay_out(
    PLAN,
    "tiny",
    dataclasses.replace(TINY, meta_learning_rates=RATES, tuning_meta_seeds=2),
)


def test_one_meta_learning_rate_is_not_tuned(tmp_path):
    assert tuning_cells(STUDY) == []
    assert choose_meta_learning_rates(STUDY, tmp_path) == dict.fromkeys(KEYS, 3e-3)


def test_meta_learning_rates_are_tuned_on_seeds_that_are_not_reported():
    cells = tuning_cells(TUNED)
    trained = [x.variant for x in TUNED.comparisons if x.trained]
    expected = [(v, rate, seed) for v in trained for rate in RATES for seed in (100, 101)]
    assert [(x.variant, x.meta_learning_rate, x.meta_seed) for x in cells] == expected
    assert {(x.purpose, x.trained) for x in cells} == {("tune", True)}
    for scale in SCALES.values():
        study = lay_out(PUBLISHED, "", scale)
        keys = [x.key for x in study.comparisons]
        reported = report_cells(study, dict.fromkeys(keys, 3e-3))
        seeds = {x.meta_seed for x in reported if isinstance(x, LearnedCell)}
        assert seeds.isdisjoint(x.meta_seed for x in tuning_cells(study))
        assert len(seeds) == scale.meta_seeds


def choose(monkeypatch, scores):
    """The choice where `scores(variant, rate)` are those of the tuning meta-seeds."""

    def found(folder, cell):
        score = scores(cell.variant, cell.meta_learning_rate)[cell.meta_seed - 100]
        info = {"failure": "diverged"} if score is None else {"scores": score}
        return CellResult({}, {"seconds": 1.0, **info})

    monkeypatch.setattr(runner, "get_result", found)
    return choose_meta_learning_rates(TUNED, Path())


def test_the_rate_with_the_best_mean_is_chosen_for_each_variant(monkeypatch):
    # The best seed of all is not at the rate with the best mean.
    staggered = {1e-3: ([0.6], [0.0]), 3e-3: ([0.4], [0.4]), 1e-2: ([0.1], [0.1])}

    def scores(variant, rate):
        return staggered[rate] if variant == REFERENCE else ([rate], [rate])

    chosen = choose(monkeypatch, scores)
    assert chosen == {
        "reference": 3e-3,
        "resets=synchronous": 1e-2,
        "resets=never": 1e-2,
        "untrained": 3e-3,
    }


def test_a_meta_seed_counts_by_its_best_step_scale(monkeypatch):
    scores = {1e-3: [0.1, 0.2], 3e-3: [None, 0.3], 1e-2: [0.25, None]}
    chosen = choose(monkeypatch, lambda variant, rate: (scores[rate], scores[rate]))
    assert chosen["reference"] == 3e-3


@pytest.mark.parametrize("bad", [None, [None], [None, None]])
def test_a_rate_that_diverged_once_is_chosen_last(monkeypatch, bad):
    scores = {1e-3: ([0.99], bad), 3e-3: ([-0.9], [-0.9]), 1e-2: (bad, [0.99])}
    assert choose(monkeypatch, lambda variant, rate: scores[rate])["reference"] == 3e-3


def test_a_rate_is_chosen_even_where_all_diverged(monkeypatch):
    assert choose(monkeypatch, lambda variant, rate: (None, None))["reference"] in RATES
