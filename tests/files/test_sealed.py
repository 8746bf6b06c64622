"""Sealed files: what was written is read, and nothing else is."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.files.atomic import UNFINISHED, replacing, write_atomically
from optim4rl.files.sealed import DamagedFileError, check_seal, read_sealed, write_sealed

ARRAYS = {
    "b/flags": np.array([True, False, True]),
    "a/returns": np.array([[1.5, np.nan], [-0.0, np.inf]], np.float32),
    "c/none": np.zeros((0, 3), np.int64),
    "d/transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}
METADATA = {"card": '{"seed": 3}', "words": "é \U0001f600"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good file."""
    path = tmp_path_factory.mktemp("sealed") / "file.safetensors"
    write_sealed(path, ARRAYS, METADATA)
    return path


def test_what_was_written_is_read(good):
    arrays, metadata = read_sealed(good)
    assert metadata == METADATA == check_seal(good)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.ascontiguousarray(array).tobytes() == arrays[name].tobytes()
        assert arrays[name].shape == array.shape


def test_the_same_contents_give_the_same_bytes(good, tmp_path):
    write_sealed(tmp_path / "again", dict(reversed(ARRAYS.items())), METADATA)
    assert (tmp_path / "again").read_bytes() == good.read_bytes()


def test_pieces_make_the_same_file_as_the_whole(good, tmp_path):
    def halves(array):
        data = np.ascontiguousarray(array).tobytes()
        return (memoryview(data[:5]), memoryview(data[5:]))

    write_sealed(tmp_path / "again", ARRAYS, METADATA, pieces=halves)
    assert (tmp_path / "again").read_bytes() == good.read_bytes()


def test_any_reader_of_the_format_can_read_it(good):
    from safetensors import safe_open

    with safe_open(good, framework="numpy") as file:
        assert sorted(file.keys()) == sorted(ARRAYS)
        assert file.metadata().keys() == {*METADATA, "sha256"}


def test_every_flipped_bit_is_seen(good, tmp_path):
    data = good.read_bytes()
    path = tmp_path / "flipped"
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ (1 << index % 8)]) + data[index + 1 :])
        with pytest.raises(DamagedFileError, match="flipped"):
            check_seal(path)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300) | st.integers(0, 400))
def test_what_is_no_sealed_file_is_refused_by_name(data, good, tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "foreign"
    path.write_bytes(data if isinstance(data, bytes) else good.read_bytes()[:data])
    with pytest.raises(DamagedFileError, match="foreign"):
        read_sealed(path)


def test_a_file_that_grew_is_refused(good, tmp_path):
    (tmp_path / "grown").write_bytes(good.read_bytes() + b"\0")
    with pytest.raises(DamagedFileError, match="does not match its checksum"):
        read_sealed(tmp_path / "grown")


@pytest.mark.parametrize("start", [b"\x80\x04", b"PK\x03\x04"])
def test_a_pickle_is_called_one(start, tmp_path):
    (tmp_path / "file").write_bytes(start + b"x" * 100)
    with pytest.raises(DamagedFileError, match="looks like a pickle or a zip"):
        read_sealed(tmp_path / "file")


# Files that are there whole or not at all


def test_the_file_before_may_be_kept(tmp_path):
    path, before = tmp_path / "file", tmp_path / "before"
    for text in (b"1", b"2", b"3"):
        with replacing(path, before) as temporary:
            temporary.write_bytes(text)
    assert (path.read_bytes(), before.read_bytes()) == (b"3", b"2")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["before", "file"]


def test_it_is_kept_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    test_the_file_before_may_be_kept(tmp_path)


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with replacing(path, tmp_path / "before") as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_is_on_disk_after_the_contents(tmp_path, monkeypatch):
    """First the file, then its new name, then the folder that has the name."""
    steps = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        steps.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    def replace(source, target):
        steps.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"data")
    assert steps[0].startswith(".file.")
    assert steps[0].endswith(UNFINISHED)
    assert steps[1:] == ["replace", tmp_path.name]


def test_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left .*file'") as error,
        replacing(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
