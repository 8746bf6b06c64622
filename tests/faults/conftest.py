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
def undisturbed(tmp_path_factory, run):
    """Runs a command that nothing happens to: its folder."""

    def run_alone(words):
        out = tmp_path_factory.mktemp("undisturbed") / words[0]
        code, err = run([*words, "--out", out])
        assert code == 0, err
        return out

    return run_alone


@pytest.fixture(scope="session")
def trained(undisturbed):
    return undisturbed(TRAIN)


@pytest.fixture(scope="session")
def evaluated(undisturbed):
    return undisturbed(EVALUATE)


@pytest.fixture(scope="session")
def ablate(tmp_path_factory):
    """The words of a small study, but for its folder."""
    path = tmp_path_factory.mktemp("plan") / "plan.md"
    path.write_bytes(PLAN)
    return ["ablate", path, *ABLATE]


@pytest.fixture(scope="session")
def studied(undisturbed, ablate):
    return undisturbed(ablate)
