"""Where files go: a full disk, a folder that cannot be written to, two commands in one folder."""

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest
from fault_runs import (
    ABLATE,
    PLAN,
    TRAIN,
    Command,
    environment,
    same_study,
    same_training,
    wait_for,
)

from optim4rl.cli.folders import LOCK

pytestmark = pytest.mark.slow

STEPS = 30


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("programs"))


def run(words, env):
    with Command(words, env) as command:
        return command.finish()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, env):
    """A run that nothing has happened to."""
    out = tmp_path_factory.mktemp("places") / "train"
    code, _, err = run([*TRAIN, "--iterations", STEPS, "--out", out], env)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def studied(tmp_path_factory, env):
    """A study that nothing has happened to, and its plan."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "plan.md").write_bytes(PLAN)
    words = ["ablate", folder / "plan.md", "--out", folder / "study", *ABLATE]
    code, _, err = run(words, env)
    assert code == 0, err
    return folder / "study", folder / "plan.md"


@contextmanager
def small_disk(folder, kilobytes):
    """A file system of its own, in memory; who may not mount one cannot run these tests."""
    folder.mkdir(exist_ok=True)
    size = f"size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024 + 1


def judge_error(row, code, err, expected, what):
    """Count a command that had to fail with that code and a message that says so."""
    if code is None:
        row.count("hang", what)
    elif "Traceback" in err:
        row.count("traceback", (what, err))
    else:
        row.count("clear error" if code == expected else "wrong result", (what, code, err))


def judge_result(row, code, err, same, out, whole):
    if code is None:
        row.count("hang", out)
    elif code != 0:
        row.count("traceback" if "Traceback" in err else "lost result", (out, err))
    else:
        row.count("correct" if same(out, whole) else "wrong result", out)


def test_training_on_a_full_disk_stops_and_goes_on(tally, trained, env, tmp_path):
    """Whatever there is no room for; with room again, the result is that of an undisturbed run."""
    row = tally("full disk (tmpfs) under train, then room again")
    for share in (0.05, 0.3, 0.5, 0.75, 0.95):
        room = max(4, int(share * size(trained)))
        words = [*TRAIN, "--iterations", STEPS, "--out", tmp_path / "disk" / "run", "--resume"]
        with small_disk(tmp_path / "disk", room):
            code, _, err = run(words, env)
            judge_error(row, code, err, 1, share)
            assert "No space left on device" in err
            grow = ["mount", "-o", "remount,size=64m", str(tmp_path / "disk")]
            subprocess.run(grow, check=True)
            code, _, err = run(words, env)
            judge_result(row, code, err, same_training, tmp_path / "disk" / "run", trained)
    row.check(10)


def test_a_study_on_a_full_disk_stops_and_goes_on(tally, studied, env, tmp_path):
    row = tally("full disk (tmpfs) under ablate, then room again")
    study, plan = studied
    for share in (0.1, 0.4, 0.8):
        room = max(4, int(share * size(study)))
        words = ["ablate", plan, "--out", tmp_path / "disk" / "study", *ABLATE]
        with small_disk(tmp_path / "disk", room):
            code, _, err = run(words, env)
            judge_error(row, code, err, 1, share)
            assert "No space left on device" in err
            grow = ["mount", "-o", "remount,size=64m", str(tmp_path / "disk")]
            subprocess.run(grow, check=True)
            code, _, err = run(words, env)
            judge_result(row, code, err, same_study, tmp_path / "disk" / "study", study)
    row.check(6)


def test_a_read_only_folder_is_named(tally, studied, trained, env, tmp_path):
    row = tally("read-only folder under train, evaluate, ablate, report")
    study, plan = studied
    disk = tmp_path / "disk"
    with small_disk(disk, 65536):
        shutil.copytree(study, disk / "study")
        shutil.copytree(trained, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for words in (
            [*TRAIN, "--iterations", STEPS, "--out", disk / "new"],
            [*TRAIN, "--iterations", STEPS + 1, "--out", disk / "run", "--resume"],
            ["evaluate", "--baselines", "adam", "--out", disk / "evaluation"],
            ["ablate", plan, "--out", disk / "new", *ABLATE],
            ["ablate", plan, "--out", disk / "study", *ABLATE],
            ["report", disk / "study"],
        ):
            code, _, err = run(words, env)
            judge_error(row, code, err, 2, words)
            assert str(disk) in err
            assert "Read-only file system" in err
    row.check(6)


def test_two_commands_do_not_share_a_folder(tally, studied, trained, env, tmp_path):
    """The second one is told who is there; the first one does not notice."""
    row = tally("two commands on one folder")
    study, plan = studied
    commands = {
        tmp_path / "run": [*TRAIN, "--iterations", STEPS, "--resume"],
        tmp_path / "study": ["ablate", plan, *ABLATE],
    }
    wholes = {"run": (same_training, trained), "study": (same_study, study)}
    for out, words in commands.items():
        with Command([*words, "--out", out], env) as first:
            assert wait_for((out / LOCK).exists)
            os.kill(first.process.pid, signal.SIGSTOP)  # Not done before the others have come.
            for second in commands.values():
                code, _, err = run([*second, "--out", out], env)
                judge_error(row, code, err, 2, second)
                assert f"process {first.process.pid} on " in err
            os.kill(first.process.pid, signal.SIGCONT)
            code, _, err = first.finish()
        same, whole = wholes[out.name]
        judge_result(row, code, err, same, out, whole)
    row.check(6)
