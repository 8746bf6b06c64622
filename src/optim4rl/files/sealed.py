"""Sealed files: named arrays and some text, with a checksum over every byte.

A sealed file is a safetensors file (https://github.com/huggingface/safetensors#format). The field
`sha256` of its metadata is the SHA-256 of the whole file, computed with zeros in place of the
checksum. So no bit can change unnoticed, and nothing in the file is ever executed.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.files.atomic import replacing
from optim4rl.files.reading import opened, read_file

SEAL = "sha256"
# Long work saves its state if so many seconds have passed: short work saves nothing.
SECONDS_BETWEEN_SAVES = 60.0
_OPEN = "0" * 64
_LARGEST_HEADER = 100_000_000  # as in safetensors
_BLOCK = 1 << 20
# The format's names of dtypes.
DTYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
}


class DamagedFileError(ValueError):
    """A damaged file; the message names it."""


def as_bytes(array: np.ndarray) -> memoryview:
    """Return an array's bytes in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write_sealed(
    path: Path,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    pieces: Callable[[Any], Iterable[memoryview]] = lambda array: [as_bytes(np.asarray(array))],
    keep: Path | None = None,
) -> None:
    """Write a sealed file atomically; the same contents give the same bytes.

    Args:
        path: the file.
        arrays: arrays by name, or objects with their `dtype`, `shape` and `size`.
        metadata: text by name.
        pieces: yields an array's bytes in C order, piece by piece, to save memory.
        keep: where to move the old file; None: nowhere.
    """
    header = _header(arrays, metadata)
    digest = hashlib.sha256(header)
    with replacing(path, keep) as temporary, temporary.open("wb") as file:
        file.write(header)
        for _, array in sorted(arrays.items()):
            for piece in pieces(array):
                digest.update(piece)
                file.write(piece)
        # The checksum is known at the end; its place at the start has a known size.
        file.seek(0)
        file.write(header.replace(_OPEN.encode(), digest.hexdigest().encode()))


def read_sealed(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a sealed file.

    Raises:
        DamagedFileError: the file is damaged, or not a sealed file.
        OSError: the file cannot be read.
    """
    from safetensors.numpy import load

    data = read_file(path)
    metadata = _check(path, io.BytesIO(data))
    return load(data), metadata


def check_seal(path: Path) -> dict[str, str]:
    """Read a whole sealed file, check it, and return its metadata.

    Raises:
        DamagedFileError: the file is damaged, or not a sealed file.
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return _check(path, file)


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata of a sealed file, without checking its checksum.

    Raises:
        DamagedFileError: the file is not a sealed file.
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        return _read_header(path, file)[1]


def _check(path: Path, file: io.BufferedIOBase) -> dict[str, str]:
    header, metadata = _read_header(path, file)
    seal = metadata.pop(SEAL, "").encode()
    if not re.fullmatch(rb"[0-9a-f]{64}", seal) or header.count(seal) != 1:
        raise DamagedFileError(
            f"{path}: damaged, from elsewhere or of an earlier release: it has no checksum"
        )
    digest = hashlib.sha256(header.replace(seal, _OPEN.encode()))
    while block := file.read(_BLOCK):
        digest.update(block)
    if digest.hexdigest().encode() != seal:
        raise DamagedFileError(f"{path}: damaged: it does not match its checksum")
    return metadata


def _header(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {**metadata, SEAL: _OPEN}}
    end = 0
    for name, array in sorted(arrays.items()):
        start, end = end, end + array.size * array.dtype.itemsize
        entries[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path, file: io.BufferedIOBase) -> tuple[bytes, dict[str, str]]:
    """Return the bytes before the first array, and the metadata."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    text = file.read(length) if length <= _LARGEST_HEADER else b""
    try:
        metadata = json.loads(text)["__metadata__"]
        pairs = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Look only now: a good file starts with its length, which may look like a pickle or a zip.
        foreign = start.startswith((b"\x80", b"PK"))
        hint = " (it looks like a pickle or a zip)" if foreign else ""
        raise DamagedFileError(f"{path}: truncated, damaged or from elsewhere{hint}") from error
    return start + text, pairs
