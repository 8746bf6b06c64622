"""Pieces: values that survive JSON, addresses that tell what matters, files that can be trusted."""

import dataclasses

import jax
import numpy as np
import pytest
from optim4rl.benchmark.pieces import (
    UNTRAINED,
    Method,
    Piece,
    get_curves,
    is_done,
    keep_weights,
    piece_address,
    piece_from_dict,
    piece_to_dict,
    put_curves,
    run_piece,
    split,
)
from optim4rl.benchmark.worker import answer
from optim4rl.study.store import StoreError

from optim4rl.benchmark import pieces as suite_pieces
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.evaluation.learning import BATCH
from optim4rl.optimizers.weight_files import WeightsError
from optim4rl.optimizers.weights import untrained
from optim4rl.tasks import TaskConfig, default_config

TASK = TaskConfig("catch", num_envs=2, width=4, normalise_rewards=True)
PIECE = Piece(TASK, Method("adam"), (0.01, 0.1), (7, 8), 3, 3)


def curves(level=0.0, runs=2):
    return Curves(np.full((runs, 3), level), np.full(runs, HEALTHY), np.arange(1, 4))


# Splitting


def test_pieces_are_batches_of_whole_rates_or_of_some_seeds_of_one():
    rates = (0.1, 0.2, 0.3)
    few = split(TASK, Method("adam"), rates, range(BATCH // 2), 5)
    assert [piece.rates for piece in few] == [(0.1, 0.2), (0.3,)]
    many = split(TASK, Method("adam"), rates, range(BATCH + 1), 5)
    assert [(p.rates, len(p.seeds)) for p in many] == [
        ((rate,), size) for rate in rates for size in (BATCH, 1)
    ]
    for pieces, seeds in ((few, range(BATCH // 2)), (many, range(BATCH + 1))):
        runs = [(rate, seed) for p in pieces for rate in p.rates for seed in p.seeds]
        assert sorted(runs) == [(rate, seed) for rate in rates for seed in seeds]


def test_only_a_decay_has_a_schedule_longer_than_its_run():
    (short,) = split(TASK, Method("adam", decay=True), [0.1], [0], 5, schedule=40)
    assert (short.rollouts, short.schedule) == (5, 40)
    (plain,) = split(TASK, Method("adam"), [0.1], [0], 5, schedule=40)
    assert plain.schedule == 5


def test_raw_rewards_are_the_environments_own():
    config = default_config("brax:ant")
    learner = dataclasses.replace(config.learner, reward_scale=1.0)
    normalised = dataclasses.replace(config, learner=learner, normalise_rewards=True)
    (raw,) = split(normalised, Method("adam", raw_rewards=True), [0.1], [0], 5)
    assert raw.config == dataclasses.replace(config, normalise_rewards=False)


# Values and addresses


@pytest.mark.parametrize("environment", ["catch", "big_dense_long", "gymnax:CartPole-v1"])
def test_a_piece_survives_json(environment):
    config = dataclasses.replace(default_config(environment), width=(8, 16))
    piece = dataclasses.replace(PIECE, config=config)
    assert piece_from_dict(piece_to_dict(piece)) == piece


def test_whatever_changes_a_run_changes_its_address():
    others = [
        dataclasses.replace(PIECE, rates=(0.01,)),
        dataclasses.replace(PIECE, seeds=(7, 9)),
        dataclasses.replace(PIECE, rollouts=4),
        dataclasses.replace(PIECE, schedule=4),
        dataclasses.replace(PIECE, method=Method("rmsprop")),
        dataclasses.replace(PIECE, method=Method("adam", decay=True)),
        dataclasses.replace(PIECE, method=Method(None, weights="a")),
        dataclasses.replace(PIECE, method=Method(None, weights="b")),
        dataclasses.replace(PIECE, config=dataclasses.replace(TASK, num_envs=3)),
    ]
    addresses = {piece_address(piece) for piece in (PIECE, *others)}
    assert len(addresses) == 1 + len(others)
    assert piece_address(dataclasses.replace(PIECE)) == piece_address(PIECE)


def test_classical_runs_outlive_a_change_of_the_rule(monkeypatch):
    learned = dataclasses.replace(PIECE, method=Method(None, weights="a"))
    before = [piece_address(piece) for piece in (PIECE, learned)]
    code = suite_pieces._code
    monkeypatch.setattr(
        suite_pieces, "_code", lambda *, learned: code(learned=learned) + "!" * learned
    )
    after = [piece_address(piece) for piece in (PIECE, learned)]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert code(learned=True) != code(learned=False)


def test_weights_are_kept_under_their_content(tmp_path):
    one, two = (untrained("optim4rl-rlc", 3e-3, jax.random.key(seed)) for seed in (0, 1))
    assert keep_weights(tmp_path, one) != keep_weights(tmp_path, two)
    relabelled = dataclasses.replace(one, card={"name": "another"})
    assert keep_weights(tmp_path, relabelled) == keep_weights(tmp_path, one)
    assert len(list((tmp_path / "weights").iterdir())) == 2


# Files


def test_what_is_kept_comes_back(tmp_path):
    assert not is_done(tmp_path, PIECE)
    diverged = Curves(
        np.array([[1.0, np.nan, np.nan], [1.0, 2.0, 3.0]]), np.array([1, HEALTHY]), np.arange(1, 4)
    )
    put_curves(tmp_path, PIECE, [curves(0.5), diverged])
    assert is_done(tmp_path, PIECE)
    flat, broken = get_curves(tmp_path, PIECE)
    np.testing.assert_array_equal(flat.returns, curves(0.5).returns)
    np.testing.assert_array_equal(broken.returns, diverged.returns)
    np.testing.assert_array_equal(broken.diverged_at, diverged.diverged_at)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not an archive"])
def test_a_damaged_file_is_named(tmp_path, damage):
    put_curves(tmp_path, PIECE, [curves(), curves()])
    (path,) = (tmp_path / "pieces").iterdir()
    path.write_bytes(damage or path.read_bytes()[:100])
    with pytest.raises(StoreError, match=f"{path.name}.*delete it to have it made again"):
        get_curves(tmp_path, PIECE)


# The work


def test_agents_that_never_update_stay_as_they_are(tmp_path):
    """Their curves do not depend on the optimizer that does not move them."""
    (piece,) = split(TASK, UNTRAINED, [0.0], [3, 4], 3)
    (still,) = run_piece(tmp_path, piece)
    assert not still.diverged.any()
    other = dataclasses.replace(piece, method=Method("adam"))
    (same,) = run_piece(tmp_path, other)
    np.testing.assert_array_equal(still.returns, same.returns)
    assert still.env_steps[-1] == 3 * 2 * TASK.learner.rollout


def test_a_worker_answers_and_refuses(tmp_path):
    (piece,) = split(TASK, UNTRAINED, [0.0], [3, 4], 3)
    question = {"address": piece_address(piece), "piece": piece_to_dict(piece)}
    assert answer(tmp_path, question) == {"done": True}
    assert is_done(tmp_path, piece)
    assert "start the command again" in answer(tmp_path, {**question, "address": "x"})["error"]
    lost = dataclasses.replace(piece, method=Method(None, weights="nowhere"))
    question = {"address": piece_address(lost), "piece": piece_to_dict(lost)}
    with pytest.raises(WeightsError, match="nowhere"):
        answer(tmp_path, question)
