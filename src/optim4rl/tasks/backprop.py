"""The agent's network over a batch of observations, forward and backward.

The forward pass that chooses an action leaves all that the backward pass needs, so the gradient of
a rollout takes no second forward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from optim4rl.tasks.inputs import Inputs
from optim4rl.tasks.networks import ActorCritic


class Activations(NamedTuple):
    """What the layers gave, after their ReLU.

    Attributes:
        conv: of the convolution, None if there is none.
        hidden: of the dense layer.
    """

    conv: Float[Array, "batch positions filters"] | None
    hidden: Float[Array, "batch width"]


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
) -> tuple[Float[Array, "batch actions"], Float[Array, "batch"], Activations]:
    """Logits, values and activations: what `network` gives, of many observations.

    Args:
        live: 1 for the units that there are and 0 for those that only fill the array; None if all
            are there.
    """
    conv = None
    if network.conv is None:
        hidden = inputs.full(network.dense.kernel, observation)
    else:
        conv = inputs.conv(network.conv.kernel, observation)
        conv = jax.nn.relu(conv + network.conv.bias[None, None])
        hidden = conv.reshape(len(conv), -1) @ network.dense.kernel
    hidden = jax.nn.relu(hidden + network.dense.bias[None])
    if live is not None:
        hidden = hidden * live[None]
    outputs = jnp.einsum("bw,ow->bo", hidden, heads.kernel) + heads.bias[None]
    return outputs[:, :-1], outputs[:, -1], Activations(conv, hidden)


def backward(
    network: ActorCritic,
    heads: Heads,
    inputs: Inputs,
    observation: Num[Array, "..."],
    activations: Activations,
    logits: Float[Array, "batch actions"],
    value: Float[Array, "batch"],
) -> ActorCritic:
    """The gradient of the parameters, from the cotangents of the logits and of the value."""
    conv, hidden = activations
    outputs = jnp.concatenate([logits, value[:, None]], axis=1)
    # The barrier keeps XLA from folding the transposition into the product: 2 to 8 times as slow.
    head_kernel = jax.lax.optimization_barrier(jnp.einsum("bo,bw->ow", outputs, hidden)).T
    head_bias = jnp.sum(outputs, axis=0)
    # Where a unit gave nothing, ReLU or mask let nothing through. Unrolled over the few outputs,
    # the product is part of one loop and takes half the time.
    columns = [x[:, None] * k[None] for x, k in zip(outputs.T, heads.kernel, strict=True)]
    hidden = jnp.where(hidden > 0, functools.reduce(jnp.add, columns), 0.0)
    torso = []
    if conv is None:
        torso += [inputs.full_gradient(observation, hidden)]
    else:
        dense_kernel = conv.reshape(len(conv), -1).T @ hidden
        conv = jnp.where(conv > 0, (hidden @ network.dense.kernel.T).reshape(conv.shape), 0.0)
        torso += [inputs.conv_gradient(observation, conv), jnp.sum(conv, axis=(0, 1)), dense_kernel]
    leaves = [
        *torso,
        jnp.sum(hidden, axis=0),
        *(head_kernel[:, :-1], head_bias[:-1]),
        *(head_kernel[:, -1:], head_bias[-1:]),
    ]
    gradient: ActorCritic = jax.tree.unflatten(jax.tree.structure(network), leaves)
    return gradient
