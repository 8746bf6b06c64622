"""The protocol of every comparison: tune on some seeds, report on others, then stress."""

from collections.abc import Sequence
from dataclasses import dataclass

from optim4rl.fields import COUNT, COUNT_OR_ZERO, POSITIVE, check_fields

# Runs that choose settings and runs that are reported never share a seed.
EVALUATION_SEED = 1_000
TUNING_SEED = 5_000
STRESS_SEED = 9_000


@dataclass(frozen=True)
class Protocol:
    """Set how often every contender is run.

    Attributes:
        seeds: reported runs of a contender on a task.
        tuning_seeds: tuning runs of each setting on a task.
        stress_scales: multiples of the tuned setting in the stress test.
        stress_seeds: stress runs at each multiple.
        first_seed: the first reported seed. A new claim needs seeds that no earlier claim used
            (`benchmark.register`).
        extensions: the most half decades by which a grid is extended beyond an edge where its best
            value lies. The same for all contenders.
    """

    seeds: int = 8
    tuning_seeds: int = 3
    stress_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    stress_seeds: int = 8
    first_seed: int = EVALUATION_SEED
    extensions: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            seeds=COUNT,
            tuning_seeds=COUNT,
            stress_seeds=COUNT,
            stress_scales=POSITIVE,
            extensions=COUNT_OR_ZERO,
        )
        require_grid("stress_scales", self.stress_scales)
        if not EVALUATION_SEED <= self.first_seed <= TUNING_SEED - self.seeds:
            raise ValueError(
                f"first_seed = {self.first_seed!r}: a seed from {EVALUATION_SEED} to "
                f"{TUNING_SEED - self.seeds} is needed, below the tuning seeds"
            )

    @property
    def reported(self) -> range:
        """Return the reported seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def tuning(self) -> range:
        """Return the tuning seeds."""
        return range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)

    @property
    def stress(self) -> range:
        """Return the seeds of the stress test."""
        return range(STRESS_SEED, STRESS_SEED + self.stress_seeds)


def require_grid(name: str, grid: Sequence[float]) -> None:
    """Refuse a grid that is empty, not positive or not ascending.

    Raises:
        ValueError: the message names the grid.
    """
    if not grid or any(not 0 < x < float("inf") for x in grid):
        raise ValueError(f"{name} = {grid!r}: one or more positive numbers are needed")
    if list(grid) != sorted(set(grid)):
        raise ValueError(f"{name} = {grid!r}: the numbers must ascend")
