"""Runs an experiment from a user's file: each training and each run is one job."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.fields import from_json, shown, to_json
from optim4rl.files.sealed import DTYPES, read_sealed
from optim4rl.jobs.job import Job, Refusal, Result
from optim4rl.jobs.store import get_result, result_path
from optim4rl.study.experiment import Divergence, Experiment, Values
from optim4rl.study.source import Source, explain
from optim4rl.study.work import Candidate, Member, Reported, Work

# `run` may report this key beside its metrics: the horizontal positions of a curve's points.
STEPS = "steps"


@dataclass(frozen=True)
class GivenWork(Work):
    """Make one job for each call of a user's function.

    Only the experiment knows how to multiply its settings, so it has no stress test.
    """

    experiment: Experiment
    source: Source

    def training(self, candidate: Candidate, values: Values, meta_seed: int) -> Job | None:
        """Return a training as a job; None if the experiment trains nothing."""
        if self.experiment.train is None or not candidate.trained:
            return None
        return self._job("train", candidate, values, meta_seed)

    def runs(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Job]:
        """Return a member's runs, one job each."""
        del folder
        return [self._run(member, values, seed) for values in points for seed in seeds]

    def _run(self, member: Member, values: Values, seed: int) -> Job:
        return self._job("run", member.candidate, values, seed, member.training)

    def _job(
        self,
        function: Literal["train", "run"],
        candidate: Candidate,
        values: Values,
        seed: int,
        training: Job | None = None,
    ) -> Job:
        settings = dataclasses.replace(candidate.settings, **values)
        label = f"{candidate.label}{_shown(values)}"
        trains = function == "train"
        what = f"training: {label}, meta-seed {seed}" if trains else f"{label}, seed {seed}"
        artefact = None if training is None else result_path(Path(), training).as_posix()
        return Job(
            f"optim4rl.study.given:{function}",
            {
                "source": to_json(self.source),
                "settings": to_json(settings),
                "seed": seed,
                "artefact": artefact,
            },
            what,
            program=(function, candidate.key),
            kind=function,
            files=(*self.source.files, *([artefact] if artefact else [])),
        )

    def read(
        self, folder: Path, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Reported]:
        """Return the reports of the runs, point by point."""
        found: list[Reported] = []
        for values in points:
            runs = [get_result(folder, self._run(member, values, seed)).arrays for seed in seeds]
            where = f"{self.source.file}: {member.candidate.label}{_shown(values)}"
            found.append(
                {
                    metric.key: _curves(metric.key, runs, seeds, where)
                    for metric in self.experiment.metrics
                    if metric.reported
                }
            )
        return found


def _shown(values: Values) -> str:
    return "".join(f", {name} {x}" for name, x in values.items())


def _curves(
    name: str, runs: Sequence[Mapping[str, np.ndarray]], seeds: Sequence[int], where: str
) -> Curves:
    """Return the reports of runs on one metric, as curves.

    Raises:
        ValueError: the curves have different lengths, or different steps.
    """
    sizes = [run[name].size if run else 0 for run in runs]
    size = max(1, *sizes)
    values = np.full((len(runs), size), np.nan)
    for row, (run, seed) in enumerate(zip(runs, seeds, strict=True)):
        if not run:  # It raised a divergence, and reported nothing.
            continue
        if run[name].size != size:
            raise ValueError(
                f"{where}: metric {name!r} has {run[name].size} points with seed {seed} and {size} "
                "with another; every run must report the same number. All cells are kept"
            )
        values[row] = run[name]
    lost = ~np.isfinite(values)
    diverged_at = np.where(lost.any(axis=1), lost.argmax(axis=1), HEALTHY)
    # Ignore all values after a divergence.
    values[np.maximum.accumulate(lost, axis=1)] = np.nan
    found = {seed: _positions(run, size) for run, seed in zip(runs, seeds, strict=True) if run}
    steps = next(iter(found.values()), np.arange(1, size + 1))
    for seed, other in found.items():
        if not np.array_equal(other, steps):
            raise ValueError(
                f"{where}: metric {name!r} has steps {shown(other.tolist())} with seed {seed} and "
                f"{shown(steps.tolist())} with another; every run must report the same steps. All "
                "cells are kept"
            )
    return Curves(values, diverged_at, steps)


def _positions(run: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """Return the steps of a run if they are those of a curve of this size; else its points."""
    steps = run.get(STEPS)
    return np.arange(1, size + 1) if steps is None or steps.size != size else steps


# Functions that workers call


def train(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Train once, and return the named arrays of the user's function.

    Raises:
        Refusal: the function's result cannot be used; the message is a sentence for people.
    """
    _, call = _opened(folder, arguments)
    try:
        found = call("train")
    except Divergence as error:
        return Result({}, {"failure": str(error) or "it ran out of finite numbers"})
    where = f"{arguments['source']['file']}: train"
    if not isinstance(found, Mapping):
        raise Refusal(f"{where} returned {shown(found)}; named arrays, as a dict, are needed")
    return Result({str(name): _array(where, name, x) for name, x in found.items()}, {})


def run(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Run once, and return a number or a curve for every metric of the experiment.

    Raises:
        Refusal: the function's result cannot be used; the message is a sentence for people.
    """
    experiment, call = _opened(folder, arguments)
    artefact: list[Any] = []
    if experiment.train is not None:
        kept = arguments["artefact"]
        artefact = [None if kept is None else read_sealed(folder / kept)[0]]
    try:
        found = call("run", *artefact)
    except Divergence as error:
        return Result({}, {"diverged": str(error)})
    return Result(_checked(f"{arguments['source']['file']}: run", experiment, found), {})


def _opened(folder: Path, arguments: Mapping[str, Any]) -> tuple[Experiment, Callable[..., Any]]:
    """Return the experiment, and a caller of its functions by name that explains errors."""
    source = Source.of_json(arguments["source"])
    try:
        experiment = source.load(folder)
        settings = from_json(type(experiment.reference), arguments["settings"])
    except ValueError as error:
        raise Refusal(str(error)) from error
    path, seed = (folder / source.files[0]).resolve(), int(arguments["seed"])

    def call(name: str, *more: Any) -> Any:
        function = getattr(experiment, name)
        where = f"{source.file}: {name}({shown(settings)}, {seed})"
        try:
            return _within(experiment.seconds, where, lambda: function(settings, seed, *more))
        except (Divergence, Refusal):
            raise
        except BaseException as error:
            raise Refusal(f"{where} raised {explain(error, path)}") from error

    return experiment, call


def _within(seconds: float, where: str, function: Callable[[], Any]) -> Any:
    """Call a function within a time limit, and return or raise its outcome.

    Raises:
        Refusal: it exceeds the limit. Its thread is abandoned and ends with the worker.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Refusal(
            f"{where} is not done after {seconds:g} seconds, the experiment's limit (`seconds`)"
        )
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _checked(where: str, experiment: Experiment, found: Any) -> dict[str, np.ndarray]:
    """Return the report of `run`, as arrays of one dimension; `where` names the function.

    Raises:
        Refusal: a metric has no number or curve, or the report has other keys.
    """
    wanted = [metric.key for metric in experiment.metrics if metric.reported]
    if not isinstance(found, Mapping):
        raise Refusal(
            f"{where} returned {shown(found)}; a dict with {', '.join(wanted)} is needed: a number "
            "or a curve each"
        )
    reported = ", ".join(map(str, found)) or "nothing"
    for name in wanted:
        if name not in found:
            raise Refusal(f"{where} does not report the metric {name!r}; it returned {reported}")
    for name in found:
        if name not in (*wanted, STEPS):
            raise Refusal(
                f"{where} reports {name!r}, which is not a metric of the experiment; its metrics "
                f"are {', '.join(wanted)}"
            )
    arrays = {str(name): _array(where, name, x) for name, x in found.items()}
    for name, array in arrays.items():
        if array.ndim > 1 or not array.size:
            raise Refusal(
                f"{where} reports {name!r} of shape {array.shape}; a number or a curve is needed"
            )
    numbers = {x: array.reshape(-1).astype(np.float64) for x, array in arrays.items()}
    steps = numbers.get(STEPS, np.zeros(1))
    whole = bool((np.abs(steps) < 2**53).all()) and not (steps % 1).any()
    if not whole or (np.diff(steps, prepend=-1) <= 0).any():
        raise Refusal(
            f"{where} reports {STEPS!r} = {shown(arrays[STEPS].tolist())}; they must ascend "
            "from 0 in whole numbers"
        )
    return numbers | ({STEPS: steps.astype(np.int64)} if STEPS in numbers else {})


def _array(where: str, name: Any, value: Any) -> np.ndarray:
    """Convert a value of any framework to an array of numbers; `where` names the function.

    Raises:
        Refusal: the value holds no numbers.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(f"{where} returned {name!r} = {shown(value)}: {error}") from error
    if array.dtype.name not in DTYPES or array.dtype.kind not in "biuf":
        raise Refusal(f"{where} returned {name!r} = {shown(value)}: numbers are needed")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
