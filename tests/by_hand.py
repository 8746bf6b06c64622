"""An agent's network on one observation, and what it lived through: oracles of `optim4rl.tasks`."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks import networks
from optim4rl.tasks.config import Activation, MapOrder
from optim4rl.tasks.environments.episodes import SparseVector, Vectorized
from optim4rl.tasks.inputs import shifted_images
from optim4rl.tasks.networks import ActorCritic, Conv2x2, Dense, Network, SeparateMLPs
from optim4rl.tasks.task import Actor, RolloutStats, Task, _normalised, _stats


def convolve(
    conv: Conv2x2, image: Float[Array, "height width channels"]
) -> Float[Array, "height width filters"]:
    """The convolution of one image."""
    kernel = conv.kernel.reshape(-1, conv.kernel.shape[-1])
    return shifted_images(image) @ kernel + conv.bias[None, None]


def answer(
    network: Network,
    observation: Float[Array, "..."],
    *,
    maps: MapOrder = "channels",
    activation: Activation = "swish",
) -> tuple[Array, Array]:
    """The policy's outputs and the value of one observation; vmap over many."""
    if isinstance(network, SeparateMLPs):
        flat = observation.reshape(-1)
        activate = networks.activation(activation)
        policy, value = (_run(layers, activate, flat) for layers in (network.policy, network.value))
        return policy, value[0]
    assert isinstance(network, ActorCritic)
    if network.conv is not None:
        image = jnp.moveaxis(observation, 0, -1) if maps == "channels" else observation
        observation = jax.nn.relu(convolve(network.conv, image))
    features = jax.nn.relu(_affine(network.dense, observation.reshape(-1)))
    return _affine(network.policy, features), _affine(network.value, features)[0]


def _affine(layer: Dense, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
    return x @ layer.kernel + layer.bias


def _run(layers: tuple[Dense, ...], activate: Any, x: Array) -> Array:
    x = _affine(layers[0], x)
    for layer in layers[1:]:
        x = _affine(layer, activate(x))
    return x


class Transitions(NamedTuple):
    """A rollout of T steps in E environments.

    Attributes:
        observation: the agent's observation.
        action: its action, before any squashing.
        reward: its reward, scaled for learning.
        terminated: whether the step ended the episode in a terminal state, whose value is 0.
        truncated: whether the step hit a time limit; the state that it led to still has a value.
        value: the critic's value of `observation`.
        next_value: the critic's value of the state that the step led to, before any reset.
    """

    observation: Float[Array, "T E *observation"]
    action: Num[Array, "T E ..."]
    reward: Float[Array, "T E"]
    terminated: Bool[Array, "T E"]
    truncated: Bool[Array, "T E"]
    value: Float[Array, "T E"]
    next_value: Float[Array, "T E"]


def transitions(
    task: Task, params: Any, actor: Actor, key: PRNGKeyArray
) -> tuple[Actor, Transitions, RolloutStats]:
    """The transitions of the rollout that the agent learns from."""
    after, steps, reward = task._play(params, actor, key)
    found = Transitions(
        jax.vmap(lambda x: unpack(task.vector, x))(_normalised(actor, steps.observation)),
        steps.action,
        reward,
        steps.result.terminated,
        steps.result.truncated,
        steps.value,
        task._next_values(params, actor, after, steps),
    )
    return after, found, _stats(steps)


def unpack(
    vector: Vectorized, observation: Float[Array, "..."] | Int[Array, "ones env"]
) -> Float[Array, "env *observation"]:
    """Observations in the form that the environment itself gives them."""
    if not isinstance(vector, SparseVector):
        return observation
    cells = jnp.arange(math.prod(vector.observation_shape), dtype=jnp.int32)
    maps = jnp.any(observation.T[..., None] == cells[None, None], axis=1).astype(jnp.float32)
    return maps.reshape(vector.num_envs, *vector.observation_shape)
