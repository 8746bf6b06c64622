"""The self-contained pages as a browser shows them."""

import pytest
from test_comparison import evaluation
from test_report import make_results

from browser import TELEPHONE, assert_good, browser, file_url
from optim4rl.optimizers import load_weights
from optim4rl.pages.comparison import read_run, write_comparison
from optim4rl.pages.inspection import inspect, render_inspection
from optim4rl.pages.study import write_report
from toys import write_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A study's report, a comparison of runs and an inspection."""
    folder = tmp_path_factory.mktemp("pages")
    write_report(make_results(), folder / "report.html")
    runs = [
        write_training(folder / "a"),
        write_training(folder / "b", rate=0.02, norms=(1, 2, 3, "nan"), done=False),
        evaluation(folder / "a-name-that-is-rather-long", {"ours": [0.1, 0.3], "adam": [0.2]}),
    ]
    write_comparison([read_run(run) for run in runs], folder / "comparison.html")
    page = render_inspection(inspect("anchored-catch", load_weights("anchored-catch")))
    (folder / "inspect.html").write_text(page, "utf-8")
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [TELEPHONE, 1280])
@pytest.mark.parametrize("page", ["report", "comparison", "inspect"])
def test_a_page_is_readable_and_alone(page, width, dark, pages, chromium):
    url = file_url(pages / f"{page}.html")
    visit = chromium.visit(url, width=width, dark=dark)
    assert_good(visit, url)
    assert visit.requests == [url]
