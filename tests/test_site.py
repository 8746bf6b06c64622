"""The documentation's site: built with warnings as errors, and complete."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # `make docs` builds it in CI


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_in_the_site(site):
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").with_suffix("")
        built = site / page / "index.html" if page.name != "index" else site / "index.html"
        assert built.is_file(), page
    for name in ("CHANGELOG", "CONTRIBUTING"):
        assert (site / name / "index.html").is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)")
    for path in site.rglob("*.html"):
        for target in loads.findall(path.read_text("utf-8")):
            assert "//" not in target.removeprefix("data:"), f"{path}: {target}"


def test_public_names_are_in_the_api(site):
    text = (site / "api" / "optimizers" / "index.html").read_text("utf-8")
    for name in ("load", "load_weights", "save_weights", "LearnedOptimizer", "OptimizerSpec"):
        assert re.search(rf'id="optim4rl\.optimizers\.\w+\.{name}"', text), name
