"""Catch, bsuite's smallest game, as a gymnax environment."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from gymnax.environments.environment import EnvParams
from gymnax.environments.spaces import Box
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.tasks.environments.sparse import SparseGame, time_limit


class CatchState(NamedTuple):
    """A game in progress. The ball falls one row a step, so `time` is also its row."""

    time: Int[Array, ""]
    ball_column: Int[Array, ""]
    paddle_column: Int[Array, ""]


@dataclass(frozen=True)
class Catch(SparseGame):
    """A ball falls one row a step; the paddle on the bottom row moves left, stays, or moves right.

    The episode ends when the ball reaches the bottom row, `rows - 1` steps after the reset. Its
    reward is +1 if the paddle is under the ball and -1 if not. The observation is the board,
    `[rows, columns]`: 1 at the ball and at the paddle, 0 elsewhere.

    Instances with equal fields are equal, so that they share compiled functions.

    Source: https://github.com/google-deepmind/bsuite/blob/main/bsuite/environments/catch.py
    """

    rows: int = 10
    columns: int = 5
    step_uniforms = 0
    reset_uniforms = 1

    @property
    def default_params(self) -> EnvParams:
        """Return gymnax's own time limit; every game ends before it."""
        return EnvParams(max_steps_in_episode=1000)

    @property
    def num_actions(self) -> int:
        """Return 3: left, stay, right."""
        return 3

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Return the space of the board."""
        return Box(0.0, 1.0, (self.rows, self.columns), jnp.float32)

    def reset_from(self, uniforms: Float[Array, "1"]) -> CatchState:
        """Drop a ball in column `uniforms * columns`, with the paddle in the middle."""
        column = (uniforms[0] * self.columns).astype(jnp.int32)
        return CatchState(jnp.int32(0), column, jnp.int32(self.columns // 2))

    def step_from(
        self, uniforms: Float[Array, "0"], state: CatchState, action: Int[Array, ""]
    ) -> tuple[CatchState, Float[Array, ""], Bool[Array, ""]]:
        """Move the paddle by `action - 1` columns and the ball by one row; nothing is random."""
        paddle = jnp.clip(state.paddle_column + action - 1, 0, self.columns - 1)
        state = CatchState(state.time + 1, state.ball_column, paddle)
        landed = state.time == self.rows - 1
        caught = state.paddle_column == state.ball_column
        reward = jnp.where(landed, jnp.where(caught, 1.0, -1.0), 0.0)
        return state, reward, landed

    def ones(self, state: CatchState) -> Int[Array, "2"]:
        """Return the place of the ball, and of the paddle unless the ball is on it."""
        ball = state.time * self.columns + state.ball_column
        paddle = (self.rows - 1) * self.columns + state.paddle_column
        nowhere = self.rows * self.columns
        return jnp.stack([ball, jnp.where(paddle == ball, nowhere, paddle)])

    def steps_between_truncations(self, params: EnvParams) -> int | None:
        """Return the time limit if it is shorter than a game, else None."""
        limit = time_limit(params)
        return limit if limit is not None and limit < self.rows - 1 else None

    def get_obs(
        self, state: CatchState, params: EnvParams | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns"]:
        """Draw the board."""
        # A comparison of every cell's index vectorizes over a batch of games. Writing two cells
        # into zeros is a scatter, which does not vectorize.
        cell = jnp.arange(self.rows * self.columns, dtype=jnp.int32)
        board = jnp.any(cell[None] == self.ones(state)[:, None], axis=0)
        return board.astype(jnp.float32).reshape(self.rows, self.columns)
