"""Where finished cells live: one file each, whole or not at all, under a content address."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.optimizers.files import write_atomically
from optim4rl.study.cells import Cell, CellResult, cell_address, cell_to_dict, code_hash


class StoreError(ValueError):
    """A file of a study that cannot be read; the message names it."""


def result_path(folder: Path, cell: Cell) -> Path:
    """Where the cell's result is, or will be."""
    return folder / "cells" / f"{cell_address(cell)}.safetensors"


def has_result(folder: Path, cell: Cell) -> bool:
    """Whether the cell is finished."""
    return result_path(folder, cell).is_file()


def put_result(folder: Path, cell: Cell, result: CellResult) -> None:
    """Keep a result, atomically, beside what was asked and by which code it was answered."""
    from safetensors.numpy import save

    metadata = {
        "cell": json.dumps(cell_to_dict(cell), sort_keys=True),
        "info": json.dumps(dict(result.info), sort_keys=True),
        "code": code_hash(),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    write_atomically(result_path(folder, cell), save(arrays, metadata=metadata))


def get_result(folder: Path, cell: Cell) -> CellResult:
    """A finished cell's result.

    Raises:
        StoreError: the file is missing, or damaged; deleting it makes the study run the cell again.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = result_path(folder, cell)
    try:
        data = path.read_bytes()
        arrays = load(data)
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        info: dict[str, Any] = json.loads(metadata["info"])
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no such result; the study is unfinished, or was run by other code. Running "
            "it again completes it"
        ) from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise StoreError(
            f"{path}: this result cannot be read ({error}); delete it to run its cell again"
        ) from error
    return CellResult(arrays, info)
