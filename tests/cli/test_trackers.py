"""Trackers: what was logged can be read back, and one that cannot work is refused in time."""

import importlib.util
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from optim4rl.cli import main as cli, trackers
from optim4rl.cli.main import main
from optim4rl.cli.trackers import CURVE_POINTS, log_curves, tracking, with_progress
from optim4rl.evaluation.curves import HEALTHY, Curves

PLAN = str(Path(__file__).parents[2] / "plans" / "optim4rl.md")
COMMANDS = {
    "train": ["train", "--out", "x"],
    "evaluate": ["evaluate", "anchored-catch", "--out", "x"],
    "ablate": ["ablate", PLAN, "--out", "x"],
    "identity": ["identity", "--out", "x/y.json"],
}


def read_events(folder):
    """The events of the only file: records of a length, its checksum, data, and their checksum."""
    (path,) = folder.iterdir()
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def read_wandb(folder):
    """What W&B's file holds: after a header records of a checksum, a length, a type and data."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("offline-run-*/run-*.wandb")
    data, records = path.read_bytes()[7:], []
    while data:
        length, whole = struct.unpack("<HB", data[4:7])
        assert whole == 1  # Only in files larger than this test's are records in pieces.
        records.append(vars(wandb_internal_pb2)["Record"].FromString(data[7 : 7 + length]))
        data = data[7 + length :]
    return records


def read_scalars(folder):
    """What was logged: name -> its (step, value) pairs."""
    found = {}
    for event in read_events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


class Memory:
    """A tracker that remembers."""

    def __init__(self):
        self.logged = []

    def log(self, step, values):
        self.logged.append((step, dict(values)))

    def close(self):
        self.logged.append("closed")


def curves(level, *, diverged_at=HEALTHY, time=4):
    returns = np.full((2, time), level) + np.array([[-0.5], [0.5]])
    start = np.array([diverged_at, HEALTHY])
    if diverged_at != HEALTHY:
        returns[0, diverged_at:] = np.nan
    return Curves(returns, start, 10 * np.arange(1, time + 1))


# What is logged


def test_what_tensorboard_was_told_can_be_read_back(tmp_path):
    with tracking("tensorboard", tmp_path / "run", {}) as tracker:
        tracker.log(1, {"return/catch": 0.5, "norm": 2.0})
        tracker.log(2, {"return/catch": float("nan")})
    found = read_scalars(tmp_path / "run" / "tensorboard")
    assert found["norm"] == [(1, 2.0)]
    assert found["return/catch"][0] == (1, 0.5)
    step, value = found["return/catch"][1]
    assert step == 2
    assert math.isnan(value)


def test_a_run_that_goes_on_replaces_what_came_after_its_checkpoint(tmp_path):
    with tracking("tensorboard", tmp_path, {}, first_step=7):
        pass
    started = [e for e in read_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert [event.step for event in started] == [7]


def test_what_was_logged_is_kept_when_a_command_fails(tmp_path):
    def fail():
        with tracking("tensorboard", tmp_path, {}) as tracker:
            tracker.log(3, {"x": 1.0})
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert read_scalars(tmp_path / "tensorboard") == {"x": [(3, 1.0)]}


def test_without_a_tracker_nothing_is_written(tmp_path):
    for folder in (tmp_path, None):
        with tracking(None, folder, {}) as tracker:
            tracker.log(1, {"x": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_curves_are_means_over_all_runs_and_nan_once_one_diverged():
    memory = Memory()
    log_curves(memory, {"a": [curves(1.0), curves(3.0)], "b": [curves(0.0, diverged_at=2)]})
    assert memory.logged[:4] == [(10 * step, {"return/a": 2.0}) for step in (1, 2, 3, 4)]
    values = [entry["return/b"] for _, entry in memory.logged[4:]]
    assert values[:2] == [0.0, 0.0]
    assert np.isnan(values[2:]).all()


def test_long_curves_are_thinned():
    memory = Memory()
    log_curves(memory, {"a": [curves(1.0, time=10 * CURVE_POINTS)]})
    assert len(memory.logged) == CURVE_POINTS


def test_progress_goes_to_the_bar_and_to_the_tracker():
    memory, shown = Memory(), []
    update = with_progress(lambda *x: shown.append(x), memory)
    update(0, 4)
    update(1, 4, "a job")
    assert shown == [(0, 4), (1, 4, "a job")]
    assert memory.logged == [(0, {"progress": 0.0}), (1, {"progress": 0.25})]


@pytest.mark.slow
def test_wandb_writes_an_offline_run_without_a_network_or_an_account(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with tracking("wandb", tmp_path / "my-run", {"rate": 0.1}) as tracker:
        tracker.log(2, {"return/a": 0.5})
        tracker.log(1, {"return/b": float("nan")})  # Steps may go back, from curve to curve.
    records = read_wandb(tmp_path / "my-run" / "wandb")
    logged = [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in x.history.item
        }
        for x in records
        if x.HasField("history")
    ]
    assert [(entry["step"], entry.get("return/a")) for entry in logged] == [(2, 0.5), (1, None)]
    assert math.isnan(float(logged[1]["return/b"]))
    (run,) = [x.run for x in records if x.HasField("run")]
    assert (run.project, run.display_name) == ("optim4rl", "my-run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["rate"] == 0.1


# Refusals


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that is refused before any work, and gives what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)

    def run(words):
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 2
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name, command, refused, monkeypatch):
    def find(package):
        return None if package in trackers.PACKAGES.values() else importlib.util.find_spec(package)

    monkeypatch.setattr(trackers, "find_spec", find)
    said = refused([*COMMANDS[command], "--tracker", name])
    assert said.startswith(f"error: tracker = '{name}': the package {trackers.PACKAGES[name]} ")
    assert said.endswith("pip install 'optim4rl[trackers]'\n")


@pytest.mark.parametrize("words", [["evaluate", "anchored-catch"], ["identity"]])
def test_a_tracker_without_a_folder_is_refused(words, refused):
    assert "give --out" in refused([*words, "--tracker", "tensorboard"])


def test_an_unknown_tracker_is_refused(refused):
    assert "wandb" in refused(["train", "--out", "x", "--tracker", "notebook"])
