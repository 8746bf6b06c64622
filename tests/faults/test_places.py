"""Where files go: a full disk, a folder that cannot be written to, two commands in one folder."""

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from functools import partial

import pytest
from fault_runs import (
    TRAIN,
    holds,
    judge_error,
    judge_result,
    same_runs,
    same_training,
    wait_for,
)

pytestmark = pytest.mark.slow

KIND = "commands whose folder is full, read-only or taken"


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


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024 + 1


def fill_and_go_on(row, run, words, whole, same, disk, shares):
    """Run a command on disks with room for a share of its files, then with room for all."""
    out = disk / "out"
    for share in shares:
        with small_disk(disk, max(4, int(share * size(whole)))):
            code, err = run([*words, "--out", out])
            judge_error(row, code, err, 1, ["No space left on device"])
            remount(disk, "size=64m")
            code, err = run([*words, "--out", out])
            judge_result(row, code, err, partial(same, out, whole))
    row.check(2 * len(shares))


def test_training_on_a_full_disk_stops_and_goes_on(tally, run, trained, tmp_path):
    """Whatever there is no room for; with room again, the result is that of an undisturbed run."""
    row = tally(KIND, "full disk (tmpfs) under train, then room again")
    shares = (0.05, 0.3, 0.5, 0.75, 0.95)
    fill_and_go_on(row, run, [*TRAIN, "--resume"], trained, same_training, tmp_path / "d", shares)


def test_a_study_on_a_full_disk_stops_and_goes_on(tally, run, ablate, studied, tmp_path):
    row = tally(KIND, "full disk (tmpfs) under ablate, then room again")
    fill_and_go_on(row, run, ablate, studied, same_runs, tmp_path / "d", (0.1, 0.4, 0.8))


def test_a_read_only_folder_is_named(tally, run, ablate, studied, trained, tmp_path):
    """A disk that is mounted so: root may write wherever permissions alone are in the way."""
    row = tally(KIND, "read-only folder under train, evaluate, ablate, report")
    disk = tmp_path / "disk"
    with small_disk(disk, 65536):
        shutil.copytree(studied, disk / "study")
        shutil.copytree(trained, disk / "run")
        remount(disk, "ro")
        for words in (
            [*TRAIN, "--out", disk / "new"],
            [*TRAIN, "--iterations", 61, "--out", disk / "run", "--resume"],
            ["evaluate", "--baselines", "adam", "--out", disk / "evaluation"],
            [*ablate, "--out", disk / "new"],
            [*ablate, "--out", disk / "study"],
            ["report", disk / "study"],
        ):
            code, err = run(words)
            judge_error(row, code, err, 2, [str(disk), "Read-only file system"])
    row.check(6)


def test_two_commands_do_not_share_a_folder(tally, start, run, ablate, studied, trained, tmp_path):
    """The second one is told who is there; the first one does not notice."""
    row = tally(KIND, "two commands on one folder")
    train = [*TRAIN, "--resume"]
    for words, same, whole in ((train, same_training, trained), (ablate, same_runs, studied)):
        out = tmp_path / whole.name
        with start([*words, "--out", out]) as first:
            assert wait_for(partial(holds, first, out))
            os.kill(first.process.pid, signal.SIGSTOP)  # Not done before the others have come.
            for second in (train, ablate):
                said = [f"process {first.process.pid} on ", "is at work there"]
                code, err = run([*second, "--out", out])
                judge_error(row, code, err, 2, said)
            os.kill(first.process.pid, signal.SIGCONT)
            code, err = first.finish()
            judge_result(row, code, err, partial(same, out, whole))
    row.check(6)
