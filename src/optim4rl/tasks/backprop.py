"""The agent's network over a batch of observations, forward and backward.

The hidden units that the forward pass leaves are what the backward pass needs, so the gradient of a
rollout takes no second forward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from optim4rl.tasks.inputs import Inputs
from optim4rl.tasks.networks import ActorCritic, Conv2x2


class Heads(NamedTuple):
    """The policy's and the value's head as one layer, which reads the hidden units once."""

    kernel: Float[Array, "outputs width"]
    bias: Float[Array, "outputs"]


def join_heads(network: ActorCritic) -> Heads:
    """Join the heads, once for all steps of a rollout.

    The barrier has them laid out with the units last: batches of one run twice as fast.
    """
    kernel = jnp.concatenate([network.policy.kernel, network.value.kernel], axis=1).T
    bias = jnp.concatenate([network.policy.bias, network.value.bias])
    return Heads(*jax.lax.optimization_barrier((kernel, bias)))


def forward(
    network: ActorCritic,
    heads: Heads,
    inputs: Inputs,
    observation: Num[Array, "..."],
    live: Float[Array, "width"] | None = None,
) -> tuple[Float[Array, "batch actions"], Float[Array, "batch"], Float[Array, "batch width"]]:
    """Logits, values and hidden units: what `network` gives, of many observations.

    Args:
        live: 1 for the units that there are and 0 for those that only fill the array; None if all
            are there.
    """
    if network.conv is None:
        hidden = inputs.full(network.dense.kernel, observation)
    else:
        hidden = _features(network.conv, inputs, observation) @ network.dense.kernel
    hidden = jax.nn.relu(hidden + network.dense.bias[None])
    if live is not None:
        hidden = hidden * live[None]
    outputs = jnp.einsum("bw,ow->bo", hidden, heads.kernel) + heads.bias[None]
    return outputs[:, :-1], outputs[:, -1], hidden


def _features(
    conv: Conv2x2, inputs: Inputs, observation: Num[Array, "..."]
) -> Float[Array, "batch features"]:
    """What the convolution gives, flattened."""
    images = jax.nn.relu(inputs.conv(conv.kernel, observation) + conv.bias[None, None])
    return images.reshape(len(images), -1)


def backward(
    network: ActorCritic,
    heads: Heads,
    inputs: Inputs,
    observation: Num[Array, "..."],
    hidden: Float[Array, "batch width"],
    logits: Float[Array, "batch actions"],
    value: Float[Array, "batch"],
) -> ActorCritic:
    """The gradient of the parameters, from the cotangents of the logits and of the value.

    The convolution is done again, for all observations at once: its images are large, and to store
    them in each step takes longer.
    """
    outputs = jnp.concatenate([logits, value[:, None]], axis=1)
    # The barrier keeps XLA from folding the transposition into the product: 2 to 8 times as slow.
    head_kernel = jax.lax.optimization_barrier(jnp.einsum("bo,bw->ow", outputs, hidden)).T
    head_bias = jnp.sum(outputs, axis=0)
    # Where a unit gave nothing, ReLU or mask let nothing through. Unrolled over the few outputs,
    # the product is part of one loop and takes half the time.
    columns = [x[:, None] * k[None] for x, k in zip(outputs.T, heads.kernel, strict=True)]
    hidden = jnp.where(hidden > 0, functools.reduce(jnp.add, columns), 0.0)
    if network.conv is None:
        torso = [inputs.full_gradient(observation, hidden)]
    else:
        features = _features(network.conv, inputs, observation)
        images = jnp.where(features > 0, hidden @ network.dense.kernel.T, 0.0)
        images = images.reshape(len(images), -1, network.conv.bias.size)
        conv_kernel = inputs.conv_gradient(observation, images)
        torso = [conv_kernel, jnp.sum(images, axis=(0, 1)), features.T @ hidden]
    leaves = [
        *torso,
        jnp.sum(hidden, axis=0),
        *(head_kernel[:, :-1], head_bias[:-1]),
        *(head_kernel[:, -1:], head_bias[-1:]),
    ]
    gradient: ActorCritic = jax.tree.unflatten(jax.tree.structure(network), leaves)
    return gradient
