"""Predict how long jobs will take from the times of finished jobs.

A job has a kind, and an amount of work that is comparable within its kind. The first job of a
program compiles it, so its time is work and compilation. The time of the other jobs is only work.
If a kind has only such first jobs, we assume that they compiled for at most a minute. For a kind
without finished jobs, we assume the average speed of the finished jobs.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable

from optim4rl.jobs.job import Job

# The most seconds that a program takes to compile, as long as we know no better.
MOST_COMPILING = 60.0


def kinds_first(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs, the first program of each kind first, so that its speed is known early."""
    jobs = list(jobs)
    first: dict[str, Hashable] = {}
    for job in jobs:
        first.setdefault(job.kind, job.program)
    return sorted(jobs, key=lambda job: first[job.kind] != job.program)


class Forecast:
    """A prediction of the seconds that jobs still take.

    Args:
        expected: all jobs to come.
    """

    def __init__(self, expected: Iterable[Job] = ()) -> None:
        self._first: list[tuple[Job, float]] = []
        # For each kind, the work and the seconds of jobs whose program was compiled before.
        self._work = defaultdict[str, float](float)
        self._seconds = defaultdict[str, float](float)
        self._known: set[object] = set()
        self.expect(expected)

    def expect(self, jobs: Iterable[Job]) -> None:
        """Set all jobs that are still to come."""
        self._left = defaultdict[str, float](float)
        self._programs = set()
        for job in jobs:
            self._left[job.kind] += job.work
            self._programs.add(job.program)

    def skip(self, job: Job) -> None:
        """Note a job that was finished before."""
        self._left[job.kind] -= job.work

    def note(self, job: Job, seconds: float) -> None:
        """Note a finished job and the seconds that its worker took."""
        self.skip(job)
        if job.program not in self._known:
            self._known.add(job.program)
            self._first.append((job, seconds))
            return
        self._work[job.kind] += job.work
        self._seconds[job.kind] += seconds

    def left(self) -> float | None:
        """Return the seconds left for one worker; None before any job is finished."""
        if not self._first:
            return None
        each = {kind: self._seconds[kind] / max(work, 1e-9) for kind, work in self._work.items()}
        guessed = defaultdict[str, float](lambda: 1.0)  # a job takes its `work` in seconds, or more
        for job, took in self._first:
            speed = (took - MOST_COMPILING) / max(job.work, 1e-9)
            guessed[job.kind] = max(guessed[job.kind], speed)
        each = guessed | each
        if self._work:
            usual = sum(self._seconds.values()) / max(sum(self._work.values()), 1e-9)
        else:
            usual = sum(each.values()) / len(each)
        spent = [took - job.work * each.get(job.kind, usual) for job, took in self._first]
        compiling = max(0.0, sum(spent) / len(spent))
        running = sum(max(0.0, x) * each.get(kind, usual) for kind, x in self._left.items())
        return running + compiling * len(self._programs - self._known)
