"""The ladder of learned parts: its plan, its rungs, and one small training with its evaluation."""

import dataclasses
import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from optim4rl.plans.mapping import MappedPlan
from test_readme import ROOT


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    """The experiment, on a single task with the shortest of lives."""
    path = ROOT / "examples" / "experiments" / "ladder.py"
    spec = importlib.util.spec_from_file_location("ladder", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ladder", module)
    spec.loader.exec_module(module)
    one = {"tasks": ("catch",), "learners": ("ppo",), "minibatches": (2,), "epochs": (1,)}
    rest = {"layers": (), "activations": (), "observations": (), "envs_per_agent": 2}
    meta = dataclasses.replace(module.RECIPE.meta, iterations=2, agents=2, inner_updates=4)
    module.RECIPE = dataclasses.replace(module.RECIPE, **one, **rest, width=(8,), meta=meta)
    module.VALIDATION = dataclasses.replace(module.RECIPE, width=(8,))
    module.SCALE, module.ROLLOUTS = {"catch": (-1.0, 1.0)}, 2
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


def test_a_training_resumes_and_its_weights_are_evaluated(ladder):
    settings = ladder.Settings("training")
    weights = ladder.train(settings, 0)
    assert [x.name for x in ladder.FOLDER.glob("*0.safetensors")] == ["training-0.safetensors"]
    again = ladder.train(settings, 0)  # It is finished, so its checkpoint is all.
    assert weights.keys() == again.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, again[name])
    found = ladder.run(settings, 0, weights)
    assert found.keys() == {"score", "catch"}
    np.testing.assert_allclose(found["score"], (found["catch"] + 1.0) / 2.0)
    assert np.abs(found["catch"]).max() <= 1.0
