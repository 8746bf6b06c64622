"""What a command meets beside its own files: files that are none, endpoints, odd environments."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from chat_server import GOOD, drip, fails, hang_up, says, servers, silent, trickle
from optim4rl.cli import main as cli
from optim4rl.cli.main import main

pytestmark = pytest.mark.slow

PLAN = Path(__file__).parents[2] / "plans" / "optim4rl.md"
# Seconds that a command may take here, all of its imports included.
PATIENCE = 120


def outcome(words, env=None, *, shell=""):
    """How a command ended, and what it said: in words of the table."""
    command = [sys.executable, "-m", "optim4rl", *map(str, words)]
    if shell:
        command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
    try:
        done = subprocess.run(command, env=env, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "hang", ""
    said = done.stderr.decode("utf-8", "replace")
    if "Traceback" in said:
        return "traceback", said
    if done.returncode == 0:
        return "correct", done.stdout
    return judged(done.returncode, said), f"{done.returncode} {said}"


def judged(code, said):
    """Whether a command that has failed says so in one sentence."""
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "stopped: "))]
    return "clear error" if code in (1, 2) and len(lines) == 1 else "traceback"


def outcome_here(words):
    """The same of a command in this process, which imports what it needs once."""

    def give_up(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            main([str(word) for word in words])
        return "correct"
    except SystemExit as exit:
        return judged(exit.code, said.getvalue()) if exit.code else "correct"
    except TimeoutError:
        return "hang"
    except Exception:
        return "traceback"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Files that are none

COMMANDS = (
    ["inspect", "{}"],
    ["evaluate", "{}"],
    ["evaluate", "{}.py:make"],
    ["train", "--out", "x", "--optimizer", "optim4rl-rlc", "--start", "{}"],
    ["plan", "show", "{}"],
    ["plan", "lint", "{}", "--no-cost"],
    ["plan", "propose", "{}", "--out", "x"],
    ["plan", "score", "{}", "--against", PLAN],
    ["plan", "score", PLAN, "--against", "{}"],
    ["ablate", "{}", "--out", "x"],
    ["report", "{}"],
    ["inspect", "anchored-catch", "--out", "{}"],
    ["plan", "propose", "--of", "optim4rl", "--out", "{}"],
)


def hostile_files(folder):
    """A pipe, devices, a folder, a link to nowhere, a file of a terabyte, one of the kernel's."""
    os.mkfifo(folder / "pipe")
    for name in ("zero", "full", "null"):
        (folder / name).symlink_to(f"/dev/{name}")
    (folder / "folder").mkdir()
    (folder / "nowhere").symlink_to(folder / "not-there" / "either")
    with (folder / "long").open("wb") as file:
        file.truncate(10**12)
    (folder / "kernel").symlink_to("/proc/kmsg")
    return sorted(folder.iterdir())


def test_whatever_a_path_names(tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    (tmp_path / "files").mkdir()
    row = tally("hostile files", "a pipe, a device, a folder, a terabyte where a file is read")
    paths = hostile_files(tmp_path / "files")
    before = [(path.name, path.lstat().st_mode) for path in paths]
    for path in paths:
        for words in COMMANDS:
            if words[-2:] == ["--out", "{}"] and path.name in ("nowhere", "long", "kernel"):
                continue  # A file may be written there, or replaced.
            said = [str(word).format(path) for word in words]
            row.count(outcome_here(said), said)
    assert before == [(path.name, path.lstat().st_mode) for path in paths]
    row.check(90)


# Endpoints

MODES = {
    "good": says(GOOD),
    "parts": says([{"type": "text", "text": GOOD}]),
    "empty": says(""),
    "silent": silent,
    "headers by the byte": drip,
    "body by the byte": trickle(200),
    "error by the byte": trickle(500),
    "hangs up": hang_up,
    "wait a day": fails(429, retry_after="99999"),
    "wait for a riddle": fails(429, retry_after="\x1b[2J"),
    "fault": fails(500),
    "elsewhere": fails(307, "", location="http://127.0.0.1:9/"),
    "no JSON": fails(200, "<html>"),
    "deep": fails(200, "[" * 100_000),
    "long": fails(200, b"x" * 9_000_000),
    "a coding that is none": fails(200, b"plain", content_encoding="gzip"),
    "a hundred headers": fails(200, "{}", **{f"x_{i}": "y" * 500 for i in range(90)}),
    "a header without end": fails(200, "{}", x="y" * 200_000),
}


def test_whatever_an_endpoint_does(tally, tmp_path, monkeypatch):
    """Within the time that was given for it, twice, and what a start takes."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    row = tally("chat endpoints", "modes of an endpoint, headers among them")
    with servers(monkeypatch) as serve:
        for name, reply in MODES.items():
            serve(reply)
            words = ["plan", "propose", "--of", "optim4rl", "--out", tmp_path / f"{name}.md"]
            limits = ["--model", "m", "--timeout", "1", "--retries", "1", "--rounds", "0"]
            started = time.monotonic()
            how, said = outcome([*words, *limits])
            late = time.monotonic() - started > 60
            row.count("hang" if late else how, (name, said))
    row.check(len(MODES))


# Environments

ODD = {
    "no home": {"HOME": "", "XDG_CACHE_HOME": ""},
    "a home that is none": {"HOME": "/dev/null"},
    "no width": {"COLUMNS": "0"},
    "a width that is none": {"COLUMNS": "wide"},
    "one column": {"COLUMNS": "1"},
    "a million columns": {"COLUMNS": "1000000"},
    "no terminal": {"TERM": ""},
    "ASCII": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "Latin": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "no time zone": {"TZ": "Nowhere/Never"},
    "a device that is not here": {"JAX_PLATFORMS": "cuda"},
    "a device that is none": {"JAX_PLATFORMS": "bogus"},
    "TPUs": {"JAX_PLATFORMS": "tpu"},
    "warnings": {"PYTHONWARNINGS": "default"},
}
STREAMS = ("<&-", ">&-", "2>&-", "<&- 2>&-", ">/dev/full", "2>/dev/full")
LIGHT = (["list", "weights"], ["plan", "show", PLAN], ["list", "kernels"])


def test_whatever_surrounds_a_command(tally):
    row = tally("odd environments", "variables and streams that are odd, closed or full")
    for words in LIGHT:
        for name, values in ODD.items():
            how, said = outcome(words, {**os.environ, **values})
            row.count(how, (words, name, said))
        for streams in STREAMS:
            how, said = outcome(words, shell=streams)
            row.count(how, (words, streams, said))
    row.check(len(LIGHT) * (len(ODD) + len(STREAMS)))
