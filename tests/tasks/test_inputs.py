"""Looking ones up is multiplying by the observation that they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.tasks.inputs import DenseInputs, SparseInputs

SHAPE = (3, 4, 5)
SIZE = 60
BATCH = 7
CHANNELS = {"channels": 3, "rows": 5}


def observations() -> tuple[jax.Array, jax.Array]:
    """Three ones each, some of them nowhere, and the same written out; one observation is empty."""
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(SIZE + 1)[:3] for _ in range(BATCH)]).T
    places[:, 3] = SIZE
    places[0, :2] = SIZE
    places[1, 0], places[2, 0] = 0, SIZE - 1
    written = np.zeros((BATCH, SIZE + 1), np.float32)
    written[np.arange(BATCH)[None], places] = 1.0
    return jnp.asarray(places, jnp.int32), jnp.asarray(written[:, :SIZE]).reshape(BATCH, *SHAPE)


def normal(*shape: int) -> jax.Array:
    """Any numbers."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("maps", ["channels", "rows"])
def test_lookups_equal_products(maps: Any) -> None:
    """Both maps and both gradients."""
    places, written = observations()
    sparse, dense = SparseInputs(SHAPE, maps), DenseInputs(SHAPE, maps)

    @jax.jit
    def everything() -> Any:
        full, conv = normal(SIZE, 6), normal(2, 2, CHANNELS[maps], 6)
        cotangents = normal(BATCH, 6), normal(BATCH, SIZE // CHANNELS[maps], 6)
        return [
            (
                inputs.full(full, x),
                inputs.conv(conv, x),
                inputs.full_gradient(x, cotangents[0]),
                inputs.conv_gradient(x, cotangents[1]),
            )
            for inputs, x in ((sparse, places), (dense, written))
        ]

    found, expected = everything()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
    assert all(np.abs(x).max() > 1 for x in found)


@pytest.mark.parametrize("maps", ["channels", "rows"])
def test_gradients_are_the_transposes(maps: Any) -> None:
    """Of the products, by autodiff."""
    _, written = observations()
    dense = DenseInputs(SHAPE, maps)

    @jax.jit
    def everything() -> Any:
        full, conv = normal(SIZE, 6), normal(2, 2, CHANNELS[maps], 6)
        cotangents = normal(BATCH, 6), normal(BATCH, SIZE // CHANNELS[maps], 6)
        found = (
            dense.full_gradient(written, cotangents[0]),
            dense.conv_gradient(written, cotangents[1]),
        )
        expected = (
            jax.vjp(lambda kernel: dense.full(kernel, written), full)[1](cotangents[0])[0],
            jax.vjp(lambda kernel: dense.conv(kernel, written), conv)[1](cotangents[1])[0],
        )
        return found, expected

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *everything())


def test_members_are_taken_in_order() -> None:
    """The same ones, written either way."""
    places, written = observations()
    members = jnp.array([3, 0, 0], jnp.int32)
    np.testing.assert_array_equal(
        SparseInputs(SHAPE, "rows").take(places, members), np.asarray(places)[:, [3, 0, 0]]
    )
    np.testing.assert_array_equal(
        DenseInputs(SHAPE, "rows").take(written, members), np.asarray(written)[[3, 0, 0]]
    )


def test_steps_are_joined_in_order_and_selected_by_member() -> None:
    """Step by step, environments within; the batch is the first axis or the last."""
    sparse, dense = SparseInputs((2,), "channels"), DenseInputs((2,), "channels")
    x = jnp.arange(2 * 3 * 4, dtype=jnp.int32).reshape(2, 3, 4)  # steps, ones, batch
    joined = sparse.join(x)
    assert joined.shape == (3, 8)
    np.testing.assert_array_equal(joined[1], [4, 5, 6, 7, 16, 17, 18, 19])
    step = jnp.array([[0, 1, 1, 0]], jnp.int32)
    np.testing.assert_array_equal(sparse.select(x, step)[0, 2], [8, 21, 22, 11])
    floats = jnp.arange(2 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 2)  # steps, batch, observation
    np.testing.assert_array_equal(dense.join(floats)[:, 0], np.arange(0, 16, 2))
    np.testing.assert_array_equal(dense.select(floats, step)[0, :, 0], [0, 10, 12, 6])
