"""Opens an experiment: this project's own at a scale, or one in a user's file."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optim4rl.benchmark.table import COLUMNS
from optim4rl.fields import COUNT, check_values, from_json, to_json
from optim4rl.files.reading import read_text
from optim4rl.jobs.store import has_results
from optim4rl.study.experiment import Design
from optim4rl.study.given import STEPS, GivenWork
from optim4rl.study.source import (
    Source,
    changed_files,
    keep_source,
    load_experiment,
    read_source,
    split_name,
)
from optim4rl.study.work import Work

if TYPE_CHECKING:
    from optim4rl.study.settings import StudySettings

# The numbers of runs and of trainings, which a command can set.
COUNTS = ("seeds", "meta_seeds")


@dataclass(frozen=True)
class Opened:
    """An open experiment.

    Attributes:
        experiment: the method to ablate.
        work: runs the experiment.
        text: its origin: "optim4rl" or "FILE.py:NAME".
        settings: the recorded settings, as JSON.
        scale: name of the scale for this project's own experiment; else empty.
        source: the user's file; None for this project's own experiment.
    """

    experiment: Design
    work: Work
    text: str
    settings: Mapping[str, Any]
    scale: str = ""
    source: Source | None = None

    @property
    def where(self) -> str:
        """Return the place of the reference, in the words of a message."""
        return f"at scale {self.scale!r}" if self.scale else "in this experiment"

    @property
    def advice(self) -> str:
        """Return a further remedy, in the words of a message."""
        return "take another scale, or " if self.scale else ""

    def record(self) -> dict[str, Any]:
        """Return the values that `reopen` needs."""
        source = None if self.source is None else to_json(self.source)
        return {
            "experiment": self.text,
            "scale": self.scale,
            "settings": self.settings,
            "source": source,
        }

    def keep(self, folder: Path) -> None:
        """Copy a user's file into the folder, where workers find it."""
        if self.source is not None and not all((folder / x).is_file() for x in self.source.files):
            keep_source(self.source, self.text, folder)

    def shown(self) -> dict[str, Any]:
        """Return the settings, for people."""
        if self.source is None:
            from optim4rl.study.settings import StudySettings

            return {
                "name": self.scale,
                **dataclasses.asdict(from_json(StudySettings, self.settings)),
            }
        return {
            "experiment": f"{self.source.file}:{self.source.name}",
            "file": self.source.address,
            "packages": dict(self.source.packages),
            **self.settings,
            "reference": dataclasses.asdict(self.experiment.reference),
        }


def open_own(scale: str, settings: "StudySettings") -> Opened:
    """Open this project's own experiment, which needs JAX; a user's may need none."""
    from optim4rl.study.own import OwnWork, own_design

    return Opened(own_design(settings), OwnWork(settings), "optim4rl", to_json(settings), scale)


def open_given(text: str, *, seeds: int | None = None, meta_seeds: int | None = None) -> Opened:
    """Open the experiment "FILE.py:NAME"; given numbers replace its numbers of runs or trainings.

    Raises:
        ValueError: the experiment does not exist, or a number is not valid; the message names it.
    """
    path, name = split_name(text)
    counts = {"seeds": seeds, "meta_seeds": meta_seeds}
    return _given(text, read_source(text), path, name, counts)


def describe_new_version(opened: Opened, folder: Path) -> str | None:
    """Say why finished runs in a folder are not used: the user's files or packages have changed.

    Returns:
        One sentence; None if nothing has changed, or no run of an earlier version is finished.
    """
    new = opened.source
    try:
        old = Source.of_json(json.loads(read_text(folder / "study.json"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # There is no earlier study of a user's file.
    if new is None or new == old or not has_results(folder):
        return None
    if (new.file, new.name) != (old.file, old.name):
        reason = f"the last study in {folder} was of {old.file}:{old.name}"
    elif files := changed_files(new, opened.text, old, folder):
        have = "has" if len(files) == 1 else "have"
        reason = f"{', '.join(files)} {have} changed since the last study in {folder}"
    else:
        now, then = new.packages, old.packages
        names = sorted(x for x in {*now, *then} if now.get(x) != then.get(x))
        versions = ", ".join(f"{x} {then.get(x)} → {now.get(x)}" for x in names) or "optim4rl"
        reason = f"packages have changed since the last study in {folder} ({versions})"
    if new.address != old.address and (folder / new.files[0]).is_file():
        return (
            f"{reason}; finished runs of this version are used again, and the finished runs of the "
            "other version are kept but not used"
        )
    return (
        f"{reason}; all runs start anew, and the finished runs of the old version are kept but not "
        "used"
    )


def reopen(record: Mapping[str, Any], folder: Path) -> Opened:
    """Open the experiment of a study's record from the copy in the study's folder.

    Raises:
        ValueError: the experiment cannot be opened.
        KeyError: the record is incomplete.
    """
    if record.get("source") is None:
        from optim4rl.study.settings import StudySettings

        # 0.2 had only this project's own experiment.
        return open_own(record["scale"], from_json(StudySettings, record["settings"]))
    source = Source.of_json(record["source"])
    counts = {name: record["settings"][name] for name in COUNTS}
    return _given(record["experiment"], source, folder / source.files[0], source.name, counts)


def _given(
    text: str, source: Source, path: Path, name: str, counts: Mapping[str, int | None]
) -> Opened:
    experiment = load_experiment(path, name, source.address)
    for index, metric in enumerate(experiment.metrics):
        if metric.key == STEPS or (index and metric.key in COLUMNS):
            raise ValueError(
                f"metrics: {metric.key!r} is the name of a column of the table of runs; give this "
                "metric another key"
            )
    wanted = {key: x for key, x in counts.items() if x is not None}
    check_values(Design, wanted, seeds=COUNT, meta_seeds=COUNT)
    changes: dict[str, Any] = wanted
    experiment = dataclasses.replace(experiment, **changes)
    settings = {key: getattr(experiment, key) for key in COUNTS}
    return Opened(experiment, GivenWork(experiment, source), text, settings, source=source)
