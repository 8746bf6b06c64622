"""Train and run a study's cells for as long as you like, and see that nothing grows.

`python -m tests.soak --minutes 60` runs both side by side, each in a process of its own that looks
at itself every few seconds: resident memory, bytes of live device buffers, programs compiled. The
time counts from when all has been done once, and is warm after a quarter of it: from then on memory
may rise by 2 %, and nothing more may be compiled. Exits with 1 otherwise. The samples stay in the
folder that is printed.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

PARTS = ("train", "cells")
WARM_UP, GROWTH = 0.25, 0.02
EVERY = 2.0  # seconds
PAGE = os.sysconf("SC_PAGESIZE")
PLAN = Path(__file__).parents[1] / "plans" / "optim4rl.md"


class Samples:
    """What this process takes, looked at from a thread of its own until the time is over.

    Args:
        path: where samples go.
        seconds: how long, from the time when all has been done once.
        begun: whether it has.
        on_end: called when the time is over.
    """

    def __init__(
        self,
        path: Path,
        seconds: float,
        begun: Callable[[], bool],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        import jax

        self.compiled = 0
        self.over = False
        self._begun = begun
        jax.monitoring.register_event_duration_secs_listener(self._note)
        self._path, self._seconds, self._on_end = path, seconds, on_end
        threading.Thread(target=self._look, daemon=True).start()

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        self.compiled += event == "/jax/core/compile/backend_compile_duration"

    def _look(self) -> None:
        import jax

        while not self._begun():
            time.sleep(EVERY)
        started = time.monotonic()
        with self._path.open("w") as file:
            while (now := time.monotonic() - started) < self._seconds:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
                buffers = sum(array.nbytes for array in jax.live_arrays())
                print(f"{now:.1f},{resident},{buffers},{self.compiled}", file=file, flush=True)
                time.sleep(EVERY)
        self.over = True
        self._on_end()


def train(folder: Path, seconds: float) -> None:
    """One meta-training, with a checkpoint every few iterations, stopped by a signal in the end."""
    from optim4rl.cli.main import main

    Samples(
        folder / "train.csv",
        seconds,
        (folder / "run" / "checkpoint.previous.safetensors").exists,
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    main(
        "train --tasks catch small_dense_short --width 16 --envs-per-agent 8 --agents 4 --chunk 20 "
        f"--iterations 100000000 --out {folder / 'run'}".split()
    )


def cells(folder: Path, seconds: float) -> None:
    """What a worker does: all cells of a small study, over and over."""
    from optim4rl.cli.runtime import configure_jax
    from optim4rl.study.runner import lay_out, report_cells
    from optim4rl.study.settings import SMOKE
    from optim4rl.study.worker import answer, question

    configure_jax()
    rounds = 0
    samples = Samples(folder / "cells.csv", seconds, lambda: rounds > 0)
    study = lay_out(PLAN.read_bytes(), "smoke", SMOKE)
    asked = report_cells(study, dict.fromkeys((x.key for x in study.comparisons), 3e-3))
    while True:
        for cell in asked:
            if samples.over:
                print(f"cells: {rounds} rounds of {len(asked)}")
                return
            found = answer(folder / "study", question(cell))
            assert "error" not in found, found
        shutil.rmtree(folder / "study")
        rounds += 1


def verdict(path: Path) -> bool:
    """Whether nothing has grown; says what was seen."""
    if not path.exists():
        print(f"{path.stem}: it has not done all once")
        return False
    rows = [tuple(map(float, line.split(","))) for line in path.read_text().splitlines()]
    end = rows[-1][0]
    warm = [row for row in rows if row[0] >= WARM_UP * end]
    half = len(warm) // 2
    fine = True
    for index, name in ((1, "resident"), (2, "device buffers")):
        first, last = (statistics.median(r[index] for r in x) for x in (warm[:half], warm[half:]))
        growth = last / max(first, 1.0) - 1.0
        fine &= growth <= GROWTH
        print(f"{path.stem}: {name}: {first / 2**20:.1f} to {last / 2**20:.1f} MiB, {growth:+.2%}")
    more = int(warm[-1][3] - warm[0][3])
    print(f"{path.stem}: {end / 60:.1f} min, compiled {int(warm[0][3])}, after warm-up {more} more")
    return fine and not more


def main() -> None:
    """Run both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    seconds = 60 * chosen.minutes
    if chosen.part:
        {"train": train, "cells": cells}[chosen.part](chosen.folder, seconds)
        return
    folder = Path(tempfile.mkdtemp(prefix="optim4rl-soak-"))
    print(f"samples: {folder}", flush=True)
    command = [sys.executable, "-m", "tests.soak", f"--minutes={chosen.minutes}"]
    logs = [(folder / f"{part}.log").open("w") for part in PARTS]
    parts = [
        subprocess.Popen([*command, f"--part={part}", f"--folder={folder}"], stdout=log, stderr=log)
        for part, log in zip(PARTS, logs, strict=True)
    ]
    try:
        codes = [process.wait() for process in parts]
    finally:
        for process in parts:
            process.kill()
    # A training that a signal has stopped in order exits with 130.
    fine = codes == [130, 0]
    if not fine:
        print(f"exit codes {codes}, not [130, 0]; see the logs in the folder")
    for part in PARTS:
        fine &= verdict(folder / f"{part}.csv")
    print("nothing has grown" if fine else "something has grown, or has failed")
    sys.exit(not fine)


if __name__ == "__main__":
    main()
