"""A headless Chromium that opens a page and says what a reader would see of it.

It is driven through its DevTools protocol over a pair of pipes, so no package is needed for it.
"""

import base64
import json
import os
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TELEPHONE = 390
SETTLED = 0.5  # seconds without a message after which a page is taken to be at rest

# Text whose contrast with what is behind it is below that of WCAG 2.1, level AA (section 1.4.3).
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) =>
    [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!node.data.trim() || !box.width || !box.height || box.right < 0 || box.left > innerWidth
        || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})
        || element.closest("style, script, template")) continue;
    const style = getComputedStyle(element);
    let ink = rgba(element.closest("svg") ? style.fill : style.color), papers = [];
    for (let e = element; e; e = e.parentElement) {
      papers.unshift(rgba(getComputedStyle(e).backgroundColor));
      ink[3] *= Number(getComputedStyle(e).opacity);
    }
    if (ink[3] < 0.1) continue;
    const paper = papers.reduce((below, top) => over(top, below),
      dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
    const [a, b] = [luminance(over(ink, paper)), luminance(paper)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    const needed = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < needed) found.push(`${ratio.toFixed(2)}: ${node.data.trim().slice(0, 60)}`);
  }
  return found;
})()
"""


@dataclass(frozen=True)
class Visit:
    """What a page did and how it looks.

    Attributes:
        console: errors and warnings of the console, and exceptions.
        requests: all addresses that were asked for.
        overflow: pixels by which the page is wider than the window.
        faint: text with too little contrast, each with its ratio.
        picture: a PNG of the whole page.
    """

    console: list[str]
    requests: list[str]
    overflow: int
    faint: list[str]
    picture: bytes


class Browser:
    """Chromium, started; `visit` opens a page in a fresh tab."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb")
        self._buffer, self._last, self._events = b"", 0, []

    def visit(self, url: str, *, width: int = TELEPHONE, dark: bool = False) -> Visit:
        """Open a page, let it settle, and look at it."""
        # Like a first visit: nothing is remembered.
        context = self._send("Target.createBrowserContext")["browserContextId"]
        target = self._send("Target.createTarget", url="about:blank", browserContextId=context)[
            "targetId"
        ]
        session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable", session)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        self._send("Page.navigate", session, url=url)
        self._settle(session)
        evaluate = lambda code: self._send(  # noqa: E731
            "Runtime.evaluate", session, expression=code, returnByValue=True
        )["result"]["value"]
        # Not against innerWidth: a telephone zooms out until a page that is too wide fits.
        overflow = evaluate("document.documentElement.scrollWidth") - width
        faint = evaluate(CONTRAST)
        shot = {"format": "png", "captureBeyondViewport": True}
        picture = base64.b64decode(self._send("Page.captureScreenshot", session, **shot)["data"])
        events, self._events = self._events, []
        self._send("Target.disposeBrowserContext", browserContextId=context)
        return Visit(_console(events), _requests(events), overflow, faint, picture)

    def _settle(self, session: str) -> None:
        """Wait until the page has loaded and nothing has happened for a while."""
        deadline = time.monotonic() + 30
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            assert time.monotonic() < deadline, "the page does not load"
            self._send("Runtime.evaluate", session, expression="0")
            time.sleep(0.02)
        seen = -1
        while seen != len(self._events):
            seen = len(self._events)
            time.sleep(SETTLED)
            self._send("Runtime.evaluate", session, expression="0")

    def _send(self, method: str, session: str | None = None, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer:
                self._events.append(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            data = self._read.read(1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


def _console(events) -> list[str]:
    said = []
    for event in events:
        params = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            said.append(params["exceptionDetails"]["text"])
        if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            said.append(str([x.get("value", x.get("description")) for x in params["args"]]))
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
    return said


def _requests(events) -> list[str]:
    method = "Network.requestWillBeSent"
    return [event["params"]["request"]["url"] for event in events if event["method"] == method]


@contextmanager
def browser():
    """A running Chromium; it must be on the path."""
    to_child, from_us = os.pipe()
    from_child, to_us = os.pipe()
    flags = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run"
    # Its own folder is not removed until all of its processes are gone.
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = f"exec chromium {flags} --user-data-dir={profile} --remote-debugging-pipe"
        process = subprocess.Popen(
            ["bash", "-c", f"{command} 3<&{to_child} 4>&{to_us}"],
            pass_fds=(to_child, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        os.close(to_child)
        os.close(to_us)
        running = Browser(from_child, from_us)
        try:
            yield running
        finally:
            running._write.close()  # Without its pipe it goes.
            process.wait(timeout=30)
            running._read.close()


def file_url(path: Path) -> str:
    """The address of a file."""
    return path.resolve().as_uri()


def assert_good(visit: Visit, origin: str) -> None:
    """No error, no sideways scrolling, no faint text, and nothing from anywhere else."""
    assert visit.console == []
    assert visit.overflow <= 0
    assert visit.faint == []
    assert [x for x in visit.requests if not x.startswith((origin, "data:", "blob:"))] == []
