"""Train and run a study's jobs for as long as you like, and see that nothing grows.

`python -m tests.soak --minutes 60` runs both side by side, each in a process of its own that looks
at itself every few seconds: resident memory, bytes of live device buffers, programs compiled. The
time counts from when all has been done once, and is warm after a quarter of it: from then on memory
may rise by 2 %, and nothing more may be compiled. Exits with 1 otherwise. The samples stay in the
folder that is printed; with `--results FOLDER` what they say goes into `soak.md` and `soak.json`
there, and the minutes into the table of faults.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tally import Tally, markdown, write_table

from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import OnJob

PARTS = {"train": "train", "jobs": "all jobs of a study, in a worker of ablate"}
WARM_UP, GROWTH = 0.25, 0.02
EVERY = 2.0  # seconds
PAGE = os.sysconf("SC_PAGESIZE")
PLAN = Path(__file__).parents[1] / "plans" / "optim4rl.md"


class TimeIsOverError(Exception):
    """The soak has lasted as long as it should."""


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


def jobs(folder: Path, seconds: float) -> None:
    """What a worker does: all jobs of a small study, over and over."""
    from optim4rl.cli.runtime import configure_jax
    from optim4rl.jobs.worker import answer
    from optim4rl.study import runner
    from optim4rl.study.layout import lay_out
    from optim4rl.study.opening import open_own
    from optim4rl.study.settings import SMOKE

    configure_jax()
    rounds = done = 0
    samples = Samples(folder / "jobs.csv", seconds, lambda: rounds > 0)
    study = lay_out(PLAN.read_bytes(), open_own("smoke", SMOKE))

    class Here:
        """A pool of this process alone."""

        size = 1

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def run(self, jobs: Sequence[Job], on_job: OnJob = lambda job: None) -> None:
            nonlocal done
            for job in jobs:
                if samples.over:
                    raise TimeIsOverError
                found = answer(folder / "study", job.question | {"address": job.address})
                assert "error" not in found, found
                done += 1
                on_job(job)

    runner.open_pool = lambda folder, workers: Here()
    try:
        while True:
            runner.run_study(study, folder / "study", command="soak")
            shutil.rmtree(folder / "study")
            rounds += 1
    except TimeIsOverError:
        print(f"jobs: {done} in {rounds} rounds")


@dataclass(frozen=True)
class Growth:
    """What a part took in the two halves of its time after the warm-up."""

    minutes: float
    resident: tuple[float, float]  # medians, in bytes
    buffers: tuple[float, float]
    compiled: tuple[int, int]  # by the end of the warm-up, and after it

    @property
    def fine(self) -> bool:
        """Whether nothing has grown."""
        return not self.compiled[1] and all(
            last <= (1 + GROWTH) * max(first, 1.0) for first, last in (self.resident, self.buffers)
        )


def growth(path: Path) -> Growth:
    """What the samples of a part say."""
    rows = [tuple(map(float, line.split(","))) for line in path.read_text().splitlines()]
    warm = [row for row in rows if row[0] >= WARM_UP * rows[-1][0]]
    half = len(warm) // 2
    resident, buffers = (
        tuple(statistics.median(row[index] for row in rows) for rows in (warm[:half], warm[half:]))
        for index in (1, 2)
    )
    first, last = int(warm[0][3]), int(warm[-1][3])
    return Growth(rows[-1][0] / 60, resident, buffers, (first, last - first))


def write_results(folder: Path, found: dict[str, Growth], minutes: float) -> None:
    """The soak's own page, and its rows in the table of faults."""
    from optim4rl.jobs.provenance import provenance

    command = f"python -m tests.soak --minutes {minutes:g} --results docs/results"
    where = provenance("optim4rl.cli.main")
    parts = {PARTS[part]: each for part, each in found.items()}
    data = {"command": command, **where}
    data["parts"] = {name: dataclasses.asdict(each) for name, each in parts.items()}
    (folder / "soak.json").write_text(json.dumps(data, indent=1) + "\n")

    def change(pair: tuple[float, float]) -> str:
        first, last = pair
        return f"{first / 2**20:.1f} to {last / 2**20:.1f} ({last / max(first, 1.0) - 1:+.2%})"

    columns = ("part", "minutes", "resident, MiB", "device buffers, MiB", "compiled", "then more")
    rows = [
        (name, f"{x.minutes:.0f}", change(x.resident), change(x.buffers), *map(str, x.compiled))
        for name, x in parts.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    fine = all(each.fine for each in parts.values())
    lines = [
        "# Soak: does memory grow?",
        "",
        f"> **Claim.** {'Memory does not grow.' if fine else 'Something grew: see the table.'}",
        ">",
        f"> **Evidence.** {minutes:g} minutes of each part: `{command}` runs them again",
        "> and writes this page.",
        ">",
        "> **What it does not show.** Days of work, or another machine.",
        "",
        "## The table",
        "",
        "The two numbers are medians of the first and second half of the time, after a warm-up",
        f"of {WARM_UP:.0%}. A part passes with a growth of at most {GROWTH:+.0%} and no further",
        "compiled program.",
        "",
        *markdown(columns, [dict(zip(columns, row, strict=True)) for row in rows]),
        "",
        f"Code {where['code'][:8]}; {versions}.",
        "",
    ]
    (folder / "soak.md").write_text("\n".join(lines))
    tallies = []
    for name, each in parts.items():
        row = Tally("minutes soaked", f"soak: {name}", time.monotonic() - 60 * each.minutes)
        row.count("correct" if each.fine else "wrong result", times=round(each.minutes))
        tallies.append(row.values())
    write_table(folder / "faults.md", tallies)


def main() -> None:
    """Run both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    seconds = 60 * chosen.minutes
    if chosen.part:
        {"train": train, "jobs": jobs}[chosen.part](chosen.folder, seconds)
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
    if codes != [130, 0]:
        sys.exit(f"exit codes {codes}, not [130, 0]; see the logs in the folder")
    found = {part: growth(folder / f"{part}.csv") for part in PARTS}
    for part, each in found.items():
        print(f"{part}: {each}")
    if chosen.results:
        write_results(chosen.results, found, chosen.minutes)
    if not all(each.fine for each in found.values()):
        sys.exit("something has grown")


if __name__ == "__main__":
    main()
