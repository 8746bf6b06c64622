"""The ladder of learned parts: its plan, its rungs, and one small training with its evaluation."""

import dataclasses
import importlib.util
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

from optim4rl.benchmark.suites import SUITES
from optim4rl.meta.recipe import build
from optim4rl.optimizers.weights import flatten, load_weights
from optim4rl.plans.mapping import MappedPlan
from test_readme import ROOT


def load_example(name):
    """An example's file as a module."""
    path = ROOT / "examples" / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def published():
    """The experiment's file as a module."""
    return load_example("ladder")


@pytest.fixture
def ladder(tmp_path, published):
    """The experiment, on a single task with the shortest of lives."""
    module = published
    one = {"tasks": ("catch",), "learners": ("ppo",), "minibatches": (2,), "epochs": (1,)}
    rest = {"layers": (), "activations": (), "observations": (), "windows": ()}
    rest["envs_per_agent"] = 2
    meta = dataclasses.replace(module.RECIPE.meta, iterations=2, agents=2, inner_updates=4)
    module.RECIPE = dataclasses.replace(module.RECIPE, **one, **rest, width=(8,), meta=meta)
    module.VALIDATION = dataclasses.replace(module.RECIPE, width=(8,))
    module.SCALE, module.ROLLOUTS, module.LENGTHS = {"catch": (-1.0, 1.0)}, 2, {"catch": 4}
    module.FOLDER = tmp_path
    return module


def test_the_plan_asks_for_every_lower_rung(ladder):
    plan = MappedPlan.read(ROOT / "plans" / "ladder.md", ladder.experiment.catalogue)
    (entry,) = plan.mapped
    assert [match.key for match in entry.replacements] == list(ladder.RUNGS)[:-1]


def test_every_rung_adds_its_parts(ladder):
    sizes = [ladder.make_spec(rung).networks[0] for rung in ladder.RUNGS]
    assert [(x.inputs, x.outputs) for x in sizes] == [(6, 1), (8, 1), (9, 1), (13, 1), (13, 4)]
    top, preset = ladder.make_spec("directions"), ladder.learned_spec("modulated")
    assert top == preset


def test_tasks_of_evaluation_are_neither_trained_on_nor_judged_by(published):
    tasks = set(published.VALIDATION.tasks)
    assert not tasks & set(published.RECIPE.tasks)
    judges = {task.name for name in ("mixed", "discobench") for task in SUITES[name].tasks}
    assert not judges & (tasks | set(published.RECIPE.tasks))


def test_swimmer_is_seen_as_it_can_be_learned(published):
    _, tasks = build(published.RECIPE)
    seen = dict(zip(published.RECIPE.tasks, tasks, strict=True))
    assert not seen["gymnax:Swimmer-misc"].task.config.normalise_observations
    assert seen["gymnax:Reacher-misc"].task.config.normalise_observations


def test_other_code_does_not_go_on_from_a_checkpoint(published, monkeypatch):
    """A study's copy of the file is in a folder that is named after the code."""
    paths = set()
    for address in ("a" * 24, "b" * 24):
        monkeypatch.setattr(published, "__file__", f"runs/ladder/experiments/{address}/ladder.py")
        paths.add(published.checkpoint_path(published.Settings("noise"), 2))
    assert {x.name for x in paths} == {"noise-2.safetensors"}
    assert len(paths) == 2


def test_a_training_resumes_and_its_weights_are_evaluated(ladder):
    settings = ladder.Settings("training")
    weights = ladder.train(settings, 0)
    path = ladder.checkpoint_path(settings, 0)
    assert path.is_file()
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "iteration,meta_gradient_norm,return_catch"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    (last,) = path.parent.glob("*.weights.safetensors")
    assert last.name == "training-0-after-2.weights.safetensors"
    kept = load_weights(last)
    assert kept.spec == ladder.make_spec("training")
    again = ladder.train(settings, 0)  # It is finished, so its checkpoint is all.
    for found in (again, flatten(kept.meta_parameters)):
        assert weights.keys() == found.keys()
        for name, array in weights.items():
            np.testing.assert_array_equal(array, found[name])
    assert path.with_suffix(".csv").read_text().splitlines() == lines
    found = ladder.run(settings, 0, weights)
    assert found.keys() == {"score", "catch"}
    assert found["catch"].shape == (2,)  # means of two rollouts
    np.testing.assert_allclose(found["score"], (found["catch"] + 1.0) / 2.0)
    assert np.abs(found["catch"]).max() <= 1.0


def test_each_rung_is_compared_with_the_rung_below():
    """The noise ratios are worth 0.5, the other parts nothing."""
    module = load_example("ladder_table")
    rng, rows = np.random.default_rng(0), []
    for rung, name in enumerate(module.RUNGS.values()):
        for meta_seed in range(1 if name == "untrained" else 3):
            for seed in range(5):
                auc = 0.5 * (rung >= 4) + 0.02 * rng.standard_normal()
                rows.append((name, "tuned", meta_seed, seed, auc))
    columns = ["optimizer", "purpose", "meta_seed", "seed", "auc"]
    lines = module.table_of_rungs(pl.DataFrame(rows, columns, orient="row"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in cells] == list(module.RUNGS)
    assert [row[-1].partition(";")[0] for row in cells] == [
        "",
        "not clear",
        "not clear",
        "not clear",
        "clearly better",
        "not clear",
    ]
    assert float(cells[4][2].split()[0]) == pytest.approx(0.5, abs=0.05)
