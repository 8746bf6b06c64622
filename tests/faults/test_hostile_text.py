"""Text of a plan or a card is text: it names no file, and a browser runs none of it."""

import dataclasses
import sys
from pathlib import Path

import jax
import pytest

from browser import browser, file_url
from optim4rl.benchmark.contender import keep_weights
from optim4rl.files.manifest import write_manifest
from optim4rl.optimizers.weights import load_weights, save_weights, untrained
from optim4rl.pages.comparison import read_run, write_comparison
from optim4rl.pages.study import write_report
from optim4rl.study import runner
from optim4rl.study.collecting import collect
from optim4rl.study.layout import lay_out, load_study
from optim4rl.study.opening import open_own
from optim4rl.study.runner import run_study
from optim4rl.study.settings import SMOKE
from pretended import PretendedPool

# Each says "ran" on the console if a browser runs it, or asks a server for something.
PAYLOADS = (
    "<script>console.error('ran')</script>",
    "<img src=x onerror=console.error('ran')>",
    "<svg onload=console.error('ran')>",
    "</title></style></textarea><script>console.error('ran')</script>",
    "\" onmouseover=console.error('ran') autofocus onfocus=console.error('ran') x=\"",
    "<iframe srcdoc='<script>console.error(1)</script>'></iframe>",
    "<link rel=stylesheet href=http://127.0.0.1:9/a.css>",
    "<a href=javascript:console.error('ran')>here</a>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "<base href=http://127.0.0.1:9/>",
    "<object data=http://127.0.0.1:9/x></object>",
)
PATHS = ("../../escaped", "/escaped", "a/../../escaped", "..\\escaped", "~/escaped", "x" * 300)


def plan(text):
    """A plan that says the text wherever a plan may say something."""
    return f"""# {text}

{text}

## Ablation Plan

### {text}
- **Ablated Part**: Pipeline training
- **Action**: REPLACE
- **Replacement**: Synchronous resets
- **Metrics**: Return

### Unknown {text}
- **Ablated Part**: {text}
- **Action**: {text}
- **Replacement**: {text}
- **Metrics**: {text}
""".encode()


@pytest.fixture(autouse=True)
def _made_up(monkeypatch):
    """Nothing is trained here."""
    monkeypatch.setattr(runner, "open_pool", PretendedPool().open)


def write_study(folder, text):
    """All files of a study of a plan that says the text, but for the training."""
    study = lay_out(plan(text), open_own("smoke", SMOKE), skip_unmapped=True)
    run_study(study, folder, command=f"optim4rl ablate {text}")
    write_report(collect(load_study(folder), folder), folder / "report.html")
    write_manifest(folder)
    write_comparison([read_run(folder)], folder / "comparison.html")


def write_weights(folder, text):
    """Weights whose card says the text wherever a card may say something."""
    fresh = untrained("optim4rl-rlc", 1e-2, jax.random.key(0))
    card = {"tasks": [text], "settings": {"out": text, text: text}, "path": text, "results": {}}
    save_weights(folder / "given.safetensors", dataclasses.replace(fresh, card=card))
    keep_weights(folder, load_weights(folder / "given.safetensors"))


_WRITTEN = []
_WATCHED = {"os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,), "os.mkdir": (0,)}


def _note_writing(event, arguments):
    """Called by Python at whatever touches the file system."""
    if event == "open" and isinstance(arguments[0], str | bytes | Path):
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & 0o3:
            _WRITTEN.append(path)
    if event in _WATCHED:
        _WRITTEN.extend(arguments[index] for index in _WATCHED[event])


@pytest.fixture(scope="module", autouse=True)
def _watching():
    sys.addaudithook(_note_writing)  # It stays, and only takes notes.


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_study, write_weights])
def test_no_text_leads_out_of_the_folder(write, tally, tmp_path, monkeypatch):
    row = tally("hostile texts", f"paths in a {'plan' if write is write_study else 'card'}")
    for index, text in enumerate(PATHS):
        folder = tmp_path / "deep" / "down" / str(index)
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        _WRITTEN.clear()
        write(folder, text)
        written = {Path(str(path)).resolve() for path in _WRITTEN}
        assert any(path.suffix == ".safetensors" for path in written)
        outside = [path for path in written if not path.is_relative_to(folder)]
        outside = [path for path in outside if "cache" not in str(path)]
        names = list(tmp_path.rglob("*escaped*"))
        row.count("wrong result" if outside or names else "correct", (text, outside, names))
    row.check(len(PATHS))


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_plan(tally, tmp_path):
    """And would not if it were not escaped: the page's policy forbids it."""
    row = tally("hostile texts", "markup in a plan, in Chromium")
    with browser() as chromium:
        for index, payload in enumerate(PAYLOADS):
            folder = tmp_path / str(index)
            folder.mkdir()
            write_study(folder, payload)
            for name in ("report.html", "comparison.html"):
                url = file_url(folder / name)
                visit = chromium.visit(url)
                inert = visit.console == [] and visit.requests == [url]
                row.count("correct" if inert else "wrong result", (payload, visit.console))
        page = (folder / "report.html").read_text()
        policy = page[page.index("<meta http-equiv") : page.index(">", page.index("<meta http-"))]
        for allowed, name in ((False, "policy.html"), (True, "none.html")):
            raw = page.replace("<body>", f"<body>{PAYLOADS[0]}", 1)
            (tmp_path / name).write_text(raw.replace(policy, "<meta x") if allowed else raw)
            said = chromium.visit(file_url(tmp_path / name)).console
            assert any(line == "['ran']" for line in said) == allowed, said
        row.count("correct")
    row.check(2 * len(PAYLOADS))
