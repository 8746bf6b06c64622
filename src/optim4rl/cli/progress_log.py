"""Write `progress.csv`: a line for each meta-iteration, up to the checkpoint beside it."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import LARGEST_TEXT, read_file
from optim4rl.meta.trainer import Progress


class LogError(ValueError):
    """The log does not belong to its checkpoint; the message names it."""


def task_labels(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks' names; repeated ones are numbered, so that each label is unique."""
    seen: Counter[str] = Counter()
    labels = []
    for task in tasks:
        seen[task] += 1
        labels.append(task if seen[task] == 1 else f"{task} ({seen[task]})")
    return tuple(labels)


def mean_returns(progress: Progress, which: int | slice) -> list[float | None]:
    """Return each task's mean return over the episodes that ended in one or more iterations.

    A task in which no episode ended has None.
    """
    return [
        float(x.return_sum[which].sum() / count)
        if (count := x.episode_count[which].sum())
        else None
        for x in progress.stats
    ]


class ProgressLog:
    """Hold a log that grows; checkpoints note its extent, a size and a checksum.

    Args:
        path: the file.
        tasks: labels of the tasks, see `task_labels`.
        extent: extent in the checkpoint from which the run continues. Later lines are dropped and
            written again. None starts a new log.

    Raises:
        LogError: the log does not match the checkpoint.
    """

    def __init__(
        self, path: Path, tasks: Sequence[str], extent: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        header = ",".join(["iteration", "meta_gradient_norm", *(f"return_{x}" for x in tasks)])
        kept = f"{header}\n".encode()
        # A user may delete the log to continue without its earlier lines.
        if extent is not None and path.exists():
            kept = read_file(path, LARGEST_TEXT)[: extent["bytes"]]
            if hashlib.sha256(kept).hexdigest() != extent["sha256"]:
                raise LogError(
                    f"{path}: damaged: it does not match the checkpoint; restore it, or delete it "
                    "to continue without its earlier lines"
                )
        write_atomically(path, kept)
        self._size, self._digest = len(kept), hashlib.sha256(kept)

    @property
    def extent(self) -> dict[str, Any]:
        """Return size and checksum of the log as JSON values."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def append(self, before: int, progress: Progress) -> None:
        """Append a line for each iteration: number, norm of the meta-gradient, each task's return.

        An iteration with a number that is not finite is the last line.
        """
        lines = []
        for index, norm in enumerate(progress.meta_gradient_norm):
            numbers = (norm, *mean_returns(progress, index))
            cells = ("" if x is None else f"{x:.6g}" for x in numbers)
            lines.append(",".join([str(before + index + 1), *cells]) + "\n")
        data = "".join(lines).encode()
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # The next checkpoint refers to these bytes.
        self._size += len(data)
        self._digest.update(data)
