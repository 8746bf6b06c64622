"""Worker processes that answer questions: the cells of a study, the pieces of a suite.

A question is a line of JSON, an answer too: `{"done": ...}` or `{"error": text}`. What a worker
finds out it keeps in a folder, so that nothing that is finished is lost.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, runtime_checkable

from optim4rl.files.atomic import NO_ROOM

# One thread to a worker: the jobs are the parallel work, and results must not depend on the split.
WORKER_FLAGS = "--xla_cpu_multi_thread_eigen=false"


def worker_flags() -> str:
    """XLA's switches for a worker: those of this process, and one thread."""
    return f"{os.environ.get('XLA_FLAGS', '')} {WORKER_FLAGS}".strip()


# What a worker answers if it has other code than was asked: its result would be another one.
OTHER_CODE = (
    "the worker has another version of optim4rl or of JAX than this command (it was changed, or is "
    "another one on that machine); start the command again with one version everywhere: it goes on"
)


class JobError(RuntimeError):
    """A job that failed; all else that was started is finished and kept."""


@dataclass(frozen=True)
class Job:
    """What a worker is asked for.

    Attributes:
        question: plain JSON values.
        what: the same in a few words, for people.
        program: jobs of which this is the same share compiled programs.
        files: what the worker reads, as paths below the folder.
    """

    question: Mapping[str, Any]
    what: str
    program: Hashable
    files: tuple[str, ...] = ()


# Called after every job: jobs done, and what the last one was.
OnJob = Callable[[int, str], None]

# From a worker's folder and a question to an answer.
Answer = Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]


@runtime_checkable
class Pool(AbstractContextManager["Pool"], Protocol):
    """Workers, wherever they are, that live as long as the pool."""

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda done, what: None) -> None:
        """Have every job done; its results are then in the pool's folder.

        Raises:
            JobError: one failed; what other workers had begun is finished and kept.
        """


class JobQueue:
    """Jobs that wait, and which of them a worker is to have.

    That is one of a program that the worker has had, else of one that nobody has had, else the
    first: compiled programs are used again, and compiled side by side. To take a job costs the same
    however many there are.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._size = 0
        self._new: deque[Hashable] = deque()
        self._had: dict[int, dict[Hashable, None]] = {}
        # Of the programs that each worker has had, those that may have jobs waiting.
        self._known: dict[int, deque[Hashable]] = {}

    def __len__(self) -> int:
        return self._size

    def put(self, jobs: Sequence[Job]) -> None:
        """Add jobs, behind those that wait."""
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
        """Add a job that was taken, and not done, in front of those that wait."""
        self._waiting.setdefault(job.program, deque()).appendleft(job)
        self._size += 1

    def take(self, worker: int) -> Job | None:
        """The next job for a worker; None if none waits."""
        known = self._known.setdefault(worker, deque())
        while known and known[0] not in self._waiting:
            known.popleft()
        while self._new and self._new[0] not in self._waiting:
            self._new.popleft()
        if known:
            program = known[0]
        elif self._new:
            program = self._new.popleft()
            known.append(program)
        elif self._waiting:
            program = next(iter(self._waiting))
            known.append(program)
        else:
            return None
        self._had.setdefault(worker, {})[program] = None
        jobs = self._waiting[program]
        job = jobs.popleft()
        self._size -= 1
        if not jobs:
            del self._waiting[program]
        return job

    def clear(self) -> None:
        """Forget the jobs that wait."""
        self._waiting.clear()
        self._size = 0


@dataclass(frozen=True)
class _Worker:
    """A worker process, and what it prints."""

    process: subprocess.Popen[str]
    log: IO[str]


class LocalPool:
    """Processes of this machine: what one has compiled serves it again.

    Args:
        module: what a worker runs, a module whose main function is `serve`.
        folder: where workers keep what they find out.
        workers: how many; none is started before there is something to do.
    """

    def __init__(self, module: str, folder: Path, workers: int) -> None:
        self._command = (sys.executable, "-m", module, str(folder))
        self._size = workers
        self._workers: list[_Worker] = []
        self._queue = JobQueue()
        self._open = ExitStack()

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda done, what: None) -> None:
        """Have every job done.

        Raises:
            JobError: one failed; what the other workers had begun is finished.
        """
        waiting = self._queue
        waiting.put(jobs)
        while len(self._workers) < min(self._size, len(jobs)):
            self._workers.append(self._open.enter_context(_start(self._command)))
        done = 0
        lock = threading.Lock()
        failures: list[tuple[Job, str]] = []

        def employ(number: int, worker: _Worker) -> None:
            nonlocal done
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
                        done += 1
                        on_job(done, job.what)

        threads = [threading.Thread(target=employ, args=x) for x in enumerate(self._workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            # Stopped by a signal: jobs are short beside a study, and those in flight are abandoned.
            waiting.clear()
            for worker in self._workers:
                worker.process.kill()
            for thread in threads:
                thread.join()
            raise
        if failures:
            raise_failure(*failures[0])


def raise_failure(job: Job, error: str) -> NoReturn:
    """Say which job failed, and how."""
    raise JobError(f"{job.what} failed; finished results are kept.\n{error}")


@contextmanager
def _start(command: Sequence[str]) -> Iterator[_Worker]:
    """A worker; it prints into a file, for a pipe that nobody reads blocks when full."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "XLA_FLAGS": worker_flags()},
            process_group=0,  # Ctrl-C is for the command, which knows what to do with its workers.
        ) as process,
    ):
        yield _Worker(process, log)


def _ask(worker: _Worker, job: Job) -> str | None:
    """Let a worker do a job; what went wrong, if anything did."""
    process = worker.process
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job.question) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        code = process.wait()
        worker.log.seek(0)
        return f"its worker died with exit code {code}\n{worker.log.read()[-2000:]}"
    return json.loads(answer).get("error")


def serve(answer: Answer) -> None:
    """What a worker process does: answer every question until its input ends."""
    folder = Path(sys.argv[1])
    # Libraries may print; the answers must stay alone on their stream.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            found = answer(folder, json.loads(line))
        except OSError as error:
            # A full disk is no fault of the code, which a trace would point to.
            found = {"error": str(error) if error.errno in NO_ROOM else traceback.format_exc()}
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)
