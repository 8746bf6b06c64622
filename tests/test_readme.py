"""The README does what it says: its programs run as printed, its commands and the pages' exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from optim4rl.cli import listing, main as cli, processes, train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text, *languages):
    """The fenced blocks of the languages: of what stands after the opening fence."""
    found = re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands(text):
    """The words of every optim4rl command in the shell blocks."""
    for block in blocks(text, "bash", "console", "shell", "sh"):
        block = re.sub(r"\$\w+", "0", block)  # Variables of the shell stand for something.
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["optim4rl"]:
                ends = [i for i, word in enumerate(words) if word in ("|", "&&", ";", ">")]
                yield words[1 : min(ends, default=len(words))]


def run_program(source, folder):
    """Run a program as a reader would, in a folder with the repository's plans."""
    (folder / "plans").symlink_to(ROOT / "plans")
    return subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=600
    )


def run_together(sources, folder):
    """Run programs by name, in one process, which imports and compiles once what they share."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source, "utf-8")
    together = (
        "import glob, runpy\nfor path in sorted(glob.glob('*.py')):\n    runpy.run_path(path)"
    )
    return run_program(together, folder)


@pytest.fixture
def dispatched(monkeypatch):
    """Commands are read, and nothing else; what was read."""
    read = []

    def only(parse):
        def parse_and_exit(*arguments):
            read.append(parse(*arguments))
            raise SystemExit(0)

        return parse_and_exit

    monkeypatch.setattr(cli, "_parse", only(cli._parse))
    monkeypatch.setattr(listing, "parse", only(listing.parse))
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(processes, "join", lambda options: None)
    return read


def exit_code(words):
    try:
        cli.main(words)
    except SystemExit as exit:
        return exit.code
    return 0


def test_every_program_runs_as_printed(tmp_path):
    result = run_together(dict(enumerate(blocks(README, "python"))), tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page, dispatched, capsys):
    for words in commands(page.read_text("utf-8")):
        said = f"optim4rl {shlex.join(words)}"
        assert exit_code(words) == 0, f"{said}\n{capsys.readouterr().err}"


# The checks themselves: each of them finds what it looks for.

SAMPLE = """
```python
raise SystemExit(3)
```
```bash
$ optim4rl list tasks --json | head  # what there is
optim4rl train --recipe zoo/anchored-catch \\
    --out runs/one
pip install optim4rl
```
```
optim4rl burn
```
"""


def test_blocks_and_commands_are_found():
    assert blocks(SAMPLE, "python") == ["raise SystemExit(3)\n"]
    assert list(commands(SAMPLE)) == [
        ["list", "tasks", "--json"],
        ["train", "--recipe", "zoo/anchored-catch", "--out", "runs/one"],
    ]


def test_a_program_that_fails_is_found(tmp_path):
    (program,) = blocks(SAMPLE, "python")
    assert run_program(program, tmp_path).returncode == 3


@pytest.mark.parametrize("words", [["burn"], ["list", "task"], ["train", "--outt", "x"]])
def test_a_command_that_does_not_exist_is_found(words, dispatched):
    assert exit_code(words) == 2
    assert dispatched == []


def test_a_command_that_exists_is_read(dispatched):
    assert [exit_code(words) for words in commands(SAMPLE)] == [0, 0]
    assert [type(x) for x in dispatched] == [listing.ListOptions, train.TrainOptions]
