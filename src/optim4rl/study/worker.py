"""A worker process for the cells of a study: `python -m optim4rl.study.worker FOLDER`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim4rl.jobs.pool import OTHER_CODE, serve
from optim4rl.study.cells import Cell, cell_address, cell_from_dict, cell_to_dict, run_cell
from optim4rl.study.store import put_result


def question(cell: Cell) -> dict[str, Any]:
    """What a worker is asked to run the cell."""
    return {"address": cell_address(cell), "cell": cell_to_dict(cell)}


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Run a cell and put its result into the store, unless the code is not that which asks."""
    cell = cell_from_dict(question["cell"])
    if cell_address(cell) != question["address"]:
        return {"error": OTHER_CODE}
    result = run_cell(cell)
    put_result(folder, cell, result)
    return {"done": result.info["seconds"]}


if __name__ == "__main__":
    serve(answer)
