"""Commands as processes of their own, and what they come to when nothing happens to them."""

import pytest
from fault_runs import ABLATE, EVALUATE, PLAN, TRAIN, Command, environment


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a command; all of them share compiled programs."""
    env = environment(tmp_path_factory.mktemp("programs"))
    return lambda words: Command(words, env)


@pytest.fixture(scope="session")
def run(start):
    """Runs a command to its end: its exit code, and what it said."""

    def run(words):
        with start(words) as command:
            return command.finish()

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, run):
    """A run that nothing has happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "train"
    code, err = run([*TRAIN, "--out", out])
    assert code == 0, err
    return out


@pytest.fixture(scope="session")
def ablate(tmp_path_factory):
    """The words of a small study, but for its folder."""
    path = tmp_path_factory.mktemp("plan") / "plan.md"
    path.write_bytes(PLAN)
    return ["ablate", path, *ABLATE]


@pytest.fixture(scope="session")
def studied(tmp_path_factory, run, ablate):
    """A study that nothing has happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    code, err = run([*ablate, "--out", out])
    assert code == 0, err
    return out


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, run):
    """An evaluation that nothing has happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "evaluation"
    code, err = run([*EVALUATE, "--out", out])
    assert code == 0, err
    return out
