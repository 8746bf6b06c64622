"""Where jobs run: on this machine, or on a Ray cluster."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from optim4rl.fields import COUNT, NOT_NEGATIVE, POSITIVE, check_fields
from optim4rl.jobs.pool import LocalPool, Pool
from optim4rl.jobs.ray_pool import Needs, RayPool

_RAY_ADDRESS = re.compile(r"ray://[^\s/:]+:[0-9]{1,5}")


@dataclass(frozen=True)
class Workers:
    """Who does the jobs.

    Attributes:
        jobs: workers, each of which uses about one core; by default as many as there are cores, one
            where there is a GPU, or as many as a cluster has room for.
        cluster: local: processes of this machine; auto: the Ray cluster at hand; or that at
            ray://HOST:PORT (`pip install optim4rl[ray]`).
        job_cpus: on a cluster, the cores that each worker is given.
        job_gpus: on a cluster, the GPUs that each worker is given: a share of one, or a whole
            number; with 0 it computes on cores, whatever the machine has.
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
                "cluster; --cluster local shares out nothing"
            )


def open_pool(folder: Path, workers: Workers) -> Pool:
    """The pool that the address names; to be used in a `with` block.

    Args:
        folder: where results go.
        workers: who does the jobs.

    Raises:
        ClusterError: there is no such cluster, or Ray is not installed.
    """
    if workers.cluster == "local":
        return LocalPool(folder, workers.jobs or _local_workers())
    needs = Needs(workers.job_cpus, workers.job_gpus)
    return RayPool(folder, workers.cluster, workers.jobs, needs)


def _local_workers() -> int:
    """As many as there are cores; a GPU takes one."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    if has_gpu and os.environ.get("JAX_PLATFORMS") != "cpu":
        return 1
    return os.cpu_count() or 1
