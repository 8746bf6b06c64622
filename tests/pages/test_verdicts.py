"""The pages of verdicts and of figures say what the committed runs say by today's rule."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def load(monkeypatch):
    """A script of the documentation as a module."""

    def load(name):
        monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
        spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("name", ["verdicts", "figures"])
def test_the_page_is_made_from_the_committed_runs(name, load):
    script = load(name)
    assert script.PAGE.read_text("utf-8") == script.page()


def test_a_figure_is_found_as_it_is_rounded(load):
    """Value and both ends, of one estimate, told from either side."""
    figures = load("figures")
    known = np.array([[1.2216, 1.0502, 1.5312], [-0.5, -0.75, -0.25], [1234.4, 1000.0, 1500.2]])
    for text in ("1.222 (1.05 to 1.53)", "0.5 (0.2 to 0.8)", "−0.50 (−0.75 to −0.25)"):
        assert figures.is_among(text, known)
    assert figures.is_among("1,234 (1,000 to 1,500)", known)
    for text in ("1.223 (1.05 to 1.53)", "1.222 (1.05 to 1.54)", "1.222 (1.05 to 1,500)"):
        assert not figures.is_among(text, known)
    page = "It has **1.222\n(1.05 to 1.53)**, and 1.222 (1.05 to 1.53) again; 3 (of 4)."
    assert figures.figures(page) == ["1.222 (1.05 to 1.53)"]
