"""The grid worlds' sizes, contents and names; nothing here needs JAX.

Source: Oh et al., "Discovering Reinforcement Learning Algorithms" (arXiv 2007.08794), in the eight
variants of Lan et al., "Learning to Optimize for Reinforcement Learning" (arXiv 2302.01470).
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from optim4rl.fields import COUNT, check_fields
from optim4rl.tasks.config import TimeLimit


class GridObject(NamedTuple):
    """A kind of object, and the effect of collecting it.

    Attributes:
        reward: Reward for collecting it.
        end: Probability that collecting it ends the episode.
        respawn: Probability, in each step, that it reappears while it is collected.
    """

    reward: float
    end: float
    respawn: float


@dataclass(frozen=True)
class GridWorldConfig:
    """The size and the contents of a grid world.

    Attributes:
        rows: Rows the agent can walk on, without the walls.
        columns: Columns the agent can walk on, without the walls.
        objects: One entry per object.
        max_steps: Steps after which an episode is cut.
        respawn: Cells where a collected object can reappear. "any": any cell, even an occupied one,
            as in the paper's release. "free": free cells only.
        time_limit: The kind of state after the last step of a cut episode. "terminal": a terminal
            state, as in the paper's release. "bootstrap": a state whose value counts.

    Raises:
        ValueError: If the world is empty, too small for the agent and its objects, has no time, or
            a probability lies outside [0, 1].
    """

    rows: int
    columns: int
    objects: tuple[GridObject, ...]
    max_steps: int
    respawn: Literal["any", "free"] = "any"
    time_limit: TimeLimit = "terminal"

    def __post_init__(self) -> None:
        """Refuse a world that cannot be played."""
        check_fields(self, rows=COUNT, columns=COUNT, max_steps=COUNT)
        if self.cells <= len(self.objects):
            raise ValueError(
                f"objects: {len(self.objects)} of them and the agent need as many cells, but "
                f"{self.rows} x {self.columns} has {self.cells}"
            )
        for index, kind in enumerate(self.objects):
            for field in ("end", "respawn"):
                if not 0.0 <= getattr(kind, field) <= 1.0:
                    raise ValueError(
                        f"objects[{index}].{field} must be a probability, "
                        f"not {getattr(kind, field)}"
                    )

    @property
    def cells(self) -> int:
        """Return the number of cells the agent can walk on."""
        return self.rows * self.columns


def _objects(respawn: float, pairs: int) -> tuple[GridObject, ...]:
    """Return the paper's objects: `pairs` good ones, then as many bad ones."""
    return (GridObject(1.0, 0.0, respawn),) * pairs + (GridObject(-1.0, 0.5, respawn),) * pairs


_PAPERS = {
    "small_sparse_short": GridWorldConfig(3, 8, _objects(0.05, pairs=1), 50),
    "small_sparse_long": GridWorldConfig(8, 3, _objects(0.05, pairs=1), 500),
    "small_dense_short": GridWorldConfig(4, 6, _objects(0.5, pairs=1), 50),
    "small_dense_long": GridWorldConfig(6, 4, _objects(0.5, pairs=1), 500),
    "big_sparse_short": GridWorldConfig(10, 12, _objects(0.05, pairs=2), 50),
    "big_sparse_long": GridWorldConfig(12, 10, _objects(0.05, pairs=2), 500),
    "big_dense_short": GridWorldConfig(9, 13, _objects(0.5, pairs=2), 50),
    "big_dense_long": GridWorldConfig(13, 9, _objects(0.5, pairs=2), 500),
}
GRID_WORLDS = _PAPERS | {
    f"{name}/free": dataclasses.replace(world, respawn="free", time_limit="bootstrap")
    for name, world in _PAPERS.items()
}
"""The eight worlds of Lan et al. by name, by the rules of their release.

With "/free" after the name, objects reappear on free cells only, and a time limit bootstraps.
"""
