"""Atomic writes: a file is complete or does not exist."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Suffix of unfinished files. A killed process may leave one behind.
UNFINISHED = ".optim4rl-part"
# The errors of a full disk.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, so that a reader or a crash finds the old file or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` if the block ends without an error.

    Args:
        path: the file.
        keep: where to move the old file; None: nowhere.

    Raises:
        OSError: a folder, a pipe or a device has this name, or the file cannot be written.
    """
    if path.exists() and not path.is_file():
        # A regular file would replace a device.
        what = "a folder" if path.is_dir() else "no regular file"
        raise OSError(errno.EEXIST, f"it is {what}, so no file is written there", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    temporary = Path(name)
    try:
        yield temporary
        # Flush before renaming.
        os.fsync(handle)
        temporary.chmod(0o644)
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # The error of a full disk names no file.
        raise
    finally:
        os.close(handle)


def _keep(path: Path, keep: Path) -> None:
    """Move the file to `keep` by a link, so that `path` exists until the new file replaces it."""
    second = path.with_name(f".{keep.name}{UNFINISHED}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # A file system without hard links.
        os.replace(path, keep)
    else:
        os.replace(second, keep)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's list of names to disk."""
    if os.name != "posix":
        return  # Other systems cannot open a folder.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
