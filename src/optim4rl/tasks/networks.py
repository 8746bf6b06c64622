"""The agents' networks: policy and value share a torso, or each has its own network."""

import itertools
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from optim4rl.tasks.config import Activation, Initialisation, MapOrder

# Flax's default, which the paper's networks use: variance 1 / fan-in, truncated at two standard
# deviations; biases start at zero.
_kernel_init = jax.nn.initializers.lecun_normal()
# Filters of a convolution.
FILTERS = 16


class Dense(eqx.Module):
    """An affine map."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]


class Conv2x2(eqx.Module):
    """A 2 x 2 convolution, stride 1, same padding (a zero row below, a zero column to the right).

    It is one matrix product over the four shifted inputs. Agents train side by side, each with its
    own kernel, and XLA turns a convolution with a batch of kernels into a grouped convolution.
    Forward and backward on a 2-core CPU, 15 x 11 x 5 inputs: 4 to 4.5 times as fast as
    `equinox.nn.Conv2d` over 8 or 64 agents (forward alone 3 to 9 times), 2 times for one agent.
    """

    kernel: Float[Array, "2 2 channels filters"]
    bias: Float[Array, "filters"]


class ActorCritic(eqx.Module):
    """Policy and value of one observation, from a shared torso.

    The torso is a dense layer on the flattened observation, or a convolution and a dense layer,
    with ReLU after each. Every leaf is a float32 array.
    """

    conv: Conv2x2 | None
    dense: Dense
    policy: Dense
    value: Dense


class SeparateMLPs(eqx.Module):
    """Policy and value of one observation, each with its own layers; the last one is linear."""

    policy: tuple[Dense, ...]
    value: tuple[Dense, ...]


def activation(name: Activation) -> Callable[[Array], Array]:
    """Return the activation function of this name."""
    return {"relu": jax.nn.relu, "swish": jax.nn.swish, "tanh": jnp.tanh}[name]


def make_mlps(
    inputs: int,
    num_outputs: int,
    policy_layers: tuple[int, ...],
    value_layers: tuple[int, ...],
    initialisation: Initialisation = "lecun",
    *,
    key: PRNGKeyArray,
) -> SeparateMLPs:
    """Build and initialise separate networks for the policy and the value.

    Args:
        inputs: Numbers in an observation.
        num_outputs: Number of parameters of the policy's distribution.
        policy_layers: Units of the policy's hidden layers.
        value_layers: Units of the value's hidden layers.
        initialisation: Initialisation of the kernels. "lecun" has variance 1 / fan-in.
            "orthogonal" has orthogonal columns or rows, times the root of 2 in hidden layers, 0.01
            in the policy's last layer and 1 in the value's (Huang et al. 2022, "The 37
            implementation details of PPO", number 2).
        key: Source of the initial kernels.
    """

    def layers(hidden: tuple[int, ...], outputs: int) -> tuple[Dense, ...]:
        sizes = itertools.pairwise((inputs, *hidden, outputs))
        return tuple(_blank(*size) for size in sizes)

    shapes = jax.eval_shape(
        lambda: SeparateMLPs(layers(policy_layers, num_outputs), layers(value_layers, 1))
    )
    return _draw(shapes, key) if initialisation == "lecun" else _draw_orthogonal(shapes, key)


def make_network(
    kind: Literal["dense", "conv"],
    observation_shape: tuple[int, ...],
    num_actions: int,
    *,
    width: int,
    maps: MapOrder = "channels",
    key: PRNGKeyArray,
) -> ActorCritic:
    """Build and initialise a network.

    Args:
        kind: "dense", or "conv" for a 2 x 2 convolution before the dense layer.
        observation_shape: Shape of one observation; three axes for "conv".
        num_actions: Number of logits.
        width: Units of the dense layer.
        maps: Meaning of the axes in the convolution. "channels": (channel, row, column), as in the
            grid worlds. "rows": (row, column, channel), as in MinAtar. On grid worlds "rows" is
            the order of the paper's release, which convolves over (map, row) with the columns as
            channels.
        key: Source of the initial kernels.

    Raises:
        ValueError: If the observation of a convolution does not have three axes.
    """
    if kind == "conv" and len(observation_shape) != 3:
        raise ValueError(
            f"observation_shape must have three axes for a convolution, not {observation_shape}"
        )

    def shapes() -> ActorCritic:
        conv = None
        inputs = math.prod(observation_shape)
        if kind == "conv":
            channels = observation_shape[0 if maps == "channels" else -1]
            conv = Conv2x2(
                jnp.zeros((2, 2, channels, FILTERS), jnp.float32), jnp.zeros(FILTERS, jnp.float32)
            )
            inputs = inputs // channels * FILTERS
        return ActorCritic(
            conv, _blank(inputs, width), _blank(width, num_actions), _blank(width, 1)
        )

    return _draw(jax.eval_shape(shapes), key)


def _blank(inputs: int, outputs: int) -> Dense:
    """Return a layer of this size, whose numbers are still to be drawn."""
    return Dense(jnp.zeros((inputs, outputs), jnp.float32), jnp.zeros(outputs, jnp.float32))


Network = TypeVar("Network", ActorCritic, SeparateMLPs)


def _draw(shapes: Network, key: PRNGKeyArray) -> Network:
    """Return fresh parameters of these shapes.

    One draw serves all, because XLA compiles each further draw as slowly as a small network.
    """
    leaves, structure = jax.tree.flatten(shapes)
    sizes = [leaf.size if leaf.ndim > 1 else 0 for leaf in leaves]
    ends = list(itertools.accumulate(sizes))
    # The draw of `_kernel_init`, before it is scaled to the fan-in.
    normal = _kernel_init(key, (1, ends[-1]), jnp.float32)[0]
    network: Network = jax.tree.unflatten(
        structure,
        [
            normal[end - size : end].reshape(leaf.shape) / math.sqrt(size // leaf.shape[-1])
            if size
            else jnp.zeros(leaf.shape, jnp.float32)
            for leaf, size, end in zip(leaves, sizes, ends, strict=True)
        ],
    )
    return network


def _draw_orthogonal(shapes: SeparateMLPs, key: PRNGKeyArray) -> SeparateMLPs:
    """Return fresh parameters of these shapes with orthogonal kernels; see `make_mlps`."""

    def layers(drawn: tuple[Dense, ...], last_gain: float, key: PRNGKeyArray) -> tuple[Dense, ...]:
        gains = [math.sqrt(2.0)] * (len(drawn) - 1) + [last_gain]
        keys = jax.random.split(key, len(drawn))
        return tuple(
            Dense(gain * _orthogonal(k, *layer.kernel.shape), jnp.zeros_like(layer.bias))
            for gain, k, layer in zip(gains, keys, drawn, strict=True)
        )

    policy, value = jax.random.split(key)
    return SeparateMLPs(layers(shapes.policy, 0.01, policy), layers(shapes.value, 1.0, value))


def _orthogonal(key: PRNGKeyArray, inputs: int, outputs: int) -> Float[Array, "inputs outputs"]:
    """Draw as `jax.nn.initializers.orthogonal`, but by Gram-Schmidt, twice for accuracy.

    JAX's initializer calls LAPACK's QR, which in jaxlib 0.10 waits for its own threads. Two calls
    at once, for a batch of agents, deadlock on a machine with two cores.
    """
    tall = inputs >= outputs
    shape = (inputs, outputs) if tall else (outputs, inputs)
    normal = jax.random.normal(key, shape, jnp.float32)

    def add(done: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        """Add a direction orthogonal to the earlier ones; the later columns are still zero."""
        index, rest = column
        for _ in range(2):
            rest = rest - done @ (done.T @ rest)
        return done.at[:, index].set(rest / jnp.linalg.norm(rest)), None

    columns = (jnp.arange(normal.shape[1]), normal.T)
    basis, _ = jax.lax.scan(add, jnp.zeros_like(normal), columns)
    return basis if tall else basis.T
