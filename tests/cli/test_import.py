"""`optim4rl import` reads published weights into a file that the other commands take."""

import json
import shlex

import numpy as np
import pytest

from open_reference import random_vector
from optim4rl.cli import main as cli
from optim4rl.cli.main import main
from optim4rl.optimizers import load_weights


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    np.save("good.npy", random_vector(3571))
    np.save("short.npy", random_vector(1211)[1:])


def run(line):
    main(shlex.split(line))


def test_weights_are_imported(tmp_path, capsys):
    run("import open good.npy --out new/w.safetensors --rollouts 60 --epochs 2 --minibatches 3")
    assert capsys.readouterr().out == (
        "wrote new/w.safetensors; run it with\n  optim4rl evaluate new/w.safetensors --suite NAME\n"
    )
    found = load_weights("new/w.safetensors")
    assert vars(found.spec.structure) == {"rollouts": 60, "epochs": 2, "minibatches": 3}
    assert (found.spec.hidden_size, found.spec.head_sizes) == (16, (32, 32))


def test_what_was_read_is_printed_as_json(capsys):
    run("import open good.npy --out w.safetensors --json")
    said = json.loads(capsys.readouterr().out)
    assert said["weights"] == "w.safetensors"
    assert said["source"]["file"] == "good.npy"
    assert said["spec"]["structure"] == {
        "name": "open",
        "rollouts": 1220,
        "epochs": 4,
        "minibatches": 8,
    }


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import open short.npy --out w", "short.npy: 1,210 numbers; OPEN's weights are 1,211"),
        ("import open nobody.npy --out w", "nobody.npy: no readable file there"),
        ("import open good.npy --out w --epochs 0", "epochs = 0: a whole number of at least 1"),
        ("import velo good.npy --out w", "velo"),
        ("import open good.npy", "--out"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(line, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(line)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err
    assert {x.name for x in tmp_path.iterdir()} == {"good.npy", "short.npy"}


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        run("import --help")
    example = "\n  optim4rl import open breakout_OPEN.npy --out open-breakout.safetensors\n"
    assert example in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_a_contender_on_a_task_with_ppo(tmp_path, capsys):
    """At its own setting; the agents tell it what it reads."""
    np.save("small.npy", random_vector(1211))
    run("import open small.npy --out w.safetensors")
    run(
        "evaluate w.safetensors --task gymnax:CartPole-v1 --num-envs 2 --rollouts 3 --seeds 2 "
        "--tuning-seeds 1 --rates 0.001 --step-scales 1 --stress-scales 1 --stress-seeds 1 "
        "--baselines adam_ppo --no-controls --json"
    )
    said = capsys.readouterr().out
    assert '"w"' in said.splitlines()[-1]
