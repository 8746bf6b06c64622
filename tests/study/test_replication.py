"""The paper's experiments: what is trained, what is chosen, and that nothing is done twice."""

import dataclasses
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from optim4rl.benchmark import scale
from optim4rl.benchmark.protocol import TUNING_SEED, Protocol
from optim4rl.benchmark.runs import Batch
from optim4rl.benchmark.suites import SuiteTask
from optim4rl.cli.replicate import ReplicateOptions, lay_out
from optim4rl.evaluation.learning import BATCH
from optim4rl.fields import from_json
from optim4rl.jobs.store import has_result
from optim4rl.meta import resumable
from optim4rl.meta.recipes import RECIPES
from optim4rl.optimizers.weights import flatten
from optim4rl.pages.replication import write_replication
from optim4rl.study import replication as module
from optim4rl.study.paper import EXPERIMENTS
from optim4rl.study.replication import (
    TUNED_STEP,
    TUNING_META_SEED,
    Arm,
    Replication,
    Setting,
    Tried,
    benchmark_of,
    choose_settings,
    choosing_benchmark,
    make_training,
    meta_train,
    run_replication,
    training_job,
)
from optim4rl.tasks import TaskConfig
from pretended import PretendedPool

TINY = replace(
    RECIPES["paper/catch"],
    width=(4,),
    meta=replace(RECIPES["paper/catch"].meta, agents=2, iterations=4, reset_interval=2),
)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    """Version A and Version A without pipeline training, on Catch; runs and weights are made up."""
    never = replace(TINY, meta=replace(TINY.meta, resets="never"))
    replication = Replication(
        environment="catch",
        arms=(Arm("A", TINY, 2), Arm("A without pipeline", never, 1, control=False)),
        meta_learning_rates=(1e-4, 1e-3),
        reset_intervals=(1, 2),
        rollouts=3,
        num_envs=4,
        step_scales=(1.0, 10.0),
        rates=(1e-3, 1e-2),
        protocol=Protocol(seeds=2, tuning_seeds=2, stress_scales=(1.0,), stress_seeds=1),
    )
    folder = tmp_path_factory.mktemp("replication")
    counts = []
    with pretending():
        found = run_replication(replication, folder, on_progress=lambda *x, **_: counts.append(x))
    return replication, folder, found, counts


@contextmanager
def pretending():
    """Jobs are made up in this process."""
    pool = PretendedPool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_pool", pool.open)
        patch.setattr(scale, "RESAMPLES", 200)
        yield pool


def test_every_arm_is_a_contender_with_its_step_as_trained_and_tuned(replicated):
    replication, _, found, counts = replicated
    b = found.results.benchmark
    grids = {x.name: (x.grid, x.unit, len(x.members), x.control) for x in b.contenders}
    scales, alpha = replication.step_scales, 1e-3
    assert grids == {
        "A": ((1.0,), alpha, 2, "A untrained"),
        "A untrained": ((1.0,), alpha, 2, None),
        f"A{TUNED_STEP}": (scales, alpha, 2, f"A untrained{TUNED_STEP}"),
        f"A untrained{TUNED_STEP}": (scales, alpha, 2, None),
        "A without pipeline": ((1.0,), alpha, 1, None),
        f"A without pipeline{TUNED_STEP}": (scales, alpha, 1, None),
        "adam": ((1e-3, 1e-2), 1.0, 1, None),
        "rmsprop": ((1e-3, 1e-2), 1.0, 1, None),
    }
    assert counts[-1][0] == counts[-1][1]


def test_every_setting_of_the_grid_is_tried_on_a_meta_seed_that_is_not_reported(replicated):
    replication, folder, found, _ = replicated
    whole = [(rate, interval) for rate in (1e-4, 1e-3) for interval in (1, 2)]
    tried = {arm.name: [] for arm in replication.arms}
    for each in found.tried:
        tried[each.arm].append(dataclasses.astuple(each.setting))
    # Agents that are never reset have no interval to choose.
    assert tried == {"A": whole, "A without pipeline": [(1e-4, 1), (1e-3, 1)]}
    for arm in replication.arms:
        for setting in replication.settings_of(arm):
            assert has_result(folder, training_job(make_training(arm, setting, TUNING_META_SEED)))


def test_runs_that_choose_fill_their_batches_and_stop_where_asked(replicated):
    replication, _, found, _ = replicated
    short = replace(replication, tuning_rollouts=2)
    folder = found.results.benchmark.folder
    assert choosing_benchmark(short, folder).protocol.tuning_seeds == BATCH
    assert benchmark_of(short, folder, ()).protocol == replication.protocol
    with pretending() as pool:
        again = run_replication(short, folder / "short")
    asked = [from_json(Batch, job.arguments) for job in pool.ran if "runs" in job.arguments]
    tuning = [x for x in asked if x.runs[0][1] >= TUNING_SEED]
    # Settings have whole batches; steps and rates two seeds at each of two values; agents that
    # never update two seeds.
    assert {(len(x.runs), x.rollouts, x.schedule) for x in tuning} == {
        (BATCH, 2, 3),
        (4, 2, 3),
        (4, 2, 2),
        (2, 2, 2),
    }
    assert {x.rollouts for x in asked if x not in tuning} == {3}
    write_replication(again, "optim4rl replicate catch")
    for name in ("results.md", "settings.md"):
        text = (folder / "short" / name).read_text()
        assert "2 of 3 rollouts" in text
        assert "learn early" in " ".join(text.split())
    write_replication(found, "optim4rl replicate catch")
    assert "2 of 3 rollouts" not in (folder / "results.md").read_text()


def test_a_run_that_chooses_is_no_longer_than_a_run():
    with pytest.raises(ValueError, match="tuning_rollouts = 4: at most the 3 rollouts of a run"):
        SuiteTask(TaskConfig(), 3, tuning_rollouts=4)


def test_what_is_finished_is_not_run_again(replicated):
    replication, folder, found, _ = replicated
    with pretending() as pool:
        again = run_replication(replication, folder)
    assert pool.ran == []
    assert again.tried == found.tried


def test_the_page_marks_the_settings_that_are_used(replicated):
    _, folder, found, _ = replicated
    write_replication(found, "optim4rl replicate catch")
    lines = (folder / "settings.md").read_text().splitlines()
    marked = {line.split("**")[1]: line for line in lines if line.startswith("| **")}
    chosen = choose_settings(found.tried)
    assert {
        name: f"**{chosen[name].meta_learning_rate:g}**" in marked[name] for name in marked
    } == {
        "A": True,
        "A without pipeline": True,
    }
    assert (folder / "runs.parquet").is_file()


def test_both_pages_tell_of_reported_meta_trainings_that_diverged(replicated):
    _, folder, found, _ = replicated
    write_replication(replace(found, failures={"A": ("it exploded",)}), "optim4rl replicate catch")
    for name in ("results.md", "settings.md"):
        said = "A: 1 of the reported meta-trainings diverged. it exploded"
        assert said in (folder / name).read_text()


def test_an_arm_has_no_meta_seed_that_chooses_settings():
    with pytest.raises(ValueError, match="meta_seeds = 101: a whole number from 1 to 100"):
        Arm("A", TINY, 101)


def test_settings_are_chosen_by_auc_and_diverged_ones_last():
    low, high, lost = (Setting(rate, 72) for rate in (1e-5, 1e-4, 1e-3))
    nan = float("nan")
    tried = [
        Tried("A", lost, nan, nan),
        Tried("A", low, -2.0, 9.0),
        Tried("A", high, -1.0, 0.0),
        Tried("B", lost, nan, nan),
    ]
    assert choose_settings(tried) == {"A": high, "B": lost}


def test_a_meta_training_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    arm = Arm("A", TINY, 1)
    job = training_job(make_training(arm, Setting(1e-3, 2), 0))
    whole = meta_train(tmp_path / "whole", job.arguments)
    saves = []

    def cut(path, *given):
        save(path, *given)
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt

    save = resumable.save_checkpoint
    monkeypatch.setattr(resumable, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(resumable, "save_checkpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        meta_train(tmp_path / "cut", job.arguments)
    resumed = meta_train(tmp_path / "cut", job.arguments)
    assert len(saves) == 3  # after every iteration but the last, none of them twice
    assert list((tmp_path / "cut" / "checkpoints").iterdir()) == []
    assert resumed.arrays.keys() == whole.arrays.keys()
    for name, x in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], x)


def test_untrained_rules_keep_their_fresh_weights(tmp_path):
    from optim4rl.meta.recipe import build
    from optim4rl.meta.trainer import init

    training = make_training(Arm("A", TINY, 1), Setting(1e-3, 2), 3, trained=False)
    found = meta_train(tmp_path, training_job(training).arguments)
    spec, tasks = build(training.recipe)
    wanted = flatten(init(spec, tasks, training.recipe.meta).meta_parameters)
    for name, x in wanted.items():
        np.testing.assert_array_equal(found.arrays[name], x)


def test_the_experiments_have_the_papers_settings():
    wanted = {
        "catch": (5e5, 1e-3),
        "small_dense_long": (3e7, 3e-2),
        "big_dense_long": (3e7, 3e-3),
    }
    for name, (steps, alpha) in wanted.items():
        x = EXPERIMENTS[name]
        assert x.rollouts * x.num_envs * 20 == pytest.approx(steps, rel=2e-3)
        assert {arm.recipe.learning_rate for arm in x.arms} == {(alpha,)}
    for experiment in EXPERIMENTS.values():
        assert len(experiment.step_scales) == len(experiment.rates)  # an equal tuning budget
        runs = len(experiment.rates) * experiment.protocol.tuning_seeds
        assert runs % BATCH == 0  # no empty places
        for arm in experiment.arms:
            assert arm.recipe.envs_per_agent == 1
            assert arm.recipe.meta.inner_updates == 4
            assert arm.recipe.tasks == (experiment.environment,)


def test_options_narrow_an_experiment_and_unknown_arms_are_refused(tmp_path):
    options = ReplicateOptions("catch", tmp_path, arms=("Version B",), meta_seeds=2, seeds=3)
    found = lay_out(replace(options, tuning_rollouts=60))
    assert found.tuning_rollouts == 60
    assert [(arm.name, arm.meta_seeds) for arm in found.arms] == [("Version B", 2)]
    assert found.protocol.seeds == 3
    for name in ("meta_seeds", "seeds"):
        with pytest.raises(ValueError, match=f"{name} = 0: a whole number"):
            lay_out(ReplicateOptions("catch", tmp_path, **{name: 0}))
    with pytest.raises(ValueError, match="arms: 'B' is not one of 'Version A', 'Version B'"):
        lay_out(ReplicateOptions("catch", tmp_path, arms=("B",)))
