"""Networks: sizes as published, initialisation as in flax, the convolution as in lax."""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import answer, convolve
from optim4rl.tasks.config import Initialisation
from optim4rl.tasks.networks import ActorCritic, make_mlps, make_network

KEY = jax.random.key(0)
BIG_DENSE_LONG = (5, 15, 11)
SMALL = (3, 4, 5)


def count(network: ActorCritic) -> int:
    """Count the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(network))


@pytest.mark.parametrize(
    ("kind", "shape", "actions", "options", "parameters"),
    [
        ("dense", (10, 5), 3, {"width": 256}, 14_084),
        ("conv", BIG_DENSE_LONG, 9, {"width": 32, "maps": "rows"}, 39_482),
        ("conv", BIG_DENSE_LONG, 9, {"width": 32}, 85_178),
        ("dense", (3, 8, 6), 9, {"width": 32}, 144 * 32 + 32 + 33 * 10),
        ("conv", (2, 3, 4), 5, {"width": 7}, (8 * 16 + 16) + (192 * 7 + 7) + 8 * 6),
    ],
)
def test_parameter_counts(
    kind: Any, shape: tuple[int, ...], actions: int, options: dict[str, Any], parameters: int
) -> None:
    """The paper's networks have the paper's sizes, and the outputs have the right shapes."""
    network = eqx.filter_eval_shape(make_network, kind, shape, actions, **options, key=KEY)
    assert count(network) == parameters
    observation = jnp.zeros(shape, jnp.float32)
    by_hand = partial(answer, maps=options.get("maps", "channels"))
    logits, value = jax.eval_shape(by_hand, network, observation)
    assert logits.shape == (actions,)
    assert value.shape == ()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(network))


@pytest.fixture(scope="module")
def networks() -> ActorCritic:
    """Two small networks with random biases too, along the first axis of every leaf."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(make_network, "conv", SMALL, 9, width=8, key=KEY)
    networks: ActorCritic = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=(2, *leaf.shape)), jnp.float32), shapes
    )
    return networks


def test_convolution_equals_lax(networks: ActorCritic) -> None:
    """The matrix product over shifted inputs is the 2 x 2 convolution with same padding."""
    assert networks.conv is not None
    conv = jax.tree.map(lambda leaf: leaf[0], networks.conv)

    @jax.jit
    def both(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        expected = jax.lax.conv_general_dilated(
            image[None], conv.kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        return convolve(conv, image), expected + conv.bias[None, None]

    image = np.random.default_rng(2).normal(size=(7, 6, 3)).astype(np.float32)
    ours, expected = both(jnp.asarray(image))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def by_formula(network: ActorCritic, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Work out logits and value of one image in plain numpy; the first axis holds channels."""
    assert network.conv is not None
    conv, dense, policy, value = jax.tree.map(
        np.asarray, (network.conv, network.dense, network.policy, network.value)
    )
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(1, 2))
    features = np.einsum("chwij,ijcf->hwf", windows, conv.kernel) + conv.bias
    features = np.maximum(np.maximum(features, 0).ravel() @ dense.kernel + dense.bias, 0)
    return features @ policy.kernel + policy.bias, (features @ value.kernel + value.bias)[0]


def test_agents_and_observations_vmap(networks: ActorCritic) -> None:
    """A population over a batch gives what the formula gives one by one."""
    x = np.random.default_rng(0).normal(size=(2, 6, *SMALL)).astype(np.float32)
    many = jax.jit(jax.vmap(lambda network, batch: jax.vmap(partial(answer, network))(batch)))
    logits, values = many(networks, jnp.asarray(x))
    for agent in range(2):
        alone = jax.tree.map(lambda leaf, agent=agent: np.asarray(leaf)[agent], networks)
        for i in range(6):
            expected_logits, expected_value = by_formula(alone, x[agent, i])
            np.testing.assert_allclose(logits[agent, i], expected_logits, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(values[agent, i], expected_value, rtol=1e-4, atol=1e-4)


def test_maps_as_rows_are_channels_last(networks: ActorCritic) -> None:
    """The order "rows" reads [row, column, channel], "channels" [channel, row, column]."""
    x = np.random.default_rng(1).normal(size=SMALL).astype(np.float32)
    channels = jax.tree.map(lambda leaf: leaf[0], networks)
    logits, value = jax.jit(partial(answer, maps="rows"))(channels, jnp.moveaxis(x, 0, -1))
    expected_logits, expected_value = by_formula(channels, x)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "fan_in"), [("dense", 400), ("conv", 1600)])
def test_initialisation(layer: Any, fan_in: int) -> None:
    """Variance 1 / fan-in, truncated at two standard deviations of the normal; biases zero."""
    shape = (400, 1, 1)
    network = jax.jit(lambda key: make_network(layer, shape, 9, width=100, key=key))(KEY)
    kernel, bias = getattr(network, layer).kernel, getattr(network, layer).bias
    scale = 1 / math.sqrt(fan_in)
    assert float(jnp.std(kernel)) == pytest.approx(scale, rel=0.02)
    assert abs(float(jnp.mean(kernel))) < 0.02 * scale
    assert float(jnp.max(jnp.abs(kernel))) <= 2.0 * scale / 0.8796
    assert float(jnp.max(jnp.abs(kernel))) > 1.9 * scale / 0.8796
    assert not jnp.any(bias)


def test_separate_networks() -> None:
    """Brax's sizes, and values by the formula."""
    rng = np.random.default_rng(0)
    paper = eqx.filter_eval_shape(make_mlps, 27, 16, (32,) * 4, (64,) * 5, key=KEY)
    policy = 28 * 32 + 3 * 33 * 32 + 33 * 16
    assert sum(leaf.size for leaf in jax.tree.leaves(paper)) == (
        policy + 28 * 64 + 4 * 65 * 64 + 65
    )
    small = eqx.filter_eval_shape(make_mlps, 6, 2, (3,), (4, 5), key=KEY)
    network = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), small)
    x = rng.normal(size=(2, 3)).astype(np.float32)

    def by_formula(layers: Any) -> Any:
        hidden = x.ravel()
        for layer in layers[:-1]:
            hidden = np.tanh(hidden @ layer.kernel + layer.bias)
        return hidden @ layers[-1].kernel + layers[-1].bias

    outputs, value = jax.jit(partial(answer, activation="tanh"))(network, x)
    np.testing.assert_allclose(outputs, by_formula(network.policy), rtol=1e-5)
    np.testing.assert_allclose(value, by_formula(network.value)[0], rtol=1e-5)


def test_separate_networks_start_as_flax_s() -> None:
    """Variance 1 / fan-in in every layer, and no layer like another."""
    network = jax.jit(lambda key: make_mlps(100, 8, (400, 400), (400,), key=key))(KEY)
    layers = [*network.policy, *network.value]
    for layer in layers[:3]:
        assert float(layer.kernel.std()) == pytest.approx(len(layer.kernel) ** -0.5, rel=0.05)
        assert not layer.bias.any()
    assert abs(np.corrcoef(layers[0].kernel.ravel(), layers[3].kernel.ravel())[0, 1]) < 0.02


def test_orthogonal_networks() -> None:
    """Rows or columns are orthogonal, of length root 2, in the last layers 0.01 and 1: JAX's."""
    network = jax.jit(lambda key: make_mlps(40, 3, (8, 8), (8, 8), "orthogonal", key=key))(KEY)
    gains = [2**0.5, 2**0.5, 0.01, 2**0.5, 2**0.5, 1.0]
    for layer, gain in zip([*network.policy, *network.value], gains, strict=True):
        kernel = np.asarray(layer.kernel)
        gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5 * gain**2)
        assert not layer.bias.any()
    shapes = [(40, 8), (8, 8), (8, 3)]
    for layer, shape, gain, key in zip(
        network.policy, shapes, gains, jax.random.split(jax.random.split(KEY)[0], 3), strict=False
    ):
        expected = jax.nn.initializers.orthogonal(gain)(key, shape)
        np.testing.assert_allclose(layer.kernel, expected, atol=1e-5 * gain)
    assert abs(network.policy[0].kernel - network.value[0].kernel).max() > 0.1
    assert abs(network.policy[0].kernel[:8] - network.policy[1].kernel).max() > 0.1


def test_a_convolution_needs_an_image() -> None:
    """The message names the argument, its value and what would be right."""
    with pytest.raises(ValueError, match=r"three axes for a convolution, not \(10, 5\)"):
        make_network("conv", (10, 5), 9, width=8, key=KEY)


@pytest.mark.parametrize("initialisation", ["lecun", "orthogonal"])
def test_parameters_are_float32_whatever_the_precision(initialisation: Initialisation) -> None:
    with jax.enable_x64(True):
        make = partial(make_mlps, 4, 3, (8,), (8,), initialisation)
        found = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
