"""Checkpoints: a resumed run is the uninterrupted one; what does not fit is refused."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save
from test_meta_gradient import Quadratic, factor_rule
from test_trainer import assert_identical

from optim4rl.files.sealed import read_sealed, write_sealed
from optim4rl.meta.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    has_checkpoint,
    load_checkpoint,
    previous_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, train
from optim4rl.tasks import A2CConfig, TaskConfig, make_task

SPEC, _ = factor_rule()
CATCH = TaskConfig("catch", num_envs=2, width=4, learner=A2CConfig(rollout=5))
TASKS = (MetaTask(make_task(CATCH), 0.05), MetaTask(Quadratic((1.0, 2.0)), 0.05))
META = MetaConfig(iterations=6, agents=3, inner_updates=2, reset_interval=3)
CONFIG: dict[str, Any] = {
    "meta": dataclasses.asdict(META),
    "tasks": ["catch", "quadratic"],
    "note": None,
}


@pytest.fixture(scope="module")
def start():
    """The state that all tests save."""
    return init(SPEC, TASKS, META)


@pytest.fixture
def saved(start, tmp_path):
    """A good checkpoint."""
    path = tmp_path / "run" / "checkpoint.safetensors"
    save_checkpoint(path, start, CONFIG)
    return path


@pytest.mark.parametrize("resets", ["staggered", "never"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(resets, tmp_path):
    """Six iterations against three, a file, and three more; with the pipeline on and off."""
    config = dataclasses.replace(META, resets=resets)
    path = tmp_path / "{}.safetensors"
    whole = []

    def report(state, progress):
        save_checkpoint(str(path).format(int(state.iteration)), state, CONFIG)
        whole.append((jax.tree.map(jnp.copy, state), progress))

    train(SPEC, TASKS, config, chunk=3, report=report)
    like = jax.eval_shape(lambda: init(SPEC, TASKS, config))
    state = load_checkpoint(str(path).format(3), like, CONFIG).state
    assert int(state.iteration) == 3
    assert_identical(state, whole[0][0])
    assert_identical(train(SPEC, TASKS, config, chunk=3, state=state), whole[1])


def test_what_was_saved_is_what_is_loaded(start, saved):
    """Bit for bit, with the same types, from a state or from its shapes alone."""
    for like in (start, jax.eval_shape(lambda: start)):
        loaded = load_checkpoint(saved, like, CONFIG).state
        assert_identical(loaded, start)
        assert jax.tree.map(jax.typeof, loaded) == jax.tree.map(jax.typeof, start)
    assert loaded.key.dtype == start.key.dtype
    assert sorted(p.name for p in saved.parent.iterdir()) == [saved.name]


def test_arrays_are_saved_as_they_read_not_as_they_lie(start, tmp_path):
    """Numpy arrays in any memory order, NaN payloads and random keys of another kind survive."""
    state = start._replace(
        meta_optimizer=(
            np.arange(6, dtype=np.int32).reshape(2, 3).T,
            np.array([np.nan, -0.0], np.float32),
        ),
        key=jax.random.key(1, impl="rbg"),
    )
    save_checkpoint(tmp_path / "file", state, CONFIG)
    loaded = load_checkpoint(tmp_path / "file", state, CONFIG).state
    assert_identical(loaded, state)
    assert np.signbit(loaded.meta_optimizer[1][1])
    assert jax.random.key_impl(loaded.key) == "rbg"


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "pickle", "zip", "empty", "weights"])
def test_a_file_that_is_no_whole_checkpoint_is_refused(damage, start, saved):
    """Truncated, corrupt, foreign: the message names the file."""
    good = saved.read_bytes()
    saved.write_bytes(
        {
            "cut": good[:-7],
            "flip": good[:-1] + bytes([good[-1] ^ 1]),
            "text": b"not a checkpoint, but some text that is long enough",
            "pickle": pickle.dumps({"state": [1, 2, 3]}),
            "zip": b"PK\x03\x04" + good,
            "empty": b"",
            "weights": save({"w": np.zeros(1, np.float32)}, metadata={"card": '{"format": "x"}'}),
        }[damage]
    )
    with pytest.raises(CheckpointError, match=saved.name):
        load_checkpoint(saved, start, CONFIG)


@pytest.mark.parametrize("card", [None, "[", "[1]", "{}", '{"format": "optim4rl-checkpoint"}'])
def test_a_sealed_file_without_a_checkpoints_card_is_refused(card, start, saved):
    """Whatever the metadata holds in the card's place."""
    metadata = {} if card is None else {"card": card}
    write_sealed(saved, {"w": np.zeros(1, np.float32)}, metadata)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(saved, start, CONFIG)


def test_another_version_is_refused(start, saved):
    """The message says which one this release reads."""
    tensors, metadata = read_sealed(saved)
    card = {**json.loads(metadata["card"]), "format_version": 3}
    write_sealed(saved, tensors, {"card": json.dumps(card)})
    with pytest.raises(CheckpointError, match=r"version 3; this release reads .* version 2"):
        load_checkpoint(saved, start, CONFIG)


def test_a_checkpoint_of_an_earlier_release_is_refused(start, saved):
    """It had no checksum over all of it."""
    card = {"format": "optim4rl-checkpoint", "format_version": 1, "config": CONFIG, "digest": ""}
    saved.write_bytes(save(read_sealed(saved)[0], metadata={"card": json.dumps(card)}))
    with pytest.raises(CheckpointError, match="of an earlier release: it has no checksum"):
        load_checkpoint(saved, start, CONFIG)


# The last two are kept


@pytest.fixture
def two(start, tmp_path):
    """Two checkpoints of a run, after one iteration and after two."""
    path = tmp_path / "checkpoint.safetensors"
    for iteration in (1, 2, 3):
        state = start._replace(iteration=jnp.int32(iteration))
        save_checkpoint(path, state, CONFIG, {"iteration": iteration})
    return path


def test_the_last_two_are_kept(start, two):
    """And the newest one is taken, with what was noted in it."""
    before = previous_checkpoint(two)
    assert sorted(path.name for path in two.parent.iterdir()) == sorted([before.name, two.name])
    assert int(load_checkpoint(before, start, CONFIG).state.iteration) == 2
    resumed = resume_checkpoint(two, start, CONFIG)
    assert (int(resumed.state.iteration), resumed.notes, resumed.damage) == (
        3,
        {"iteration": 3},
        "",
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_a_damaged_one_falls_back_to_the_one_before(damage, start, two):
    """It says so, and does not take the good one's place when the run goes on."""
    good = two.read_bytes()
    if damage == "missing":
        two.unlink()
    else:
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]
        two.write_bytes({"flip": flipped, "cut": good[:-9], "empty": b""}[damage])
    assert has_checkpoint(two)
    resumed = resume_checkpoint(two, start, CONFIG)
    assert (int(resumed.state.iteration), resumed.notes) == (2, {"iteration": 2})
    assert str(two) in resumed.damage
    before = previous_checkpoint(two).read_bytes()
    save_checkpoint(two, resumed.state, CONFIG, rotate=False)
    assert previous_checkpoint(two).read_bytes() == before


def test_two_damaged_ones_are_refused(start, two):
    """The message names the older one, of which more could have been hoped."""
    for path in (two, previous_checkpoint(two)):
        path.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=previous_checkpoint(two).name):
        resume_checkpoint(two, start, CONFIG)


def test_another_config_is_no_damage(start, two):
    """Nothing is gained from an older checkpoint then."""
    with pytest.raises(CheckpointError, match=r"config\.note is None there and 1 here") as error:
        resume_checkpoint(two, start, {**CONFIG, "note": 1})
    assert not isinstance(error.value, DamagedCheckpointError)


def test_a_missing_file_or_a_folder_is_refused(start, tmp_path):
    """Both are named."""
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=rf"{path}: no readable file"):
            load_checkpoint(path, start, CONFIG)


def test_another_config_is_refused_with_what_differs(start, saved):
    """Every differing field is listed with both values, however deep; equal ones are not."""
    config = copy.deepcopy(CONFIG)
    config["meta"]["seed"] = 5
    config["tasks"][0] = "small_dense_long"
    del config["note"]
    config["extra"] = True
    with pytest.raises(CheckpointError, match=saved.name) as error:
        load_checkpoint(saved, start, config)
    message = str(error.value)
    assert "config.meta.seed is 0 there and 5 here" in message
    assert "'catch', 'quadratic'] there and ['small_dense_long', 'quadratic'] here" in message
    assert "config.note is None there alone" in message
    assert "config.extra is True here alone" in message
    assert "agents" not in message


def test_a_run_may_go_on_for_longer_unless_its_rate_decays(start, saved):
    """The number of iterations matters only to the cosine decay, which spans all of them."""

    def with_meta(**changes):
        return {**CONFIG, "meta": {**CONFIG["meta"], **changes}}

    assert_identical(load_checkpoint(saved, start, with_meta(iterations=60)).state, start)
    save_checkpoint(saved, start, with_meta(cosine_to=0.1))
    assert_identical(load_checkpoint(saved, start, with_meta(cosine_to=0.1)).state, start)
    with pytest.raises(CheckpointError, match=r"meta\.iterations is 6 there and 60 here"):
        load_checkpoint(saved, start, with_meta(cosine_to=0.1, iterations=60))


def test_another_state_is_refused_with_the_leaf_that_differs(start, saved):
    """Other leaves, another shape, another type: each names the leaf."""
    bias = start.meta_parameters["network0"]["bias"]

    def like(**network):
        return start._replace(meta_parameters={"network0": network})

    weights = start.meta_parameters["network0"]
    with pytest.raises(CheckpointError, match=r"lacks \[.*'more'.* also has \[\]"):
        load_checkpoint(saved, like(**weights, more=bias), CONFIG)
    without = {name: x for name, x in weights.items() if name != "bias"}
    with pytest.raises(CheckpointError, match=r"lacks \[\] and also has .*'bias'"):
        load_checkpoint(saved, like(**without), CONFIG)
    with pytest.raises(CheckpointError, match=r"'bias'.* F32\[6\] there and F32\[7\] here"):
        load_checkpoint(saved, like(**{**weights, "bias": jnp.zeros(7)}), CONFIG)
    with pytest.raises(CheckpointError, match=r"'bias'.* F32\[6\] there and I32\[6\] here"):
        load_checkpoint(saved, like(**{**weights, "bias": jnp.zeros(6, jnp.int32)}), CONFIG)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.float32(1)])
def test_a_config_is_json_or_refused(value, start, tmp_path):
    """Before anything is written."""
    with pytest.raises(ValueError, match="config: JSON values are needed"):
        save_checkpoint(tmp_path / "file", start, {"value": value})
    assert not list(tmp_path.iterdir())
