"""A worker process for the cells of a study: `python -m optim4rl.study.worker FOLDER`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim4rl.study.cells import cell_from_dict, run_cell
from optim4rl.study.pool import serve
from optim4rl.study.store import put_result


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Run a cell, and put its result into the store."""
    cell = cell_from_dict(question)
    result = run_cell(cell)
    put_result(folder, cell, result)
    return {"done": result.info["seconds"]}


if __name__ == "__main__":
    serve(answer)
