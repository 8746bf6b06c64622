"""Who does the jobs: what an address names, which job a worker is given, what lost workers cost."""

import os
import signal
import sys
import threading
import time
from collections import deque

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.jobs import ray_pool
from optim4rl.jobs.cores import count_cores
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.pool import JobError, JobQueue, LocalPool, Stages
from optim4rl.jobs.pools import Workers, local_workers, open_pool
from optim4rl.jobs.ray_pool import DEATHS, ClusterError, Needs, RayPool, worker_environment
from optim4rl.jobs.store import put_result
from pretended import PretendedPool, put_worker


def jobs_of(programs):
    return [
        Job("optim4rl.fields:to_json", {"name": f"job-{i}"}, f"job {i}", program)
        for i, program in enumerate(programs)
    ]


# Which job a worker is given


@given(st.lists(st.integers(0, 4)), st.data())
@settings(max_examples=100, deadline=None)
def test_every_job_is_given_once_and_programs_are_used_again(programs, data):
    jobs, queue, had = jobs_of(programs), JobQueue(), {}
    queue.put(jobs[::2])
    left, added, given_out = list(jobs[::2]), False, []
    while left or not added:
        if not added and (not left or data.draw(st.booleans())):
            queue.put(jobs[1::2])
            left, added = left + jobs[1::2], True
            continue
        worker = data.draw(st.integers(0, 2))
        job = queue.take(worker)
        waiting = {x.program for x in left}
        mine, taken = had.setdefault(worker, set()), set().union(*had.values())
        if mine & waiting:
            assert job.program in mine
        elif waiting - taken:
            assert job.program in waiting - taken
        # Of one program, the first comes first.
        assert job is next(x for x in left if x.program == job.program)
        mine.add(job.program)
        left.remove(job)
        given_out.append(job)
        assert len(queue) == len(left)
    assert queue.take(0) is None
    assert len(given_out) == len(jobs)


def test_a_job_that_is_put_back_comes_first():
    queue, (first, second) = JobQueue(), jobs_of("aa")
    queue.put([first, second])
    assert queue.take(0) is first is not None
    queue.put_back(first)
    assert [queue.take(1), queue.take(1), queue.take(1)] == [first, second, None]


def test_jobs_can_be_forgotten():
    queue = JobQueue()
    queue.put(jobs_of("ab"))
    queue.clear()
    assert (len(queue), queue.take(0)) == (0, None)


def test_a_stop_waits_for_the_threads_before_it_closes_their_files(monkeypatch, tmp_path):
    """A thread that is slow to notice that its worker was killed still finds the worker's log."""
    found, asked = [], threading.Event()

    def ask(worker, job):
        asked.set()
        worker.process.wait()
        time.sleep(0.3)
        found.append(worker.log.seek(0))
        return "killed"

    def stop(number, frame):
        raise InterruptedError("stopped")

    def run():
        with LocalPool(tmp_path, 1) as pool:
            pool.run(jobs_of("a"))

    def signal_when_asked():
        asked.wait()
        time.sleep(0.1)  # Then the main thread waits for the others.
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("optim4rl.jobs.pool._ask", ask)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Thread(target=signal_when_asked).start()
        with pytest.raises(InterruptedError, match="stopped"):
            run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert found == [0]


# Which jobs are done


def test_a_job_is_done_once_whoever_asks(tmp_path):
    """And counts as done where its result is there already."""
    first, second, third = jobs_of("abc")
    put_result(tmp_path, first, Result({}, {}))
    pool, said = PretendedPool().open(tmp_path, None), []
    jobs = [first, second, third, jobs_of("xy")[1]]
    Stages(pool, tmp_path, update=lambda *x, **_: said.append(x)).run(jobs)
    assert pool.ran == [jobs[3], third]  # of two that are one, the last
    assert said == [(1, 3, ""), (2, 3, "job 1"), (3, 3, "job 2")]


def test_stages_count_over_all_of_them(tmp_path):
    pool, said = PretendedPool().open(tmp_path, None), []
    a, b, c, d = jobs_of("abcd")
    stages = Stages(pool, tmp_path, jobs_of("abcde"), lambda *x, **_: said.append(x))
    stages.run([a, b])
    stages.run([])
    stages.run([b, c, d, d], last=True)
    assert said == [
        *((0, 5, ""), (1, 5, "job 0"), (2, 5, "job 1")),
        (2, 5, ""),
        # The last stage knows how many there were.
        *((2, 4, ""), (3, 4, "job 2"), (4, 4, "job 3")),
    ]
    assert [job.what for job in pool.ran] == ["job 0", "job 1", "job 2", "job 3"]


def test_jobs_that_were_finished_before_count_from_the_start(tmp_path):
    """In whichever stage they come: neither the count of what is left nor the time has them."""
    a, b, c, d, e = jobs_of("abcde")
    for job in (a, c, d):
        put_result(tmp_path, job, Result({}, {}))
    pool, said = PretendedPool().open(tmp_path, None), []
    stages = Stages(
        pool, tmp_path, [a, b, c, d, e], lambda *x, left: said.append((*x[:2], left and left > 0))
    )
    stages.run([a, b])
    stages.run([c, d, e], last=True)
    assert said == [
        *((3, 5, None), (4, 5, True)),
        *((4, 5, True), (5, 5, 0.0)),
    ]
    assert [job.what for job in pool.ran] == ["job 1", "job 4"]


def test_more_jobs_than_were_foreseen_are_counted(tmp_path):
    pool, said = PretendedPool().open(tmp_path, None), []
    Stages(pool, tmp_path, jobs_of("a"), lambda *x, **_: said.append(x)).run(jobs_of("abc"))
    assert said[-1] == (3, 3, "job 2")


# What an address names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "^jobs = 0: a whole number of at least 1 or None is needed"),
        ({"cluster": "slurm"}, "^cluster = 'slurm': local, auto or ray://HOST:PORT"),
        ({"cluster": "ray://head"}, "^cluster = 'ray://head'"),
        ({"cluster": "auto", "job_cpus": 0.0}, "^job_cpus = 0.0: a positive"),
        ({"cluster": "auto", "job_cpus": float("nan")}, "^job_cpus = nan"),
        ({"cluster": "auto", "job_gpus": -1.0}, "^job_gpus = -1.0"),
        ({"cluster": "auto", "job_gpus": 1.5}, "^job_gpus = 1.5: a share from 0 to 1 or a whole"),
        ({"job_gpus": 1.0}, "^job_cpus = 1.0, job_gpus = 1.0: these are for a cluster"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Workers(**options)


def test_an_address_names_a_pool(tmp_path, monkeypatch):
    assert isinstance(open_pool(tmp_path, Workers()), LocalPool)
    monkeypatch.setattr(ray_pool, "_import_ray", lambda: None)
    for address in ("auto", "ray://head:10001"):
        assert isinstance(open_pool(tmp_path, Workers(cluster=address)), RayPool)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r"^cluster: Ray is not installed \(ray\): pip install 'optim4rl\[ray\]'"
    with pytest.raises(ClusterError, match=message) as error:
        open_pool(tmp_path, Workers(cluster="auto"))
    assert isinstance(error.value, ValueError)  # so that the command says it and exits with 2


# What a worker is told


def test_a_worker_without_a_gpu_computes_on_cores(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    told = worker_environment(Needs())
    assert told["JAX_PLATFORMS"] == "cpu"
    assert told["XLA_FLAGS"] == "--xla_a=1 --xla_cpu_multi_thread_eigen=false"
    assert told["JAX_ENABLE_X64"] == "0"
    assert worker_environment(Needs(gpus=1.0))["JAX_PLATFORMS"] == "cuda"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    told = worker_environment(Needs(gpus=0.5))
    assert (told["JAX_PLATFORMS"], told["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == ("", "0.375")


# What happens to jobs, with a stand-in for Ray that runs them here, one after the other


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class PreemptedError(RayError):
    preempted = True


class StandIn:
    """As much of Ray as the pool uses. `answers` maps a job's name to what becomes of it."""

    class exceptions:  # noqa: N801
        RayError, RayTaskError = RayError, RayTaskError

    def __init__(self, answers=None, cores=2.0):
        self.answers, self.cores, self.asked, self.killed = answers or {}, cores, [], []

    def is_initialized(self):
        return True

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": self.cores}},
            {"Alive": False, "Resources": {"CPU": 64.0}},
        ]

    def remote(self, **needs):
        assert needs == {"num_cpus": 1.0, "num_gpus": 0.0, "max_restarts": 0}
        return lambda actor: Call(lambda: Actor(self))

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        found = reference()
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor):
        self.killed.append(actor)


class Call:
    def __init__(self, function):
        self.remote = function


class Actor:
    def __init__(self, ray):
        self.start = Call(lambda environment: lambda: ray.answers.get("start"))
        self.do = Call(lambda question, files: lambda: self.answer(ray, question))

    @staticmethod
    def answer(ray, question):
        name = question["arguments"]["name"]
        assert question["address"] == Job(question["function"], {"name": name}).address
        ray.asked.append(name)
        found = ray.answers.get(name, {"files": {f"made/{name}": name.encode()}})
        return found.popleft() if isinstance(found, deque) else found


def run(monkeypatch, folder, ray, programs="abc", **options):
    monkeypatch.setattr(ray_pool, "_import_ray", lambda: ray)
    said = []
    with RayPool(folder, "auto", options.pop("workers", None), Needs()) as pool:
        pool.run(jobs_of(programs), lambda job: said.append(job.what))
    return said


def made(folder):
    return {path.name: path.read_bytes() for path in folder.glob("made/*")}


def test_what_jobs_make_is_written_here_once(monkeypatch, tmp_path, capsys):
    ray = StandIn()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "job-1").write_bytes(b"there already")
    said = run(monkeypatch, tmp_path, ray)
    assert sorted(said) == ["job 0", "job 1", "job 2"]
    assert made(tmp_path) == {"job-0": b"job-0", "job-1": b"there already", "job-2": b"job-2"}
    assert len(ray.killed) == 2  # as many workers as there is room for
    assert capsys.readouterr().err == (
        "cluster auto: machines: 1, cores: 2, GPUs: 0, room for workers: 2\n"
    )


def test_a_lost_worker_costs_its_jobs_time_only(monkeypatch, tmp_path, capsys):
    good = {"files": {"made/job-1": b"at last"}}
    ray = StandIn(
        {"job-1": deque([RayError("killed")] * (DEATHS - 1) + [PreemptedError()] * 9 + [good])}
    )
    assert len(run(monkeypatch, tmp_path, ray)) == 3
    assert ray.asked.count("job-1") == DEATHS - 1 + 9 + 1
    assert made(tmp_path).keys() == {"job-0", "job-1", "job-2"}
    assert "job 1: its worker was lost; once more" in capsys.readouterr().err


def test_a_job_that_loses_many_workers_is_named(monkeypatch, tmp_path):
    ray = StandIn({"job-1": RayError("out of memory")})
    with pytest.raises(JobError, match=rf"^job 1 failed: {DEATHS} workers died of it") as error:
        run(monkeypatch, tmp_path, ray)
    assert "out of memory" in str(error.value)
    assert ray.asked.count("job-1") == DEATHS


def test_what_a_job_has_lost_is_forgotten_when_it_is_done(monkeypatch, tmp_path):
    good = {"files": {"made/job-0": b"done"}}
    ray = StandIn({"job-0": deque(2 * [*[RayError("killed")] * (DEATHS - 1), good])})
    monkeypatch.setattr(ray_pool, "_import_ray", lambda: ray)
    jobs = jobs_of("a")
    with RayPool(tmp_path, "auto", None, Needs()) as pool:
        pool.run(jobs)
        pool.run(jobs)
    assert len(ray.asked) == 2 * DEATHS


@pytest.mark.parametrize("answer", [{"error": "Traceback: no"}, RayTaskError("Traceback: no")])
def test_a_job_that_fails_is_named_and_what_had_begun_is_kept(monkeypatch, tmp_path, answer):
    ray = StandIn({"job-0": answer})
    with pytest.raises(JobError, match=r"^job 0 failed; finished results are kept") as error:
        run(monkeypatch, tmp_path, ray, "aabb", workers=2)
    assert "Traceback: no" in str(error.value)
    assert ray.asked[0] == "job-0"
    assert len(ray.asked) == 1 + len(made(tmp_path))
    assert len(ray.asked) < 4


def test_workers_that_cannot_start_are_not_asked_for_for_ever(monkeypatch, tmp_path):
    with pytest.raises(JobError, match="workers died as they started"):
        run(monkeypatch, tmp_path, StandIn({"start": RayError("No module named 'optim4rl'")}))
    with pytest.raises(JobError, match=r"a worker cannot start(?s:.*)No module named 'jax'"):
        run(monkeypatch, tmp_path, StandIn({"start": RayTaskError("No module named 'jax'")}))


def test_it_is_said_once_that_there_is_no_room(monkeypatch, tmp_path, capsys):
    ray, looks = StandIn(), iter([[], [], []])
    monkeypatch.setattr(ray, "wait", lambda x, **_: (next(looks, x[:1]), x))
    assert len(run(monkeypatch, tmp_path, ray)) == 3
    assert capsys.readouterr().err.count("waiting for the cluster to have room") == 1


def test_a_worker_writes_nowhere_else(monkeypatch, tmp_path):
    for name in ("../up", "/etc/passwd", "made/../../up"):
        ray = StandIn({"job-0": {"files": {name: b""}}})
        with pytest.raises(JobError, match="outside its folder"):
            run(monkeypatch, tmp_path / "folder", ray)
    assert list(tmp_path.iterdir()) == []


def test_needs_that_no_machine_meets_are_named(monkeypatch, tmp_path):
    with pytest.raises(ClusterError, match=r"^job_cpus = 1, job_gpus = 0: no machine"):
        run(monkeypatch, tmp_path, StandIn(cores=0.5))
    # A number that is asked for makes a cluster grow.
    assert len(run(monkeypatch, tmp_path, StandIn(cores=0.5), workers=3)) == 3


def test_shares_of_a_machine_are_counted_right():
    assert ray_pool._room({"CPU": 1.0}, Needs(0.2)) == 5
    assert ray_pool._room({"CPU": 0.9}, Needs(0.2)) == 4


def test_where_all_machines_are_lost_it_waits_for_new_ones(monkeypatch, tmp_path):
    ray = StandIn({"job-0": deque([RayError("lost"), {"files": {}}])}, cores=1.0)
    machines, slept = ray.nodes(), []

    def sleep(seconds):
        slept.append(seconds)
        monkeypatch.setattr(ray, "nodes", lambda: machines)

    def wait(references, **options):
        assert references
        return StandIn.wait(ray, references, **options)

    monkeypatch.setattr(ray_pool, "_import_ray", lambda: ray)
    monkeypatch.setattr(ray_pool, "_LOOK_AROUND", 0.0)
    monkeypatch.setattr(ray_pool.time, "sleep", sleep)
    monkeypatch.setattr(ray, "wait", wait)
    with RayPool(tmp_path, "auto", None, Needs()) as pool:
        pool.run(jobs_of("ab")[1:])
        monkeypatch.setattr(ray, "nodes", list)
        pool.run(jobs_of("a"))
    assert slept == [1]


def test_a_pool_of_this_machine_has_the_cores_that_it_may_use(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7}, raising=False)
    assert local_workers() == count_cores() == 2


# Thousands of jobs

ECHO = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"done": True}), flush=True)
"""


def seconds_a_job(folder, count, programs):
    jobs = jobs_of(i % programs for i in range(count))
    with LocalPool(folder, 2) as pool:
        pool.run(jobs[:100])
        started = time.perf_counter()
        pool.run(jobs)
        return (time.perf_counter() - started) / count


def test_a_job_costs_the_same_among_thousands(monkeypatch, tmp_path):
    """One in 5,000, of as many programs, against one in 500."""
    monkeypatch.setenv("PYTHONPATH", put_worker(tmp_path, ECHO))
    few, many = (min(seconds_a_job(tmp_path, n, n) for _ in range(2)) for n in (500, 5_000))
    assert many < 3 * few + 1e-4
