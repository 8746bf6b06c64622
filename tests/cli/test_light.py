"""Commands that need no JAX import none: they answer at once."""

import json
import subprocess
import sys
from pathlib import Path

from toys import write_benchmark, write_training

PLAN = str(Path(__file__).parents[2] / "plans" / "optim4rl.md")
# Runs each command line, and prints which heavy packages are there after it.
PROGRAM = """
import contextlib, io, json, sys
from optim4rl.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(words)
    heavy = {"jax", "jaxlib", "optax", "gymnax", "equinox", "matplotlib", "torch"}
    print(json.dumps([words, sorted(heavy & set(sys.modules)), len(out.getvalue())]))
"""


def test_light_commands_import_no_jax(tmp_path):
    training = str(write_training(tmp_path / "t"))
    evaluation = str(write_benchmark(tmp_path / "e", {}))
    commands = [
        ["--help"],
        ["list", "weights"],
        ["list", "tasks", "--json"],
        ["list", "components"],
        ["plan", "show", PLAN],
        ["plan", "lint", PLAN, "--no-cost"],
        ["plan", "score", PLAN, "--against", PLAN],
        ["report", training, evaluation, "--out", str(tmp_path / "page.html")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = list(map(json.loads, done.stdout.splitlines()))
    assert [(words, heavy) for words, heavy, _ in answers] == [(words, []) for words in commands]
    assert all(size > 20 for _, _, size in answers)
