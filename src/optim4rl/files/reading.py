"""Read regular files up to a limit, so that no read waits for ever or fills the memory."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

# The largest text and the largest arrays that a command reads, far larger than any it writes.
LARGEST_TEXT: Final = 100_000_000  # bytes
LARGEST: Final = 2_000_000_000  # bytes


def why(error: Exception) -> str:
    """Return an error's message; for a system error without its number and file name."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def opened(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Raises:
        OSError: the file is missing, or is a folder, a pipe or a device; `strerror` says so.
    """
    # Without O_NONBLOCK, a pipe would wait here for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_file(path: str | Path, largest: int = LARGEST) -> bytes:
    """Read all bytes of a regular file of at most `largest` bytes.

    Raises:
        OSError: as in `opened`, or the file is longer; `strerror` says so.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            said = f"it is longer than {largest:,} bytes, the limit"
            raise OSError(errno.EINVAL, said, str(path))
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EINVAL, "it grows while it is read", str(path))
    return data


def read_text(path: str | Path) -> str:
    """Read the text of a regular UTF-8 file of at most `LARGEST_TEXT` bytes.

    Raises:
        OSError: as in `read_file`.
        UnicodeDecodeError: the file is not UTF-8.
    """
    return read_file(path, LARGEST_TEXT).decode()
