"""`optim4rl train`: a run writes all that it found, goes on, repeats itself, and stops in order."""

import csv
import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from test_trackers import read_scalars

from documented import columns
from optim4rl.cli import main as cli, train
from optim4rl.cli.main import main
from optim4rl.cli.progress_log import ProgressLog, task_labels
from optim4rl.files.folders import locked
from optim4rl.files.sealed import check_seal
from optim4rl.jobs.provenance import code_hash
from optim4rl.meta.checkpoint import load_checkpoint
from optim4rl.meta.config import Augmentation
from optim4rl.meta.recipe import Recipe, build, per_task, settings_of, task_configs
from optim4rl.meta.recipes import RECIPES
from optim4rl.meta.trainer import MetaConfig, Progress, init
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.weights import load_weights
from optim4rl.pages.comparison import read_run
from optim4rl.tasks import PPOConfig, default_config
from optim4rl.tasks.task import RolloutStats as Stats

TINY = shlex.split(
    "--width 8 --envs-per-agent 2 --agents 2 --inner-updates 2 --reset-interval 2 "
    "--optimizer optim4rl-rlc --json"
)


@pytest.fixture(autouse=True)
def _jax_as_it_is(monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


def run(out, *options):
    main(["train", "--out", str(out), *TINY, *options])
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four iterations in two chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "configure_jax", lambda: None)
        folder = tmp_path_factory.mktemp("train") / "whole"
        return run(folder, "--iterations=4", "--chunk=2", "--tracker=tensorboard")


def same_weights(one, other):
    one, other = (load_weights(x / "weights.safetensors").meta_parameters for x in (one, other))
    return all(
        np.array_equal(one[network][name], other[network][name])
        for network in one
        for name in one[network]
    )


def progress(out):
    with (out / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def test_weights_are_kept_on_the_way_and_change_nothing(whole, tmp_path):
    """Whatever the chunks; a stop before the end keeps them, too."""
    found = run(tmp_path / "kept", "--iterations=4", "--keep-every=3", "--chunk=2")
    kept = load_weights(found / "weights-after-3.safetensors")
    assert kept.card["settings"] == load_weights(found / "weights.safetensors").card["settings"]
    assert [x.name for x in found.glob("weights-after-*")] == ["weights-after-3.safetensors"]
    assert same_weights(found, whole)
    with pytest.raises(SystemExit):
        run(tmp_path / "none", "--keep-every=0")


def test_variants_of_a_task_take_turns(tmp_path, capsys):
    """Two of three in every iteration; a stop in between changes nothing."""
    options = ["--learners=ppo", "--variants=3", "--tasks-per-iteration=2", "--estimator=es"]
    options += ["--inner-updates=64", "--reset-interval=3", "--shortest-interval=1", "--chunk=1"]
    options += ["--cosine-to=1", "--devices=1"]  # see `runtime.configure_jax` on JAX 0.11.2
    found = run(tmp_path / "whole", *options, "--iterations=3")
    summary = json.loads(capsys.readouterr().out)
    settings = json.loads((found / "settings.json").read_text())
    assert settings["tasks"] == ["catch"] * 3
    assert len(settings["num_envs"]) == len(settings["horizons"]) == 3
    rows = progress(found)
    returns = [[row[f"return_{x}"] != "" for x in task_labels(["catch"] * 3)] for row in rows]
    assert [sum(row) for row in returns] == [2] * 3
    assert summary["env_steps_per_second"] > 0
    half = run(tmp_path / "half", *options, "--iterations=2")
    assert progress(half) == rows[:2]
    with pytest.raises(SystemExit):
        run(tmp_path / "none", "--variants=3")
    assert "learners: variants are of PPO, and catch has A2C" in capsys.readouterr().err


def test_a_run_writes_its_settings_weights_and_progress(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "SHA256SUMS",
        "checkpoint.previous.safetensors",
        "checkpoint.safetensors",
        "progress.csv",
        "progress.parquet",
        "progress.svg",
        "settings.json",
        "tensorboard",
        "weights.safetensors",
    ]
    weights = load_weights(whole / "weights.safetensors")
    settings = json.loads((whole / "settings.json").read_text())
    assert settings == weights.card["settings"] | {
        name: weights.card[name] for name in ("versions", "code")
    }
    card = json.loads(check_seal(whole / "checkpoint.safetensors")["card"])
    assert card["config"] == weights.card["settings"]
    assert card["notes"]["versions"] == settings["versions"]
    assert card["notes"]["code"] == settings["code"] == code_hash("optim4rl.cli.train")
    assert settings["meta"]["iterations"] == 4
    assert settings["width"] == [8]
    assert weights.card["tasks"] == ["catch"]
    assert weights.card["seed"] == 0
    assert weights.card["versions"].keys() >= {"jax", "optim4rl"}
    assert weights.learning_rate == 1e-2
    assert weights.spec.structure == learned_spec("optim4rl-rlc").structure
    rows = progress(whole)
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["meta_gradient_norm"]) > 0 for row in rows)
    assert all(-1 <= float(row["return_catch"]) <= 1 for row in rows)
    assert "norm of the meta-gradient" in (whole / "progress.svg").read_text()


def test_the_progress_is_a_table_and_in_tensorboard_as_in_the_log(whole):
    rows = progress(whole)
    table = pl.read_parquet(whole / "progress.parquet")
    assert table.columns == list(rows[0])
    assert [name.replace("catch", "TASK") for name in table.columns] == columns("train")
    assert table["iteration"].to_list() == [1, 2, 3, 4]
    scalars = read_scalars(whole / "tensorboard")
    for column, name in (
        ("meta_gradient_norm", "meta_gradient_norm"),
        ("return_catch", "return/catch"),
    ):
        logged = [(int(row["iteration"]), float(row[column])) for row in rows]
        assert list(zip(table["iteration"], table[column], strict=True)) == logged
        assert scalars[name] == [(step, pytest.approx(x, rel=1e-5)) for step, x in logged]
    assert [step for step, _ in scalars["env_steps_per_second"]] == [2, 4]


def test_a_run_ends_with_a_summary(tmp_path, capsys):
    run(tmp_path / "run", "--iterations=2", "--chunk=2")
    summary = json.loads(capsys.readouterr().out)
    assert summary["weights"] == str(tmp_path / "run" / "weights.safetensors")
    assert summary["iterations"] == 2
    assert summary["seconds"] > 0
    assert summary["env_steps_per_second_at_best"] >= summary["env_steps_per_second"] > 0
    assert summary["compile_seconds"] > 0
    assert 0.1 < summary["peak_memory_gib"] < 24


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, tmp_path):
    run(tmp_path / "run", "--iterations=2", "--chunk=2")
    assert not same_weights(tmp_path / "run", whole)
    run(tmp_path / "run", "--iterations=4", "--chunk=2", "--resume")
    assert same_weights(tmp_path / "run", whole)
    assert progress(tmp_path / "run") == progress(whole)
    # The time of both sessions together is not known.
    cards = [load_weights(x / "weights.safetensors").card for x in (whole, tmp_path / "run")]
    assert cards[0]["training_seconds"] > 0
    assert cards[1]["training_seconds"] is None
    assert "seconds" not in read_run(tmp_path / "run").numbers


def test_the_same_seed_gives_the_same_weights_whatever_the_chunk(whole, tmp_path):
    run(tmp_path / "run", "--iterations=4", "--chunk=4")
    assert same_weights(tmp_path / "run", whole)
    run(tmp_path / "other", "--iterations=4", "--chunk=4", "--seed=1")
    assert not same_weights(tmp_path / "other", whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_chunk_and_the_command_goes_on(
    number, code, whole, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "a run"
    real = vars(train)["save_checkpoint"]

    def save_checkpoint(*arguments, **options):
        real(*arguments, **options)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "save_checkpoint", save_checkpoint)
    with pytest.raises(SystemExit) as exit:
        run(out, "--iterations=4", "--chunk=2")
    assert exit.value.code == code
    monkeypatch.undo()
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    said = capsys.readouterr().err
    assert f"stopped by {number.name}" in said
    assert len(progress(out)) == 2
    (command,) = re.findall(r"^  optim4rl (train .* --resume)$", said, re.MULTILINE)
    main(shlex.split(command))
    assert same_weights(out, whole)
    assert (out / "progress.csv").read_bytes() == (whole / "progress.csv").read_bytes()


@pytest.fixture
def stopped(whole, tmp_path):
    """A copy of the finished run, to damage and to resume."""
    return Path(shutil.copytree(whole, tmp_path / "stopped"))


def test_a_damaged_checkpoint_costs_a_chunk_and_no_more(stopped, whole, capsys):
    path = stopped / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (stopped / "weights.safetensors").unlink()
    run(stopped, "--iterations=4", "--chunk=2", "--resume")
    said = " ".join(capsys.readouterr().err.split())
    assert "does not match its checksum; continuing from the checkpoint before it, at" in said
    assert "at iteration 2" in said
    assert same_weights(stopped, whole)
    assert (stopped / "progress.csv").read_bytes() == (whole / "progress.csv").read_bytes()


def test_a_damaged_log_is_refused_and_may_be_deleted(stopped, whole, capsys):
    log = stopped / "progress.csv"
    log.write_bytes(log.read_bytes().replace(b"\n1,", b"\n7,"))
    with pytest.raises(SystemExit) as exit:
        run(stopped, "--iterations=4", "--resume")
    assert exit.value.code == 2
    assert f"{log}: damaged" in capsys.readouterr().err
    log.unlink()
    (stopped / "checkpoint.safetensors").unlink()
    run(stopped, "--iterations=4", "--chunk=2", "--resume")
    assert [row["iteration"] for row in progress(stopped)] == ["3", "4"]


def test_a_run_that_another_process_makes_is_left_alone(whole, tmp_path, capsys):
    with locked(tmp_path / "run"), pytest.raises(SystemExit) as exit:
        run(tmp_path / "run", "--iterations=4", "--chunk=2")
    assert exit.value.code == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_progress_that_no_checkpoint_has_seen_is_written_once(whole, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    header = "iteration,meta_gradient_norm,return_catch\n"
    (out / "progress.csv").write_text(header + "1,9,9\n2,9,9\n")
    run(out, "--iterations=4", "--chunk=2")
    assert progress(out) == progress(whole)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_overwritten(whole, capsys):
    before = contents(whole)
    with pytest.raises(SystemExit) as exit:
        run(whole, "--iterations=4", "--chunk=2")
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert str(whole) in said
    assert "--resume" in said
    assert contents(whole) == before


@pytest.mark.parametrize("options", [["--seed=1"], ["--learning-rate=0.02"], ["--clip=1"]])
def test_a_run_with_other_settings_cannot_go_on(options, whole, capsys):
    before = contents(whole)
    with pytest.raises(SystemExit) as exit:
        run(whole, "--iterations=4", "--resume", *options)
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert "the checkpoint of another run" in said
    assert options[0].strip("-").partition("=")[0].replace("-", "_") in said
    assert contents(whole) == before


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(SystemExit) as exit:
        run(out, "--resume")
    assert exit.value.code == 2
    assert str(out / "checkpoint.safetensors") in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["checkpoint.safetensors"]


def test_a_run_that_diverges_stops_and_keeps_its_last_good_state(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        run(out, "--iterations=4", "--chunk=4", "--meta-learning-rate=3e38")
    said = capsys.readouterr()
    assert exit.value.code == 1
    assert said.out == ""
    assert "\nstopped: meta-training ran out of finite numbers at iteration 1: " in "\n" + said.err
    assert not (out / "weights.safetensors").exists()
    assert f"last good rule: {out / 'last-good.safetensors'}; train --start" in said.err
    rows = progress(out)
    assert [row["iteration"] for row in rows] == ["1", "2"]
    norms = [float(row["meta_gradient_norm"]) for row in rows]
    assert math.isfinite(norms[0])
    assert not math.isfinite(norms[1])
    settings = json.loads((out / "settings.json").read_text())
    recipe = Recipe(
        optimizer="optim4rl-rlc", width=(8,), envs_per_agent=2, meta=meta_config(settings)
    )
    spec, tasks = build(recipe)
    like = init(spec, tasks, recipe.meta)
    config = {name: x for name, x in settings.items() if name not in ("versions", "code")}
    state = load_checkpoint(out / "checkpoint.safetensors", like, config).state
    assert int(state.iteration) == 1
    for network in state.meta_parameters.values():
        assert all(np.isfinite(tensor).all() for tensor in network.values())
    kept = load_weights(out / "last-good.safetensors").meta_parameters
    jax.tree.map(np.testing.assert_array_equal, kept, state.meta_parameters)


def meta_config(settings):
    return MetaConfig(**settings["meta"])


@pytest.mark.parametrize(
    ("labels", "returns", "told"),
    [
        (("catch",), [0.0377], "return 0.0377"),
        (("catch", "big_dense_long"), [-1.0, 26.44], "returns: catch -1, big_dense_long 26.4"),
        (("catch", "catch (2)"), [None, 1.0], "returns: catch nan, catch (2) 1"),
    ],
)
def test_progress_names_the_tasks(labels, returns, told):
    assert train.returns_in_words(labels, returns) == told


# Options


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_builds(name):
    options = RECIPES[name]
    spec, tasks = build(options)
    assert len(tasks) == len(options.tasks)
    assert spec.structure == learned_spec(options.optimizer).structure
    assert spec.clip == (options.clip or None)
    assert all(task.learning_rate > 0 for task in tasks)


# Six large tasks take long to trace, over and over, until a chunk fits.
SHOWN = [pytest.param(x, marks=pytest.mark.slow if x == "paper/six" else ()) for x in RECIPES]


@pytest.mark.parametrize("name", SHOWN)
def test_every_preset_can_be_shown_without_running(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "--recipe", name, "--dry-run", "--json", "--seed", "7"])
    settings = json.loads(capsys.readouterr().out)
    assert settings["optimizer"] == RECIPES[name].optimizer
    assert settings["meta"]["seed"] == 7
    assert settings["meta"]["iterations"] == RECIPES[name].meta.iterations
    memory = settings["memory"]
    assert 0 <= memory["state_gib"] + memory["work_gib"] < memory["peak_gib"]
    assert memory["devices"] == 4
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_would_not_fit_says_so_before_it_starts(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        main(["train", "--recipe", "paper/big_dense_long", "--out", str(out), "--memory", "2"])
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert "agents = 512: one at a time still needs" in said
    assert "but 2.00 GiB are free" in said
    assert not out.exists()


def test_less_memory_means_smaller_chunks(tmp_path, capsys):
    plans = []
    for memory in ("4", "2.1"):
        words = ["--recipe=paper/big_dense_long", "--maps=rows", "--optimizer=optim4rl-rlc"]
        main(["train", *words, "--dry-run", "--json", "--devices=1", "--memory", memory])
        plans.append(json.loads(capsys.readouterr().out)["memory"])
    assert plans[0]["agents_per_chunk"] > plans[1]["agents_per_chunk"]
    assert all(plan["peak_gib"] <= size for plan, size in zip(plans, (4, 2.1), strict=True))


def test_the_paper_catch_preset_takes_half_a_million_steps():
    options = RECIPES["paper/catch"]
    task: Any
    _, (task,) = build(options)
    meta = options.meta
    rollouts = meta.iterations * meta.agents * (meta.inner_updates + 1)
    assert rollouts * task.task.env_steps_per_rollout == pytest.approx(5e5, rel=0.01)


def test_one_value_serves_all_tasks_or_each_has_its_own():
    assert per_task("x", (2.0,), ("a", "b", "c")) == (2.0, 2.0, 2.0)
    assert per_task("x", (1.0, 2.0), ("a", "b")) == (1.0, 2.0)


def test_a_task_that_comes_twice_has_a_column_for_each(tmp_path):
    labels = task_labels(("catch", "small_dense_long", "catch", "catch"))
    assert labels == ("catch", "small_dense_long", "catch (2)", "catch (3)")
    stats = tuple(Stats(jnp.full(1, x), jnp.ones(1)) for x in range(4))
    progress = Progress(jnp.ones(1), stats, jnp.ones((1, 4)), jnp.ones((1, 4), jnp.int32))
    ProgressLog(tmp_path / "progress.csv", labels).append(0, progress)
    (row,) = csv.DictReader((tmp_path / "progress.csv").read_text().splitlines())
    assert [row[f"return_{label}"] for label in labels] == ["0", "1", "2", "3"]


def test_a_task_has_settings_of_its_own():
    options = Recipe(
        tasks=("catch", "small_dense_long"),
        learning_rate=(1e-2, 1e-3),
        step_scale=(1.0, 3.0),
        windows=(4, 16),
        estimators=("es", "truncated"),
        populations=(64, 8),
        reward_scale=(1.0, 10.0),
    )
    tasks: Any
    _, tasks = build(options)
    own = [x.settings(options.meta) for x in tasks]
    assert [(x.inner_updates, x.estimator, x.agents) for x in own] == [
        (4, "es", 64),
        (16, "truncated", 8),
    ]
    assert [x.learning_rate for x in tasks] == pytest.approx([1e-2, 3e-3])
    assert [x.task.config.learner.reward_scale for x in tasks] == [1.0, 10.0]
    assert [x.task.config.environment for x in tasks] == ["catch", "small_dense_long"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("windows", (4,)),
        ("estimators", ("es",)),
        ("populations", (8, 8, 8)),
        ("learners", ("ppo",)),
        ("observations", ("raw",)),
    ],
)
def test_what_tasks_have_of_their_own_is_one_a_task(name, values):
    tasks = ("catch", "small_dense_long")
    options = Recipe(tasks=tasks, **{name: values})
    with pytest.raises(ValueError, match=rf"{name} = \(.*\): 2 are needed, one for each task"):
        build(options)


def test_a_task_takes_the_learner_that_is_asked_for():
    """One of its own kind keeps its settings; the weight of values is that of all."""
    tasks = ("catch", "big_dense_long", "gymnax:Reacher-misc")
    options = Recipe(tasks=tasks, learners=("ppo", "a2c", "ppo"))
    usual: list[Any] = [default_config(name).learner for name in tasks]
    assert usual[2] != PPOConfig()

    def learners(**changed):
        built: Any
        _, built = build(dataclasses.replace(options, **changed))
        return [x.task.config.learner for x in built]

    assert learners() == [PPOConfig(), usual[1], usual[2]]
    assert learners(minibatches=(8, 1, 32)) == [
        PPOConfig(minibatches=8),
        usual[1],
        dataclasses.replace(usual[2], minibatches=32),
    ]
    assert learners(epochs=(2, 1, 10)) == [
        PPOConfig(epochs=2),
        usual[1],
        dataclasses.replace(usual[2], epochs=10),
    ]
    expected = [dataclasses.replace(learner, value_weight=0.1) for learner in usual]
    assert learners(learners=(), value_weight=0.1) == expected


def test_a_task_has_the_environments_and_the_horizon_that_are_asked_for():
    """A2C's rollout, too; without them all have --envs-per-agent and the learner's own."""
    tasks = ("catch", "gymnax:CartPole-v1")
    plain = task_configs(Recipe(tasks=tasks, envs_per_agent=5))
    usual = [default_config(name).learner.rollout for name in tasks]
    assert [(x.num_envs, x.learner.rollout) for x in plain] == [(5, n) for n in usual]
    found = task_configs(Recipe(tasks=tasks, num_envs=(2, 8), horizons=(6, 16)))
    assert [(x.num_envs, x.learner.rollout) for x in found] == [(2, 6), (8, 16)]


def test_more_tasks_an_iteration_than_there_are_is_refused():
    meta = MetaConfig(tasks_per_iteration=3)
    with pytest.raises(ValueError, match=r"^tasks_per_iteration = 3: there are 2 tasks"):
        build(Recipe(tasks=("catch", "catch"), meta=meta))


def test_a_task_sees_observations_as_it_is_asked_for():
    """By itself each sees its own; neither choice changes anything else."""
    tasks = ("catch", "gymnax:Pendulum-v1")
    options = Recipe(tasks=tasks)

    def configs(*observations):
        built: Any
        _, built = build(dataclasses.replace(options, observations=observations))
        return [x.task.config for x in built]

    usual = configs()
    assert [config.normalise_observations for config in usual] == [False, True]
    assert configs("raw", "normalised") == usual
    assert configs("normalised", "raw") == [
        dataclasses.replace(usual[0], normalise_observations=True),
        dataclasses.replace(usual[1], normalise_observations=False),
    ]


def test_separate_networks_have_the_layers_that_are_asked_for():
    """A task whose networks share a layer keeps them."""
    tasks = ("catch", "gymnax:CartPole-v1", "gymnax:Reacher-misc")
    layers, activations = ("8", "64", "32-16"), ("relu", "relu", "swish")
    built: Any
    _, built = build(Recipe(tasks=tasks, layers=layers, activations=activations))
    configs = [x.task.config for x in built]
    usual = [default_config(name) for name in tasks]
    found = [(x.policy_layers, x.value_layers, x.activation) for x in configs]
    assert found == [
        (usual[0].policy_layers, usual[0].value_layers, usual[0].activation),
        ((64,), (64,), "relu"),
        ((32, 16), (32, 16), "swish"),
    ]


def test_settings_that_came_later_are_recorded_only_if_set():
    """So a checkpoint of version 0.1.0 goes on: it means the defaults."""
    later: dict[str, Any] = {
        "epochs": (4,),
        "layers": ("8",),
        "activations": ("relu",),
        "num_envs": (2,),
        "horizons": (8,),
    }
    new = {"fitness": "ranks", "final_share": 0.5, "tasks_per_iteration": 1}
    plain = settings_of(Recipe())
    assert not {*later, *new} & {*plain, *plain["meta"]}
    meta, scales = MetaConfig(**new, estimator="es"), Augmentation(rescale_initial=2.0)
    found = settings_of(Recipe(**later, augmentation=scales, meta=meta))
    assert found == plain | {x: list(v) for x, v in later.items()} | {
        "augmentation": plain["augmentation"] | {"rescale_initial": 2.0},
        "meta": plain["meta"] | {"estimator": "es"} | new,
    }


@pytest.mark.parametrize("text", ["64x64", "64-", "0", "-1"])
def test_layers_are_whole_numbers(text):
    with pytest.raises(ValueError, match=f"layers = {text!r}: give the units of each layer"):
        build(Recipe(tasks=("gymnax:CartPole-v1",), layers=(text,)))


@pytest.mark.parametrize(("name", "value"), [("layers", "64-64"), ("activations", "tanh")])
def test_settings_of_separate_networks_need_a_task_that_has_them(name, value):
    with pytest.raises(ValueError, match=rf"{name} = .*: no task has separate networks"):
        build(Recipe(tasks=("catch",), **{name: (value,)}))


def test_ranks_are_for_evolution_strategies():
    with pytest.raises(ValueError, match="fitness = 'ranks': the estimator es is needed, not pes"):
        MetaConfig(estimator="pes", fitness="ranks")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value_weight", -1.0),
        ("minibatches", (1, 2)),
        ("minibatches", (0, 1)),
        ("epochs", (1, 2)),
        ("epochs", (0, 1)),
    ],
)
def test_settings_that_no_learner_has_are_refused(name, value):
    options = Recipe(tasks=("catch", "catch"), **{name: value})
    with pytest.raises(ValueError, match=f"{name} = "):
        build(options)


def test_a_window_of_no_update_is_refused():
    with pytest.raises(ValueError, match="window = 0"):
        build(Recipe(windows=(0,)))


def config_of(options):
    """The settings of the only task."""
    task: Any
    _, (task,) = build(options)
    return task.task.config


def test_the_papers_own_network_is_width_zero():
    wide = Recipe(tasks=("big_dense_long",), width=(0,))
    narrow = Recipe(tasks=("big_dense_long",), width=(16,))
    configs = [config_of(options) for options in (wide, narrow)]
    assert [(c.torso, c.width) for c in configs] == [("conv", 32), ("dense", 16)]


def test_agents_may_come_in_several_widths():
    options = Recipe(tasks=("small_dense_long",), width=(8, 16))
    assert config_of(options).width == (8, 16)
    with pytest.raises(ValueError, match=r"^width = \(\): at least one"):
        build(Recipe(width=()))


def test_another_estimator_goes_on_from_given_weights(whole, tmp_path):
    """With a meta-learning rate of next to nothing the weights are those of the start."""
    start = str(whole / "weights.safetensors")
    words = ["--estimator=pes", "--iterations=1", "--meta-learning-rate=1e-30", "--sigma=1"]
    out = run(tmp_path / "run", *words, "--start", start, "--rescale-parameters=2", "--agents=4")
    assert same_weights(out, whole)
    assert float(progress(out)[0]["meta_gradient_norm"]) > 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["start"] == start
    assert settings["meta"]["estimator"] == "pes"
    assert settings["augmentation"]["rescale_parameters"] == 2


def test_a_plan_for_whole_lives(capsys):
    """Their agents are none of the state."""
    plans = []
    for estimator in ("es", "truncated"):
        main(["train", *TINY, "--out=unused", "--dry-run", "--estimator", estimator])
        plans.append(json.loads(capsys.readouterr().out)["memory"])
    assert plans[0]["state_gib"] <= plans[1]["state_gib"]
    assert all(plan["work_gib"] >= 0 for plan in plans)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start=nowhere"], "nowhere"),
        (["--optimizer=linear"], "another rule: processing is .* there and"),
        (["--clip=2"], r"another rule: clip is None there and 2\.0 here"),
        (["--estimator=es", "--agents=3"], "agents = 3: es has antithetic pairs"),
        (["--shortest-interval=3"], "shortest_interval = 3: 1 to reset_interval = 2 is needed"),
        (["--sigma=0"], "sigma = 0.0: a positive finite number"),
        (["--rescale-gradients=0.1"], "rescale_gradients = 0.1: a finite number of at least 1"),
    ],
)
def test_estimators_starts_and_scales_that_cannot_be(options, message, whole, tmp_path, capsys):
    start = ["--start", str(whole / "weights.safetensors")]
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "run", *start, *options)
    assert exit.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.replace("│", " ").split()))
    assert not (tmp_path / "run").exists()
