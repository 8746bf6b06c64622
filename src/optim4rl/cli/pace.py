"""How long a chunk of meta-training is: as many iterations as take a few seconds."""

import time
from collections.abc import Callable

from optim4rl.cli.terminal import duration

# Seconds of a chunk; where its checkpoint takes long to write, up to three times as many.
CHUNK_SECONDS = 5.0
_MOST_SECONDS = 15.0
# A chunk takes this many times as long as its checkpoint, and grows by no more than that at once.
_SHARE = 4
# Iterations of a chunk, at most: a program has room for the progress of so many.
MOST_ITERATIONS = 100


class Pace:
    """The size of each chunk, by the time that the one before it took.

    Args:
        fixed: the size of every chunk; None: as many iterations as take a few seconds, the first
            chunk one.
        compiled: seconds that programs have taken to compile until now.
        clock: seconds from any start.
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
        """Start a chunk; how many iterations it has."""
        self._since, self._compiled_before = self._clock(), self._compiled()
        return self.size

    @property
    def elapsed(self) -> float:
        """Seconds since the chunk's start."""
        return self._clock() - self._since

    def note(self, iterations: int, seconds: float) -> None:
        """Note a chunk that is done and saved.

        Args:
            iterations: how many it had.
            seconds: what they took of the time since the start; its checkpoint took the rest.
        """
        self._saving = self.elapsed - seconds
        self._chunks += 1
        running = seconds - (self._compiled() - self._compiled_before)
        self._each = max(running, 1e-6) / max(1, iterations)
        if not self._fixed:
            wanted = min(max(CHUNK_SECONDS, _SHARE * self._saving), _MOST_SECONDS) / self._each
            self.size = max(1, min(int(wanted), _SHARE * iterations, self.most))

    def left(self, iterations: int) -> float | None:
        """Seconds that so many iterations take; None while too little is measured.

        Of the first chunk JAX's tracing is part, and what is short says little.
        """
        short = self._each is None or self.size * self._each < 1.0
        if self._each is None or self._chunks < 2 or (short and self._chunks < 4):
            return None
        return iterations * (self._each + self._saving / self.size)

    def ending(self) -> str:
        """What becomes of the chunk in flight."""
        said = "the chunk in flight is finished and saved"
        if self._each is None:
            return f"{said} (the first one, with compilation: how long is not known yet)"
        left = max(0.0, self.size * self._each - self.elapsed) + self._saving
        return f"{said} (about {duration(left)})"
