"""Learning curves: one row per training run, one column per update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import polars as pl

HEALTHY = -1


class NoEpisodeError(ValueError):
    """A healthy run finished no episode, so it has no return."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Hold learning curves of several runs of one optimizer on one task.

    A diverged run keeps its full length: its row is NaN from ``diverged_at`` on. If it diverged
    before its first episode ended, its whole row is NaN.

    Attributes:
        returns: Episode return, one row per run (evaluation seed), one column per update.
        diverged_at: For each run the first update with a non-finite number, -1 for a healthy run.
        env_steps: Environment steps taken by one run up to each column, strictly increasing.
        greedy: Mean return of each run's greedy episodes, played by the finished agent; NaN if
            the run diverged, None if no greedy episodes were run.
        seconds: Time of each run, without compilation and greedy episodes; None if not measured.

    Raises:
        ValueError: The arrays contradict each other; the message names field, run and value.
    """

    returns: Float[np.ndarray, "run time"]
    diverged_at: Int[np.ndarray, " run"]
    env_steps: Int[np.ndarray, " time"]
    greedy: Float[np.ndarray, " run"] | None = None
    seconds: Float[np.ndarray, " run"] | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_rows(self)

    @classmethod
    def from_episodes(
        cls,
        return_sum: Float[np.ndarray, "run time"],
        episode_count: Int[np.ndarray, "run time"],
        diverged_at: Int[np.ndarray, " run"],
        env_steps: Int[np.ndarray, " time"],
    ) -> Curves:
        """Make curves from the episodes that ended in each update.

        The return at an update is the mean return of the episodes that ended in it. If none
        ended, the previous value is repeated. Before the first episode ends, the first value is
        used. Values of a diverged run from ``diverged_at`` on are ignored.

        Args:
            return_sum: Sum of the returns of the episodes that ended in each update.
            episode_count: Number of those episodes.
            diverged_at: As in `Curves`.
            env_steps: As in `Curves`.

        Raises:
            NoEpisodeError: A healthy run finished no episode, so it has no return.
        """
        time = np.arange(return_sum.shape[1])
        alive = (diverged_at[:, None] == HEALTHY) | (time < diverged_at[:, None])
        ended = (episode_count > 0) & alive
        silent = np.flatnonzero(~ended.any(axis=1) & (diverged_at == HEALTHY))
        if silent.size:
            raise NoEpisodeError(
                f"episode_count: runs {silent.tolist()} finished no episode in {time.size} "
                "updates, so they have no return; train longer or shorten the episodes"
            )
        mean = np.full(return_sum.shape, np.nan)
        np.divide(return_sum, episode_count, out=mean, where=ended)
        latest = np.maximum.accumulate(np.where(ended, time, 0), axis=1)
        source = np.maximum(latest, ended.argmax(axis=1, keepdims=True))
        carried = np.take_along_axis(mean, source, axis=1)
        return cls(np.where(alive, carried, np.nan), diverged_at, env_steps)

    @property
    def diverged(self) -> Bool[np.ndarray, " run"]:
        """Return which runs diverged."""
        diverged: Bool[np.ndarray, " run"] = self.diverged_at != HEALTHY
        return diverged

    def take(self, runs: slice | Int[np.ndarray, " some"] | Bool[np.ndarray, " run"]) -> Curves:
        """Return the curves of some of the runs."""
        return Curves(
            self.returns[runs],
            self.diverged_at[runs],
            self.env_steps,
            None if self.greedy is None else self.greedy[runs],
            None if self.seconds is None else self.seconds[runs],
        )

    def thin(self, points: int) -> Curves:
        """Average the curves over at most `points` bins of nearly equal width, for plotting.

        A bin that holds a diverged update is NaN, and ``diverged_at`` then counts bins.
        """
        if points < 1:
            raise ValueError(f"points: {points} must be at least 1")
        time = self.env_steps.size
        if points >= time:
            return self
        starts = np.arange(points) * time // points
        widths = np.diff(starts, append=time)
        bin_of = np.repeat(np.arange(points), widths)
        return replace(
            self,
            returns=np.add.reduceat(self.returns, starts, axis=1) / widths,
            diverged_at=np.where(self.diverged, bin_of[self.diverged_at], HEALTHY),
            env_steps=np.add.reduceat(self.env_steps, starts) // widths,
        )

    def to_table(self, **labels: str | int | float) -> pl.DataFrame:
        """Return a long table, one row per run and update.

        Columns: the given labels, then run, update, env_steps, return (NaN once the run diverged)
        and diverged.
        """
        import polars as pl

        runs, time = self.returns.shape
        table = pl.DataFrame(
            {
                "run": np.repeat(np.arange(runs), time),
                "update": np.tile(np.arange(time), runs),
                "env_steps": np.tile(self.env_steps, runs),
                "return": self.returns.ravel(),
                "diverged": (
                    self.diverged[:, None] & (np.arange(time) >= self.diverged_at[:, None])
                ).ravel(),
            }
        )
        return table.select(*(pl.lit(value).alias(name) for name, value in labels.items()), "*")


def stack(parts: Sequence[Curves]) -> Curves:
    """Concatenate the runs of several curves with the same environment steps.

    Raises:
        ValueError: Nothing to stack, or the environment steps differ.
    """
    if not parts:
        raise ValueError("parts: nothing to stack; give at least one Curves")
    for index, part in enumerate(parts):
        if not np.array_equal(part.env_steps, parts[0].env_steps):
            raise ValueError(f"parts[{index}].env_steps differ from parts[0].env_steps")
    return Curves(
        returns=np.concatenate([part.returns for part in parts]),
        diverged_at=np.concatenate([part.diverged_at for part in parts]),
        env_steps=parts[0].env_steps,
        greedy=_join([part.greedy for part in parts]),
        seconds=_join([part.seconds for part in parts]),
    )


def _join(parts: Sequence[Float[np.ndarray, " _"] | None]) -> Float[np.ndarray, " all"] | None:
    """Concatenate the numbers of all runs; None if a part has none."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _check_shapes(curves: Curves) -> None:
    returns, diverged_at, env_steps = curves.returns, curves.diverged_at, curves.env_steps
    if returns.ndim != 2 or 0 in returns.shape:
        raise ValueError(f"returns: shape {returns.shape} must be [run, time], both at least 1")
    runs, time = returns.shape
    sizes = {"diverged_at": runs, "env_steps": time, "greedy": runs, "seconds": runs}
    for name, size in sizes.items():
        found, each = getattr(curves, name), "update" if name == "env_steps" else "run"
        if found is not None and found.shape != (size,):
            raise ValueError(f"{name}: shape {found.shape} must be ({size},), one per {each}")
    if env_steps[0] < 0 or (np.diff(env_steps) <= 0).any():
        raise ValueError(f"env_steps: {env_steps} must be non-negative and strictly increasing")
    if ((diverged_at < HEALTHY) | (diverged_at >= time)).any():
        raise ValueError(
            f"diverged_at: {diverged_at} must be -1 (healthy) or an update below {time}"
        )


def _check_rows(curves: Curves) -> None:
    runs_and_starts = zip(curves.returns, curves.diverged_at, strict=True)
    for run, (row, start) in enumerate(runs_and_starts):
        end = row.size if start == HEALTHY else int(start)
        broken = np.flatnonzero(~np.isfinite(row[:end]))
        no_episode_ended = start != HEALTHY and np.isnan(row).all()
        if broken.size and not no_episode_ended:
            raise ValueError(
                f"returns: run {run} is {row[broken[0]]} at update {broken[0]}, but its "
                f"diverged_at is {start}; set diverged_at to the first non-finite update"
            )
        if not np.isnan(row[end:]).all():
            raise ValueError(
                f"returns: run {run} diverged at update {start} but carries numbers after it; "
                "its row must be NaN from there on"
            )
