"""Simulated bodies: episodes, resets that cost nothing, names, what is missing; learning them."""

import dataclasses
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from test_ppo import train

from optim4rl.tasks import PPOConfig, default_config, make_task
from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.names import BRAX, PLAYGROUND
from optim4rl.tasks.environments.physics import Physics, PhysicsVector, make_brax, make_playground

ENVS, STEPS, LIMIT = 3, 12, 5


@pytest.fixture(scope="module")
def pendulum() -> Any:
    """A double pendulum under full force, of which no episode lasts longer than five steps.

    The vector's first state, its states and results by step, and the same by the simulator alone.
    """
    environment, params = make_environment("brax:inverted_double_pendulum")
    assert isinstance(environment, Physics)
    assert params.max_steps_in_episode == 1000
    # The simulator is what takes long to compile: once for the vector and alone.
    simulator = SimpleNamespace(
        reset=jax.jit(environment.simulator.reset), step=jax.jit(environment.simulator.step)
    )
    limited = params.replace(max_steps_in_episode=LIMIT)
    vector = PhysicsVector(Physics("double pendulum", simulator), limited, ENVS)
    force = jnp.array([[1.0], [-1.0], [0.0]])
    first = state = vector.reset(jax.random.key(0))
    played = []
    for _ in range(STEPS):
        state, result = vector.step(None, state, force)
        played.append((state, result))
    alone = first.environment.state.simulator
    expected = []
    for _ in range(LIMIT):
        with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = jax.vmap(simulator.step)(alone, force)
        expected.append((alone.obs, alone.reward, alone.done))

    def stacked(steps: Any) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)

    return vector, (first, stacked(played), stacked(expected))


def test_steps_are_the_simulator_s(pendulum: Any) -> None:
    """Observations before any reset and rewards, until the time limit."""
    _, (_, (_, result), (observation, reward, done)) = pendulum
    assert not np.asarray(done).any()
    np.testing.assert_allclose(result.final_observation[:LIMIT], observation, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.reward[:LIMIT], reward, rtol=1e-5)
    assert np.abs(np.diff(np.asarray(observation), axis=1)).max() > 0.01


def test_the_time_limit_truncates(pendulum: Any) -> None:
    """Every fifth step, and nothing terminates."""
    vector, (_, (_, result), _) = pendulum
    last = np.arange(STEPS)[:, None] % LIMIT == LIMIT - 1
    np.testing.assert_array_equal(result.truncated, last.repeat(ENVS, axis=1))
    assert not np.asarray(result.terminated).any()
    assert vector.steps_between_truncations == LIMIT
    np.testing.assert_allclose(
        result.ended_return[LIMIT - 1], result.reward[:LIMIT].sum(axis=0), rtol=1e-6
    )


def test_episodes_go_back_to_their_own_first_state(pendulum: Any) -> None:
    """All of it: the same forces then give the same episode again."""
    _, (first, (states, result), _) = pendulum
    ended = jax.tree.map(lambda leaf: leaf[LIMIT - 1], states)
    np.testing.assert_array_equal(ended.observation, first.observation)
    assert len(np.unique(first.observation, axis=0)) == ENVS
    jax.tree.map(np.testing.assert_array_equal, ended.environment.state, first.environment.state)
    np.testing.assert_array_equal(result.reward[:LIMIT], result.reward[LIMIT : 2 * LIMIT])


def test_names_are_the_packages_own() -> None:
    """Every body of ours is one of Brax's, every task of ours one of Playground's."""
    make_brax("inverted_double_pendulum")  # Imports it quietly.
    make_playground("CartpoleBalance")
    from brax import envs
    from mujoco_playground import dm_control_suite

    assert set(BRAX) <= set(envs._envs)
    assert sorted(PLAYGROUND) == sorted(dm_control_suite.ALL_ENVS)


@pytest.mark.parametrize("name", ["ant/mujoco", "ant/", "ant/spring/2"])
def test_simulators_are_known(name: str) -> None:
    """Else the message names them; nothing after the slash is nothing named."""
    if name == "ant/":
        assert make_brax(name).simulator.backend == "spring"
        return
    with pytest.raises(ValueError, match="must be one of spring, generalized, positional, mjx"):
        make_brax(name)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("brax:walker2d/positional", "brax", "brax"),
        ("playground:PointMass", "mujoco_playground", "playground"),
    ],
)
def test_a_missing_package_is_named(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"^{name}: {module} .* pip install 'optim4rl\[{extra}\]'"
    ):
        make_environment(name)


def test_bodies_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheetah's description has an attribute that MuJoCo complains of, by default in a file."""
    monkeypatch.chdir(tmp_path)
    before = mujoco.get_mju_user_warning()
    assert make_brax.__wrapped__("halfcheetah").simulator.action_size == 6
    assert list(tmp_path.iterdir()) == []
    assert mujoco.get_mju_user_warning() is before


def test_default_settings() -> None:
    """The paper's; Humanoid has its own."""
    ant, humanoid = (default_config(f"brax:{body}") for body in ("ant", "humanoid/generalized"))
    assert isinstance(ant.learner, PPOConfig)
    assert ant.learner == PPOConfig(5, 4, 32, 0.97, 0.95, 0.3, 0.5, 0.01, True, 10.0)
    assert (ant.policy_layers, ant.value_layers) == ((32,) * 4, (64,) * 5)
    assert ant.normalise_observations
    changed = dataclasses.replace(ant.learner, rollout=10, reward_scale=0.1, entropy_weight=0.001)
    assert humanoid == dataclasses.replace(
        ant, environment="brax:humanoid/generalized", learner=changed
    )


@pytest.mark.slow
def test_ppo_solves_the_double_pendulum() -> None:
    """A pole that stands for all of an episode's steps earns 9,360; two million steps."""
    task = make_task(default_config("brax:inverted_double_pendulum"))
    returns = train(task, 240, 1e-3)
    assert returns[0] < 1_000
    assert returns[-1] >= 8_000


@pytest.mark.slow
def test_playground_is_learned_from() -> None:
    """A rollout and all its updates: finite numbers, rewards within [0, 1]."""
    config = default_config("playground:CartpoleBalance")
    assert isinstance(config.learner, PPOConfig)
    learner = dataclasses.replace(config.learner, rollout=3, epochs=2, minibatches=2)
    task = make_task(dataclasses.replace(config, num_envs=4, learner=learner))

    @jax.jit
    def run() -> Any:
        key = jax.random.key(0)
        params, actor = task.init_params(key), task.init_actor(key)
        batch, actor, _ = task.rollout(params, actor, key)
        updates = jnp.arange(4, dtype=jnp.int32)
        each = partial(task.minibatch_gradient, params, batch)
        return actor, jax.lax.map(each, updates)

    actor, gradients = run()
    assert np.all((actor.episodes.episode_return > 0) & (actor.episodes.episode_return <= 3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert len(np.unique(gradients.value[-1].bias)) == 4
