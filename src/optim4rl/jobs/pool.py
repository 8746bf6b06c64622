"""Worker processes that run jobs, and the queue that gives jobs to them."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, Protocol, runtime_checkable

from optim4rl.jobs.forecast import Forecast, kinds_first
from optim4rl.jobs.job import Job
from optim4rl.jobs.store import has_result, job_seconds

# One thread for each worker: jobs run in parallel, and results must not depend on the number of
# threads.
WORKER_FLAGS = "--xla_cpu_multi_thread_eigen=false"


def worker_flags() -> str:
    """Return XLA's flags for a worker: this process's flags, and one thread."""
    return f"{os.environ.get('XLA_FLAGS', '')} {WORKER_FLAGS}".strip()


class JobError(RuntimeError):
    """Error of a failed job; the other jobs that had started are finished and kept."""


# Called after every job.
OnJob = Callable[[Job], None]


@runtime_checkable
class Pool(AbstractContextManager["Pool"], Protocol):
    """Workers on any machine, which live as long as the pool."""

    @property
    def size(self) -> int:
        """Return the number of jobs that can run at once."""

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda job: None) -> None:
        """Run every job, and keep the results in the pool's folder.

        Raises:
            JobError: a job failed; jobs that other workers had begun are finished and kept.
        """


class Stages:
    """A runner of jobs in stages, which counts jobs over all stages and predicts the time left.

    Jobs that were finished before count as done from the start, whatever their stage.

    Args:
        pool: runs the jobs.
        folder: where results are kept.
        expected: all jobs that are known so far.
        update: called with the number of finished jobs, the number of all jobs, a description of
            the last job and, as `left`, the seconds left.
    """

    def __init__(
        self,
        pool: Pool,
        folder: Path,
        expected: Sequence[Job] = (),
        update: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._pool, self._folder, self._update = pool, folder, update
        known = {job.address: job for job in expected}
        self._total = len(known)
        self._done = {x for x, job in known.items() if has_result(folder, job)}
        self._forecast = Forecast(job for x, job in known.items() if x not in self._done)
        self._asked: set[str] = set()
        self._busy = 0.0  # seconds, of all workers together
        self._started: float | None = None

    def run(self, jobs: Sequence[Job], *, last: bool = False) -> None:
        """Run the jobs of a stage whose results are not in the folder yet, each once.

        Raises:
            JobError: a job failed; finished results are kept.
        """
        new = {job.address: job for job in jobs if job.address not in self._asked}
        self._asked.update(new)
        missing = {x: job for x, job in new.items() if not has_result(self._folder, job)}
        for address, job in new.items():
            if address not in missing and address not in self._done:  # It was not expected.
                self._done.add(address)
                self._forecast.skip(job)
        if last:
            self._done &= self._asked
            self._forecast.expect(missing.values())
        total = len(self._asked) if last else max(self._total, len(self._done | self._asked))

        def update(what: str) -> None:
            self._update(len(self._done), total, what, left=self._left())

        def on_job(job: Job) -> None:
            self._done.add(job.address)
            seconds = job_seconds(self._folder, job)
            if self._started is None:  # The start of the first job, not of the workers.
                self._started = time.perf_counter() - seconds
            self._busy += seconds
            self._forecast.note(job, seconds)
            update(job.what)

        update("")
        self._pool.run(kinds_first(missing.values()), on_job)

    def _left(self) -> float | None:
        """Return the seconds left; None while nothing is known."""
        left = self._forecast.left()
        if left is None or self._started is None or not self._busy:
            return None
        # Assume that as many jobs run at once as until now, beside the machine's other work.
        return left * (time.perf_counter() - self._started) / self._busy


class JobQueue:
    """Waiting jobs, in the order in which workers get them.

    Prefer programs that this worker has compiled, then programs that nobody has: compiled programs
    are used again, and new programs compile side by side. The cost of taking a job does not grow
    with the number of jobs.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._size = 0
        self._new: deque[Hashable] = deque()
        self._had: dict[int, dict[Hashable, None]] = {}
        # The programs that each worker has compiled and that may have waiting jobs.
        self._known: dict[int, deque[Hashable]] = {}

    def __len__(self) -> int:
        return self._size

    def put(self, jobs: Sequence[Job]) -> None:
        """Add jobs behind the waiting jobs."""
        for job in jobs:
            self._waiting.setdefault(job.program, deque()).append(job)
        self._size += len(jobs)
        had = {program for programs in self._had.values() for program in programs}
        self._new = deque(program for program in self._waiting if program not in had)
        self._known = {
            worker: deque(program for program in programs if program in self._waiting)
            for worker, programs in self._had.items()
        }

    def put_back(self, job: Job) -> None:
        """Put back a job that was taken but not done, in front of the waiting jobs."""
        self._waiting.setdefault(job.program, deque()).appendleft(job)
        self._size += 1

    def take(self, worker: int) -> Job | None:
        """Take the next job for a worker; None if no job waits."""
        known = self._known.setdefault(worker, deque())
        while known and known[0] not in self._waiting:
            known.popleft()
        while self._new and self._new[0] not in self._waiting:
            self._new.popleft()
        if not self._waiting:
            return None
        if not known:
            known.append(self._new.popleft() if self._new else next(iter(self._waiting)))
        program = known[0]
        self._had.setdefault(worker, {})[program] = None
        jobs = self._waiting[program]
        job = jobs.popleft()
        self._size -= 1
        if not jobs:
            del self._waiting[program]
        return job

    def clear(self) -> None:
        """Drop the waiting jobs."""
        self._waiting.clear()
        self._size = 0


@dataclass(frozen=True)
class _Worker:
    """A worker process, and the file with its output."""

    process: subprocess.Popen[str]
    log: IO[str]


class LocalPool:
    """Worker processes on this machine; each uses its compiled programs again.

    Args:
        folder: where workers keep results.
        workers: number of workers. A worker starts when there is a job for it.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._command = (sys.executable, "-m", "optim4rl.jobs.worker", str(folder))
        self.size = workers
        self._workers: list[_Worker] = []
        self._queue = JobQueue()
        self._open = ExitStack()

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda job: None) -> None:
        """Run every job.

        Raises:
            JobError: a job failed; jobs that the other workers had begun are finished.
        """
        waiting = self._queue
        waiting.put(jobs)
        while len(self._workers) < min(self.size, len(jobs)):
            self._workers.append(self._open.enter_context(_start(self._command)))
        lock = threading.Lock()
        failures: list[tuple[Job, str]] = []

        def employ(number: int, worker: _Worker) -> None:
            while True:
                with lock:
                    job = waiting.take(number)
                if job is None:
                    return
                error = _ask(worker, job)
                with lock:
                    if error:
                        failures.append((job, error))
                        waiting.clear()
                    else:
                        on_job(job)

        # Use futures: Python 3.11 takes a thread for finished if a signal interrupts its join.
        with ThreadPoolExecutor(max(len(self._workers), 1)) as threads:
            employed = [threads.submit(employ, *x) for x in enumerate(self._workers)]
            try:
                wait(employed)
            except BaseException:
                # A signal stopped us: abandon the running jobs, which are short beside a study.
                waiting.clear()
                for worker in self._workers:
                    worker.process.kill()
                wait(employed)
                raise
        for future in employed:
            future.result()
        if failures:
            raise_failure(*failures[0])


def raise_failure(job: Job, error: str) -> NoReturn:
    """Raise a `JobError` that names the job and its error."""
    raise JobError(f"{job.what} failed; finished results are kept.\n{error}")


@contextmanager
def _start(command: Sequence[str]) -> Iterator[_Worker]:
    """Start a worker; it prints into a file, because a pipe without a reader blocks when full."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ, "XLA_FLAGS": worker_flags()},
            process_group=0,  # Ctrl-C must reach only the command, which then stops its workers.
        ) as process,
    ):
        yield _Worker(process, log)


def _ask(worker: _Worker, job: Job) -> str | None:
    """Let a worker do a job, and return its error, or None."""
    process = worker.process
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job.question | {"address": job.address}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        code = process.wait()
        worker.log.seek(0)
        return f"its worker died with exit code {code}\n{worker.log.read()[-2000:]}"
    return json.loads(answer).get("error")
