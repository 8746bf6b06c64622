"""Commands as processes of their own, to be killed, and how they may end."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from optim4rl.benchmark.table import read_runs
from optim4rl.files.folders import LOCK

# Long enough for anything here; what takes longer hangs.
PATIENCE = 900

PLAN = b"""# A small study

## Ablation Plan

### Ablation of the schedule
- **Ablated Part**: Pipeline training
- **Action**: REPLACE
- **Replacement**: Synchronous resets
- **Metrics**: Return
"""
TRAIN = shlex.split(
    "train --width 8 --envs-per-agent 2 --agents 2 --inner-updates 2 --reset-interval 2 "
    "--optimizer optim4rl-rlc --devices 1 --chunk 1 --iterations 60"
)
ABLATE = shlex.split("--scale smoke --meta-seeds 1 --seeds 1 --jobs 2 --json")
EVALUATE = shlex.split(
    "evaluate anchored-catch --baselines adam --rollouts 5 --num-envs 2 --width 8 --seeds 2 "
    "--tuning-seeds 1 --rates 1e-3 1e-2 --step-scales 1 3 --extensions 0 --stress-scales 1 "
    "--stress-seeds 2 --stress-rollouts 4 --jobs 2 --json"
)


def environment(programs):
    """Programs are compiled once, in haste: they run for a moment only."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1",
    }


class Command:
    """A running command, in a session of its own with all of its workers."""

    def __init__(self, words, env):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optim4rl", *map(str, words)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill(everyone=True)
        self.process.communicate()

    @property
    def workers(self):
        """The other processes of the command's session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                session = int(path.read_text().rpartition(")")[2].split()[3])
                if session == self.process.pid:
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != self.process.pid]

    def kill(self, *, everyone):
        """Kill -9: of the command alone, or as when the machine goes down."""
        for pid in [self.process.pid, *(self.workers if everyone else [])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds):
        """Whether it has ended within that time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self):
        """Its exit code, None if it hangs, and what it said."""
        try:
            _, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return None, ""
        return self.process.returncode, err


def wait_for(condition, seconds=PATIENCE):
    """Look every millisecond; whether it came true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False


def holds(command, out):
    """Whether it is at work there; those that were killed have left their locks."""
    try:
        return f'"pid": {command.process.pid},' in (out / LOCK).read_text()
    except FileNotFoundError:
        return False


def judge_result(row, code, err, same, times=1):
    """Count a command that had to come to what it does when nothing happens: `same()`."""
    if code is None:
        row.count("hang", times=times)
    elif code != 0:
        row.count("traceback" if "Traceback" in err else "lost result", err, times)
    else:
        row.count("correct" if same() else "wrong result", times=times)


def judge_error(row, code, err, expected, words):
    """Count a command that had to fail with that code and a message that holds those words."""
    if code is None:
        row.count("hang")
    elif "Traceback" in err:
        row.count("traceback", err)
    else:
        clear = code == expected and all(word in err for word in words)
        row.count("clear error" if clear else "wrong result", (code, err, words))


def same_training(one, other):
    """Whether two runs of `train` left the same weights, checkpoint and log, bit for bit."""
    files = ("checkpoint.safetensors", "progress.csv")
    if any((one / name).read_bytes() != (other / name).read_bytes() for name in files):
        return False
    return same_arrays(*(folder / "weights.safetensors" for folder in (one, other)))


def same_arrays(one, other):
    """Whether two files hold the same arrays; how long a run took is not the same twice."""
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(
        np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes()
        for name in one.keys() - {"seconds"}
    )


def same_runs(one, other):
    """Whether two studies, or two evaluations, have the same jobs and the same table."""
    tables = [read_runs(folder / "runs.parquet").drop("seconds") for folder in (one, other)]
    if not tables[0].equals(tables[1]):
        return False
    jobs = [sorted((folder / "jobs").glob("*.safetensors")) for folder in (one, other)]
    names = [[path.name for path in found] for found in jobs]
    return names[0] == names[1] and all(map(same_arrays, *jobs))
