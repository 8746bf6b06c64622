"""Suites: what is in them, equal budgets, and words for what cannot be run."""

import dataclasses

import jax
import pytest

from optim4rl.benchmark import suites
from optim4rl.benchmark.suites import SUITES, Suite, SuiteTask, load_suite, task_suite
from optim4rl.tasks import TaskConfig, make_task

GRID_WORLDS = [
    f"{size}_{density}_{length}/free"
    for size in ("small", "big")
    for density in ("dense", "sparse")
    for length in ("short", "long")
]


def test_the_grid_suite_is_catch_and_the_eight_grid_worlds():
    suite = load_suite("grid")
    assert sorted(task.name for task in suite.tasks) == sorted(["catch", *GRID_WORLDS])
    for task in suite.tasks:
        assert task.config.normalise_rewards
        assert task.config.num_envs == 64
        assert task.config.torso == ("conv" if task.name.startswith("big") else "dense")
        assert task.config.width == (256 if task.name == "catch" else 32)
    assert [task.name for task in suite.tasks if task.stress_rollouts] == ["catch"]


@pytest.mark.parametrize("name", SUITES)
def test_classical_and_learned_optimizers_have_equal_budgets(name):
    suite = SUITES[name]
    assert suite.name == name
    assert len(suite.rates) == len(suite.step_scales)
    names = [task.name for task in suite.tasks]
    assert len(set(names)) == len(names) > 0
    with pytest.raises(ValueError, match="the same budget"):
        dataclasses.replace(suite, rates=suite.rates[1:])


@pytest.mark.parametrize("name", ["minatar", "classic", "mixed"])
def test_every_task_of_a_suite_can_be_made(name):
    assert load_suite(name).tasks


def test_a_suite_can_be_cut_down():
    suite = load_suite("grid", only=("catch", "big_dense_long/free"), rollouts=50, num_envs=4)
    assert [task.name for task in suite.tasks] == ["catch", "big_dense_long/free"]
    for task in suite.tasks:
        assert task.rollouts == 50
        assert task.config.num_envs == 4
    assert [task.stress_rollouts for task in suite.tasks] == [50, None]
    longer = load_suite("grid", only=("catch",), rollouts=10**6)
    assert longer.tasks[0] == SUITES["grid"].tasks[0]


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="suite = 'gird': suites are grid, minatar"):
        load_suite("gird")
    with pytest.raises(ValueError, match=r"only = 'catc': .* Did you mean 'catch'\?"):
        load_suite("grid", only=("catc",))
    with pytest.raises(ValueError, match="rollouts = 0"):
        load_suite("grid", rollouts=0)


def test_a_missing_extra_is_said_with_the_command_that_brings_it(monkeypatch):
    suite = dataclasses.replace(SUITES["grid"], extra="no_such_module")
    monkeypatch.setitem(suites.SUITES, "grid", suite)
    with pytest.raises(ValueError, match=r"pip install 'optim4rl\[no_such_module\]'"):
        load_suite("grid")


def test_a_grid_must_ascend():
    task = SuiteTask(TaskConfig(), 1)
    with pytest.raises(ValueError, match=r"rates = .* must ascend"):
        Suite("x", (task,), rates=(1.0, 0.1), step_scales=(0.1, 1.0))


def test_discobench_is_as_published():
    """Goldie et al. 2026, arXiv 2603.17863: its table for Adam is made with these settings."""
    suite = load_suite("discobench")
    games = ("Breakout", "Asterix", "Freeway", "SpaceInvaders")
    assert [task.name for task in suite.tasks] == [f"gymnax:{game}-MinAtar" for game in games]
    assert suite.rates == tuple(round(1e-3 * k, 6) for k in range(1, 11))
    assert suite.score == "greedy_return"
    assert suite.companions
    for task in suite.tasks:
        assert task.rollouts == 1220
        config, learner = task.config, task.config.learner
        assert (config.num_envs, learner.rollout, learner.epochs, learner.minibatches) == (
            *(64, 128),
            *(4, 8),
        )
        assert (learner.gamma, learner.lam, learner.clip, learner.value_clip) == (
            *(0.99, 0.95),
            *(0.2, 0.2),
        )
        assert (learner.value_weight, learner.entropy_weight) == (0.5 * 0.5, 0.01)
        assert learner.normalise_advantages
        assert not config.normalise_rewards
        assert not config.normalise_observations
        network = make_task(config).init_params(jax.random.key(0))
        for layers in (network.policy, network.value):
            assert [len(layer.bias) for layer in layers[:2]] == [64, 64]
        assert config.activation == "relu"
        assert config.time_limit == "terminal"
        assert config.greedy_episodes == 16


@pytest.mark.parametrize("name", ["width", "num_envs"])
def test_a_suite_of_one_task_refuses_a_size_of_zero(name):
    with pytest.raises(ValueError, match=f"{name} = 0"):
        task_suite("catch", rollouts=2, stress_rollouts=2, **{name: 0})
    assert task_suite("catch", rollouts=2, stress_rollouts=2).tasks[0].config.num_envs > 0
