"""Several processes as one run: they agree with one process, write once, and go on as one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optim4rl.cli.processes import ProcessOptions, membership
from optim4rl.optimizers.weights import load_weights

TINY = [
    "--optimizer=optim4rl-rlc",
    "--width=4",
    "--envs-per-agent=2",
    "--agents=4",
    "--inner-updates=2",
    "--reset-interval=3",
    "--meta-learning-rate=0.01",
    "--chunk=2",
    "--json",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start():
    """Start processes of their own, each with so many simulated devices; none outlives the test."""
    with contextlib.ExitStack() as stack:

        def start(*options, devices=1, **variables):
            flags = f"--xla_force_host_platform_device_count={devices}"
            flags += " --xla_backend_optimization_level=0"
            process = subprocess.Popen(
                [sys.executable, "-m", "optim4rl", "train", *TINY, *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"XLA_FLAGS": flags} | variables,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def weights(folder):
    networks = load_weights(folder / "weights.safetensors").meta_parameters
    return np.concatenate([np.ravel(x) for w in networks.values() for x in w.values()])


@pytest.mark.slow
def test_two_processes_are_one_run_and_one_process_goes_on_with_it(tmp_path, start):
    """Two processes with two devices each do the first two iterations; one with two goes on.

    The process that runs all four iterations alone, on one device, is what they are held to.
    """
    address = f"127.0.0.1:{free_port()}"
    alone = start(f"--out={tmp_path / 'alone'}", "--iterations=4")
    by_hand = (f"--coordinator={address}", "--num-processes=2", "--process-id=0")
    in_a_job = {
        "JAX_COORDINATOR_ADDRESS": address,
        "OPTIM4RL_NUM_PROCESSES": "2",
        "JOB_COMPLETION_INDEX": "1",
    }
    shared = (f"--out={tmp_path / 'two'}", "--iterations=2")
    first = start(*shared, *by_hand, devices=2)
    second = start(*shared, "--distributed", devices=2, **in_a_job)
    # The collectives' library has its own lines to say before.
    assert json.loads(finish(first).splitlines()[-1])["iterations"] == 2
    assert "iterations" not in finish(second)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "SHA256SUMS",
        "checkpoint.safetensors",
        "progress.csv",
        "progress.parquet",
        "progress.svg",
        "settings.json",
        "weights.safetensors",
    ]
    finish(start(f"--out={tmp_path / 'two'}", "--iterations=4", "--resume", devices=2))
    finish(alone)
    expected = weights(tmp_path / "alone")
    np.testing.assert_allclose(weights(tmp_path / "two"), expected, rtol=1e-4, atol=1e-5)
    rows = [(tmp_path / run / "progress.csv").read_text().splitlines() for run in ("alone", "two")]
    for one, other in zip(*rows, strict=True):
        # Iteration and return; the norms between them agree to float tolerance alone.
        assert one.split(",")[::2] == other.split(",")[::2]


def wait_for(path, process, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "silent", "seconds"), [(0, False, 60), (1, False, 60), (1, True, 150)]
)
def test_a_lost_process_ends_the_run_with_a_word_and_fewer_go_on(
    victim, silent, seconds, tmp_path, start
):
    """Killed, or silent as a machine without power: the other one says so and exits with 1."""
    folder, address = tmp_path / "run", f"127.0.0.1:{free_port()}"
    common = (f"--out={folder}", f"--coordinator={address}", "--num-processes=2")
    both = [start(*common, "--iterations=100000", f"--process-id={i}") for i in range(2)]
    wait_for(folder / "checkpoint.previous.safetensors", both[0])
    lost, other = both[victim], both[1 - victim]
    if silent:
        (child,) = Path(f"/proc/{lost.pid}/task/{lost.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGSTOP)
    else:
        lost.kill()
    started = time.monotonic()
    _, said = other.communicate(timeout=seconds)
    print(f"process {victim} lost, noticed after {time.monotonic() - started:.1f} s")
    assert other.returncode == 1
    assert "stopped: another process of the run is lost" in said
    assert "continue with --resume, on any number of processes" in said
    assert "Traceback" not in said
    done = int((folder / "progress.csv").read_text().splitlines()[-1].split(",")[0])
    out = finish(start(f"--out={folder}", f"--iterations={done + 4}", "--resume"))
    assert json.loads(out.splitlines()[-1])["iterations"] == done + 4


JOB = {
    "JAX_COORDINATOR_ADDRESS": "head:1234",
    "OPTIM4RL_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, JOB | {"SLURM_JOB_ID": "7"}, None),
        ({"distributed": True}, JOB, ("head:1234", 4, 3)),
        ({"distributed": True}, {"SLURM_JOB_ID": "7"}, (None, None, None)),
        (
            {"coordinator": "10.0.0.1:99", "num_processes": 2, "process_id": 0},
            {},
            ("10.0.0.1:99", 2, 0),
        ),
    ],
)
def test_who_belongs_to_the_run(options, environment, expected):
    assert membership(ProcessOptions(**options), environment) == expected


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({"distributed": True}, {}, "^distributed = True: no variables of Slurm"),
        ({"num_processes": 2, "process_id": 1}, {}, "^coordinator = '': HOST:PORT"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            {},
            "^process_id = '2': a number from 0 to 1",
        ),
        ({"coordinator": "a:1", "process_id": 0}, {}, "^num_processes = '0'"),
        (
            {"distributed": True},
            {"JOB_COMPLETION_INDEX": "0"},
            "^JAX_COORDINATOR_ADDRESS = '': HOST:PORT",
        ),
    ],
)
def test_what_is_missing_is_named(options, environment, message):
    with pytest.raises(ValueError, match=message):
        membership(ProcessOptions(**options), environment)
