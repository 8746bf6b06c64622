"""A pool that makes results up, here and now: for tests of all that is around jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.benchmark.runs import Batch
from optim4rl.fields import from_json
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.pool import OnJob
from optim4rl.jobs.store import has_result, put_result
from optim4rl.study import identity
from optim4rl.study.cells import Training

IDENTITY = identity.IdentityResult("pretended", (), (), {})


def made_up(folder: Path, job: Job) -> Result:
    """What the job might have found; the same job finds the same."""
    del folder
    asked: dict[str, Any] = dict(job.arguments)
    match job.function:
        case "optim4rl.benchmark.runs:train_batch":
            return curves(from_json(Batch, asked), noise)
        case "optim4rl.study.cells:meta_train":
            training: Training = from_json(Training, asked)
            weights = np.full((8, 24), int(job.address[:6], 16), np.float32)
            norms = np.ones(training.training.iterations, np.float32)
            return Result({"network0.input": weights, "meta_gradient_norm": norms}, {})
        case "optim4rl.study.replication:meta_train":
            weights = np.full((8, 24), int(job.address[:6], 16), np.float32)
            return Result({"network0.input": weights}, {})
        case _:
            return Result({}, {"identity": identity.to_json(IDENTITY)})


def curves(batch: Batch, of_run: Callable[[Batch, float, int], Any]) -> Result:
    """Healthy curves of a batch; `of_run` gives a run's returns, or one for all of its rollouts."""
    returns = [np.broadcast_to(of_run(batch, *run), batch.rollouts) for run in batch.runs]
    arrays = {
        "returns": np.array(returns, np.float32),
        "diverged_at": np.full(len(batch.runs), -1),
        "env_steps": np.arange(1, batch.rollouts + 1),
    }
    return Result(arrays, {})


def noise(batch: Batch, rate: float, seed: int) -> Any:
    """A run's returns as chance has them."""
    chance = np.random.default_rng([seed, round(1e6 * rate)])
    return chance.normal(size=batch.rollouts)


@dataclass
class PretendedPool:
    """Does jobs in this process and remembers them; each takes a second, it says.

    Set `open` in the place of `open_pool`.
    """

    answer: Callable[[Path, Job], Result] = made_up
    ran: list[Job] = field(default_factory=list)
    folder: Path = Path()
    size: int = 1

    def open(self, folder: Path, workers: object) -> "PretendedPool":
        """The pool of a folder."""
        del workers
        self.folder = folder
        return self

    def __enter__(self) -> "PretendedPool":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda job: None) -> None:
        """Do all of them, none of which has been done."""
        for job in jobs:
            assert not has_result(self.folder, job)
            found = self.answer(self.folder, job)
            put_result(self.folder, job, Result(found.arrays, {**found.info, "seconds": 1.0}))
            self.ran.append(job)
            on_job(job)


def put_worker(folder: Path, source: str) -> str:
    """Put a program in the worker's place, for those that have the folder on their path."""
    package = folder / "optim4rl" / "jobs"
    package.mkdir(parents=True)
    for path in (package, package.parent):
        (path / "__init__.py").touch()
    (package / "worker.py").write_text(source)
    return str(folder)
