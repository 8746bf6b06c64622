"""Where jobs run: on this machine, or on a Ray cluster."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from optim4rl.fields import COUNT, NOT_NEGATIVE, POSITIVE, check_fields
from optim4rl.jobs.cores import count_cores
from optim4rl.jobs.pool import LocalPool, Pool
from optim4rl.jobs.ray_pool import Needs, RayPool

_RAY_ADDRESS = re.compile(r"ray://[^\s/:]+:[0-9]{1,5}")


@dataclass(frozen=True)
class Workers:
    """Where jobs run, and on how many workers.

    Attributes:
        jobs: number of workers, which use about one core each. Default: one for each core, a single
            one if there is a GPU, or as many as a cluster has room for.
        cluster: local: processes on this machine; auto: the Ray cluster at hand; or a Ray cluster
            at ray://HOST:PORT (`pip install optim4rl[ray]`).
        job_cpus: on a cluster, cores of each worker.
        job_gpus: on a cluster, GPUs of each worker: a share of one, or a whole number. With 0 it
            computes on cores, even if its machine has GPUs.
    """

    jobs: int | None = None
    cluster: str = "local"
    job_cpus: float = 1.0
    job_gpus: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, jobs=COUNT, job_cpus=POSITIVE, job_gpus=NOT_NEGATIVE)
        if self.cluster not in ("local", "auto") and not _RAY_ADDRESS.fullmatch(self.cluster):
            raise ValueError(
                f"cluster = {self.cluster!r}: local, auto or ray://HOST:PORT is needed"
            )
        if 1 < self.job_gpus != round(self.job_gpus):
            raise ValueError(
                f"job_gpus = {self.job_gpus!r}: a share from 0 to 1 or a whole number is needed"
            )
        if self.cluster == "local" and (self.job_cpus, self.job_gpus) != (1.0, 0.0):
            raise ValueError(
                f"job_cpus = {self.job_cpus!r}, job_gpus = {self.job_gpus!r}: these are for a "
                "cluster; --cluster local does not use them"
            )


def in_words(workers: Workers) -> str:
    """Return a short text about the workers, such as "2 workers"."""
    count = workers.jobs or (local_workers() if workers.cluster == "local" else None)
    if count is None:
        return f"the cluster {workers.cluster}"
    return f"{count} worker{'s' * (count > 1)}"


def open_pool(folder: Path, workers: Workers) -> Pool:
    """Open the pool of these workers; use it in a `with` block.

    Args:
        folder: where results go.
        workers: where jobs run, and on how many workers.

    Raises:
        ClusterError: there is no such cluster, or Ray is not installed.
    """
    if workers.cluster == "local":
        return LocalPool(folder, workers.jobs or local_workers())
    needs = Needs(workers.job_cpus, workers.job_gpus)
    return RayPool(folder, workers.cluster, workers.jobs, needs)


def local_workers() -> int:
    """Return how many workers a pool on this machine has: a core each, or one if there is a GPU."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    if has_gpu and os.environ.get("JAX_PLATFORMS") != "cpu":
        return 1
    return count_cores()
