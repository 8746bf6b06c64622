"""The grid worlds of Oh et al. (2020), with the agent's position in the observation.

Source: Oh et al., "Discovering Reinforcement Learning Algorithms" (arXiv 2007.08794), in the eight
variants of Lan et al., "Learning to Optimize for Reinforcement Learning" (arXiv 2302.01470).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import EnvParams
from gymnax.environments.spaces import Box
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.tasks.config import TimeLimit
from optim4rl.tasks.environments.sparse import SparseGame, time_limit
from optim4rl.tasks.environments.worlds import GridWorldConfig


class GridWorldState(NamedTuple):
    """An episode in progress.

    Cells are counted row by row over the inner grid. The number `rows * columns` stands for
    "nowhere", the place of a collected object.
    """

    time: Int[Array, ""]
    agent: Int[Array, ""]
    objects: Int[Array, "objects"]


@dataclass(frozen=True)
class GridWorld(SparseGame):
    """An agent walks on a walled grid and collects objects.

    Actions are the 3 x 3 cells around the agent, row by row: 0 is up left, 4 stays, 8 is down
    right. A step into a wall leaves the agent where it is. A collected object gives its reward and
    ends the episode with probability `end`. Otherwise it reappears with probability `respawn`, in
    this and each later step. Its cell is drawn uniformly from all cells or from the free cells (see
    `GridWorldConfig.respawn`). Only objects terminate an episode, and only time truncates it; both
    may happen at once. `time_limit` says how a learner treats a truncation.

    The observation is one map per object and then one for the agent. Each covers the full grid with
    its walls, `[objects + 1, rows + 2, columns + 2]`: 1 at the object or agent, 0 elsewhere.

    Instances with equal configs are equal, so that they share compiled functions.
    """

    config: GridWorldConfig

    @property
    def time_limit(self) -> TimeLimit:
        """Return the config's `time_limit`, which tasks read."""
        return self.config.time_limit

    @property
    def default_params(self) -> EnvParams:
        """Return the time limit of the config."""
        return EnvParams(max_steps_in_episode=self.config.max_steps)

    @property
    def num_actions(self) -> int:
        """Return 9: eight directions and staying."""
        return 9

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Return the space of the maps."""
        config = self.config
        shape = (len(config.objects) + 1, config.rows + 2, config.columns + 2)
        return Box(0.0, 1.0, shape, jnp.float32)

    @property
    def step_uniforms(self) -> int:
        """Return 1 for each object: one number decides everything about an object."""
        return len(self.config.objects)

    @property
    def reset_uniforms(self) -> int:
        """Return 1 for the agent's cell, plus 1 for each object's cell."""
        return len(self.config.objects) + 1

    def reset_from(self, uniforms: Float[Array, "numbers"]) -> GridWorldState:
        """Place the agent and then each object on a cell that is still free, uniformly."""
        placed: list[Int[Array, ""]] = []
        for uniform in uniforms:
            placed.append(_free_cell(uniform, placed, self.config.cells))
        return GridWorldState(jnp.int32(0), placed[0], _stack(placed[1:]))

    def step_from(
        self, uniforms: Float[Array, "objects"], state: GridWorldState, action: Int[Array, ""]
    ) -> tuple[GridWorldState, Float[Array, ""], Bool[Array, ""]]:
        """Move, collect, and let collected objects reappear.

        One number decides end, respawn and cell: given u < p, u / p is uniform again.
        """
        reward, end, respawn = np.asarray(self.config.objects, np.float32).reshape(-1, 3).T
        agent = self._move(state.agent, action)
        collected = state.objects == agent

        ended = collected & (uniforms >= 1 - end)
        uniforms = jnp.where(collected, uniforms / np.maximum(1 - end, _TINY), uniforms)
        objects = jnp.where(collected, self.config.cells, state.objects)
        reappears = (objects == self.config.cells) & (uniforms < respawn)
        objects = self._respawn(agent, objects, reappears, uniforms / np.maximum(respawn, _TINY))

        total = jnp.sum(jnp.where(collected, reward, 0.0))
        return GridWorldState(state.time + 1, agent, objects), total, jnp.any(ended)

    def ones(self, state: GridWorldState) -> Int[Array, "ones"]:
        """Return one place for each object on the grid, and one for the agent."""
        config = self.config
        cell = jnp.append(state.objects, state.agent)
        row, column = cell // config.columns + 1, cell % config.columns + 1
        width = config.columns + 2
        maps = np.arange(len(config.objects) + 1, dtype=np.int32)
        size = (config.rows + 2) * width
        where = maps * size + row * width + column
        return jnp.where(cell < config.cells, where, len(maps) * size)

    def steps_between_truncations(self, params: EnvParams) -> int | None:
        """Return the time limit."""
        return time_limit(params)

    def get_obs(
        self,
        state: GridWorldState,
        params: EnvParams | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "maps height width"]:
        """Draw one map per object, then the agent's."""
        config = self.config
        # A look-up of a map copies a row of memory. On a CPU it is five times as fast as comparing
        # all cells' indices, and as fast in float32 as in bool. The last map, "nowhere", is empty.
        one_hot = np.eye(config.cells + 1, config.cells, dtype=np.float32)
        inner = one_hot.reshape(-1, config.rows, config.columns)
        maps = jnp.asarray(np.pad(inner, ((0, 0), (1, 1), (1, 1))))
        return maps[jnp.append(state.objects, state.agent)]

    def _move(self, agent: Int[Array, ""], action: Int[Array, ""]) -> Int[Array, ""]:
        rows, columns = self.config.rows, self.config.columns
        row = agent // columns + action // 3 - 1
        column = agent % columns + action % 3 - 1
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return jnp.where(inside, row * columns + column, agent)

    def _respawn(
        self,
        agent: Int[Array, ""],
        objects: Int[Array, "objects"],
        reappears: Bool[Array, "objects"],
        uniforms: Float[Array, "objects"],
    ) -> Int[Array, "objects"]:
        """Put the reappearing objects on cells; "free": one after the other, on free cells."""
        if self.config.respawn == "any":
            new = _nth(uniforms, self.config.cells)
            return jnp.where(reappears, new, objects)
        cells = list(objects)
        for i in range(len(cells)):
            new = _free_cell(uniforms[i], [*cells, agent], self.config.cells)
            cells[i] = jnp.where(reappears[i], new, cells[i])
        return _stack(cells)


_TINY = np.float32(1e-30)  # replaces a probability of zero in a quotient that is not used


def _nth(uniform: Float[Array, "*n"], count: int | Int[Array, ""]) -> Int[Array, "*n"]:
    """Map uniform numbers to 0 ... count - 1."""
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def _free_cell(
    uniform: Float[Array, ""], taken: Sequence[Int[Array, ""]], cells: int
) -> Int[Array, ""]:
    """Map a uniform number to a cell that is not `taken`; entries equal to `cells` take none.

    A taken cell comes before free cell number `index` exactly if at most `index` free cells come
    before the taken cell. So this needs no permutation of all cells and no sorting. A list of
    scalars is enough; over a batch of worlds they become whole vectors. Both matter on a CPU: a
    sorted list made the step eight times as slow, an array with a short last axis twice.
    """
    index = _nth(uniform, cells - sum((cell < cells).astype(jnp.int32) for cell in taken))
    shift = jnp.zeros_like(index)
    for cell in taken:
        free_before = cell - sum((other < cell).astype(jnp.int32) for other in taken)
        shift += (free_before <= index).astype(jnp.int32)
    return index + shift


def _stack(cells: Sequence[Int[Array, ""]]) -> Int[Array, "cells"]:
    """Stack cells into one array, also when there are none.

    The barrier keeps XLA from computing every cell again inside the copy.
    """
    return jnp.stack(jax.lax.optimization_barrier(cells)) if cells else jnp.zeros((0,), jnp.int32)
