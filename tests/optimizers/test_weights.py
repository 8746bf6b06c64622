"""Weights files: what is saved comes back bit for bit, anything else is refused."""

import hashlib
import json
import os
import pickle
import struct
import warnings
import zipfile
from functools import partial
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings, strategies as st
from test_transform import random_weights

import optim4rl
from optim4rl.optimizers import (
    LEARNED,
    LearnedOptimizer,
    OptimizerSpec,
    WeightsError,
    load_weights,
    save_weights,
    untrained,
)
from optim4rl.optimizers.structures import L2L

CARD = {"task": "catch", "seeds": [3, 4], "returns": {"final": 0.98, "note": "α = 1e-3"}}


@pytest.fixture(scope="module")
def tiny():
    """An optimizer whose file is small enough to break in every place."""
    spec = OptimizerSpec(structure=L2L(), hidden_size=1, head_sizes=())
    return LearnedOptimizer(spec, random_weights(spec), 3e-3, CARD)


@pytest.fixture(scope="module")
def contents(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, tiny)
    return path.read_bytes()


def assert_same_optimizer(actual, expected):
    assert actual.spec == expected.spec
    assert actual.learning_rate == expected.learning_rate
    assert actual.card == expected.card
    jax.tree.map(np.testing.assert_array_equal, actual.meta_parameters, expected.meta_parameters)


def parts(contents):
    """The card and the tensors of a file."""
    (length,) = struct.unpack("<Q", contents[:8])
    metadata = json.loads(contents[8 : 8 + length])["__metadata__"]
    return json.loads(metadata["card"]), safetensors.numpy.load(contents)


def sealed(card, tensors):
    """A file with any card and tensors, whose checksum is right."""
    card = {key: value for key, value in card.items() if key != "sha256"}
    said = json.dumps(card, sort_keys=True).encode()
    named = b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
    card["sha256"] = hashlib.sha256(said + named).hexdigest()
    return with_card(json.dumps(card, indent=1, sort_keys=True), tensors)


def with_card(text, tensors):
    return safetensors.numpy.save(tensors, metadata={"card": text})


def refused(path, contents, message):
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(path)
    assert str(path) in str(error.value)


@partial(jax.jit, static_argnums=(0, 1))
def three_updates(spec, rate, meta_parameters, gradients):
    tx = LearnedOptimizer(spec, meta_parameters, rate).transformation()

    def body(state, gradient):
        updates, state = tx.update(gradient, state, gradient)
        return state, updates

    return jax.lax.scan(body, tx.init(gradients[0]), gradients)[1]


@pytest.mark.parametrize("name", LEARNED)
def test_save_load_update_is_bit_identical(name, tmp_path):
    spec = LEARNED[name]
    saved = LearnedOptimizer(spec, random_weights(spec), 1e-2, CARD)
    path = tmp_path / "new folder" / "learned.safetensors"
    save_weights(path, saved)
    loaded = load_weights(path)
    assert_same_optimizer(loaded, saved)
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    before, after = (
        three_updates(x.spec, x.learning_rate, x.meta_parameters, gradients)
        for x in (saved, loaded)
    )
    assert before.any()
    np.testing.assert_array_equal(after, before)


def test_saving_again_writes_the_same_bytes(contents, tmp_path):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(contents)
    loaded = load_weights(str(path))
    save_weights(path, loaded)
    assert path.read_bytes() == contents


@pytest.mark.parametrize("beginning", [b"\x80", b"PK"])
def test_a_header_that_happens_to_begin_like_a_pickle_or_a_zip_is_read(
    beginning, contents, tiny, tmp_path
):
    """A file begins with the length of its header, which a longer card can make anything."""
    card, tensors = parts(contents)
    length = struct.unpack("<Q", contents[:8])[0]
    wanted = int.from_bytes(beginning, "little") - length
    padding = wanted % 256 ** len(beginning) - len(json.dumps(',\n "z": ""')[1:-1])
    path = tmp_path / "w.safetensors"
    path.write_bytes(sealed({**card, "z": "x" * padding}, tensors))
    assert path.read_bytes().startswith(beginning)
    assert load_weights(path).card == {**tiny.card, "z": "x" * padding}


def test_keys_that_are_no_text_are_saved_as_text(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    card = {"by_seed": {10: 0.5, 2: (0.25, float("nan"))}}
    save_weights(path, LearnedOptimizer(tiny.spec, tiny.meta_parameters, 3e-3, card))
    by_seed = load_weights(path).card["by_seed"]
    assert by_seed["10"] == 0.5
    assert by_seed["2"][0] == 0.25
    assert np.isnan(by_seed["2"][1])


def test_a_card_cannot_overrule_the_spec(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    card = {**CARD, "spec": "mine", "format": "mine", "learning_rate": 7.0}
    save_weights(path, LearnedOptimizer(tiny.spec, tiny.meta_parameters, 3e-3, card))
    assert_same_optimizer(load_weights(path), tiny)


def test_a_file_has_the_documented_format(contents, tiny):
    card, tensors = parts(contents)
    assert card["format"], card["format_version"] == ("optim4rl-weights", 1)
    assert sealed(card, tensors) == contents
    assert {name: x.dtype for name, x in tensors.items()} == {
        f"network0.{name}": np.float32 for name in tiny.meta_parameters["network0"]
    }


def test_no_pickle_is_touched(contents, tmp_path, monkeypatch, tiny):
    def forbidden(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    path = tmp_path / "tiny.safetensors"
    path.write_bytes(contents)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert_same_optimizer(load_weights(path), tiny)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_unread(protocol, tmp_path):
    hint = r" \(it looks like a pickle" if protocol > 1 else ""
    refused(
        tmp_path / "w.pkl",
        pickle.dumps(Bomb(), protocol),
        f"not a readable .safetensors file{hint}",
    )


def test_a_zip_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    refused(path, path.read_bytes(), "looks like a pickle or a zip")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_missing_file_or_a_directory_is_named(make, tmp_path):
    path = tmp_path / "w.safetensors"
    make(path)
    with pytest.raises(WeightsError, match=r"no readable file there.*shipped weights are") as error:
        load_weights(path)
    assert str(path) in str(error.value)


def test_every_truncation_is_refused(contents, tmp_path):
    path = tmp_path / "tiny.safetensors"
    for length in range(len(contents)):
        refused(path, contents[:length], "not a readable .safetensors file")


def test_every_flipped_bit_in_the_tensors_is_found(contents, tmp_path):
    start = 8 + struct.unpack("<Q", contents[:8])[0]
    assert len(contents) - start == 4 * sum(x.size for x in parts(contents)[1].values())
    for position in range(start, len(contents)):
        broken = bytearray(contents)
        broken[position] ^= 1 << position % 8
        refused(tmp_path / "tiny.safetensors", bytes(broken), "checksum")


def mutations():
    where = st.floats(0, 1, exclude_max=True)
    return st.lists(
        st.one_of(
            st.tuples(st.just("flip"), where, st.integers(0, 7)),
            st.tuples(st.just("set"), where, st.integers(0, 255)),
            st.tuples(st.just("insert"), where, st.binary(min_size=1, max_size=9)),
            st.tuples(st.just("delete"), where, st.integers(1, 64)),
            st.tuples(st.just("repeat"), where, st.integers(1, 64)),
        ),
        min_size=1,
        max_size=3,
    )


def mutate(contents, kind, where, value):
    at = int(where * len(contents))
    before, rest = contents[:at], contents[at:]
    match kind:
        case "flip":
            return before + bytes([rest[0] ^ (1 << value)]) + rest[1:]
        case "set":
            return before + bytes([value]) + rest[1:]
        case "insert":
            return before + value + rest
        case "delete":
            return before + rest[value:]
        case "repeat":
            return before + rest[:value] + rest
    raise ValueError(kind)


@settings(max_examples=400, deadline=None)
@given(mutations())
def test_a_mutated_file_is_refused_or_says_the_same(
    contents, tiny, tmp_path_factory, mutations_of_it
):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    broken = contents
    for mutation in mutations_of_it:
        broken = mutate(broken, *mutation) if broken else broken
    path.write_bytes(broken)
    try:
        loaded = load_weights(path)
    except WeightsError:
        return
    assert_same_optimizer(loaded, tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"version 2; this release reads 'optim4rl-weights' version 1"),
        ({"format": "other"}, "format 'other' version 1"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'"),
        ({"learning_rate": True}, "learning_rate = True"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"learning_rate": -1.0}, r"learning_rate = -1\.0"),
        ({"learning_rate": 1e300}, r"learning_rate = 1e\+300: a positive float32 is needed"),
        ({"learning_rate": 1e-50}, r"learning_rate = 1e-50: a positive float32 is needed"),
        ({"spec": None}, "spec: an object is needed"),
        ({"spec": {}}, r"fields \['cell', .*missing or unknown"),
    ],
)
def test_a_wrong_card_is_refused(change, message, contents, tmp_path):
    card, tensors = parts(contents)
    refused(tmp_path / "w.safetensors", sealed({**card, **change}, tensors), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": {"name": "os.system"}}, "structure = .*known names are adaptive"),
        ({"processing": {"name": "eval"}}, "processing = .*known names are sign_log"),
        ({"cell": "transformer"}, "cell = 'transformer'"),
        ({"colour": "red"}, r"\['colour'\]"),
        ({"step_scale": 1e308}, r"step_scale = 1e\+308: .* in float32 too: there it is inf"),
        (
            {"structure": {"name": "anchored", "beta1": 0.999999999999}},
            r"structure\.beta1 = 0\.999999999999: .* in float32 too: there it is 1\.0",
        ),
        (
            {"structure": {"name": "adaptive", "epsilon": -1}},
            r"structure\.epsilon = -1: a positive finite number is needed",
        ),
        ({"hidden_size": 2}, r"network0\.\w+ is float32\[.*the spec needs float32\["),
        ({"hidden_size": 10**30}, "hidden_size = 10*: a whole number below"),
        ({"head_sizes": [4]}, r"\['network0\.head1', 'network0\.head1_bias'\]"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(change, message, contents, tmp_path):
    card, tensors = parts(contents)
    card = {**card, "spec": {**card["spec"], **change}}
    refused(tmp_path / "w.safetensors", sealed(card, tensors), message)


@pytest.mark.parametrize(
    "card", ["", "[]", "null", "{", "[" * 100_000], ids=["empty", "list", "null", "cut", "deep"]
)
def test_a_card_that_is_no_object_is_refused(card, contents, tmp_path):
    refused(
        tmp_path / "w.safetensors", with_card(card, parts(contents)[1]), "carries no optim4rl card"
    )


def test_a_file_of_another_project_is_refused(contents, tmp_path):
    _, tensors = parts(contents)
    path = tmp_path / "w.safetensors"
    refused(path, safetensors.numpy.save(tensors), "carries no optim4rl card")
    refused(path, safetensors.numpy.save(tensors, metadata={"format": "pt"}), "carries no optim4rl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float64), r"float64\[3, 2\]; the spec needs float32\[3, 2\]"),
        (lambda x: x.view(np.int32), r"int32\[3, 2\]"),
        (lambda x: x.T.copy(), r"float32\[2, 3\]; the spec needs float32\[3, 2\]"),
        (lambda x: x[:2], r"float32\[2, 2\]"),
        (lambda x: x * np.float32(np.nan), "not finite"),
        (lambda x: x * np.float32(np.inf), "not finite"),
        (lambda x: None, r"\['network0\.input'\] are missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, contents, tmp_path):
    card, tensors = parts(contents)
    assert tensors["network0.input"].shape == (3, 2)
    changed = {**tensors, "network0.input": change(tensors["network0.input"])}
    changed = {name: x for name, x in changed.items() if x is not None}
    refused(tmp_path / "w.safetensors", sealed(card, changed), message)


def test_a_tensor_too_many_is_refused(contents, tmp_path):
    card, tensors = parts(contents)
    extra = {**tensors, "network9.input": np.zeros(2, np.float32)}
    refused(tmp_path / "w.safetensors", sealed(card, extra), r"\['network9\.input'\]")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    call, error, contents, tiny, tmp_path, monkeypatch
):
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)

    def fail(*args):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        save_weights(path, LearnedOptimizer(tiny.spec, tiny.meta_parameters, 7.0))
    assert path.read_bytes() == contents
    assert list(tmp_path.iterdir()) == [path]


def first_update(tx, gradient):
    return jax.jit(lambda: tx.update(gradient, tx.init(gradient))[0])()


def test_load_is_an_optax_optimizer_with_a_rate_a_schedule_and_a_scale(contents, tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)
    gradient = jnp.asarray([0.5, -0.3])
    reference = first_update(tiny.transformation(), gradient)
    assert reference.any()
    np.testing.assert_array_equal(first_update(optim4rl.load(path), gradient), reference)
    for expected_factor, tx in (
        (2.0, optim4rl.load(path, 6e-3)),
        (2.0, optim4rl.load(path, optax.constant_schedule(6e-3))),
        (0.25, optim4rl.load(path, step_scale=0.25)),
        (0.5, optim4rl.load(path, 6e-3, step_scale=0.25)),
        (0.25, tiny.transformation(step_scale=0.25)),
    ):
        np.testing.assert_allclose(
            first_update(tx, gradient), expected_factor * reference, rtol=1e-6
        )


@pytest.mark.parametrize("rate", [2.9e-4, np.float64(1e-5)])
def test_a_rate_meant_for_adam_is_warned_of(rate, contents, tmp_path):
    """These weights were trained at 3e-3."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)
    with pytest.warns(UserWarning, match="learning_rate = ") as caught:
        optim4rl.load(path, rate)
    (said,) = [str(x.message) for x in caught]
    assert said.startswith(
        f"learning_rate = {rate:g} is {3e-3 / rate:.0f} times below the rate of these weights, "
        "0.003: where it was Adam's, leave it out"
    )
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("rate", "step_scale"),
    [
        (None, 1e-3),
        (3e-4, 1.0),
        (0.0, 1.0),
        (1e-5, 33.0),
        (optax.constant_schedule(1e-5), 1.0),
        (jnp.float32(1e-5), 1.0),
        (1e-5, optax.constant_schedule(100.0)),
    ],
)
def test_other_rates_are_not_warned_of(rate, step_scale, contents, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim4rl.load(path, rate, step_scale=step_scale)
        traced = jax.jit(lambda rate: optim4rl.load(path, rate).init(jnp.zeros(2)))
        traced(1e-5)


def test_a_step_scale_must_be_positive(tiny):
    with pytest.raises(ValueError, match=r"step_scale = 0\.0"):
        tiny.transformation(step_scale=0.0)


def test_shipped_weights_are_found_by_name(contents, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert optim4rl.shipped_names() == ()
    for name in ("small", "large"):
        save_weights(tmp_path / "zoo" / f"{name}.safetensors", tiny)
    assert optim4rl.shipped_names() == ("large", "small")
    assert_same_optimizer(load_weights("small"), tiny)
    with pytest.raises(WeightsError, match=r"'smal': .*shipped weights are large, small"):
        optim4rl.load("smal")


def test_an_untrained_optimizer_is_its_preset_with_fresh_weights():
    control = untrained("l2lgd2", 1e-3, jax.random.key(0))
    assert control.spec == LEARNED["l2lgd2"]
    assert control.learning_rate == 1e-3
    with pytest.raises(ValueError, match="optimizer = 'nobody'"):
        untrained("nobody", 1e-3, jax.random.key(0))
