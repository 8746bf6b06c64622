"""Commands that need no JAX import none: they answer at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.study import runner
from optim4rl.study.layout import lay_out
from optim4rl.study.opening import open_given
from pretended import PretendedPool
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
    heavy = {"jax", "jaxlib", "optax", "gymnax", "equinox", "matplotlib", "torch", "scipy.stats"}
    heavy |= {"optim4rl.jobs.pool"}  # Only to run jobs.
    print(json.dumps([words, code, sorted(heavy & set(sys.modules))]))
"""
METHOD = """
from dataclasses import dataclass
from optim4rl.study import Choice, Component, Experiment, Metric

@dataclass(frozen=True)
class Settings:
    momentum: float = 0.9

momenta = (Choice(0.9, ("momentum",)), Choice(0.0, ("no momentum",)))
experiment = Experiment(
    name="a method",
    reference=Settings(),
    components=(Component("momentum", ("momentum",), momenta, remove=0.0),),
    metrics=(Metric("loss", ("loss",), better="lower"),),
    seeds=3,
    run=lambda settings, seed: {"loss": settings.momentum + 0.01 * seed},
)
"""
ABLATION = b"""### Ablation of momentum
- **Ablated Part**: momentum
- **Action**: REMOVE
- **Metrics**: loss
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The folder of a finished study of a user's method."""
    pool = PretendedPool(lambda folder, job: job.run(folder))
    monkeypatch.setattr(runner, "open_pool", pool.open)
    (tmp_path / "method.py").write_text(METHOD)
    laid_out = lay_out(ABLATION, open_given(f"{tmp_path / 'method.py'}:experiment"))
    runner.run_study(laid_out, tmp_path / "study", command="optim4rl ablate")
    return str(tmp_path / "study")


def test_light_commands_import_no_jax(tmp_path, study):
    curves = Curves(np.ones((2, 9)), np.full(2, HEALTHY), np.arange(1, 10))
    training = str(write_training(tmp_path / "t"))
    evaluation = str(write_benchmark(tmp_path / "e", {"adam": [curves]}))
    commands = [
        ["--help"],
        ["list", "weights"],
        ["list", "tasks", "--json"],
        ["list", "components"],
        ["list", "recipes"],
        ["list", "optimizers"],
        ["plan", "show", PLAN],
        ["plan", "score", PLAN, "--against", PLAN],
        ["plan", "lint", PLAN, "--no-cost"],
        ["report", training, evaluation, "--out", str(tmp_path / "page.html")],
        ["report", study],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert list(map(json.loads, done.stdout.splitlines())) == [[x, 0, []] for x in commands]
