"""Output folders: one process at a time writes into a folder."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optim4rl.files.atomic import NO_ROOM, UNFINISHED

LOCK = ".lock"
# The errors of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderError(ValueError):
    """An output folder that cannot be written to now; the message says why."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make an output folder, and keep other processes from writing into it.

    The operating system holds the lock, and releases it when the process ends in any way.

    Raises:
        FolderError: another process writes into the folder, or it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"out = {str(folder)!r}: the name of a folder is needed (it is a file)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(folder)
        _sweep(folder)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise  # The command itself is right.
        raise FolderError(
            f"out = {str(folder)!r}: cannot be written to ({error.strerror})"
        ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)


def _acquire(folder: Path) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                mine = {"pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(mine).encode())
                return handle
            # The holder has removed the file meanwhile, so this lock does not exclude others: lock
            # the new file.
            os.close(handle)
        except BlockingIOError as error:
            holder = _describe(os.read(handle, 4096))
            os.close(handle)
            raise FolderError(
                f"out = {str(folder)!r}: {holder} is at work there; wait for it, stop it, or "
                "choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            print(f"{folder}: no locks here; keep other processes away", file=sys.stderr)
            return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _describe(holder: bytes) -> str:
    try:
        found = json.loads(holder)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed."""
    for pattern in (f"*{UNFINISHED}", f"*/*{UNFINISHED}"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
