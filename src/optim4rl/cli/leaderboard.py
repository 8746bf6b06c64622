"""`optim4rl leaderboard`: rank contenders on every suite, from tables of runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.files.atomic import write_atomically
from optim4rl.pages.leaderboard import leaderboard_page, load_boards, to_json


@dataclass(frozen=True)
class LeaderboardOptions:
    """Rank the contenders of every suite on one page, from tables of runs.

    Tables of the same suite, tasks and reported seeds are put together. All numbers are computed
    again from the runs.

      optim4rl leaderboard runs/*/runs.parquet --out leaderboard.md

    Attributes:
        tables: `runs.parquet` files of `evaluate --out`.
        out: Markdown file to write.
        json: print the numbers as JSON.
    """

    tables: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("leaderboard.md")
    json: bool = False

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("tables = (): at least one runs.parquet is needed")


def run(options: LeaderboardOptions) -> None:
    """Run the command."""
    require_file_name("out", options.out)
    boards = load_boards(options.tables)
    page = leaderboard_page(boards, options.tables, options.out)
    write_atomically(options.out, page.encode())
    print(json.dumps(to_json(boards)) if options.json else options.out)
