"""Workers for the pieces of a suite: what they are asked, and what they do.

A worker runs `python -m optim4rl.benchmark.worker FOLDER`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optim4rl.benchmark.pieces import (
    Piece,
    files_of,
    is_done,
    piece_address,
    piece_from_dict,
    piece_to_dict,
    put_curves,
    run_piece,
)
from optim4rl.jobs.pool import OTHER_CODE, Job, OnJob, Pool, serve


def run_pieces(
    pool: Pool, folder: Path, pieces: Sequence[Piece], on_job: OnJob = lambda done, what: None
) -> None:
    """Run the pieces that are not in the folder yet; those that are count as done.

    Raises:
        JobError: a piece failed; all that is finished is kept.
    """
    wanted = list(dict.fromkeys(pieces))
    missing = [piece for piece in wanted if not is_done(folder, piece)]
    before = len(wanted) - len(missing)
    on_job(before, "")
    jobs = [
        Job(_question(piece), describe_piece(piece), piece.program, files_of(piece))
        for piece in missing
    ]
    pool.run(jobs, lambda done, what: on_job(before + done, what))


def describe_piece(piece: Piece) -> str:
    """A piece in a few words, for people."""
    name = piece.method.optimizer or "learned"
    if not any(piece.rates):
        name = "untrained policy"
    rates = ", ".join(f"{rate:.3g}" for rate in piece.rates if rate)
    return f"{piece.config.environment}: {name} {rates}".rstrip()


def _question(piece: Piece) -> dict[str, Any]:
    return {"address": piece_address(piece), "piece": piece_to_dict(piece)}


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Run a piece, unless it would be run with other code than was asked."""
    piece = piece_from_dict(question["piece"])
    if piece_address(piece) != question["address"]:
        return {"error": OTHER_CODE}
    put_curves(folder, piece, run_piece(folder, piece))
    return {"done": True}


if __name__ == "__main__":
    serve(answer)
