"""What is read is a regular file of a sane size; nothing is written over what is none."""

import os
import re
from pathlib import Path

import pytest

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_file, read_text, why


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes into: opening it as usual would wait for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def refusal(read, *arguments):
    """What is said, in words."""
    with pytest.raises(OSError, match=re.escape(str(arguments[0]))) as error:
        read(*arguments)
    assert error.value.filename == str(arguments[0])
    return why(error.value)


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("é\n".encode())
    assert read_file(path) == read_file(path, 3) == b"\xc3\xa9\n"
    assert read_text(path) == "é\n"
    path.write_bytes(b"")
    assert read_file(path, 0) == b""


def test_what_is_no_regular_file_is_refused_at_once(pipe, tmp_path):
    assert refusal(read_file, pipe) == "it is no regular file"
    assert refusal(read_file, Path("/dev/zero")) == "it is no regular file"
    assert refusal(read_file, tmp_path) == "it is a folder"
    assert refusal(read_file, tmp_path / "none") == "No such file or directory"


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert refusal(read_file, path) == "it is longer than 2,000,000,000 bytes, the limit"
    assert refusal(read_file, path, 5) == "it is longer than 5 bytes, the limit"


def test_a_file_of_the_kernels_that_has_no_size_is_refused():
    assert refusal(read_file, Path("/proc/self/status")) == "it grows while it is read"


def test_a_pipe_a_device_and_a_folder_stay_what_they_are(pipe, tmp_path):
    for path, said in ((pipe, "no regular file"), (tmp_path, "a folder")):
        assert refusal(write_atomically, path, b"x") == f"it is {said}, so no file is written there"
    assert pipe.is_fifo()
    assert [x.name for x in tmp_path.iterdir()] == ["pipe"]
