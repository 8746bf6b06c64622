"""The register of claims: written before, used once, refused in one sentence."""

import json
from pathlib import Path

import pytest

from optim4rl.benchmark.register import read_register, require_claim
from toys import TASKS, benchmark

REGISTER = Path(__file__).parents[2] / "docs" / "results" / "claims.toml"
ENTRY = {
    "registered": "2026-11-30",
    "tasks": list(TASKS),
    "first_seed": 3000,
    "seeds": 10,
    "contenders": ["adam", "rmsprop"],
    "compared_with": ["adam"],
}


def written(name, changes):
    """A claim as TOML."""
    entry = {key: x for key, x in (ENTRY | changes).items() if x is not None}
    values = {key: x if key == "registered" else json.dumps(x) for key, x in entry.items()}
    return "\n".join([f"[{name}]", *(f"{key} = {x}" for key, x in values.items()), ""])


@pytest.fixture
def register(tmp_path):
    def write(**claims):
        path = tmp_path / "claims.toml"
        path.write_text("".join(written(name, changes) for name, changes in claims.items()))
        return path

    return write


@pytest.fixture
def b(tmp_path):
    return benchmark(tmp_path / "out", baselines=("adam",), first_seed=3000)


def test_a_claim_that_the_run_keeps_is_said(register, b):
    assert list(b.protocol.reported) == list(range(3000, 3010))
    said = require_claim(register(first={}), "first", b)
    assert said == ("Claim `first`, registered on 2026-11-30: adam, rmsprop; compared with adam.")


def test_the_projects_register_can_be_read():
    """Every claim of it has seeds of its own."""
    claims = read_register(REGISTER)
    assert "ppo-generalist-with-companions" in claims
    used = [pair for claim in claims.values() for pair in claim.used]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["catch"]}, "it registered catch, but the run has catch, small_dense"),
        ({"first_seed": 4000}, "it has 10 seeds from 4000, and the run 10 from 3000"),
        ({"seeds": 8}, "give --seeds 8 --first-seed 3000"),
        (
            {"compared_with": ["adam", "muon_ppo"]},
            "it compares with muon_ppo, and the run has adam",
        ),
        ({"compared_with": ["untrained control"]}, "it compares with untrained control, and"),
        ({"tuning_seeds": 4}, "it has 4 tuning seeds, and the run 2; give --tuning-seeds 4"),
    ],
)
def test_another_run_is_refused(changes, message, register, b):
    with pytest.raises(ValueError, match=message):
        require_claim(register(first=changes), "first", b)
    with pytest.raises(ValueError, match=r"claims of .*claims.toml are first"):
        require_claim(register(first={}), "second", b)


def test_a_seed_serves_one_claim_on_a_task(register, b):
    """What comes later in the file takes nothing away."""
    before = {"tasks": ["catch", "gymnax:CartPole-v1"], "first_seed": 2995}
    with pytest.raises(ValueError, match="seed 3000 of catch was used by the claim 'before' of 20"):
        require_claim(register(before=before, first={}), "first", b)
    assert require_claim(register(first={}, before=before), "first", b)
    elsewhere = before | {"tasks": ["gymnax:CartPole-v1"]}
    assert require_claim(register(before=elsewhere, first={}), "first", b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds = 0"),
        ({"seeds": None}, "seeds"),
        ({"registered": '"soon"'}, "registered = 'soon': a date is needed"),
        ({"colour": "red"}, "colour = 'red'"),
        ({"tasks": "catch"}, "tasks = 'catch'"),
    ],
)
def test_what_is_no_claim_is_named(changes, message, register):
    with pytest.raises(ValueError, match=f"claim 'first' cannot be read .*{message}"):
        read_register(register(first=changes))


def test_what_is_no_register_is_named(tmp_path):
    path = tmp_path / "claims.toml"
    for text in ("[", "[a]\n[a]\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"claims.toml: not a register of claims"):
            read_register(path)
