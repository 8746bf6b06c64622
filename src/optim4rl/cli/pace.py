"""Choose the length of a chunk of meta-training: as many iterations as take a few seconds."""

import time
from collections.abc import Callable

from optim4rl.cli.terminal import duration

# Seconds of a chunk; up to three times as many if its checkpoint takes long to write.
CHUNK_SECONDS = 5.0
_MOST_SECONDS = 15.0
# A chunk takes this many times as long as its checkpoint, and grows at most by this factor at once.
_SHARE = 4
# Most iterations of a chunk: a compiled program has room for the progress of this many.
MOST_ITERATIONS = 100


class Pace:
    """Choose the size of each chunk by the time of the chunk before.

    Args:
        fixed: size of every chunk. None: one iteration at first, then as many as take a few
            seconds.
        compiled: returns the seconds spent on compilation so far.
        clock: returns the seconds since any fixed start.
    """

    def __init__(
        self,
        fixed: int | None = None,
        compiled: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.most = fixed or MOST_ITERATIONS
        self.size = fixed or 1
        self._fixed, self._compiled, self._clock = fixed is not None, compiled, clock
        self._each: float | None = None
        self._saving = 0.0
        self._chunks = 0
        self.start()

    def start(self) -> int:
        """Start a chunk, and return its number of iterations."""
        self._since, self._compiled_before = self._clock(), self._compiled()
        return self.size

    @property
    def elapsed(self) -> float:
        """Return the seconds since the chunk's start."""
        return self._clock() - self._since

    def note(self, iterations: int, seconds: float) -> None:
        """Note a chunk that is done and saved.

        Args:
            iterations: its number of iterations.
            seconds: time from the chunk's start to its last iteration, without its checkpoint.
        """
        self._saving = self.elapsed - seconds
        self._chunks += 1
        running = seconds - (self._compiled() - self._compiled_before)
        self._each = max(running, 1e-6) / max(1, iterations)
        if not self._fixed:
            wanted = min(max(CHUNK_SECONDS, _SHARE * self._saving), _MOST_SECONDS) / self._each
            self.size = max(1, min(int(wanted), _SHARE * iterations, self.most))

    def left(self, iterations: int) -> float | None:
        """Return the seconds that so many iterations take; None while too little is measured.

        The first chunk includes JAX's tracing, and short chunks say little.
        """
        if self._each is None or self._chunks < (4 if self.size * self._each < 1.0 else 2):
            return None
        return iterations * (self._each + self._saving / self.size)

    def ending(self) -> str:
        """Say what happens to the chunk in flight."""
        said = "the chunk in flight is finished and saved"
        if self._each is None:
            return f"{said} (the first chunk also compiles, so its time is not known yet)"
        left = max(0.0, self.size * self._each - self.elapsed) + self._saving
        return f"{said} (about {duration(left)})"
