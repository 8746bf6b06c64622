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
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# One thread to a worker: the jobs are the parallel work, and results must not depend on the split.
WORKER_FLAGS = "--xla_cpu_multi_thread_eigen=false"


class JobError(RuntimeError):
    """A job that failed; all else that was started is finished and kept."""


@dataclass(frozen=True)
class Job:
    """What a worker is asked for.

    Attributes:
        question: plain JSON values.
        what: the same in a few words, for people.
        program: jobs of which this is the same share compiled programs.
    """

    question: Mapping[str, Any]
    what: str
    program: Hashable


# Called after every job: jobs done, and what the last one was.
OnJob = Callable[[int, str], None]


@dataclass(frozen=True)
class _Worker:
    """A worker process, what it prints, and the programs that it has had to do with."""

    process: subprocess.Popen[str]
    log: IO[str]
    programs: set[Hashable]


class Pool:
    """Worker processes that live as long as the pool: what one has compiled serves it again.

    Args:
        module: what a worker runs, a module whose main function is `serve`.
        folder: where workers keep what they find out.
        workers: how many; none is started before there is something to do.
    """

    def __init__(self, module: str, folder: Path, workers: int) -> None:
        self._command = (sys.executable, "-m", module, str(folder))
        self._size = workers
        self._workers: list[_Worker] = []
        self._open = ExitStack()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda done, what: None) -> None:
        """Have every job done.

        Raises:
            JobError: one failed; what the other workers had begun is finished.
        """
        waiting = list(jobs)
        while len(self._workers) < min(self._size, len(waiting)):
            self._workers.append(self._open.enter_context(_start(self._command)))
        done = 0
        lock = threading.Lock()
        failures: list[tuple[Job, str]] = []

        def employ(worker: _Worker) -> None:
            nonlocal done
            while True:
                with lock:
                    job = self._take(waiting, worker)
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

        threads = [threading.Thread(target=employ, args=(worker,)) for worker in self._workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            waiting.clear()
            for thread in threads:
                thread.join()
            raise
        if failures:
            job, error = failures[0]
            raise JobError(f"{job.what} failed; finished results are kept.\n{error}")

    def _take(self, waiting: list[Job], worker: _Worker) -> Job | None:
        """The next job for a worker: of a program that it has, else of one that nobody has."""
        if not waiting:
            return None
        others = {x for other in self._workers if other is not worker for x in other.programs}
        job = min(waiting, key=lambda x: (x.program not in worker.programs, x.program in others))
        waiting.remove(job)
        worker.programs.add(job.program)
        return job


@contextmanager
def _start(command: Sequence[str]) -> Iterator[_Worker]:
    """A worker; it prints into a file, for a pipe that nobody reads blocks when full."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {WORKER_FLAGS}".strip()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags},
        ) as process,
    ):
        yield _Worker(process, log, set())


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


def serve(answer: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """What a worker does: answer every question until the input ends.

    Args:
        answer: from the folder that the command line names, and a question, to an answer.
    """
    folder = Path(sys.argv[1])
    # Libraries may print; the answers must stay alone on their stream.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            found = answer(folder, json.loads(line))
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)
