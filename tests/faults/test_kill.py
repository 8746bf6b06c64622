"""kill -9 at random instants: nothing finished is lost, and what is resumed is the same."""

import random
import shutil

import pytest
from fault_runs import (
    ABLATE,
    PLAN,
    TRAIN,
    Command,
    environment,
    same_study,
    same_training,
    wait_for,
)

from optim4rl.cli.folders import LOCK
from optim4rl.optimizers.files import UNFINISHED

pytestmark = pytest.mark.slow

TRAIN_KILLS, ABLATE_KILLS, STEPS = 40, 12, 60
CHAIN = 4  # kills of a run before it is left alone, so that it ends on a slow machine, too


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command."""
    env = environment(tmp_path_factory.mktemp("programs"))
    return lambda words: Command(words, env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, start):
    """A run that nothing has happened to."""
    out = tmp_path_factory.mktemp("kill") / "train"
    with start([*TRAIN, "--iterations", STEPS, "--out", out]) as command:
        code, _, err = command.finish()
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def studied(tmp_path_factory, start):
    """A study that nothing has happened to, and its plan."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "plan.md").write_bytes(PLAN)
    with Command(
        ["ablate", folder / "plan.md", "--out", folder / "study", *ABLATE], env
    ) as command:
        code, _, err = command.finish()
    assert code == 0, err
    return folder / "study", folder / "plan.md"


def judge(tally, code, err, same, kills):
    """Count what a run of that many kills has come to, once nobody killed it any more."""
    if code is None:
        tally.count("hang", kills)
    elif code != 0:
        tally.count("traceback" if "Traceback" in err else "lost result", (kills, err))
    elif same():
        tally.count("correct", times=len(kills))
    else:
        tally.count("wrong result", kills)


def unfinished(out):
    return next(out.glob(f".*{UNFINISHED}"), None)


def holds(command, out):
    """Whether it is at work there; those that were killed have left their locks."""
    try:
        return f'"pid": {command.process.pid},' in (out / LOCK).read_text()
    except FileNotFoundError:
        return False


def until(rng, command, out, most):
    """Wait for the instant to kill at; whether the command is still at work then.

    Any instant, one of its work, or one at which it is writing a file.
    """
    kind = rng.choice(["any", "work", "write", "write"])
    if kind != "any" and not wait_for(lambda: holds(command, out) or command.wait(0)):
        return False
    if kind == "write":
        command.wait(rng.uniform(0, most / 2))
        wait_for(lambda: unfinished(out) or command.wait(0), seconds=10)
        return not command.wait(rng.uniform(0, 0.003))
    return not command.wait(rng.uniform(0, most))


def test_training_is_resumed_bit_for_bit(tally, trained, start, tmp_path):
    row, rng = tally("kill -9 of train, then --resume"), random.Random(0)
    words = [*TRAIN, "--iterations", STEPS, "--out", tmp_path / "run", "--resume"]
    while row.outcomes.total() < TRAIN_KILLS:
        kills, ended = [], False
        while not ended and not row.examples:
            with start(words) as command:
                if len(kills) < CHAIN and until(rng, command, tmp_path / "run", most=4.0):
                    command.kill(everyone=True)
                    kills.append(len(kills))
                    continue
                code, _, err = command.finish()
                ended = True
        if kills:
            judge(row, code, err, lambda: same_training(tmp_path / "run", trained), kills)
        shutil.rmtree(tmp_path / "run")
    row.check(TRAIN_KILLS)


@pytest.mark.parametrize("everyone", [True, False], ids=["machine", "command"])
def test_a_study_goes_on_bit_for_bit(everyone, tally, studied, start, tmp_path):
    """When the machine goes down, and when the command dies and its workers do not at once."""
    whom = "ablate and its workers" if everyone else "ablate alone"
    row, rng = tally(f"kill -9 of {whom}, then the same command"), random.Random(1)
    study, plan = studied
    out = tmp_path / "study"
    words = ["ablate", plan, "--out", out, *ABLATE]
    while row.outcomes.total() < ABLATE_KILLS / 2:
        kills, ended, orphans = [], False, []
        while not ended:
            command = start(words)
            orphans.append(command)
            if len(kills) < CHAIN and until(rng, command, out, most=25.0):
                command.kill(everyone=everyone)
                kills.append(len(kills))
                continue
            code, _, err = command.finish()
            ended = True
        if kills:
            judge(row, code, err, lambda: same_study(out, study), kills)
        for command in orphans:
            with command:
                pass
        shutil.rmtree(out)
    row.check(ABLATE_KILLS / 2)
