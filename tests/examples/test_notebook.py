"""The notebook is tidy, its code is sound, and it runs from top to bottom."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


def test_every_cell_is_introduced_and_parses(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")
    for cell in code(notebook):
        ast.parse(cell.source)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, compared, plotted = code(notebook)
    assert "anchored-catch: mean return" in compared.outputs[0].text
    assert "image/png" in plotted.outputs[-1].data
