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

    Compiled programs are kept between runs. The CPU is shown as one device for each core: agents
    sharded over them run side by side, where one device would run their small operations one after
    the other. The older fusion emitters compile small programs in two thirds of the time and run
    one-row heads three times as fast (measured with JAX 0.10 on AVX-512); the switch is known to
    exist there and is left alone elsewhere.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "optim4rl" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    _add_xla_flag("--xla_force_host_platform_device_count", str(_num_cores()))
    if metadata.version("jaxlib").startswith("0.10."):
        _add_xla_flag("--xla_cpu_use_fusion_emitters", "false")


def _num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _add_xla_flag(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


class CompileClock:
    """Seconds until programs are there, from its making on: compiled, or read from the cache."""

    def __init__(self) -> None:
        """Listen to JAX's own report of each compilation."""
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs


@contextmanager
def progress_bar(label: str, unit: str, silent: bool = False) -> Iterator[Any]:
    """A bar with rate and time left on stderr; yields `update(done, total, note)`."""
    if silent:
        yield lambda *_: None
        return
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


def require_file_name(option: str, path: Path) -> None:
    """Refuse a path that can only be a folder.

    Raises:
        ValueError: the message names the option.
    """
    if not path.name:
        raise ValueError(f"{option} = {str(path)!r}: the name of a file is needed")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: it may hold somebody's words.
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # A pipe has no width; a table cut to 80 columns would be of no use there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
