"""Batched stepping: resets, returns and what is reported of ended episodes."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import unpack
from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.episodes import (
    GymnaxVector,
    SparseVector,
    StepResult,
    Vectorized,
    VectorState,
)
from optim4rl.tasks.environments.sparse import is_sparse, uniforms

ENVS = 8


def gymnax_vector(name: str, num_envs: int = ENVS, **params: int) -> GymnaxVector:
    """A named environment through gymnax's interface, also where it offers a faster one."""
    environment, defaults = make_environment(name)
    return GymnaxVector(environment, defaults.replace(**params), num_envs)


def sparse_vector(name: str, num_envs: int = ENVS, **params: int) -> SparseVector:
    """A named environment through the faster interface."""
    environment, defaults = make_environment(name)
    shape = environment.observation_space(defaults).shape
    return SparseVector(environment, defaults.replace(**params), num_envs, shape)


# Environments of the faster interface; in one of them the time limit ends games.
CASES = {
    "catch": ("catch", {}),
    "catch cut short": ("catch", {"max_steps_in_episode": 4}),
    "any cell": ("small_dense_short", {}),
    "free cells": ("big_sparse_short/free", {}),
}
STEPS = 130
Played = tuple[VectorState, StepResult]


@lru_cache
def play_both(case: str) -> dict[str, Played]:
    """Play at random through both interfaces, with the same uniform numbers; by step.

    The states and results of the faster one are written out as gymnax's are.
    """
    name, params = CASES[case]
    vector, reference = sparse_vector(name, **params), gymnax_vector(name, **params)
    environment: Any = vector.environment

    def draw(keys: jax.Array, number: int) -> jax.Array:
        return jax.vmap(lambda key: uniforms(key, (number,)), out_axes=-1)(keys)

    def step(states: tuple[VectorState, VectorState], chance: Any) -> Any:
        keys, actions = chance
        ours, theirs = states
        key_step, key_reset = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        numbers = jnp.concatenate(
            [draw(key_step, environment.step_uniforms), draw(key_reset, environment.reset_uniforms)]
        )
        ours, result = vector.step(numbers, ours, actions)
        theirs, expected = reference.step(keys, theirs, actions)
        moved = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), ours.environment)
        written = (
            VectorState(moved, unpack(vector, ours.observation), ours.episode_return),
            result._replace(final_observation=unpack(vector, result.final_observation)),
        )
        return (ours, theirs), {"sparse": written, "gymnax": (theirs, expected)}

    @jax.jit
    def run() -> Any:
        states = jax.vmap(environment.reset_from)(
            uniforms(jax.random.key(0), (ENVS, environment.reset_uniforms))
        )
        observation = jax.vmap(environment.get_obs)(states)
        zeros = jnp.zeros(ENVS, jnp.float32)
        last = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), states)
        ours = VectorState(last, jax.vmap(environment.ones, -1, -1)(last), zeros)
        keys = reference.draw(jax.random.key(1), STEPS, 1)[1]
        actions = jax.random.randint(jax.random.key(2), (STEPS, ENVS), 0, environment.num_actions)
        theirs = VectorState(states, observation, zeros)
        return jax.lax.scan(step, (ours, theirs), (keys, actions))[1]

    return jax.tree.map(np.asarray, run())


def play(vector: Vectorized, steps: int, actions: int) -> tuple[VectorState, Any, StepResult]:
    """Play at random; return the first state and, by step, the next states and the results."""

    def step(state: VectorState, chance: Any) -> tuple[VectorState, Any]:
        state, result = vector.step(chance[0], state, chance[1])
        return state, (state, result)

    @jax.jit
    def run() -> Any:
        first = vector.reset(jax.random.key(0))
        random_play = jax.random.randint(jax.random.key(1), (steps, ENVS), 0, actions)
        chance = (vector.draw(jax.random.key(2), steps, 1)[1], random_play)
        return first, *jax.lax.scan(step, first, chance)[1]

    first, states, results = run()
    return first, states, results


@pytest.mark.parametrize("case", CASES)
def test_sparse_steps_are_gymnax_s(case: str) -> None:
    """With the uniforms that gymnax's keys give, every field of every step is the same."""
    played = play_both(case)
    jax.tree.map(np.testing.assert_array_equal, played["sparse"], played["gymnax"])
    _, result = played["sparse"]
    assert result.episode_count.sum() > 0
    assert result.truncated.any() == (case != "catch")


@pytest.mark.parametrize("interface", ["gymnax", "sparse"])
@pytest.mark.parametrize("case", ["catch", "any cell"])
def test_returns_and_counts_add_up(case: str, interface: str) -> None:
    """The reported returns are those of a plain loop over the rewards."""
    states, results = play_both(case)[interface]
    done = results.terminated | results.truncated
    assert done.any()
    running = np.zeros(ENVS)
    for t, reward in enumerate(results.reward):
        running += reward
        assert results.return_sum[t] == running[done[t]].sum()
        assert results.episode_count[t] == done[t].sum()
        running[done[t]] = 0.0
        np.testing.assert_array_equal(states.episode_return[t], running)


@pytest.mark.parametrize("interface", ["gymnax", "sparse"])
def test_final_observation_is_the_one_before_the_reset(interface: str) -> None:
    """In Catch the ball is at the bottom before the reset and on top after it."""
    states, results = play_both("catch")[interface]
    ended = results.terminated
    np.testing.assert_array_equal(np.flatnonzero(ended.all(axis=1)), np.arange(8, STEPS, 9))
    assert not results.truncated.any()
    final, now = results.final_observation, states.observation
    np.testing.assert_array_equal(final[~ended], now[~ended])
    assert np.all(final[ended][:, :-1] == 0)
    assert np.all(now[ended][:, 0].sum(-1) == 1)
    assert len(np.unique(now[ended], axis=0)) > 1  # each environment has its own key


@pytest.mark.parametrize("vector", [gymnax_vector, sparse_vector])
def test_nothing_is_returned_yet_at_the_reset(vector: Any) -> None:
    """Every episode starts with a return of 0."""
    state = jax.jit(vector("catch").reset)(jax.random.key(0))
    np.testing.assert_array_equal(state.episode_return, np.zeros(ENVS))


@pytest.mark.parametrize("case", CASES)
def test_truncations_are_as_far_apart_as_promised(case: str) -> None:
    """Within so many steps there is at most one, and sometimes there is one; None is never."""
    name, params = CASES[case]
    spacing = sparse_vector(name, **params).steps_between_truncations
    _, results = play_both(case)["sparse"]
    if spacing is None:
        assert not results.truncated.any()
        return
    windows = np.lib.stride_tricks.sliding_window_view(results.truncated, spacing, axis=0)
    assert windows.sum(-1).max() == 1


def test_time_limit_truncates_and_does_not_terminate() -> None:
    """A world whose clock runs out says so, once every `max_steps`."""
    vector = gymnax_vector("gymnax:MountainCar-v0", max_steps_in_episode=4)
    with jax.numpy_dtype_promotion("standard"):
        _, _, results = play(vector, steps=12, actions=3)
    np.testing.assert_array_equal(
        results.truncated, np.tile([False, False, False, True], 3)[:, None].repeat(ENVS, 1)
    )
    assert not np.asarray(results.terminated).any()
    np.testing.assert_array_equal(results.return_sum[3::4], [-4.0 * ENVS] * 3)


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "DeepSea-bsuite"])
def test_gymnax_environments_run(name: str) -> None:
    """Environments that are not ours, one with a `step` of its own, give well-formed results."""
    vector = gymnax_vector(f"gymnax:{name}")
    actions = vector.environment.num_actions
    first, states, results = play(vector, steps=60, actions=actions)
    assert results.reward.shape == (60, ENVS)
    assert results.reward.dtype == jnp.float32
    assert states.observation.shape == (60, *first.observation.shape)
    assert results.final_observation.shape == states.observation.shape
    assert results.episode_count.sum() == (results.terminated | results.truncated).sum()


def test_same_chance_same_episodes() -> None:
    """Stepping is a pure function of its chance, and equals gymnax's own step."""
    vector = gymnax_vector("catch")
    chance = vector.draw(jax.random.key(3), steps=1, numbers=1)[1][0]
    state = vector.reset(jax.random.key(3))
    actions = jnp.arange(ENVS, dtype=jnp.int32) % 3
    step = jax.jit(lambda state: vector.step(chance, state, actions))
    for _ in range(9):
        previous = state
        state, result = step(previous)
    again, _ = step(previous)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    observation, _, reward, terminated, _, _ = vector.environment.step(
        chance[2],
        jax.tree.map(lambda leaf: leaf[2], previous.environment),
        actions[2],
        vector.params,
    )
    np.testing.assert_array_equal(state.observation[2], observation)
    assert result.reward[2] == reward
    assert result.terminated[2]
    assert terminated


@pytest.mark.parametrize("vector", [gymnax_vector, sparse_vector])
def test_agents_can_be_vmapped_over_batches(vector: Any) -> None:
    """A second batch axis, one per agent, is one more vmap."""
    catch = vector("catch", num_envs=2)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(keys: jax.Array) -> Any:
        states = jax.vmap(catch.reset)(keys)
        chance = jax.vmap(lambda key: catch.draw(key, 1, 1)[1][0])(keys)
        return jax.vmap(catch.step)(chance, states, jnp.ones((3, 2), jnp.int32))

    _, results = run(keys)
    assert results.reward.shape == (3, 2)
    assert results.ended_return.shape == (3, 2)


def test_a_subclass_must_say_that_it_is_sparse() -> None:
    """It may have changed gymnax's methods and inherited the others."""

    class Inverted(Catch):
        """Observed as a negative."""

    class Confirmed(Catch):
        """Not changed, and says so."""

        ones = Catch.ones

    assert is_sparse(Catch())
    assert is_sparse(Confirmed())
    assert not is_sparse(Inverted())
    assert not is_sparse(make_environment("gymnax:CartPole-v1")[0])
