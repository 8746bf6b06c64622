"""Workers on the machines of a Ray cluster.

No file system is shared. A job carries the files that it reads; the files that it makes come back
as bytes, and this process writes each of them once. Workers are actors, not tasks, and live as long
as the pool, so each worker uses its compiled programs again (`JobQueue`). A worker gets jobs only
after it has started, so that no job waits for a machine that may never come. Only JSON values and
bytes cross the network.
"""

import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_file
from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import JobError, JobQueue, OnJob, raise_failure, worker_flags

# A lost worker or machine costs the time of its job. A job that loses this many is at fault.
DEATHS = 5
# Seconds between two counts of the workers that the cluster has room for.
_LOOK_AROUND = 10.0
# Seconds that a cluster may take to answer.
_PATIENCE = 10.0
_CACHE = "JAX_COMPILATION_CACHE_DIR"


class ClusterError(ValueError):
    """Error of a cluster that cannot be used; the message says why."""


@dataclass(frozen=True)
class Needs:
    """The cores and GPUs of each worker."""

    cpus: float = 1.0
    gpus: float = 0.0


class RayPool:
    """Workers on a Ray cluster, as a `Pool`.

    Args:
        folder: where results go, and where jobs read files.
        address: "auto", or ray://HOST:PORT. An open connection of this process is used as it is.
        workers: number of workers; None for as many as the cluster has room for at any time. A
            cluster that grows on demand grows to a given number.
        needs: cores and GPUs of each worker.
    """

    def __init__(self, folder: Path, address: str, workers: int | None, needs: Needs) -> None:
        self._ray = _import_ray()
        self._folder, self._address = folder, address
        self._size, self._needs = workers, needs
        self._queue = JobQueue()
        self._hired = 0
        self._starting: dict[Any, _Member] = {}
        self._idle: list[_Member] = []
        self._busy: dict[Any, tuple[_Member, Job]] = {}
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._told = False  # whether we have said that there is no room
        self._room, self._looked = 0, -_LOOK_AROUND
        self._open = ExitStack()

    def __enter__(self) -> "RayPool":
        # Ray prints reports about its workers to standard output, which is for results.
        self._open.enter_context(redirect_stdout(sys.stderr))
        try:
            if not self._ray.is_initialized():
                _connect(self._ray, self._address)
                self._open.callback(self._ray.shutdown)
            nodes = self._look_around()
        except BaseException:
            self._open.close()
            raise
        cores, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
        print(
            f"cluster {self._address}: machines: {len(nodes)}, cores: {cores:g}, GPUs: {gpus:g}, "
            f"room for workers: {self._room}",
            file=sys.stderr,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        members = [*self._starting.values(), *self._idle, *(who for who, _ in self._busy.values())]
        with self._open:
            for member in members:
                self._ray.kill(member.actor)

    @property
    def size(self) -> int:
        """Return the number of jobs that can run at once: as asked, or the cluster's room."""
        return self._room if self._size is None else self._size

    def run(self, jobs: Sequence[Job], on_job: OnJob = lambda job: None) -> None:
        """Run every job; run the jobs of lost workers again.

        Raises:
            JobError: a job failed, or lost `DEATHS` workers, or no worker can start. Jobs that
                other workers had begun are finished and kept.
        """
        self._queue.put(jobs)
        self._deaths.clear()
        failures: list[tuple[Job, str]] = []
        while self._queue or self._busy:
            self._hire()
            self._give_out()
            for job, answer in self._await():
                error = answer.get("error")
                if error:
                    failures.append((job, error))
                    self._queue.clear()
                else:
                    self._keep(answer["files"])
                    on_job(job)
        if failures:
            raise_failure(*failures[0])

    def _hire(self) -> None:
        """Ask for as many workers as there are jobs and room."""
        if self._size is None and time.monotonic() > self._looked + _LOOK_AROUND:
            self._look_around()
        there = len(self._idle) + len(self._busy)
        while len(self._starting) + there < min(self.size, len(self._queue) + len(self._busy)):
            actor = self._ray.remote(
                num_cpus=self._needs.cpus, num_gpus=self._needs.gpus, max_restarts=0
            )(_Actor).remote()
            member = _Member(self._hired, actor)
            self._hired += 1
            started = actor.start.remote(worker_environment(self._needs))
            self._starting[started] = member

    def _give_out(self) -> None:
        while self._queue and self._idle:
            member = self._idle.pop()
            job = self._queue.take(member.number)
            assert job is not None
            files = {name: read_file(self._folder / name) for name in job.files}
            question = job.question | {"address": job.address}
            self._busy[member.actor.do.remote(question, files)] = member, job

    def _await(self) -> Iterator[tuple[Job, Mapping[str, Any]]]:
        """Yield the finished jobs; wait for a job, or until it is time to check the room."""
        waiting, ready = [*self._busy, *self._starting], list[Any]()
        if waiting:
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=_LOOK_AROUND)
        else:  # All machines are lost.
            time.sleep(1)
        if not (ready or self._busy or self._told):
            self._told = True
            print("waiting for the cluster to have room for a worker", file=sys.stderr)
        for reference in ready:
            if reference in self._starting:
                self._welcome(self._starting.pop(reference), reference)
                continue
            member, job = self._busy.pop(reference)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                answer = {"error": str(error)}
            except self._ray.exceptions.RayError as error:
                self._ray.kill(member.actor)
                self._mourn(job, error)
                continue
            self._idle.append(member)
            yield job, answer

    def _welcome(self, member: "_Member", reference: Any) -> None:
        """Give a new worker a job, if it has started.

        Raises:
            JobError: too many workers could not start, or a worker's start raised an error.
        """
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._give_up(f"a worker cannot start; finished results are kept.\n{error}")
        except self._ray.exceptions.RayError as error:
            self._ray.kill(member.actor)
            self._failed_starts += 1
            if self._failed_starts >= DEATHS:
                self._give_up(f"{DEATHS} workers died as they started.\n{error}")
        else:
            self._failed_starts = 0
            self._idle.append(member)

    def _mourn(self, job: Job, error: Exception) -> None:
        """Run the job of a lost worker again.

        Raises:
            JobError: this job has lost too many workers.
        """
        if not getattr(error, "preempted", False):
            self._deaths[id(job)] += 1
        if self._deaths[id(job)] >= DEATHS:
            self._give_up(
                f"{job.what} failed: {DEATHS} workers died of it; finished results are kept.\n"
                f"{error}"
            )
        print(f"{job.what}: its worker was lost; once more", file=sys.stderr)
        self._queue.put_back(job)

    def _give_up(self, why: str) -> NoReturn:
        self._queue.clear()
        raise JobError(why)

    def _keep(self, files: Mapping[str, bytes]) -> None:
        """Write the files that a job has made, unless they exist."""
        for name, data in files.items():
            path = self._folder / _inside(name)
            if not path.is_file():
                write_atomically(path, data)

    def _look_around(self) -> list[Mapping[str, float]]:
        """Return the machines, and count how many workers they have room for.

        Raises:
            ClusterError: no machine has room for a worker, and no number of workers was given.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._room = sum(_room(node, self._needs) for node in nodes)
        self._looked = time.monotonic()
        if not self._room and self._size is None and not self._hired:
            raise ClusterError(
                f"job_cpus = {self._needs.cpus:g}, job_gpus = {self._needs.gpus:g}: no machine of "
                f"the cluster {self._address!r} has as much; if it grows on demand, give --jobs N"
            )
        return nodes


@dataclass(frozen=True)
class _Member:
    """A worker of the pool."""

    number: int
    actor: Any


class _Actor:
    """The actor that runs on the cluster."""

    def start(self, environment: Mapping[str, str]) -> None:
        """Set the environment, which JAX reads when it is imported."""
        os.environ.update(environment)
        os.environ.pop(_CACHE, None)
        if cache := _writable(environment.get(_CACHE)):
            os.environ[_CACHE] = cache
        self._answer = importlib.import_module("optim4rl.jobs.worker").answer

    def do(self, question: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
        """Run a job in its own folder, and return {"files": made} or {"error": text}."""
        with tempfile.TemporaryDirectory(prefix="optim4rl-") as name:
            folder = Path(name)
            for path, data in files.items():
                write_atomically(folder / path, data)
            try:
                answer = self._answer(folder, question)
            except Exception:
                return {"error": traceback.format_exc()}
            if "error" in answer:
                return {"error": answer["error"]}
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            made = {path.relative_to(folder).as_posix(): read_file(path) for path in paths}
            return {"files": {path: data for path, data in made.items() if path not in files}}


def worker_environment(needs: Needs) -> dict[str, str]:
    """Return the variables that decide a worker's results, as in this process, and its device."""
    found = {name: x for name, x in os.environ.items() if name.startswith("JAX_")}
    found["XLA_FLAGS"] = worker_flags()
    # Otherwise JAX may find a GPU that was not given to this worker.
    here = found.get("JAX_PLATFORMS", "")
    found["JAX_PLATFORMS"] = "cpu" if not needs.gpus else "" if here == "cpu" else here
    if 0 < needs.gpus < 1:
        # This worker's share of the memory that JAX would take on a whole GPU.
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * needs.gpus:.3f}"
    return found


def _writable(cache: str | None) -> str | None:
    """Return a writable folder for compiled programs: `cache`, or one in this user's cache."""
    own = Path.home() / ".cache" / "optim4rl" / "xla"
    for folder in (Path(cache or own), own):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return None


def _room(resources: Mapping[str, float], needs: Needs) -> int:
    """Return how many workers a machine has room for."""
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus}
    return int(min(resources.get(name, 0.0) / x + 1e-9 for name, x in wanted.items() if x))


def _inside(name: str) -> PurePosixPath:
    """Return the path if it leads into the folder; refuse any other path."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise JobError(f"a worker returned the file {name!r}, which is outside its folder")
    return path


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"cluster: Ray is not installed ({error.name}): pip install 'optim4rl[ray]'; "
            "--cluster local needs none"
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster.

    Raises:
        ClusterError: there is no such cluster.
    """
    try:
        _knock(address)
        with _own_signals(), warnings.catch_warnings():
            # A warning that does not matter: each worker is told its device.
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            # Do not show the workers' output: the command shows the progress.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ClusterError(
            f"cluster = {address!r}: no Ray cluster can be reached there ({reason}); "
            "`ray start --head` starts one, --cluster local needs none"
        ) from error


def _knock(address: str) -> None:
    """Check that the cluster answers: Ray itself would wait for minutes and ignore Ctrl-C.

    Raises:
        OSError: the cluster does not answer.
    """
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
