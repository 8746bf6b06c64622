"""The command line: what there is, and what it says to bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from optim4rl import __version__
from optim4rl.cli import ablate, main as cli
from optim4rl.cli.main import HELP, main
from optim4rl.cli.runtime import configure_jax
from optim4rl.cli.signals import StoppedBySignalError
from optim4rl.meta.recipes import RECIPES
from optim4rl.meta.trainer import MetaDivergenceError
from optim4rl.optimizers.presets import LEARNED, optimizer_names
from optim4rl.optimizers.weights import shipped_names
from optim4rl.plans.optim4rl import COMPONENTS, METRICS
from optim4rl.study.settings import SCALES
from optim4rl.tasks.environments.adapters import environment_names, package_names

PLAN = Path(__file__).parents[2] / "plans" / "optim4rl.md"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty folder to run in, and JAX as the tests have set it up."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


def refused(capsys, *words):
    """What is said to bad input, which exits with 2 and leaves nothing behind."""
    with pytest.raises(SystemExit) as exit:
        main(words)
    said = capsys.readouterr()
    assert exit.value.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert list(Path().iterdir()) == []
    return said.err


# What there is


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["--debug"]])
def test_help_names_every_command(words, capsys):
    main(words)
    assert capsys.readouterr().out == HELP
    for command in cli.COMMANDS:
        assert f"\n  optim4rl {command} " in HELP
    assert max(map(len, HELP.splitlines())) <= 80


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_in_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert f"optim4rl {command}" in said
    assert ("--json" in said) == (command != "completion")
    assert max(map(len, said.splitlines()[1:])) <= 80  # tyro does not fold the first line
    assert "default: None" not in said
    assert "default: )" not in said


def test_the_installed_command_tells_its_version():
    for program in (["-m", "optim4rl"], ["-m", "optim4rl.cli.main"]):
        result = subprocess.run(
            [sys.executable, *program, "--version"], capture_output=True, text=True, check=True
        )
        assert result.stdout == f"{__version__}\n"
        assert result.stderr == ""


def listed(capsys, what):
    main(["list", what, "--json"])
    return json.loads(capsys.readouterr().out)


def test_tasks_are_listed(capsys):
    rows = {row["name"]: row for row in listed(capsys, "tasks")}
    assert list(rows) == [*environment_names(), *package_names()]
    assert rows["big_dense_long"]["network"] == "conv, width 32"
    assert [rows[name]["learner"] for name in ("catch", "brax:ant")] == ["A2C", "PPO"]


def test_optimizers_are_listed_with_their_state(capsys):
    rows = {row["name"]: row for row in listed(capsys, "optimizers")}
    assert list(rows) == list(optimizer_names())
    assert rows["adam"]["state"] == "2 floats, 8 bytes a parameter"
    assert rows["optim4rl"]["structure"] == "adaptive"


def test_components_are_listed_with_their_choices(capsys):
    rows = [(row["component"], row["name"]) for row in listed(capsys, "components")]
    choices = [(c.key, choice.value) for c in COMPONENTS for choice in c.choices]
    assert rows == [*choices, *(("(metric)", metric.key) for metric in METRICS)]


def test_weights_are_listed(capsys):
    assert [row["name"] for row in listed(capsys, "weights")] == list(shipped_names())


def test_recipes_are_listed(capsys):
    assert [row["name"] for row in listed(capsys, "recipes")] == list(RECIPES)


def test_kernels_are_listed_with_the_reason(capsys):
    """Every optimizer has one; where a faster one was passed over, it is said why."""
    rows = listed(capsys, "kernels")
    assert [row["name"] for row in rows] == [*LEARNED, "convolution on grid worlds"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["linear"]["kernel"] == "xla"
    assert "not native: structure = 'linear'" in by_name["linear"]["why"]
    native = rows[-1]["kernel"] == "native"
    assert rows[-1]["why"].startswith("instruction set " if native else "not native: ")


@pytest.mark.parametrize(
    "what", ["tasks", "optimizers", "components", "weights", "recipes", "kernels"]
)
@pytest.mark.parametrize("width", ["80", "40", "160"])
def test_lists_are_tables_for_people(what, width, capsys, monkeypatch):
    """However narrow the terminal, names stay whole and lines fit."""
    monkeypatch.setenv("COLUMNS", width)
    main(["list", what])
    table = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= int(width)
    assert all(line == line.rstrip() for line in table)
    words = {word for line in table for word in line.split()}
    for row in listed(capsys, what):
        assert set(row["name"].split()) <= words


def test_a_plan_is_shown(capsys):
    main(["plan", "show", str(PLAN), "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["title"].startswith("lm-planner")
    assert [entry["component"] for entry in plan["ablations"]] == ["structure", "processing"]
    keys = [[match["key"] for match in x["mapped_replacements"]] for x in plan["ablations"]]
    assert keys == [["linear", "non_adaptive"], ["raw", "symlog"]]
    main(["plan", "show", str(PLAN)])
    table = capsys.readouterr().out
    for word in ("Linear update function", "non_adaptive", "RNN accuracy", "identity"):
        assert word in table


# Bad input


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("evaporate", ["'evaporate'", "train, evaluate"]),
        ("plan", ["are show, propose"]),
        ("plan burn x", ["plan 'burn'", "are show, propose"]),
        ("plan show missing.md", ["missing.md"]),
        ("ablate missing.md --out x", ["missing.md"]),
        ("report missing", ["missing", "no finished run"]),
        ("train --recipe zoo/none", ["'zoo/none'", "zoo/anchored-catch"]),
        ("train --preset zoo/none", ["'zoo/none'", "zoo/anchored-catch"]),
        ("train --recipe", ["recipe = ''"]),
        ("train --out x --optimizer adamw", ["'adamw'", "optim4rl-rlc"]),
        ("train --out x --tasks chess", ["'chess'", "catch"]),
        ("train --out x --tasks", ["tasks = ()"]),
        ("train --out x --learning-rate -1", ["learning_rate", "-1"]),
        ("train --out x --learning-rate 1 2", ["learning_rate", "(1.0, 2.0)"]),
        ("train --out x --learning-rate nan", ["learning_rate", "nan"]),
        ("train --out x --clip -1", ["clip", "-1"]),
        ("train --out x --clip nan", ["clip", "nan"]),
        ("train --out x --width -8", ["width", "-8"]),
        ("train --out x --envs-per-agent 0", ["envs_per_agent", "0"]),
        ("train --out x --chunk 0", ["chunk = 0"]),
        ("evaluate missing", ["'missing'"]),
        ("evaluate here,missing", ["'here'"]),
        ("evaluate --baselines", ["at least one optimizer"]),
        ("evaluate --baselines adam adam", ["('adam', 'adam')"]),
        ("evaluate --task chess", ["'chess'", "catch"]),
        ("identity --task chess", ["'chess'", "catch"]),
    ],
)
def test_bad_input_gets_one_line_that_names_it(words, named, capsys):
    said = refused(capsys, *words.split())
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in named:
        assert word in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("list gadgets", ["gadgets", "tasks"]),
        ("list", ["required"]),
        ("train", ["--out"]),
        ("train --out x --lerning-rate 1", ["--lerning-rate"]),
        ("train --out x --meta-clip hard", ["hard", "normalise"]),
        ("train --out x --agents many", ["many"]),
        ("train --out x --agents 0", ["agents = 0"]),
        ("train --out x --cosine-to 2", ["cosine_to = 2"]),
        ("evaluate --baselines nesterov", ["nesterov", "rmsprop"]),
        ("evaluate --seeds 0", ["seeds = 0"]),
        ("evaluate --step-scales 2 1", ["step_scales", "ascend"]),
        ("ablate plan.md", ["--out"]),
        ("ablate plan.md --out x --scale huge", ["huge", "smoke"]),
        ("identity --scale huge", ["huge", "smoke"]),
    ],
)
def test_options_that_cannot_be_understood_are_named(words, named, capsys):
    said = refused(capsys, *words.split())
    for word in named:
        assert word in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--jobs", "0"], "jobs = 0"),
        (["--meta-seeds", "0"], "meta_seeds = 0"),
        (["--step-scales", "3", "1"], "step_scales = (3.0, 1.0)"),
        (["--meta-learning-rates", "-1"], "meta_learning_rates = (-1.0,)"),
        (["--seeds", "-1"], "seeds = -1"),
        (["--learning-rate", "0"], "learning_rate = 0.0"),
        (["--task", "cartpole"], "cartpole"),
        (["--task", "gymnax:CartPole-v1"], "inner_updates = 4"),
    ],
)
def test_bad_settings_of_a_study_are_refused(options, named, capsys):
    assert named in refused(capsys, "ablate", str(PLAN), "--out", "x", *options)


def test_what_the_options_say_takes_the_place_of_the_scales_own(tmp_path):
    chosen = ablate.AblateOptions(
        PLAN, tmp_path, "smoke", step_scales=(0.3, 3.0), meta_learning_rates=(1e-3,), seeds=7
    )
    settings = ablate._settings(chosen)
    assert settings.evaluation.step_scales == (0.3, 3.0)
    assert settings.evaluation.seeds == 7
    assert settings.meta_learning_rates == (1e-3,)
    assert ablate._settings(ablate.AblateOptions(PLAN, tmp_path, "smoke")) == SCALES["smoke"]


def test_scale_paper_has_the_papers_settings_of_the_small_grid_world(tmp_path):
    options = ablate.AblateOptions(PLAN, tmp_path, "paper", task="small_dense_long")
    settings = ablate._settings(options)
    training, evaluation = settings.training, settings.evaluation
    rollouts = training.iterations * (training.inner_updates + 1)
    steps = rollouts * training.agents * training.envs_per_agent * 20
    assert steps == pytest.approx(3e7, rel=1e-3)
    assert evaluation.updates * evaluation.num_envs * 20 == pytest.approx(3e7, rel=1e-3)
    assert (training.learning_rate, settings.meta_seeds) == (3e-2, 5)
    other = ablate._settings(dataclasses.replace(options, task="small_dense_short"))
    assert other.training == SCALES["paper"].training


def test_a_plan_of_nothing_known_is_refused(tmp_path, capsys):
    plan = tmp_path / "plan.md"
    plan.write_text("# Weather\n\n**Ablated Part**: Cloud cover\n**Action**: REMOVE\n")
    said = refused(capsys, "ablate", str(plan), "--out", "x", "--skip-unmapped")
    assert "Cloud cover" in said
    plan.write_bytes(b"")
    assert "empty" in refused(capsys, "ablate", str(plan), "--out", "x")
    assert str(plan) in refused(capsys, "plan", "show", str(plan))


@pytest.fixture
def in_time():
    """A command that waits for ever fails instead."""

    def give_up(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{}"],
        ["evaluate", "{}"],
        ["evaluate", "{}.py:make"],
        ["train", "--out", "x", "--optimizer", "optim4rl-rlc", "--start", "{}"],
        ["plan", "show", "{}"],
        ["plan", "lint", "{}"],
        ["plan", "propose", "{}", "--out", "x"],
        ["plan", "score", "{}", "--against", str(PLAN)],
        ["plan", "score", str(PLAN), "--against", "{}"],
        ["ablate", "{}", "--out", "x"],
        ["report", "{}"],
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "long"])
def test_whatever_is_read_is_a_regular_file_of_a_sane_size(kind, words, tmp_path, capsys):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(10**12)
    said = refused(capsys, *(word.format(path) for word in words))
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert str(path) in said
    assert "Errno" not in said


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--out", ""],
        ["evaluate", "anchored-catch", "--out="],
        ["plan", "show", ""],
        ["report", ""],
        ["report", "x", "--out", ""],
    ],
)
def test_no_path_is_no_folder(words, capsys):
    said = " ".join(refused(capsys, *words).replace("│", " ").split())
    assert "'' is not a path" in said or "[FOLDERS]" in said


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "anchored-catch", "--out"],
        ["plan", "propose", "--of", "optim4rl", "--out"],
        ["identity", "--out"],
        ["report", "x", "--out"],
    ],
)
def test_a_folder_is_no_name_of_a_file(words, tmp_path, capsys):
    named = f"error: out = {str(tmp_path)!r}: the name of a file is needed"
    assert refused(capsys, *words, str(tmp_path)) == f"{named} (it is a folder)\n"
    assert "the name of a file is needed" in refused(capsys, *words, "/dev/null")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("evalute x", "evaluate"),
        ("plan shwo x", "show"),
        ("train --recipe zoo/ppo-genralist", "zoo/ppo-generalist"),
        ("list weight", "weights"),
    ],
)
def test_what_was_meant_is_guessed(words, meant, capsys):
    assert f"did you mean {meant}?" in refused(capsys, *words.split()).replace("'", "")


BAD_WEIGHTS = {
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "truncated": b'\x40\x00\x00\x00\x00\x00\x00\x00{"__metadata__"',
    "empty": b"",
}


@pytest.mark.parametrize("data", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_are_refused_by_name(data, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    said = refused(capsys, "evaluate", str(path), "--out", "x")
    assert said.startswith(f"error: {path}: ")
    assert said.count("\n") == 1
    assert ("pickle" in said) == data.startswith(b"\x80")


def test_a_run_that_stops_says_why_and_exits_with_1(monkeypatch, capsys):
    def diverge(options):
        error = MetaDivergenceError.__new__(MetaDivergenceError)
        RuntimeError.__init__(error, "no finite numbers")
        raise error

    monkeypatch.setattr("optim4rl.cli.listing.run", diverge)
    with pytest.raises(SystemExit) as exit:
        main(["list", "tasks"])
    assert exit.value.code == 1
    assert capsys.readouterr().err == "stopped: no finite numbers\n"
    with pytest.raises(MetaDivergenceError):
        main(["list", "tasks", "--debug"])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AssertionError])
def test_a_fault_of_the_program_shows_where_it_is(error, monkeypatch):
    def fail(options):
        raise error("a fault")

    monkeypatch.setattr("optim4rl.cli.listing.run", fail)
    with pytest.raises(error, match="a fault"):
        main(["list", "tasks"])


def test_debug_shows_where_bad_input_was_found(capsys):
    with pytest.raises(ValueError, match="evaporate"):
        main(["evaporate", "--debug"])


# The process


def test_the_process_exits_with_2_and_reads_a_closed_pipe():
    program = [sys.executable, "-m", "optim4rl"]
    bad = subprocess.run([*program, "evaluate", "nothing"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: weights = 'nothing'")
    read, write = os.pipe()
    os.close(read)
    closed = subprocess.run([*program, "list", "components"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert b"Traceback" not in closed.stderr
    assert b"Exception" not in closed.stderr


def test_a_closed_stdout_is_one_sentence():
    """Where a number is free, a file that is opened next would take it, and the output with it."""
    for closed in (">&-", ">&- <&-"):
        command = f"{sys.executable} -m optim4rl list components {closed}"
        done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr == "error: stdout is closed; send it to a file or to /dev/null\n"
    silent = f"{sys.executable} -m optim4rl list components 2>&- <&-"
    done = subprocess.run(["sh", "-c", silent], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "structure" in done.stdout


@pytest.mark.parametrize("platform", ["tpu", "bogus", "cuda"])
def test_a_device_that_is_not_here_is_one_sentence(platform):
    done = subprocess.run(
        [sys.executable, "-m", "optim4rl", "inspect", "anchored-catch"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": platform},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: JAX_PLATFORMS = {platform!r}: JAX finds no such device here; unset it, or set it "
        "to 'cpu'"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), StoppedBySignalError(15), OSError(28, "full")]
)
def test_what_is_not_there_is_not_gone_on_with(error, monkeypatch, capsys):
    def stop(options):
        raise error

    monkeypatch.setattr("optim4rl.cli.listing.run", stop)
    with pytest.raises(SystemExit):
        main(["list", "tasks"])
    assert "continue" not in capsys.readouterr().err
    error.add_note("finished work is kept")
    with pytest.raises(SystemExit):
        main(["list", "tasks"])
    assert "Finished work is kept; continue with\n  optim4rl list tasks" in capsys.readouterr().err


def test_jax_is_set_up_through_the_environment(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setattr(metadata, "version", lambda name: "0.10.2")
    for _ in range(2):  # Twice is once.
        configure_jax()
        assert os.environ["XLA_FLAGS"] == (
            "--xla_force_host_platform_device_count=2 --xla_cpu_use_fusion_emitters=false"
        )
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "optim4rl" / "xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    mine = "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=3"
    monkeypatch.setenv("XLA_FLAGS", mine)
    configure_jax()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    assert os.environ["XLA_FLAGS"] == mine


@pytest.mark.parametrize(("version", "told"), [("0.11.2", "0"), ("0.11.1", None)])
def test_what_crashes_is_switched_off(version, told, monkeypatch):
    """A partitioner, and CPU devices beyond the first."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    # Set before deleted, so that what the command sets is undone, too.
    monkeypatch.setenv("JAX_USE_SHARDY_PARTITIONER", "")
    monkeypatch.delenv("JAX_USE_SHARDY_PARTITIONER")
    monkeypatch.setattr(metadata, "version", lambda name: version)
    configure_jax()
    assert os.environ.get("JAX_USE_SHARDY_PARTITIONER") == told
    devices = len(os.sched_getaffinity(0)) if told is None else 1
    assert os.environ["XLA_FLAGS"].endswith(f"device_count={devices}")


def test_switches_of_another_jax_are_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    monkeypatch.setattr(metadata, "version", lambda name: "0.11.0")
    configure_jax()
    cores = len(os.sched_getaffinity(0))
    assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count={cores}"
