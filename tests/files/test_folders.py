"""Output folders: one process at a time, and no lock outlives its process."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from optim4rl.files.atomic import UNFINISHED
from optim4rl.files.folders import LOCK, FolderError, locked

HOLDER = """
import sys, time
from pathlib import Path
from optim4rl.files.folders import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_is_made_and_left_as_it_was(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_second_process_is_told_who_is_there(holder, tmp_path):
    with (
        pytest.raises(FolderError, match=rf"out'.* process {holder.pid} on \S+ is at work there"),
        locked(tmp_path / "out"),
    ):
        pytest.fail("both are at work")
    holder.kill()
    holder.wait()
    with locked(tmp_path / "out"):
        pass


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """The lock is taken on a file that its holder removes at that moment: another is made."""
    real, tries = fcntl.flock, []

    def flock(handle, how):
        real(handle, how)
        if not tries:
            (tmp_path / LOCK).unlink()
        tries.append(handle)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(tries) == 2
        assert (tmp_path / LOCK).is_file()


def test_unfinished_files_of_the_dead_are_swept(tmp_path):
    (tmp_path / "jobs").mkdir()
    for path in (tmp_path / f".a.x{UNFINISHED}", tmp_path / "jobs" / f".b.y{UNFINISHED}"):
        path.touch()
    (tmp_path / "kept.part").touch()
    with locked(tmp_path):
        assert sorted(x.name for x in tmp_path.iterdir()) == [LOCK, "jobs", "kept.part"]
    assert list((tmp_path / "jobs").iterdir()) == []


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(handle, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    assert "no locks here" in capsys.readouterr().err


def test_what_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FolderError, match=r"file'.*the name of a folder is needed \(it is a file\)"),
        locked(tmp_path / "file"),
    ):
        pass
