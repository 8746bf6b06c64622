"""Training runs as jobs: a batch of agents of one optimizer on one task."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.benchmark.contender import Maker
from optim4rl.benchmark.progress import SavedProgress
from optim4rl.evaluation.curves import Curves, NoEpisodeError, stack
from optim4rl.evaluation.learning import BATCH, Still, train_runs
from optim4rl.fields import from_json, to_json
from optim4rl.jobs.job import Job, Refusal, Result
from optim4rl.jobs.store import get_result
from optim4rl.tasks import TaskConfig, default_config, make_task

# Seconds of a whole batch on Catch. The ratio of other tasks to it is measured as runs finish.
_SECONDS_PER_ROLLOUT = 0.004


@dataclass(frozen=True)
class Batch:
    """Describe some runs of one optimizer on one task.

    Attributes:
        config: the task.
        maker: makes the optimizer.
        runs: a learning rate and a seed for each run, at most `BATCH` runs.
        rollouts: length of each run.
        schedule: rollouts of the whole run, of which a stress run makes the first: a falling rate
            is 0 after them, and optimizers are told which share of them is done.
    """

    config: TaskConfig
    maker: Maker
    runs: tuple[tuple[float, int], ...]
    rollouts: int
    schedule: int


def split(
    config: TaskConfig,
    maker: Maker,
    rates: Sequence[float],
    seeds: Sequence[int],
    rollouts: int,
    schedule: int | None = None,
) -> list[Batch]:
    """Split runs at every rate and seed into batches; the same runs give the same batches."""
    if maker.raw_rewards:
        usual = default_config(config.environment).learner.reward_scale
        learner = dataclasses.replace(config.learner, reward_scale=usual)
        config = dataclasses.replace(config, normalise_rewards=False, learner=learner)
    # Classical optimizers at a constant rate share their runs, whatever the schedule.
    if schedule is None or (maker.optimizer is not None and not maker.decay):
        schedule = rollouts
    runs = [(float(rate), seed) for rate in rates for seed in seeds]
    return [
        Batch(config, maker, tuple(runs[start : start + BATCH]), rollouts, schedule)
        for start in range(0, len(runs), BATCH)
    ]


def job(batch: Batch) -> Job:
    """Make a job of the batch."""
    maker = batch.maker
    # One program serves all weights of a rule.
    shared = dataclasses.replace(maker, weights="any") if maker.weights else maker
    return Job(
        function="optim4rl.benchmark.runs:train_batch",
        arguments=to_json(batch),
        what=describe(batch),
        program=(batch.config, shared),
        files=() if maker.file is None else (maker.file.as_posix(),),
        kind=f"{batch.config.environment}, {'learning' if _learns(batch) else 'no updates'}",
        work=_SECONDS_PER_ROLLOUT * batch.rollouts,  # Empty places take as long as runs.
    )


def train_batch(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Train the agents of a batch; the folder must hold its weights.

    A long batch saves its progress below the folder, and goes on from there.
    """
    batch: Batch = from_json(Batch, arguments)
    progress = SavedProgress(folder / "checkpoints" / f"{job(batch).address}.safetensors")
    task = make_task(batch.config)
    updates = batch.schedule * task.updates_per_rollout
    family, parameters = batch.maker.family(folder, updates, task.updates_per_rollout)
    if not _learns(batch):
        family, parameters = Still(), None
    lengths = batch.rollouts, batch.schedule
    try:
        curves = train_runs(task, family, parameters, batch.runs, *lengths, progress)
    except NoEpisodeError as error:
        raise Refusal(
            f"task = {batch.config.environment!r}: no episode ended in the {batch.rollouts} "
            "rollouts of a run; give more with --stress-rollouts for the stress test, or with "
            "--rollouts for all runs"
        ) from error
    progress.remove()
    arrays = {
        "returns": curves.returns,
        "diverged_at": curves.diverged_at,
        "env_steps": curves.env_steps,
    }
    optional = {"greedy": curves.greedy, "seconds": curves.seconds}
    arrays |= {name: x for name, x in optional.items() if x is not None}
    return Result(arrays, {})


def _learns(batch: Batch) -> bool:
    """Return whether the agents update: those of the untrained policy never do."""
    return any(rate for rate, _ in batch.runs)


def describe(batch: Batch) -> str:
    """Describe a batch in a few words, for people."""
    rates = dict.fromkeys(rate for rate, _ in batch.runs)
    kind = batch.maker.optimizer or ("learned" if batch.maker.weights else "given")
    name = kind if any(rates) else "untrained policy"
    shown = ", ".join(f"{rate:.3g}" for rate in rates if rate)
    return f"{batch.config.environment}: {name} {shown}".rstrip()


def read_batches(folder: Path, batches: Sequence[Batch]) -> dict[float, Curves]:
    """Read finished curves by rate, all seeds together.

    Raises:
        StoreError: a result is missing or damaged.
    """
    parts: dict[float, list[Curves]] = {}
    for batch in batches:
        arrays = get_result(folder, job(batch)).arrays
        rates = np.array([rate for rate, _ in batch.runs])
        for rate in dict.fromkeys(rates.tolist()):
            parts.setdefault(rate, []).append(Curves(**arrays).take(rates == rate))
    return {rate: stack(found) for rate, found in parts.items()}
