"""The site as a browser shows it: no error, nothing fetched, no sideways scrolling, readable."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import TELEPHONE, assert_good, browser, file_url

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

COLOUR_SCHEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
WIDTHS = pytest.mark.parametrize("width", [TELEPHONE, 1280])


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the built documentation, served from here."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@COLOUR_SCHEMES
@WIDTHS
@pytest.mark.parametrize("page", ["", "start/", "method/", "api/optimizers/", "CHANGELOG/"])
def test_the_documentation(page, width, dark, site, chromium):
    assert_good(chromium.visit(site + page, width=width, dark=dark), site)


BAD = """<!doctype html><meta name=viewport content="width=device-width">
<body style="background:#fff"><p style="color:#ccc">faint</p><p style="color:#000">clear</p>
<div style="width:3000px;color:#000">wide</div><img src="missing.png" alt="">
<script>throw new Error("thrown")</script>"""


def test_a_bad_page_is_found_out(tmp_path, chromium):
    path = tmp_path / "bad.html"
    path.write_text(BAD)
    visit = chromium.visit(file_url(path))
    assert visit.overflow > 0
    assert [text.partition(": ")[2] for text in visit.faint] == ["faint"]
    assert len(visit.requests) == 2
    assert any("Uncaught" in said for said in visit.console)
    assert any("missing.png" in said for said in visit.console)
