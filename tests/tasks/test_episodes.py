"""Batched stepping: resets, returns and what is reported of ended episodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


VECTORS = [gymnax_vector, sparse_vector]


def play(vector: Vectorized, steps: int, actions: int = 3) -> tuple[VectorState, Any, StepResult]:
    """Play at random; return the first state and, by step, the next states and the results."""

    def step(state: VectorState, chance: Any) -> tuple[VectorState, Any]:
        state, result = vector.step(chance[0], state, chance[1])
        return state, (state, result)

    @jax.jit
    def run() -> Any:
        first = vector.reset(jax.random.key(0))
        random_play = jax.random.randint(jax.random.key(1), (steps, ENVS), 0, actions)
        chance = (vector.draw(jax.random.key(2), steps, 1)[1], random_play)
        states, results = jax.lax.scan(step, first, chance)[1]
        unpack = jax.vmap(vector.unpack)
        states = states._replace(observation=unpack(states.observation))
        return first, states, results._replace(final_observation=unpack(results.final_observation))

    first, states, results = run()
    return first, states, results


@pytest.fixture(scope="module", params=VECTORS)
def catch(request: pytest.FixtureRequest) -> tuple[VectorState, VectorState, StepResult]:
    """Three games of Catch in every environment."""
    return play(request.param("catch"), steps=27)


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


def test_returns_and_counts_add_up_in_catch(
    catch: tuple[VectorState, VectorState, StepResult],
) -> None:
    """All games end together."""
    first, states, results = catch
    np.testing.assert_array_equal(first.episode_return, np.zeros(ENVS))
    assert_adds_up(states, results)


@pytest.mark.parametrize("vector", VECTORS)
def test_returns_and_counts_add_up_in_a_grid_world(vector: Any) -> None:
    """Rewards come at any time."""
    _, states, results = play(vector("small_dense_short"), steps=130, actions=9)
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
    vector = gymnax_vector("gymnax:MountainCar-v0", max_steps_in_episode=4)
    with jax.numpy_dtype_promotion("standard"):
        _, _, results = play(vector, steps=12)
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


@pytest.mark.parametrize("vector", VECTORS)
def test_agents_can_be_vmapped_over_batches(vector: Any) -> None:
    """A second batch axis, one per agent, is one more vmap."""
    catch = vector("catch", num_envs=2)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(catch.reset)(keys)
    chance = jax.vmap(lambda key: catch.draw(key, 1, 1)[1][0])(keys)
    _, results = jax.jit(jax.vmap(catch.step))(chance, states, jnp.ones((3, 2), jnp.int32))
    assert results.reward.shape == (3, 2)
    assert results.ended_return.shape == (3, 2)


# The faster interface against gymnax's.
CASES = [
    ("catch", {}),
    ("catch", {"max_steps_in_episode": 4}),
    ("small_dense_short", {}),
    ("big_sparse_short/free", {}),
]


@pytest.mark.parametrize(("name", "params"), CASES)
def test_sparse_steps_are_gymnax_s(name: str, params: dict[str, int]) -> None:
    """With the uniforms that gymnax's keys give, every field of every step is the same."""
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
        written = (
            ours._replace(observation=vector.unpack(ours.observation)),
            result._replace(final_observation=vector.unpack(result.final_observation)),
        )
        return (ours, theirs), (written, (theirs, expected))

    @jax.jit
    def run() -> Any:
        states = jax.vmap(environment.reset_from)(
            uniforms(jax.random.key(0), (ENVS, environment.reset_uniforms))
        )
        observation = jax.vmap(environment.get_obs)(states)
        zeros = jnp.zeros(ENVS, jnp.float32)
        last = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), states)
        ours = VectorState(last, jax.vmap(environment.ones, -1, -1)(last), zeros)
        keys = reference.draw(jax.random.key(1), 130, 1)[1]
        actions = jax.random.randint(jax.random.key(2), (130, ENVS), 0, environment.num_actions)
        theirs = VectorState(states, observation, zeros)
        return jax.lax.scan(step, (ours, theirs), (keys, actions))[1]

    (state, result), (expected_state, expected_result) = run()
    moved = jax.tree.map(lambda leaf: np.moveaxis(leaf, 1, -1), expected_state.environment)
    expected_state = expected_state._replace(environment=moved)
    jax.tree.map(np.testing.assert_array_equal, (state, result), (expected_state, expected_result))
    assert result.episode_count.sum() > 0
    assert np.asarray(result.truncated).any() == (name != "catch" or bool(params))


@pytest.mark.parametrize(("name", "params"), CASES)
def test_truncations_are_as_far_apart_as_promised(name: str, params: dict[str, int]) -> None:
    """Within so many steps there is at most one, and sometimes there is one; None is never."""
    vector = sparse_vector(name, **params)
    environment: Any = vector.environment
    _, _, results = play(vector, steps=130, actions=environment.num_actions)
    spacing = vector.steps_between_truncations
    if spacing is None:
        assert not np.asarray(results.truncated).any()
        return
    windows = np.lib.stride_tricks.sliding_window_view(results.truncated, spacing, axis=0)
    assert windows.sum(-1).max() == 1


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
