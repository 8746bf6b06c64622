"""The page on a method of one's own: its two files make studies as printed, killed and resumed."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from optim4rl.benchmark.table import read_runs
from optim4rl.plans.mapping import MappedPlan
from optim4rl.study.experiment import Experiment
from optim4rl.study.opening import open_given
from test_readme import ROOT, blocks, commands

PAGE = (ROOT / "docs" / "how-to" / "own-method.md").read_text("utf-8")
METHODS = {
    "torch": ("torch_method.py", "method_plan.md", ["reference", "norm=False", "optimizer=sgd"]),
    "jax": ("jax_method.py", "jax_plan.md", ["reference", "momentum=0.0", "clip=none"]),
}


@pytest.fixture
def folder(tmp_path):
    """The page's files."""
    torch_file, jax_file, *_ = blocks(PAGE, "python")
    plan, *_ = blocks(PAGE, "text")
    for name, text in (
        ("torch_method.py", torch_file),
        ("jax_method.py", jax_file),
        ("method_plan.md", plan),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def start(words, folder):
    """A command, as a reader types it."""
    return subprocess.Popen(
        [sys.executable, "-m", "optim4rl", *words],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def study(method, out="out"):
    file, plan, _ = METHODS[method]
    return ["ablate", plan, "--experiment", f"{file}:experiment", "--out", out, "--jobs", "1"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_killed_and_resumed(method, folder):
    if method == "jax":
        propose = next(x for x in commands(PAGE) if x[:2] == ["plan", "propose"])
        said, _ = start(propose, folder).communicate()
        assert "jax_plan.md" in said
    process = start(study(method), folder)
    cells = folder / "out" / "jobs"
    while len(list(cells.glob("*.safetensors"))) < 3:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.read_bytes() for path in cells.glob("*.safetensors")}
    process = start(study(method), folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert {path: path.read_bytes() for path in before} == before
    table = read_runs(folder / "out" / "runs.parquet")
    assert table["optimizer"].unique(maintain_order=True).to_list() == METHODS[method][2]
    assert len(table.filter(purpose="tuned")) == 3 * 8
    assert "What the plan predicted" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["adalomo", "gage"])
def test_the_published_plans_are_of_these_experiments(name):
    file = ROOT / "examples" / "experiments" / f"{name}.py"
    experiment = open_given(f"{file}:experiment").experiment
    plan = MappedPlan.read(ROOT / "plans" / f"{name}.md", experiment.catalogue)
    assert all(match.key is not None for entry in plan.mapped for match in entry.replacements)
    assert isinstance(experiment, Experiment)  # It can run; a design alone cannot.
    with jax.numpy_rank_promotion("allow"):  # As a user has it; the tests' own code is stricter.
        found = experiment.run(experiment.reference, 0)
    assert found.keys() - {"steps"} == {metric.key for metric in experiment.metrics}
