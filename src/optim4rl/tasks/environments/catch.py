"""Catch, the smallest of bsuite's games, as a gymnax environment."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Box, Discrete
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class CatchState(NamedTuple):
    """A game in progress. The ball falls one row a step, so `time` is also its row."""

    time: Int[Array, ""]
    ball_column: Int[Array, ""]
    paddle_column: Int[Array, ""]


@dataclass(frozen=True)
class Catch(Environment[CatchState, EnvParams]):  # type: ignore[misc]  # gymnax is untyped
    """A ball falls one row a step; the paddle on the bottom row moves left, stays, or moves right.

    The episode ends when the ball reaches the bottom row, `rows - 1` steps after the reset, with
    reward +1 if the paddle is under it and -1 if not. The observation is the board, `[rows,
    columns]`, 1 at the ball and at the paddle and 0 elsewhere.

    Instances with equal fields are equal, so that they share compiled functions.

    Source: https://github.com/google-deepmind/bsuite/blob/main/bsuite/environments/catch.py
    """

    rows: int = 10
    columns: int = 5

    @property
    def default_params(self) -> EnvParams:
        """Gymnax's own time limit, which no game lasts long enough to meet."""
        return EnvParams(max_steps_in_episode=1000)

    @property
    def num_actions(self) -> int:
        """Left, stay, right."""
        return 3

    def action_space(self, params: EnvParams | None = None) -> Discrete:
        """Left, stay, right."""
        return Discrete(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """The board."""
        return Box(0.0, 1.0, (self.rows, self.columns), jnp.float32)

    def reset_env(
        self, key: PRNGKeyArray, params: EnvParams
    ) -> tuple[Float[Array, "rows columns"], CatchState]:
        """Drop a ball in a random column, with the paddle in the middle."""
        # One block of random bits; `jax.random.randint` would draw four.
        column = (jax.random.uniform(key) * self.columns).astype(jnp.int32)
        state = CatchState(jnp.int32(0), column, jnp.int32(self.columns // 2))
        return self.get_obs(state), state

    def step_env(
        self,
        key: PRNGKeyArray,
        state: CatchState,
        action: Int[Array, ""] | int,
        params: EnvParams,
    ) -> tuple[
        Float[Array, "rows columns"],
        CatchState,
        Float[Array, ""],
        Bool[Array, ""],
        dict[str, Any],
    ]:
        """Move the paddle by `action - 1` columns and the ball by one row."""
        paddle = jnp.clip(state.paddle_column + action - 1, 0, self.columns - 1)
        state = CatchState(state.time + 1, state.ball_column, paddle)
        landed = state.time == self.rows - 1
        caught = state.paddle_column == state.ball_column
        reward = jnp.where(landed, jnp.where(caught, 1.0, -1.0), 0.0)
        return self.get_obs(state), state, reward, landed, {}

    def get_obs(
        self, state: CatchState, params: EnvParams | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns"]:
        """Draw the board."""
        # Comparing every cell's index vectorizes over a batch of games; writing two cells into
        # zeros is a scatter, which does not.
        cell = jnp.arange(self.rows * self.columns, dtype=jnp.int32)
        ball = state.time * self.columns + state.ball_column
        paddle = (self.rows - 1) * self.columns + state.paddle_column
        board = (cell == ball) | (cell == paddle)
        return board.astype(jnp.float32).reshape(self.rows, self.columns)
