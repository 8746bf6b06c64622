"""Set up a command before JAX starts; open its folder, and show its progress bar."""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Protocol

from optim4rl.cli.signals import keeping
from optim4rl.cli.terminal import duration


def configure_jax() -> None:
    """Set XLA's switches through the environment, which worker processes inherit.

    Compiled programs are kept between runs. JAX sees the CPU as one device for each core: agents
    sharded over them run side by side, but on one device their small operations would run one after
    the other. The older fusion emitters compile small programs in two thirds of the time and run
    one-row heads three times as fast (measured with JAX 0.10 on AVX-512); the switch is known to
    exist there and is left alone elsewhere.
    """
    from optim4rl.jobs.cores import count_cores

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "optim4rl" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    jaxlib = metadata.version("jaxlib")
    # There XLA crashes when agents of PPO are shared by CPU devices, with either partitioner.
    devices = 1 if jaxlib == "0.11.2" else count_cores()
    _add_xla_flag("--xla_force_host_platform_device_count", str(devices))
    if jaxlib.startswith("0.10."):
        _add_xla_flag("--xla_cpu_use_fusion_emitters", "false")
    if jaxlib == "0.11.2":  # Its newer partitioner crashes when agents are shared by devices.
        os.environ.setdefault("JAX_USE_SHARDY_PARTITIONER", "0")


def _add_xla_flag(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


def missing_device(error: BaseException) -> str | None:
    """Return a message if JAX's error means that the requested device is not here, else None."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    # If JAX knows a platform but does not find it, it raises an AssertionError without a message.
    unfound = isinstance(error, AssertionError) and not str(error)
    if not asked or not (unfound or "Unable to initialize backend" in str(error)):
        return None
    return f"JAX_PLATFORMS = {asked!r}: JAX finds no such device here; unset it, or set it to 'cpu'"


class CompileClock:
    """Measure the compile time since creation in seconds, with reads from the cache."""

    def __init__(self) -> None:
        """Listen to JAX's own report of each compilation."""
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs


class Update(Protocol):
    """Update of a progress bar."""

    def __call__(
        self, done: int, total: int, note: str = "", rate: str = "", left: float | None = None
    ) -> None:
        """Show the progress.

        Args:
            done: number of finished pieces.
            total: number of all pieces.
            note: the last piece in words.
            rate: the speed in words; by default pieces a minute.
            left: seconds that are left, if known.
        """


@contextmanager
def progress_bar(
    label: str, unit: str, on: str = "", *, silent: bool = False, guess: bool = True
) -> Iterator[Update]:
    """Show a bar on stderr with rate and time left, and print an estimate of the whole time.

    Args:
        label: name of the work.
        unit: unit that is counted.
        on: where it runs ("2 workers"), for the estimate.
        silent: show nothing.
        guess: if `left` is not given, assume that pieces take as long as until now.
    """
    if silent:
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn(
            "{task.fields[note]}",
            style="dim",
            markup=False,
            table_column=Column(ratio=2, no_wrap=True),
        ),
    )
    log = not console.is_terminal  # A log has no bar.
    with Progress(*columns, console=console, disable=log, expand=True) as progress:
        task = progress.add_task(label, total=None, rate="", note="", left="")
        started, first, told = time.perf_counter(), None, False

        def update(
            done: int, total: int, note: str = "", rate: str = "", left: float | None = None
        ) -> None:
            nonlocal first, told
            first = done if first is None else first
            seconds = time.perf_counter() - started
            if done > first:
                rate = rate or f"{60 * (done - first) / seconds:.1f} a minute"
                if guess and left is None:
                    left = (total - done) * seconds / (done - first)
            shown = "" if left is None else f"{duration(left)} left"
            progress.update(task, completed=done, total=total, note=note, rate=rate, left=shown)
            if left is not None and not told and done < total:
                told = True
                pieces = f"{total - done} of {total} {unit}{' on ' * bool(on)}{on}"
                said = f"{label}: about {duration(left)} for {pieces}"
                console.print(said, soft_wrap=True, markup=False)
            if log and note:
                # One line for each step instead of a bar.
                parts = (f"{label}: {done}/{total} {note}", rate, shown)
                print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

        yield update


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """Open a folder of jobs: lock it, and note on errors that its finished jobs are kept.

    It has no manifest until the command has written one at its end.

    Args:
        out: the folder; None: a temporary one.
    """
    from optim4rl.files.folders import locked
    from optim4rl.files.manifest import remove_manifest
    from optim4rl.jobs.store import has_results

    if out is None:
        with tempfile.TemporaryDirectory(prefix="optim4rl-") as scratch:
            yield Path(scratch)
        return
    with locked(out), keeping(lambda: has_results(out)):
        remove_manifest(out)
        yield out


def command_line() -> str:
    """Return the command line of this process, for a report."""
    return shlex.join(["optim4rl", *sys.argv[1:]])


def require_file_name(option: str, path: Path) -> None:
    """Refuse a path that is not the name of a regular file, before any work.

    Raises:
        ValueError: the message names the option.
    """
    if not path.name or (path.exists() and not path.is_file()):
        what = " (it is a folder)" if path.is_dir() else ""
        raise ValueError(f"{option} = {str(path)!r}: the name of a file is needed{what}")
