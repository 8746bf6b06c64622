"""The page of verdicts says what the committed runs say by today's rule."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_made_from_the_committed_runs():
    spec = importlib.util.spec_from_file_location("verdicts", DOCS / "verdicts.py")
    assert spec is not None
    assert spec.loader is not None
    verdicts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verdicts)
    assert verdicts.PAGE.read_text("utf-8") == verdicts.page()
