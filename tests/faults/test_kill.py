"""kill -9 at random instants: nothing finished is lost, and what is resumed is the same."""

import os
import random
import shutil
import signal
from contextlib import ExitStack
from functools import partial

import pytest
from fault_runs import (
    EVALUATE,
    TRAIN,
    holds,
    judge_result,
    same_runs,
    same_training,
    wait_for,
)

from optim4rl.files.atomic import UNFINISHED

pytestmark = pytest.mark.slow

TRAIN_KILLS, EVALUATE_KILLS, ABLATE_KILLS, WORKER_KILLS = 50, 50, 50, 6
CHAIN = 5  # kills of a run before it is left alone, so that it ends on a slow machine, too


def unfinished(out):
    return any(out.glob(f"**/.*{UNFINISHED}"))


def still_runs_at(rng, command, out, most):
    """Wait for the instant to kill at; whether the command still runs then.

    Any instant, one of its work, or one at which it is writing a file.
    """
    kind = rng.choice(["any", "work", "write"])
    if kind != "any":
        wait_for(lambda: holds(command, out) or command.wait(0))
    command.wait(rng.uniform(0, most))
    if kind == "write":
        wait_for(lambda: unfinished(out) or command.wait(0))
        command.wait(rng.uniform(0, 0.003))
    return not command.wait(0)


def kill_and_go_on(row, start, words, out, same, *, kills, most, everyone=True):
    """Kill a command again and again, then let it end, until there are so many kills."""
    rng = random.Random(row.fault)
    while row.outcomes.total() < kills and not row.examples:
        killed = 0
        with ExitStack() as commands:  # What is left of them ends with the last one.
            command = commands.enter_context(start(words))
            while killed < CHAIN and still_runs_at(rng, command, out, most):
                command.kill(everyone=everyone)
                killed += 1
                command = commands.enter_context(start(words))
            code, err = command.finish()
            judge_result(row, code, err, same, killed)
        shutil.rmtree(out)
    row.check(kills)


def test_training_is_resumed_bit_for_bit(tally, start, trained, tmp_path):
    row, out = tally("commands killed", "kill -9 of train, then --resume"), tmp_path / "run"
    words = [*TRAIN, "--out", out, "--resume"]
    same = partial(same_training, out, trained)
    kill_and_go_on(row, start, words, out, same, kills=TRAIN_KILLS, most=4.0)


def test_an_evaluation_goes_on_bit_for_bit(tally, start, evaluated, tmp_path):
    row = tally("commands killed", "kill -9 of evaluate and its workers, then the same command")
    out = tmp_path / "evaluation"
    same = partial(same_runs, out, evaluated)
    words = [*EVALUATE, "--out", out]
    kill_and_go_on(row, start, words, out, same, kills=EVALUATE_KILLS, most=8.0)


@pytest.mark.parametrize("everyone", [True, False], ids=["machine", "command"])
def test_a_study_goes_on_bit_for_bit(everyone, tally, start, ablate, studied, tmp_path):
    """When the machine goes down, and when the command dies and its workers do not at once."""
    whom = "ablate and its workers" if everyone else "ablate alone"
    row = tally("commands killed", f"kill -9 of {whom}, then the same command")
    out = tmp_path / "study"
    same = partial(same_runs, out, studied)
    options = {"kills": ABLATE_KILLS / 2, "most": 15.0, "everyone": everyone}
    kill_and_go_on(row, start, [*ablate, "--out", out], out, same, **options)


def test_a_killed_worker_is_named_and_the_same_command_goes_on(
    tally, start, run, ablate, studied, tmp_path
):
    row = tally("workers killed", "kill -9 of a worker of ablate, then the same command")
    rng, out = random.Random(2), tmp_path / "study"
    words = [*ablate, "--out", out]
    for _ in range(WORKER_KILLS):
        with start(words) as command:
            assert wait_for(lambda: command.workers)
            command.wait(rng.uniform(0, 5.0))
            os.kill(rng.choice(command.workers), signal.SIGKILL)
            code, err = command.finish()
        assert code == 1, err
        assert "its worker died with exit code -9" in err
        assert "Traceback" not in err
    code, err = run(words)
    judge_result(row, code, err, partial(same_runs, out, studied), WORKER_KILLS)
    row.check(WORKER_KILLS)
