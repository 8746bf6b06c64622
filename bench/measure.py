"""Timing in turns: on a shared machine only what is timed side by side can be compared."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Table:
    """One table of results.

    Attributes:
        title: what was measured.
        note: how, and what the columns mean.
        rows: one mapping of column to value for each row.
    """

    title: str
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def median_seconds(
    cases: Mapping[str, Callable[[], Any]], repeats: int = 5, budget: float = 60.0
) -> dict[str, float]:
    """Median seconds of each case, timed in turn after one warm-up of each.

    Args:
        cases: what to run; the result is waited for.
        repeats: turns, at most.
        budget: seconds after which no new turn begins; each case has had at least two.
    """
    for run in cases.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in cases}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn >= 2 and time.perf_counter() - started > budget:
            break
        for name, run in cases.items():
            begun = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def peak_memory_gib() -> float:
    """The most that this process has held, GiB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")
