"""Worker processes for the pieces of a suite.

Run as `python -m optim4rl.cli.suite_pool FOLDER`, this is a worker: one piece and its address as
JSON per line in, `{"done": true}` or `{"error": text}` per line out, curves into the folder.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from optim4rl.cli.suite_pieces import (
    Piece,
    is_done,
    piece_address,
    piece_from_dict,
    piece_to_dict,
    put_curves,
    run_piece,
)
from optim4rl.study.runner import WORKER_FLAGS


class SuiteError(RuntimeError):
    """An evaluation that cannot go on; everything finished is kept."""


# Called at the start and after every piece: pieces done, and what the last one was.
OnPiece = Callable[[int, str], None]


@dataclass(frozen=True)
class _Worker:
    """A worker process, what it prints, and the programs that it has had to do with."""

    process: subprocess.Popen[str]
    log: IO[str]
    programs: set[Any]


class Pool:
    """Worker processes that live as long as the pool: what one has compiled serves it again.

    Args:
        folder: where curves go, and where finished ones are found.
        jobs: number of workers; none is started before there is something to do.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder, self._jobs = folder, jobs
        self._workers: list[_Worker] = []
        self._open = ExitStack()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def run(self, pieces: Sequence[Piece], on_piece: OnPiece = lambda done, what: None) -> None:
        """Run the pieces that are not in the folder yet.

        Raises:
            SuiteError: a piece failed; what the other workers had begun is finished and kept.
        """
        waiting = [piece for piece in dict.fromkeys(pieces) if not is_done(self._folder, piece)]
        done = len(set(pieces)) - len(waiting)
        on_piece(done, "")
        while len(self._workers) < min(self._jobs, len(waiting)):
            self._workers.append(self._open.enter_context(_start(self._folder)))
        lock = threading.Lock()
        failures: list[tuple[Piece, str]] = []

        def serve(worker: _Worker) -> None:
            nonlocal done
            while True:
                with lock:
                    piece = self._take(waiting, worker)
                if piece is None:
                    return
                error = _ask(worker, piece)
                with lock:
                    if error:
                        failures.append((piece, error))
                        waiting.clear()
                    else:
                        done += 1
                        on_piece(done, describe_piece(piece))

        threads = [threading.Thread(target=serve, args=(worker,)) for worker in self._workers]
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
            piece, error = failures[0]
            raise SuiteError(f"{describe_piece(piece)} failed; finished runs are kept.\n{error}")

    def _take(self, waiting: list[Piece], worker: _Worker) -> Piece | None:
        """The next piece for a worker: of a program that it has, else of one that nobody has."""
        if not waiting:
            return None
        others = {x for other in self._workers if other is not worker for x in other.programs}
        piece = min(waiting, key=lambda x: (x.program not in worker.programs, x.program in others))
        waiting.remove(piece)
        worker.programs.add(piece.program)
        return piece


def describe_piece(piece: Piece) -> str:
    """A piece in a few words, for people."""
    name = piece.method.optimizer or "learned"
    if not any(piece.rates):
        name = "untrained policy"
    rates = ", ".join(f"{rate:.3g}" for rate in piece.rates if rate)
    return f"{piece.config.environment}: {name} {rates}".rstrip()


@contextmanager
def _start(folder: Path) -> Iterator[_Worker]:
    """A worker; it prints into a file, for a pipe that nobody reads blocks when full."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {WORKER_FLAGS}".strip()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            [sys.executable, "-m", "optim4rl.cli.suite_pool", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags},
        ) as process,
    ):
        yield _Worker(process, log, set())


def _ask(worker: _Worker, piece: Piece) -> str | None:
    """Let a worker run a piece; what went wrong, if anything did."""
    process = worker.process
    assert process.stdin is not None
    assert process.stdout is not None
    question = {"address": piece_address(piece), "piece": piece_to_dict(piece)}
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        code = process.wait()
        worker.log.seek(0)
        return f"its worker died with exit code {code}\n{worker.log.read()[-2000:]}"
    return json.loads(answer).get("error")


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker does: run a piece, unless it would run it with other code than was asked."""
    try:
        piece = piece_from_dict(question["piece"])
        if piece_address(piece) != question["address"]:
            raise SuiteError("the package has changed; start the command again: it goes on")
        put_curves(folder, piece, run_piece(folder, piece))
    except Exception:
        return {"error": traceback.format_exc()}
    return {"done": True}


def main() -> None:
    """Serve until the input ends."""
    folder = Path(sys.argv[1])
    # Libraries may print; the answers must stay alone on their stream.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(folder, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
