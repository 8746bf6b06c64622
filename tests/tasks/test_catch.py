"""Catch must be bsuite's game, move for move."""

import itertools
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.tasks.environments.catch import Catch

STEPS = 9


def test_every_possible_game_equals_gymnax() -> None:
    """All 5 x 3^9 games: same boards, rewards, terminations and truncations."""
    reference, reference_params = gymnax.make("Catch-bsuite")
    catch = Catch()
    params = catch.default_params
    plans = np.array(list(itertools.product(range(3), repeat=STEPS)), np.int32)
    columns = np.repeat(np.arange(catch.columns, dtype=np.int32), len(plans))
    actions = jnp.asarray(np.tile(plans, (catch.columns, 1)).T)
    key = jax.random.key(0)

    _, ours = jax.jit(catch.reset_env)(key, params)
    ours = jax.tree.map(lambda leaf: jnp.full(len(columns), leaf), ours)
    ours = ours._replace(ball_column=jnp.asarray(columns))
    _, theirs = jax.jit(reference.reset_env)(key, reference_params)
    theirs = jax.tree.map(lambda leaf: jnp.full(len(columns), leaf), theirs)
    theirs = theirs.replace(ball_x=jnp.asarray(columns))

    @jax.jit
    def differences(ours, theirs, action):
        board, ours, reward, landed, _ = jax.vmap(catch.step_env, (None, 0, 0, None))(
            key, ours, action, params
        )
        their_board, theirs, their_reward, their_landed, _ = jax.vmap(
            reference.step_env, (None, 0, 0, None)
        )(key, theirs, action, reference_params)
        truncated = jax.vmap(catch.is_truncated, (0, None))(ours, params)
        their_truncated = jax.vmap(reference.is_truncated, (0, None))(theirs, reference_params)
        wrong = (
            jnp.sum(board != their_board)
            + jnp.sum(reward != their_reward)
            + jnp.sum(landed != their_landed)
            + jnp.sum(truncated != their_truncated)
        )
        return ours, theirs, wrong, landed, reward

    with jax.numpy_dtype_promotion("standard"):
        for step in range(STEPS):
            ours, theirs, wrong, landed, reward = differences(ours, theirs, actions[step])
            assert wrong == 0
            assert bool(jnp.all(landed == (step == STEPS - 1)))
    assert set(np.unique(reward)) == {-1.0, 1.0}


def reset(environment: Any, keys: jax.Array, params: Any) -> Any:
    """Of many games."""
    return jax.jit(jax.vmap(environment.reset, (0, None)))(keys, params)


def test_first_boards_equal_gymnax() -> None:
    """A reset shows the ball on top of a column and the paddle at the bottom's middle."""
    reference, reference_params = gymnax.make("Catch-bsuite")
    catch = Catch()
    keys = jax.random.split(jax.random.key(0), 200)
    boards, states = reset(catch, keys, catch.default_params)
    theirs, their_states = reset(reference, keys, reference_params)
    for column in range(5):
        ours = np.unique(np.asarray(boards)[states.ball_column == column], axis=0)
        expected = np.unique(np.asarray(theirs)[their_states.ball_x == column], axis=0)
        assert len(ours) == 1
        np.testing.assert_array_equal(ours, expected)
    assert boards.dtype == jnp.float32


def test_the_ball_starts_in_each_column_alike() -> None:
    """Chi-square over 5 columns; 23.5 is its 0.9999 quantile at 4 degrees of freedom."""
    keys = jax.random.split(jax.random.key(1), 50_000)
    catch = Catch()
    _, states = reset(catch, keys, catch.default_params)
    counts = np.bincount(np.asarray(states.ball_column), minlength=5)
    assert len(counts) == 5
    assert np.sum((counts - 10_000.0) ** 2 / 10_000.0) < 23.5


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (7, 4)])
def test_other_boards(rows: int, columns: int) -> None:
    """The size is free: spaces and the length of an episode follow it."""
    catch = Catch(rows, columns)
    params = catch.default_params
    board, state = catch.reset(jax.random.key(0), params)
    assert board.shape == catch.observation_space(params).shape == (rows, columns)
    assert catch.action_space(params).n == catch.num_actions == 3
    for step in range(rows - 1):
        _, state, _, terminated, truncated, _ = catch.step(jax.random.key(step), state, 1, params)
        assert bool(terminated) == (step == rows - 2)
        assert not truncated
    assert state.time == 0


def test_equal_games_share_compiled_functions() -> None:
    """Equality by value is what keeps a second instance from compiling again."""
    assert Catch() == Catch()
    assert hash(Catch()) == hash(Catch())
    assert Catch(10, 5) != Catch(10, 6)
