"""A clock that goes backwards changes no result: nothing that is computed or resumed reads it."""

import datetime
import shlex
import time

import pytest
from fault_runs import same_training

from optim4rl.cli import main as cli
from optim4rl.cli.main import main

WORDS = shlex.split(
    "train --width 8 --envs-per-agent 2 --agents 2 --inner-updates 2 --reset-interval 2 "
    "--optimizer optim4rl-rlc --chunk 2 --iterations 6 --json"
)


@pytest.mark.slow
def test_training_under_a_clock_that_goes_backwards(tally, tmp_path, monkeypatch, capsys):
    """An hour back at every look, from the run's start and from the middle of it."""
    row = tally("runs with a clock going backwards", "clock going backwards under train")
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    main([*WORDS, "--out", str(tmp_path / "whole")])
    now = [time.time()]

    def backwards():
        now[0] -= 3600
        return now[0]

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(backwards(), tz)

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    monkeypatch.setattr(datetime, "datetime", Backwards)
    for steps in (6, 4, 2):
        out = tmp_path / str(steps)
        main([*WORDS, "--out", str(out), f"--iterations={steps}"])
        main([*WORDS, "--out", str(out), "--resume"])
        row.count("correct" if same_training(out, tmp_path / "whole") else "wrong result", steps)
    row.check(3)
