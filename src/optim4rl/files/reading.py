"""Reads regular files of a sane size, so that no read waits for ever or fills the memory."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

# What text a command reads, at most, and what arrays: far beyond what any command writes.
LARGEST_TEXT: Final = 100_000_000  # bytes
LARGEST: Final = 2_000_000_000  # bytes


def why(error: Exception) -> str:
    """What an error says, in words: of one of the system's neither its number nor its file."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def opened(path: str | Path) -> Iterator[BufferedReader]:
    """A regular file, open to be read.

    Raises:
        OSError: there is none, or it is a folder, a pipe or a device; `strerror` says so.
    """
    # A pipe would wait here for whoever writes into it.
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
    """All bytes of a regular file of at most `largest` bytes.

    Raises:
        OSError: as `opened`, or the file is longer; `strerror` says so.
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
    """The text of a regular file in UTF-8, of at most `LARGEST_TEXT` bytes.

    Raises:
        OSError: as `read_file`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_file(path, LARGEST_TEXT).decode()
