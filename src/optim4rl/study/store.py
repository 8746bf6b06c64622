"""Where finished cells live: one file each, whole or not at all, under a content address."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim4rl.files.sealed import DamagedFileError, read_sealed, write_sealed
from optim4rl.study.cells import Cell, CellResult, cell_address, cell_to_dict
from optim4rl.study.provenance import provenance


class StoreError(ValueError):
    """A file of a study that cannot be read; the message names it."""


def result_path(folder: Path, cell: Cell) -> Path:
    """Where the cell's result is, or will be."""
    return folder / "cells" / f"{cell_address(cell)}.safetensors"


def has_result(folder: Path, cell: Cell) -> bool:
    """Whether the cell is finished."""
    return result_path(folder, cell).is_file()


def put_result(folder: Path, cell: Cell, result: CellResult) -> None:
    """Keep a cell's result."""
    write_result(result_path(folder, cell), cell_to_dict(cell), result)


def get_result(folder: Path, cell: Cell) -> CellResult:
    """A finished cell's result.

    Raises:
        StoreError: as `read_result` does.
    """
    return read_result(result_path(folder, cell), cell_to_dict(cell))


def write_result(path: Path, question: Mapping[str, Any], result: CellResult) -> None:
    """Keep a result, atomically, beside what was asked and by which code it was answered."""
    metadata = {
        "cell": json.dumps(question, sort_keys=True),
        "info": json.dumps(dict(result.info), sort_keys=True),
        "provenance": json.dumps(provenance(), sort_keys=True),
    }
    write_sealed(path, result.arrays, metadata)


def read_result(path: Path, question: Mapping[str, Any]) -> CellResult:
    """The answer to that question.

    Raises:
        StoreError: the file is missing, damaged, or answers another question; deleting it makes its
            command find the answer again.
    """
    try:
        arrays, metadata = read_sealed(path)
        asked, info = json.loads(metadata["cell"]), json.loads(metadata["info"])
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no such result; the study is unfinished, or was run by other code. Running "
            "it again completes it"
        ) from error
    except DamagedFileError as error:
        raise StoreError(f"{error}; delete it to have it made again") from error
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path}: this result cannot be read ({error}); delete it to have it made again"
        ) from error
    if asked != question:
        raise StoreError(f"{path}: the result of something else; delete it to have it made again")
    return CellResult(arrays, info)
