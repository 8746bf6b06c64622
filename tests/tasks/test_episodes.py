"""Batched stepping: resets, returns and what is reported of ended episodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import Environment, EnvParams

from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.episodes import (
    StepResult,
    VectorState,
    reset_batch,
    step_batch,
)

ENVS = 8


def play(
    environment: Environment, params: EnvParams, steps: int
) -> tuple[VectorState, VectorState, StepResult]:
    """Play at random; return the first state and, by step, the next states and the results."""
    first = reset_batch(environment, params, jax.random.key(0), ENVS)

    def step(state: VectorState, key: jax.Array) -> tuple[VectorState, Any]:
        action_key, step_key = jax.random.split(key)
        actions = jax.random.randint(action_key, (ENVS,), 0, environment.num_actions)
        state, result = step_batch(environment, params, step_key, state, actions)
        return state, (state, result)

    run = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))
    _, (states, results) = run(first, jax.random.split(jax.random.key(1), steps))
    return first, states, results


@pytest.fixture(scope="module")
def catch() -> tuple[VectorState, VectorState, StepResult]:
    """Three games of Catch in every environment."""
    return play(*make_environment("catch"), steps=27)


def assert_adds_up(states: VectorState, results: StepResult) -> None:
    """Compare the reported returns with those of a plain loop over the rewards."""
    done = np.asarray(results.terminated | results.truncated)
    assert done.any()
    running = np.zeros(ENVS)
    for t, reward in enumerate(np.asarray(results.reward)):
        running += reward
        assert results.return_sum[t] == running[done[t]].sum()
        assert results.episode_count[t] == done[t].sum()
        running[done[t]] = 0.0
        np.testing.assert_array_equal(states.episode_return[t], running)


def test_returns_and_counts_add_up(catch: tuple[VectorState, VectorState, StepResult]) -> None:
    """In Catch, where all games end together, and in a world where rewards come at any time."""
    first, states, results = catch
    np.testing.assert_array_equal(first.episode_return, np.zeros(ENVS))
    assert_adds_up(states, results)
    _, states, results = play(*make_environment("small_dense_short"), steps=130)
    assert_adds_up(states, results)


def test_final_observation_is_the_one_before_the_reset(
    catch: tuple[VectorState, VectorState, StepResult],
) -> None:
    """In Catch the ball is at the bottom before the reset and on top after it."""
    _, states, results = catch
    ended = np.asarray(results.terminated)
    assert set(np.flatnonzero(ended.all(1)).tolist()) == {8, 17, 26}
    assert not np.asarray(results.truncated).any()
    final = np.asarray(results.final_observation)
    now = np.asarray(states.observation)
    np.testing.assert_array_equal(final[~ended], now[~ended])
    assert np.all(final[ended][:, :-1] == 0)
    assert np.all(now[ended][:, 0].sum(-1) == 1)
    assert len(np.unique(now[ended], axis=0)) > 1  # each environment has its own key


def test_time_limit_truncates_and_does_not_terminate() -> None:
    """A world whose clock runs out says so, once every `max_steps`."""
    environment, params = make_environment("gymnax:MountainCar-v0")
    with jax.numpy_dtype_promotion("standard"):
        _, _, results = play(environment, params.replace(max_steps_in_episode=4), steps=12)
    np.testing.assert_array_equal(
        results.truncated, np.tile([False, False, False, True], 3)[:, None].repeat(ENVS, 1)
    )
    assert not np.asarray(results.terminated).any()
    np.testing.assert_array_equal(results.return_sum[3::4], [-4.0 * ENVS] * 3)


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "DeepSea-bsuite"])
def test_gymnax_environments_run(name: str) -> None:
    """Environments that are not ours, one with a `step` of its own, give well-formed results."""
    environment, params = make_environment(f"gymnax:{name}")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        first, states, results = play(environment, params, steps=60)
    assert results.reward.shape == (60, ENVS)
    assert results.reward.dtype == jnp.float32
    assert states.observation.shape == (60, *first.observation.shape)
    assert results.final_observation.shape == states.observation.shape
    assert results.episode_count.sum() == (results.terminated | results.truncated).sum()


def test_same_key_same_episodes() -> None:
    """Stepping is a pure function of its key, and equals gymnax's own step of one environment."""
    environment, params = make_environment("catch")
    key = jax.random.key(3)
    state = reset_batch(environment, params, key, ENVS)
    actions = jnp.arange(ENVS, dtype=jnp.int32) % 3
    step = jax.jit(lambda state: step_batch(environment, params, key, state, actions))
    for _ in range(9):
        previous = state
        state, result = step(previous)
    again, _ = step(previous)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    observation, _, reward, terminated, _, _ = environment.step(
        jax.random.split(key, ENVS)[2],
        jax.tree.map(lambda leaf: leaf[2], previous.environment),
        actions[2],
        params,
    )
    np.testing.assert_array_equal(state.observation[2], observation)
    assert result.reward[2] == reward
    assert result.terminated[2]
    assert terminated


def test_agents_can_be_vmapped_over_batches() -> None:
    """A second batch axis, one per agent, is one more vmap."""
    environment, params = make_environment("catch")
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: reset_batch(environment, params, key, 2))(keys)
    actions = jnp.ones((3, 2), jnp.int32)
    step = jax.jit(jax.vmap(lambda k, s, a: step_batch(environment, params, k, s, a)))
    _, results = step(keys, states, actions)
    assert results.reward.shape == (3, 2)
    assert results.episode_count.shape == (3,)
