"""`optim4rl evaluate`: a task or a suite, one page; it stops, goes on, and refuses."""

import json
import os
import shlex
import signal
import tempfile
from pathlib import Path

import jax
import polars as pl
import pytest

from optim4rl.cli import main as cli
from optim4rl.cli.evaluate import (
    A2C_BASELINES,
    PPO_BASELINES,
    EvaluateOptions,
    lay_out,
    make_suite,
)
from optim4rl.cli.main import main
from optim4rl.jobs.provenance import code_hash
from optim4rl.optimizers.weights import save_weights, untrained
from toys import ALPHA, benchmark, playing, save_rules

TOY = shlex.split(
    "--num-envs 2 --rollouts 5 --seeds 4 --tuning-seeds 2 --rates 0.001 0.01 0.1 "
    "--step-scales 0.3 1 3 --stress-scales 1 2 --stress-seeds 4 --baselines adam rmsprop "
    "--extensions 0"
)
FILES = [
    "SHA256SUMS",
    "curves.svg",
    "jobs",
    "profile.svg",
    "results.json",
    "results.md",
    "runs.parquet",
    "weights",
]


@pytest.fixture(autouse=True)
def _jax_as_it_is(monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_rules(tmp_path_factory.mktemp("weights"), 3)


# What it does


def test_the_command_runs_evaluates_and_goes_on(weights, tmp_path, capsys):
    """With real workers and agents; the second time there is nothing to run."""
    command = shlex.split(
        f"evaluate {weights[0]} --task=catch --width 8 --num-envs 2 --rollouts 2 --seeds 2 "
        "--tuning-seeds 1 --rates 0.001 0.01 --step-scales 0.5 1 --baselines adam "
        f"--stress-scales 2 --stress-seeds 2 --extensions 0 --jobs 1 --json --out {tmp_path}"
    )
    main(command)
    first = json.loads(capsys.readouterr().out)
    assert first["suite"] == "catch"
    assert first["optimizers"].keys() == {"rule-0", "rule-0 untrained", "adam"}
    for found in first["optimizers"].values():
        estimate = found["raw"]["catch"]["auc"]
        assert -1 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        assert (found["meta_seeds"], found["tuned"]["runs"], found["tuned"]["diverged"]) == (
            1,
            2,
            0,
        )
        assert found["stuck"]["catch"].keys() == {"2"}
    assert first["optimizers"]["adam"]["settings"][0]["at_edge"] == ["catch"]  # A grid of two.
    # Runs that were made have seconds, and a picture of curves against them.
    assert [x.name for x in sorted(tmp_path.iterdir())] == sorted([*FILES, "seconds.svg"])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").iterdir()}
    # Untrained on two kinds of seeds; tuning, reported and stress runs of three optimizers.
    assert len(times) == 2 + 3 * 3
    main(command)
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").iterdir()} == times


def shape(values):
    """A JSON document without its numbers and words."""
    if isinstance(values, dict):
        return {key: shape(value) for key, value in values.items() if key != "claims"}
    return [shape(x) for x in values] if isinstance(values, list) else type(values).__name__


def test_a_task_is_a_suite_of_one(weights, tmp_path, capsys):
    """The same files, the same JSON, the same sections; the suite's task has its own settings."""
    for words, name in (("--task catch", "task"), ("--suite grid --only catch", "suite")):
        with playing():
            main(["evaluate", weights[0], *words.split(), *TOY, "--out", str(tmp_path / name)])
        assert [x.name for x in sorted((tmp_path / name).iterdir())] == FILES
    documents, pages, tables = (
        [read(tmp_path / name / file) for name in ("task", "suite")]
        for file, read in (
            ("results.json", lambda path: json.loads(path.read_text())),
            ("results.md", Path.read_text),
            ("runs.parquet", pl.read_parquet),
        )
    )
    assert shape(documents[0]) == shape(documents[1])
    assert documents[0]["code"] == code_hash("optim4rl.benchmark.loop")
    sections = [[x for x in page.splitlines() if x.startswith("## ")] for page in pages]
    assert sections[0] == sections[1]
    assert tables[0].schema == tables[1].schema
    labels = ["optimizer", "role", "task", "purpose", "meta_seed", "setting", "seed"]
    assert tables[0].select(labels).equals(tables[1].select(labels))
    said = capsys.readouterr().out
    for title in ("catch, tuned for each task", "grid, tuned for each task"):
        assert title in said
    assert "raw returns" in said
    assert str(tmp_path / "task" / "results.md") in said.replace("\n", "")


def test_without_a_folder_nothing_is_left_behind(weights, tmp_path, monkeypatch, capsys):
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with playing() as pool:
        main(["evaluate", weights[0], *TOY, "--json"])
    assert json.loads(capsys.readouterr().out)["optimizers"].keys() >= {"rule-0", "adam"}
    assert pool.folder.parent == scratch

    def fail(count):
        raise ValueError("no more")

    with playing(before=fail) as pool, pytest.raises(SystemExit):
        main(["evaluate", weights[0], *TOY, "--json"])
    assert pool.folder.parent == scratch
    assert not [*here.iterdir(), *scratch.iterdir()]


def test_a_signal_stops_and_the_command_goes_on(weights, tmp_path, capsys):
    """What was run is not run again, and the files are those of an undisturbed run."""
    words = ["evaluate", weights[0], *TOY]
    with playing() as whole:
        main([*words, "--out", str(tmp_path / "whole")])

    def stop(count):
        if count == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with playing(before=stop) as first, pytest.raises(SystemExit) as exit:
        main([*words, "--out", str(tmp_path / "stopped")])
    assert exit.value.code == 143
    said = capsys.readouterr().err
    command = shlex.join(["optim4rl", *words, "--out", str(tmp_path / "stopped")])
    assert f"stopped by SIGTERM. Finished work is kept; continue with\n  {command}\n" in said
    assert not (tmp_path / "stopped" / "SHA256SUMS").exists()
    with playing() as rest:
        main([*words, "--out", str(tmp_path / "stopped")])
    made = [*first.ran, *rest.ran]
    assert [job.question for job in made] == [job.question for job in whole.ran]
    listed = [name for name in FILES if name not in ("SHA256SUMS", "jobs", "weights")]
    for name in listed:
        stopped, undisturbed = (tmp_path / folder / name for folder in ("stopped", "whole"))
        assert stopped.read_bytes() == undisturbed.read_bytes()
    sums = (tmp_path / "stopped" / "SHA256SUMS").read_text()
    assert [line.split()[1] for line in sums.splitlines()] == listed


# What it compares


def test_a_group_of_weights_is_one_optimizer_with_an_untrained_control(weights, tmp_path):
    """The control's heads are zero, so that it is the same whatever its seed."""
    group = ",".join(weights[:2])
    b = benchmark(tmp_path, (group, weights[2]), baselines=("adam",))
    found = {x.name: x for x in b.contenders}
    assert list(found) == [
        *("rule-0 +1", "rule-0 +1 untrained", "rule-2", "rule-2 untrained", "adam")
    ]
    assert [len(x.members) for x in b.contenders] == [2, 1, 1, 1, 1]
    assert found["rule-0 +1"].control == "rule-0 +1 untrained"
    assert [x.role for x in b.contenders] == [*["learned", "control"] * 2, "baseline"]
    for contender in b.contenders:
        learned = contender.role != "baseline"
        assert contender.unit == (ALPHA if learned else 1.0)
        assert contender.grid == (b.suite.step_scales if learned else b.suite.rates)
    alone = benchmark(tmp_path, weights[:1], baselines=("adam",), controls=False)
    assert [(x.name, x.control) for x in alone.contenders] == [("rule-0", None), ("adam", None)]


@pytest.mark.parametrize("other", [{"preset": "anchored"}, {"rate": 1e-2}])
def test_weights_of_two_recipes_are_no_group(other, weights, tmp_path, capsys):
    preset, rate = other.get("preset", "optim4rl-rlc"), other.get("rate", ALPHA)
    save_weights(tmp_path / "two.safetensors", untrained(preset, rate, jax.random.key(0)))
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        main(["evaluate", f"{weights[0]},{tmp_path / 'two.safetensors'}", "--out", str(out)])
    assert "must share their spec" in capsys.readouterr().err
    assert not out.exists()


def test_the_same_weights_twice_are_no_two_meta_seeds(weights, tmp_path, capsys):
    copy, out = tmp_path / "copy.safetensors", tmp_path / "out"
    copy.write_bytes(Path(weights[0]).read_bytes())
    with pytest.raises(SystemExit):
        main(["evaluate", f"{weights[0]},{copy}", "--out", str(out)])
    assert "the same weights twice" in capsys.readouterr().err
    assert not out.exists()


def test_names_are_short_unless_that_is_ambiguous(weights, tmp_path):
    copy = tmp_path / "rule-0.safetensors"
    save_weights(copy, untrained("optim4rl-rlc", ALPHA, jax.random.key(9)))
    groups = (weights[0], str(copy))
    contenders = benchmark(tmp_path, groups, controls=False).contenders
    assert [x.name for x in contenders if x.role == "learned"] == list(groups)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"task": "catch"}, A2C_BASELINES),
        ({"suite": "grid"}, (*A2C_BASELINES, "adam_raw_rewards")),
        ({"task": "gymnax:CartPole-v1"}, PPO_BASELINES),
        (
            {"suite": "classic", "only": ("gymnax:CartPole-v1",)},
            (*PPO_BASELINES, "adam_raw_rewards"),
        ),
        ({"task": "catch", "baselines": ("rmsprop", "adam")}, ("rmsprop", "adam")),
    ],
)
def test_the_first_baseline_is_the_reference(options, names, tmp_path):
    """By default Adam as the users of the task's learner run it."""
    chosen = EvaluateOptions((), **options)
    b = lay_out(chosen, make_suite(chosen), tmp_path)
    assert tuple(x.name for x in b.contenders) == names
    assert b.reference == names[0]


def test_companions_follow_any_optimizer(weights, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import optax\ndef lion(rate):\n    return optax.lion(rate)\n")
    asked = (weights[0], f"{weights[0]}+clip0.5+decay", f"{file}:lion+clip1")
    b = benchmark(tmp_path, asked, baselines=("adam+clip0.5", "muon_ppo+reset_time"))
    found = {x.name: x.members[0] for x in b.contenders}
    assert list(found) == [
        *("rule-0", "rule-0 untrained"),
        *("rule-0+clip0.5+decay", "rule-0 untrained+clip0.5+decay"),
        *("mine:lion+clip1", "adam+clip0.5", "muon_ppo+reset_time"),
    ]
    assert [x.control for x in b.contenders if x.role == "learned"] == [
        *("rule-0 untrained", "rule-0 untrained+clip0.5+decay")
    ]
    assert [(x.clip, x.decay, x.reset) for x in found.values()] == [
        *[(None, False, None)] * 2,
        *[(0.5, True, None)] * 2,
        *((1.0, False, None), (0.5, False, None), (0.5, True, "time")),
    ]


def test_a_task_has_its_defaults_and_takes_other_sizes():
    (task,) = make_suite(EvaluateOptions(("w",))).tasks
    assert (task.name, task.rollouts, task.stress_rollouts) == ("catch", 390, 60)
    assert (task.config.width, task.config.num_envs) == (256, 64)
    options = EvaluateOptions(("w",), width=8, num_envs=4, rollouts=12)
    suite = make_suite(options)
    assert (suite.tasks[0].rollouts, suite.tasks[0].stress_rollouts) == (12, 12)
    assert (suite.tasks[0].config.width, suite.tasks[0].config.num_envs) == (8, 4)
    assert make_suite(EvaluateOptions(("w",), stress_rollouts=6)).tasks[0].stress_rollouts == 6


def test_step_scales_are_asked_for_only_if_a_learned_rule_is_there():
    suite = make_suite(EvaluateOptions(("mine.py:make",), suite="classic", rates=(0.1, 0.2)))
    assert suite.rates == (0.1, 0.2)
    with pytest.raises(ValueError, match="the same budget"):
        make_suite(EvaluateOptions(("mine.py:make", "w"), suite="classic", rates=(0.1, 0.2)))


@pytest.mark.parametrize(
    ("task", "rollouts", "stress"),
    [("brax:halfcheetah", None, 200), ("brax:humanoid", None, 100), ("brax:ant", 150, 150)],
)
def test_an_episode_of_1000_steps_ends_in_a_stress_run(task, rollouts, stress):
    (found,) = make_suite(EvaluateOptions(("w",), task=task, rollouts=rollouts)).tasks
    assert found.stress_rollouts == stress


# What it refuses


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("--suite nothing", ["suites are grid"]),
        ("--suite grid --only ctach", ["Did you mean 'catch'"]),
        ("ppo-generalist --suite grid --rates 0.1 0.2", ["the same budget"]),
        ("ppo-generalist --task catch --rates 0.1 0.2", ["the same budget"]),
        ("--suite grid --seeds 0", ["seeds = 0"]),
        ("--suite grid --stress-scales 2 1", ["stress_scales"]),
        ("--task catch --suite grid", ["task = 'catch'", "suite = 'grid'"]),
        ("--only catch", ["only = ('catch',)", "--suite"]),
        ("--suite grid --width 8", ["width = 8", "--task"]),
        ("--suite grid --stress-rollouts 8", ["stress_rollouts = 8", "--task"]),
        ("--task catch --rollouts 0", ["rollouts = 0"]),
        ("--stress-rollouts 9 --rollouts 8", ["stress_rollouts = 9", "at most the 8 rollouts"]),
        ("--baselines adam adam", ["baselines = ('adam', 'adam')", "once"]),
        ("--baselines adam_decay adam+decay", ["once"]),
        ("--baselines lion", ["'lion' is none of adam, rmsprop", "companions follow as parts"]),
        ("--baselines adam+clip", ["baselines = 'adam+clip'", "parts are clip0.5, eps1e-5"]),
        ("--baselines sgd+eps1e-5", ["optimizer 'sgd' has no epsilon"]),
        ("--baselines adam+clip0", ["clip = 0.0", "a positive finite number"]),
        ("--suite grid --claim mine --register nowhere.json", ["nowhere.json"]),
        (
            "--suite grid --first-seed 4999",
            ["first_seed = 4999", "below the tuning seeds"],
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_started(words, messages, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *shlex.split(words), "--out", str(tmp_path / "out")])
    assert exit.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for message in messages:
        assert message in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    for task in (["--suite", "grid"], ["--task", "catch"]):
        with playing() as pool, pytest.raises(SystemExit) as exit:
            main(["evaluate", *task, "--out", str(tmp_path / "file")])
        assert exit.value.code == 2
        assert str(tmp_path / "file") in capsys.readouterr().err
        assert pool.ran == []


def test_all_contenders_of_a_published_suite_have_its_companions(tmp_path):
    options = EvaluateOptions(
        ("ppo-generalist",), suite="discobench", baselines=("adam", "adam_ppo")
    )
    found = lay_out(options, make_suite(options), tmp_path).contenders
    names = ["ppo-generalist", "ppo-generalist untrained", "adam", "adam_ppo"]
    assert [x.name for x in found] == names
    assert all((m.clip, m.decay) == (0.5, True) for x in found for m in x.members)
    assert found[0].control == names[1]
    assert [x.members[0].epsilon for x in found[2:]] == [None, 1e-5]


def test_companions_are_up_to_who_runs_open(tmp_path):
    options = EvaluateOptions(("ppo-generalist",), suite="open", controls=False, companions="also")
    found = {
        x.name: x.members[0] for x in lay_out(options, make_suite(options), tmp_path).contenders
    }
    assert list(found)[2:] == list(PPO_BASELINES)
    assert (found["ppo-generalist"].clip, found["ppo-generalist"].decay) == (None, False)
    assert (found["adam_ppo"].clip, found["adam_ppo"].decay) == (0.5, True)
    with_them = found["ppo-generalist with companions"]
    assert (with_them.clip, with_them.decay) == (0.5, True)
