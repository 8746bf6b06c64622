"""Experiment trackers: send a long command's measurements to TensorBoard or Weights & Biases.

A command writes its own files with or without a tracker.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from optim4rl.cli.progress_log import mean_returns
from optim4rl.evaluation.curves import Curves
from optim4rl.meta.trainer import Progress

TrackerName = Literal["tensorboard", "wandb"]
PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
# Most points of a learning curve that go to a tracker.
CURVE_POINTS = 200


@runtime_checkable
class Tracker(Protocol):
    """A place to log numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values at a step; a diverged value is NaN and is sent as NaN."""

    def close(self) -> None:
        """Write all pending values."""


@contextmanager
def tracking(
    name: TrackerName | None, folder: Path | None, config: Mapping[str, Any], first_step: int = 0
) -> Iterator[Tracker]:
    """Open a tracker, and always close it at the end.

    Args:
        name: the tracker; None for none.
        folder: the command's output folder, which gets a folder `tensorboard` or `wandb`.
        config: the command's settings, as JSON values.
        first_step: log again from this step on.

    Raises:
        ValueError: see `require_tracker`.
    """
    require_tracker(name, folder)
    tracker: Tracker = _Nowhere()
    if name is not None and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tensorboard = name == "tensorboard"
        tracker = _TensorBoard(folder, first_step) if tensorboard else _WandB(folder, config)
    try:
        yield tracker
    finally:
        tracker.close()


def require_tracker(name: TrackerName | None, folder: Path | None) -> None:
    """Refuse a tracker that cannot work; call this before any work.

    Raises:
        ValueError: its package is not installed, or there is no folder to write into.
    """
    if name is None:
        return
    if find_spec(PACKAGES[name]) is None:
        raise ValueError(
            f"tracker = {name!r}: the package {PACKAGES[name]} is not installed: "
            "pip install 'optim4rl[trackers]'"
        )
    if folder is None:
        raise ValueError(f"tracker = {name!r}: give --out, the folder to write into")


def log_curves(tracker: Tracker, curves: Mapping[str, Sequence[Curves]]) -> None:
    """Log mean returns over all runs by environment steps, as `return/NAME`.

    Args:
        tracker: the tracker.
        curves: name -> its curves, one for each meta-seed, at the same environment steps.
    """
    for name, members in curves.items():
        thinned = [each.thin(CURVE_POINTS) for each in members]
        means = np.concatenate([each.returns for each in thinned]).mean(axis=0)
        for step, value in zip(thinned[0].env_steps, means, strict=True):
            tracker.log(int(step), {f"return/{name}": float(value)})


def log_progress(
    tracker: Tracker, before: int, progress: Progress, tasks: Sequence[str], rate: float
) -> None:
    """Log a chunk of meta-training by iteration, and its speed with the last iteration.

    Args:
        tracker: the tracker.
        before: iterations before the chunk.
        progress: the chunk's progress.
        tasks: labels of the tasks. A task has no return in an iteration in which no episode ended.
        rate: environment steps a second.
    """
    for index, norm in enumerate(progress.meta_gradient_norm):
        returns = zip(tasks, mean_returns(progress, index), strict=True)
        ended = {f"return/{task}": value for task, value in returns if value is not None}
        tracker.log(before + index + 1, {"meta_gradient_norm": float(norm), **ended})
    tracker.log(before + len(progress.meta_gradient_norm), {"env_steps_per_second": rate})


def with_progress(update: Callable[..., None], tracker: Tracker) -> Callable[..., None]:
    """Wrap a progress bar's `update(done, total, ...)`, so that it also logs the share done."""

    def both(done: int, total: int, *details: Any, **further: Any) -> None:
        update(done, total, *details, **further)
        tracker.log(done, {"progress": done / max(1, total)})

    return both


class _Nowhere:
    """No tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    """Event files."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise.

    W&B's own step may not go back, as it does from one curve to the next, so steps are a metric.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        os.environ.setdefault("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "optim4rl"),
            name=folder.name,
            dir=folder,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
