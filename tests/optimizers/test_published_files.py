"""OPEN's published weights: read as they are laid out, run as published, or refused."""

import dataclasses
import io
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from open_reference import (
    PUBLISHED,
    SIZES,
    Reference,
    flat_of,
    golden_run,
    random_run,
    random_vector,
    tree_of,
    without_noise,
)
from optim4rl.optimizers import WeightsError, load_weights, save_weights
from optim4rl.optimizers.published_files import import_open

of_published_files = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason=f"OPEN's own files are not in {PUBLISHED}"
)
COUNTS = {"rollouts": 6, "epochs": 2, "minibatches": 2}


def imported(vector, tmp_path, **counts):
    path = tmp_path / "weights.npy"
    np.save(path, vector)
    return import_open(path, **counts)


def parameters_after(optimizer, params, gradients, told, counted=False):
    """The parameters after each gradient; proportions are told, or counted."""
    tx, params = optimizer.transformation(), jax.tree.map(jnp.asarray, tree_of(params))

    @jax.jit
    def step(params, state, gradient, training, epoch, dormancy):
        proportions = {"training_proportion": training, "epoch_proportion": epoch}
        told = {"dormancy": dormancy} | ({} if counted else proportions)
        updates, state = tx.update(gradient, state, params, **told)
        return jax.tree.map(jnp.add, params, updates), state

    state, found = tx.init(params), []
    for gradient, (training, epoch, dormancy) in zip(gradients, told, strict=True):
        dormancy = jax.tree.map(jnp.float32, dormancy)
        gradient = jax.tree.map(jnp.asarray, tree_of(gradient))
        proportions = jnp.float32(training), jnp.float32(epoch)
        params, state = step(params, state, gradient, *proportions, dormancy)
        found.append(flat_of(params))
    return np.stack(found)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_published_formula(size, tmp_path):
    vector = without_noise(random_vector(size))
    params, gradients, told, expected = random_run(vector)
    found = parameters_after(imported(vector, tmp_path), params, gradients, told)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_it_comes_back_from_a_weights_file(size, tmp_path):
    found = imported(random_vector(size), tmp_path, **COUNTS)
    hidden, head = SIZES[size]
    assert (found.spec.hidden_size, found.spec.head_sizes) == (hidden, head)
    assert vars(found.spec.structure) == COUNTS
    assert found.learning_rate == 1e-3
    assert found.card["source"]["optimizer"] == "OPEN"
    assert found.card["source"]["file"] == "weights.npy"
    path = tmp_path / "weights.safetensors"
    save_weights(path, found)
    loaded = load_weights(path)
    assert (loaded.spec, loaded.card) == (found.spec, found.card)
    jax.tree.map(np.testing.assert_array_equal, loaded.meta_parameters, found.meta_parameters)


def test_floats_of_other_sizes_are_read(tmp_path):
    vector = random_vector(1211)
    expected = imported(vector, tmp_path).meta_parameters
    for dtype in (np.float64, ">f4"):
        found = imported(vector.astype(dtype), tmp_path).meta_parameters
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def changed(index, value, dtype=np.float32):
    vector = random_vector(1211).astype(dtype)
    vector[index] = value
    return vector


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            random_vector(1210),
            r"1,210 numbers; OPEN's weights are 1,211 \(GRU of 8, head 16-16\) or 3,571 "
            r"\(GRU of 16, head 32-32\)$",
        ),
        (np.zeros(0, np.float32), "not a readable .npy file|0 numbers"),
        (random_vector(1211)[None], r"float32 of shape \(1, 1211\); one vector of floats"),
        (np.float32(1.0), r"float32 of shape \(\); one vector of floats"),
        (np.zeros(1211, np.int64), r"int64 of shape \(1211,\); one vector of floats"),
        (np.zeros(1211, np.complex64), r"complex64 of shape \(1211,\); one vector of floats"),
        (changed(7, np.nan), "numbers that are not finite"),
        (changed(1210, -np.inf), "numbers that are not finite"),
        (changed(0, 1e300, np.float64), "numbers that are not finite"),
    ],
)
def test_another_vector_is_refused(array, message, tmp_path):
    with pytest.raises(WeightsError, match=message) as error:
        imported(array, tmp_path)
    assert "weights.npy" in str(error.value)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    np.savez(file, weights=random_vector(1211))
    return file.getvalue()


GOOD = saved(random_vector(1211))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(np.array([Bomb()], object), allow_pickle=True), "not a readable .npy file"),
        (pickle.dumps(Bomb()), "not a .npy file; a pickle or a zip is never opened"),
        (zipped(), "not a .npy file"),
        (b"", "not a .npy file"),
        (GOOD[:-1], "not a readable .npy file"),
        (GOOD[:20], "not a readable .npy file"),
        (GOOD.replace(b"(1211,)", b"(10**9"), "not a readable .npy file"),
        (GOOD.replace(b"(1211,), }", b"(999999999,)}").replace(b"  \n", b"\n"), "not a readable"),
    ],
)
def test_what_is_no_vector_is_refused_unread(data, message, tmp_path):
    path = tmp_path / "weights.npy"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as error:
        import_open(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_missing_file_or_a_directory_is_named(make, tmp_path):
    path = tmp_path / "weights.npy"
    make(path)
    with pytest.raises(WeightsError, match=r"weights\.npy: no readable file there"):
        import_open(path)


@pytest.mark.parametrize("field", COUNTS)
def test_counts_are_positive(field, tmp_path):
    with pytest.raises(ValueError, match=f"^{field} = 0: a whole number of at least 1"):
        imported(random_vector(1211), tmp_path, **{field: 0})


@pytest.mark.slow
@of_published_files
@pytest.mark.parametrize("name", ["breakout", "multi"])
@pytest.mark.parametrize("counted", [False, True])
def test_published_weights_move_as_their_own_code_moves_them(name, counted, tmp_path):
    """Told the proportions, and counting them."""
    vector = without_noise(np.load(PUBLISHED / f"{name}.npy", allow_pickle=False))
    params, gradients, told, expected = golden_run(name)
    optimizer = imported(vector, tmp_path, **COUNTS)
    optimizer = dataclasses.replace(
        optimizer, spec=dataclasses.replace(optimizer.spec, clip_norm=None)
    )
    found = parameters_after(optimizer, params, gradients, told, counted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@of_published_files
@pytest.mark.parametrize("name", ["breakout", "multi"])
def test_the_reference_moves_as_their_own_code_does(name):
    """So that it may stand for it where the published files are not."""
    params, gradients, told, expected = golden_run(name)
    vector = np.load(PUBLISHED / f"{name}.npy", allow_pickle=False)
    reference = Reference(vector, params, clip=np.inf)
    for gradient, x, after in zip(gradients, told, expected, strict=True):
        np.testing.assert_allclose(reference.step(gradient, *x), after, rtol=0, atol=1e-6)


@pytest.mark.slow
@of_published_files
def test_every_published_file_is_read():
    found = {path.stem: import_open(path) for path in PUBLISHED.glob("*.npy")}
    assert len(found) >= 7
    assert {x.spec.hidden_size for x in found.values()} == {8, 16}
