"""Commands that need no JAX import none: they answer at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from optim4rl.evaluation.curves import HEALTHY, Curves
from toys import write_benchmark, write_training

PLAN = str(Path(__file__).parents[2] / "plans" / "optim4rl.md")
# Runs each command line; prints how it ended, and which heavy packages are there after it.
PROGRAM = """
import contextlib, io, json, sys
from optim4rl.cli.main import main
for words in json.loads(sys.argv[1]):
    code = 0
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as exit:
            code = exit.code
    heavy = {"jax", "jaxlib", "optax", "gymnax", "equinox", "matplotlib", "torch"}
    print(json.dumps([words, code, sorted(heavy & set(sys.modules))]))
"""


def test_light_commands_import_no_jax(tmp_path):
    curves = Curves(np.ones((2, 9)), np.full(2, HEALTHY), np.arange(1, 10))
    training = str(write_training(tmp_path / "t"))
    evaluation = str(write_benchmark(tmp_path / "e", {"adam": [curves]}))
    commands = [
        ["--help"],
        ["list", "weights"],
        ["list", "tasks", "--json"],
        ["list", "components"],
        ["plan", "show", PLAN],
        ["plan", "score", PLAN, "--against", PLAN],
        ["plan", "lint", PLAN, "--no-cost"],
        ["report", training, evaluation, "--out", str(tmp_path / "page.html")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert list(map(json.loads, done.stdout.splitlines())) == [[x, 0, []] for x in commands]
