"""What a command sets up before JAX starts, and how it talks to people."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any


def configure_jax() -> None:
    """Set XLA's switches through the environment, which worker processes inherit.

    Compiled programs are kept between runs. On the CPU the older fusion emitters compile small
    programs in two thirds of the time and run one-row heads three times as fast (measured with JAX
    0.10 on AVX-512); the switch is known to exist there and is left alone elsewhere.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "optim4rl" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    flag = "--xla_cpu_use_fusion_emitters"
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Any]:
    """A bar with rate and time left on stderr; yields `update(done, total, note)`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=None, rate="", note="")
        started, first = time.perf_counter(), None

        def update(done: int, total: int, note: str = "", rate: str = "") -> None:
            nonlocal first
            first = done if first is None else first
            if done > first and not rate:
                minutes = (time.perf_counter() - started) / 60
                rate = f"{(done - first) / minutes:.1f} a minute"
            progress.update(task, completed=done, total=total, note=note, rate=rate)
            if not console.is_terminal and note:
                # A log has no bar: one line for each step instead.
                print(
                    f"{label}: {done}/{total} {note} {rate}".rstrip(), file=sys.stderr, flush=True
                )

        yield update


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width; a table cut to 80 columns would be of no use there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
