"""A real Ray cluster on this machine: the same tables, and nothing lost with workers or drivers."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from optim4rl.benchmark.table import read_runs
from optim4rl.cli import main as cli
from optim4rl.jobs import provenance
from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import JobError
from optim4rl.jobs.pools import Workers, open_pool
from optim4rl.jobs.ray_pool import DEATHS, ClusterError
from optim4rl.optimizers.weights import save_weights, untrained
from optim4rl.study.layout import lay_out
from optim4rl.study.opening import open_given, open_own
from optim4rl.study.runner import run_study
from optim4rl.study.settings import EvaluationSettings, StudySettings, TrainingSettings
from test_readme import blocks

pytestmark = pytest.mark.slow

# Answers questions about themselves: how long to work, and whom to kill. Others are the worker's.
ANSWERS = """
import importlib, json, os, signal, sys, time

def answer(folder, question):
    if question["function"] == "optim4rl.jobs.worker:pretended":
        return pretend(folder, question["arguments"])
    sys.modules.pop("optim4rl.jobs.worker", None)
    return importlib.import_module("optim4rl.jobs.worker").answer(folder, question)

def pretend(folder, question):
    log = os.path.join(question["log"], question["name"])
    with open(log, "a") as file:
        print(os.getpid(), file=file)
    begun = len(open(log).readlines())
    if begun <= question.get("dies", 0):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(question.get("seconds", 0))
    if "raises" in question:
        raise RuntimeError(question["raises"])
    read = [(folder / name).read_text() for name in question.get("reads", [])]
    (folder / "made").mkdir()
    (folder / "made" / question["name"]).write_text(json.dumps([question["name"], *read]))
    return {"done": True}
"""
# What Python runs as it starts: the answers are in the worker's place, but in local workers.
IN_ITS_PLACE = """
import sys
import pretended_answers

if "optim4rl.jobs.worker" not in sys.orig_argv:
    sys.modules["optim4rl.jobs.worker"] = pretended_answers
"""
MACHINES = """
import sys
from ray.cluster_utils import Cluster

port, client = map(int, sys.argv[1:])
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
head = {"gcs_server_port": port, "ray_client_server_port": client, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={**node, **head})
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print("done", flush=True)
for word in sys.stdin:
    match word.strip():
        case "add":
            second = cluster.add_node(**node)
        case "remove":
            cluster.remove_node(second, allow_graceful=False)
        case "end":
            break
    print("done", flush=True)
cluster.shutdown()
"""
# A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start.
DRIVER = """
import json, signal, sys
from pathlib import Path
from optim4rl.jobs.job import Job
from optim4rl.jobs.pools import Workers, open_pool

signal.signal(signal.SIGINT, signal.default_int_handler)
folder, questions = Path(sys.argv[1]), json.loads(sys.argv[2])
made = {path.name for path in folder.glob("made/[!.]*")}
name = "optim4rl.jobs.worker:pretended"
jobs = [Job(name, q, q["name"], q["name"]) for q in questions if q["name"] not in made]
with open_pool(folder, Workers(cluster=sys.argv[3])) as pool:
    said = sys.__stdout__
    print("ready", file=said, flush=True)
    pool.run(jobs, lambda job: print(job.what, file=said, flush=True))
"""


def free_ports(count):
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Machines:
    """Two machines with a core each, as far as Ray can tell; in a process of their own."""

    def __init__(self):
        port, client = free_ports(2)
        self.address, self.client_address = f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
        command = [sys.executable, "-c", MACHINES, str(port), str(client)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, process_group=0, **pipes)
        self._wait()

    def _wait(self):
        while self._process.stdout.readline() != "done\n":
            assert self._process.poll() is None

    def tell(self, word):
        """Add or remove the second machine, or end."""
        print(word, file=self._process.stdin, flush=True)
        self._wait()

    def close(self):
        self._process.communicate("end\n", timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    package = tmp_path_factory.mktemp("package")
    (package / "pretended_answers.py").write_text(ANSWERS)
    (package / "sitecustomize.py").write_text(IN_ITS_PLACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package), prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        machines = Machines()
        patch.setenv("RAY_ADDRESS", machines.address)
        yield machines
        machines.close()


@pytest.fixture
def log(tmp_path):
    """Where jobs write that they have begun, and in which process."""
    path = tmp_path / "log"
    path.mkdir()
    return path


def questions(log, count, **each):
    return [{"name": f"job-{i}", "log": str(log), **each} for i in range(count)]


def as_jobs(asked, files=()):
    name = "optim4rl.jobs.worker:pretended"
    return [Job(name, q, q["name"], q["name"], tuple(files)) for q in asked]


def begun(log, name):
    path = log / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def made(folder):
    """What is finished; a killed driver may leave a part of a file, whose name has a dot first."""
    return {path.name for path in folder.glob("made/[!.]*")}


def wait_until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def run(folder, asked, files=(), **workers):
    said = []
    with open_pool(folder, Workers(**{"cluster": "auto", **workers})) as pool:
        pool.run(as_jobs(asked, files), lambda job: said.append(job.what))
    return said


# Files


@pytest.mark.parametrize("client", [False, True], ids=["auto", "ray://"])
def test_files_go_with_a_job_and_come_back(cluster, client, tmp_path, log):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_text("w")
    address = cluster.client_address if client else "auto"
    asked = questions(log, 6, reads=["weights/a"], seconds=0.7)
    said = run(tmp_path, asked, ["weights/a"], cluster=address)
    assert sorted(said) == [q["name"] for q in asked]
    for i in range(6):
        assert json.loads((tmp_path / "made" / f"job-{i}").read_text()) == [f"job-{i}", "w"]
    # Two workers, which lived as long as the pool.
    assert len({pid for q in asked for pid in begun(log, q["name"])}) == 2


# What is lost


def test_killed_workers_cost_their_jobs_time_only(cluster, tally, tmp_path, log):
    row = tally("workers killed", "kill -9 of workers of a Ray cluster, at their jobs")
    asked = questions(log, 30, seconds=0.5)
    kills, stop = [], threading.Event()

    def kill():
        while not stop.is_set() and len(kills) < 8:
            time.sleep(0.3)
            running = [
                begun(log, q["name"])[-1]
                for q in asked
                if begun(log, q["name"]) and q["name"] not in made(tmp_path)
            ]
            if running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(running), signal.SIGKILL)
                    kills.append(running)

    thread = threading.Thread(target=kill)
    thread.start()
    said = run(tmp_path, asked)
    stop.set()
    thread.join()
    assert sorted(said) == sorted(q["name"] for q in asked)
    again = sum(len(begun(log, q["name"])) for q in asked) - len(asked)
    assert 4 <= again <= len(kills)
    lost = {q["name"] for q in asked} - made(tmp_path)
    row.count("lost result" if lost else "correct", lost, len(kills))
    row.check(4)


def test_a_machine_that_is_lost_costs_its_jobs_time_only(cluster, tmp_path, log):
    asked = questions(log, 8, seconds=1.0)

    def lose():
        wait_until(lambda: len(made(tmp_path)) >= 2)
        cluster.tell("remove")
        wait_until(lambda: len(made(tmp_path)) >= 4)
        cluster.tell("add")

    thread = threading.Thread(target=lose)
    thread.start()
    said = run(tmp_path, asked)
    thread.join()
    assert sorted(said) == sorted(q["name"] for q in asked)
    assert made(tmp_path) == {q["name"] for q in asked}


def test_a_job_that_kills_its_workers_is_named_in_the_end(cluster, tmp_path, log):
    asked = questions(log, 4)
    asked[1] |= {"dies": 99}
    asked[2] |= {"dies": 2}
    with pytest.raises(JobError, match=rf"^job-1 failed: {DEATHS} workers died of it"):
        run(tmp_path, asked)
    assert len(begun(log, "job-1")) == DEATHS
    assert made(tmp_path) == {"job-0", "job-2", "job-3"}
    assert len(begun(log, "job-2")) == 3


def test_a_job_that_raises_is_named_with_its_traceback(cluster, tmp_path, log):
    asked = questions(log, 6, seconds=0.5)
    asked[0] |= {"raises": "no luck", "seconds": 0.0}
    with pytest.raises(JobError, match=r"^job-0 failed; finished results are kept") as error:
        run(tmp_path, asked)
    assert "RuntimeError: no luck" in str(error.value)
    assert "Traceback" in str(error.value)
    started = {q["name"] for q in asked if begun(log, q["name"])}
    assert made(tmp_path) == started - {"job-0"}
    assert len(started) < len(asked)


def test_needs_are_declared_and_those_that_cannot_be_met_are_named(cluster, tmp_path, log):
    with pytest.raises(ClusterError, match=r"^job_cpus = 1, job_gpus = 1: no machine of the clus"):
        run(tmp_path, questions(log, 1), job_gpus=1.0)
    with pytest.raises(ClusterError, match="job_cpus = 2"):
        run(tmp_path, questions(log, 1), job_cpus=2.0)
    asked = questions(log, 12, seconds=1.0)
    run(tmp_path, asked, job_cpus=0.5)
    assert len({pid for q in asked for pid in begun(log, q["name"])}) == 4


def test_no_cluster_is_said_in_one_line(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    for address in ("auto", f"ray://127.0.0.1:{free_ports(1)[0]}"):
        with pytest.raises(ClusterError, match=f"^cluster = '{address}': no Ray cluster") as error:
            run(tmp_path, [], cluster=address)
        assert "\n" not in str(error.value)


# The driver


def start_driver(folder, asked, address="auto"):
    command = [sys.executable, "-c", DRIVER, str(folder), json.dumps(asked), address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("client", [False, True], ids=["auto", "ray://"])
def test_a_killed_driver_leaves_what_is_finished_and_the_next_goes_on(
    cluster, client, tally, tmp_path, log
):
    asked = questions(log, 10, seconds=0.4)
    address = cluster.client_address if client else "auto"
    how = "through its client port" if client else "at hand"
    row = tally("commands killed", f"kill -9 of the command of a Ray cluster {how}")
    driver = start_driver(tmp_path, asked, address)
    wait_until(lambda: len(made(tmp_path)) >= 3)
    driver.kill()
    driver.communicate()
    finished = made(tmp_path)
    assert 3 <= len(finished) < len(asked)
    before = {q["name"]: len(begun(log, q["name"])) for q in asked}
    out, err = start_driver(tmp_path, asked, address).communicate(timeout=120)
    assert set(out.split()) == {"ready"} | made(tmp_path) - finished
    for name in finished:
        assert len(begun(log, name)) == before[name] == 1
    row.count("correct" if made(tmp_path) == {q["name"] for q in asked} else "lost result", err)
    row.check(1)


def test_ctrl_c_ends_the_workers(cluster, tmp_path, log):
    asked = questions(log, 4, seconds=60)
    driver = start_driver(tmp_path, asked)
    wait_until(lambda: begun(log, "job-0") and begun(log, "job-1"))
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=30)
    assert err.rstrip().endswith("KeyboardInterrupt")
    pids = [*begun(log, "job-0"), *begun(log, "job-1")]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert made(tmp_path) == set()


# Many jobs


def test_a_job_costs_the_same_among_thousands(cluster, tmp_path, log):
    seconds = {}
    for count in (500, 5_000):
        asked = questions(log, count)
        started = time.perf_counter()
        run(tmp_path / str(count), asked)
        seconds[count] = (time.perf_counter() - started) / count
    print("milliseconds a job:", {n: round(1000 * x, 2) for n, x in seconds.items()})
    assert seconds[5_000] < 1.5 * seconds[500]


# A study

PLAN = b"""# A small study

- **Ablated Part**: Pipeline training
- **Action**: REPLACE
- **Replacement**: Synchronous resets
- **Metrics**: Return
"""
TINY = StudySettings(
    meta_seeds=2,
    identity="smoke",
    training=TrainingSettings(
        width=8, agents=2, envs_per_agent=2, iterations=3, inner_updates=2, reset_interval=2
    ),
    evaluation=EvaluationSettings(
        width=8,
        num_envs=4,
        updates=6,
        seeds=2,
        tuning_seeds=1,
        classical_rates=(1e-3, 1e-2),
        stress_scales=(2.0,),
        stress_updates=4,
        stress_seeds=2,
    ),
)
SUITE = (
    "--only catch --baselines adam --no-controls --rates 1e-2 1e-1 --step-scales 1 3 --seeds 2 "
    "--tuning-seeds 1 --stress-scales 1 --stress-seeds 1 --rollouts 3 --num-envs 2"
)


def table(folder):
    """The table of a folder's runs as bytes, without the seconds that they took."""
    buffer = io.BytesIO()
    read_runs(folder / "runs.parquet").drop("seconds").write_parquet(buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def workers_killed():
    """Kill a worker of the cluster at its job, now and then; yields those that were killed."""
    kills, stop = [], threading.Event()

    def kill():
        while not stop.wait(random.uniform(1.0, 4.0)) and len(kills) < DEATHS - 1:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if path.read_bytes().startswith(b"ray::_Actor.do"):
                        os.kill(int(path.parent.name), signal.SIGKILL)
                        kills.append(path)
                        break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def _quick_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.mark.usefixtures("_quick_programs")
def test_a_study_gives_the_same_tables_bit_for_bit(cluster, tally, tmp_path):
    """In processes of this machine, on the cluster, and on the cluster with workers killed."""
    row = tally("workers killed", "kill -9 of workers of a Ray cluster, under a study")
    study = lay_out(PLAN, open_own("tiny", TINY))

    def run(name, address):
        results = run_study(study, tmp_path / name, command="", workers=Workers(2, address))
        jobs = sorted(path.name for path in (tmp_path / name / "jobs").iterdir())
        curves = [np.asarray(x.returns) for found in results.rows for x in found.curves]
        return table(tmp_path / name), jobs, [x.tobytes() for x in curves]

    here = run("here", "local")
    assert run("client", cluster.client_address) == here
    with workers_killed() as kills:
        on_ray = run("ray", "auto")
    row.count("correct" if on_ray == here else "wrong result", times=len(kills))
    row.check(1)


@pytest.mark.usefixtures("cluster")
def test_a_method_of_ones_own_gives_the_same_table_bit_for_bit(tmp_path):
    """The file goes to the workers, and so do the modules beside it and what was trained."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "own-method.md"
    plan, *_ = blocks(page.read_text("utf-8"), "text")
    file = tmp_path / "method.py"
    (tmp_path / "beside.py").write_text("from torch import ones\n")
    file.write_text(TRAINED_METHOD)
    study = lay_out(plan.encode(), open_given(f"{file}:experiment"))
    for name, address in (("here", "local"), ("ray", "auto")):
        run_study(study, tmp_path / name, command="", workers=Workers(2, address))
    assert table(tmp_path / "here") == table(tmp_path / "ray")


TRAINED_METHOD = """
from dataclasses import dataclass
from beside import ones
from optim4rl.study import Choice, Component, Experiment, Metric

@dataclass(frozen=True)
class Settings:
    norm: bool = True
    optimizer: str = "adam"

def train(settings, meta_seed):
    return {"weights": ones(3) * meta_seed}

def run(settings, seed, artefact):
    return {"loss": artefact["weights"] + seed + 10 * (not settings.norm)}

experiment = Experiment(
    name="trained", reference=Settings(), run=run, train=train, meta_seeds=2, seeds=3,
    metrics=(Metric("loss", ("loss",), better="lower"),),
    components=(
        Component("norm", ("layer normalization",), (Choice(True, ("norm",)),
            Choice(False, ("no norm",))), remove=False),
        Component("optimizer", ("optimizer",), (Choice("adam", ("adam",)),
            Choice("sgd", ("sgd",)))),
    ),
)
"""


@pytest.mark.usefixtures("_quick_programs")
def test_a_suite_gives_the_same_table_bit_for_bit(cluster, tmp_path, monkeypatch):
    """Classical runs, and learned ones, whose weights go with them."""
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    weights = tmp_path / "rule.safetensors"
    save_weights(weights, untrained("optim4rl-rlc", 3e-3, jax.random.key(1)))
    words = f"evaluate {weights} --suite grid {SUITE} --jobs 2 --json"
    tables = {}
    for address in ("local", "auto"):
        out = tmp_path / address
        cli.main([*words.split(), "--cluster", address, "--out", str(out)])
        tables[address] = table(out)
    assert tables["local"] == tables["auto"]


def test_other_code_on_the_cluster_is_refused(cluster, tmp_path, monkeypatch):
    """And so is another version of a package that can change a number."""
    versions = provenance.package_versions() | {"optax": "another"}
    monkeypatch.setattr("optim4rl.jobs.job.package_versions", lambda: versions)
    study = lay_out(PLAN, open_own("tiny", dataclasses.replace(TINY, meta_seeds=1)))
    with pytest.raises(JobError, match="another version of optim4rl or of a package"):
        run_study(study, tmp_path, command="", workers=Workers(1, "auto"))
