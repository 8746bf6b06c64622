"""Files that are there whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the names of unfinished files end in; a process that was killed may leave one behind.
UNFINISHED = ".optim4rl-part"
# What a full disk says.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees all of it or the old one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when all has gone well.

    Args:
        path: the file.
        keep: where the file that was there before goes; None: nowhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    temporary = Path(name)
    try:
        yield temporary
        # The handle is that of the same file still: what was written is on disk before the name is.
        os.fsync(handle)
        temporary.chmod(0o644)
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # A full disk does not say which file it had no room for.
        raise
    finally:
        os.close(handle)


def _keep(path: Path, keep: Path) -> None:
    """Give the file a second name, so that it has the first one until another file takes it."""
    second = path.with_name(f".{keep.name}{UNFINISHED}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # A file system without hard links.
        os.replace(path, keep)
    else:
        os.replace(second, keep)


def _sync_folder(folder: Path) -> None:
    """Have the names in the folder on disk, too."""
    if os.name != "posix":
        return  # Elsewhere a folder cannot be opened.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
