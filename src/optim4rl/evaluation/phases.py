"""Measure the size of an optimizer's steps by phase of training and by the use of the tensor.

Rules may read how much of the training and of a rollout's epochs is done, and what a tensor is for.
Here a small network with a policy head and a value head gets noisy gradients over a whole run, and
we record how large the steps of its tensors are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optim4rl.evaluation.response import SIGNAL_TO_NOISE, TYPICAL
from optim4rl.optimizers.presets import classical
from optim4rl.optimizers.transform import scale_by_learned_rule
from optim4rl.optimizers.weights import LearnedOptimizer

# Updates of a run, and of the windows that sizes are averaged over.
RUN, WINDOW = 256, 16
# Networks, each with gradients of its own.
NETWORKS = 16
# The tensors by use. The names tell the rule what they are for.
TENSORS: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
    "kernel": ("torso", "kernel", (32, 32)),
    "bias": ("torso", "bias", (32,)),
    "policy head": ("policy", "kernel", (32, 4)),
    "value head": ("value", "kernel", (32, 1)),
}
Network = dict[str, dict[str, Array]]


@dataclass(frozen=True)
class Phases:
    """The root mean square of steps in learning rates, by use of the tensor (`TENSORS`).

    Attributes:
        share: share of the training that is done, in the middle of each window.
        first_epoch: sizes of steps if all updates are told to be in the first epoch of a rollout.
        last_epoch: the same for the last epoch.
    """

    share: Float[np.ndarray, " window"]
    first_epoch: Mapping[str, Float[np.ndarray, " window"]]
    last_epoch: Mapping[str, Float[np.ndarray, " window"]]


def measure_phases(optimizer: LearnedOptimizer) -> Phases:
    """Measure a learned optimizer, with its step scale."""
    tx = scale_by_learned_rule(optimizer.spec, optimizer.meta_parameters, kernel=None)
    first, last = (_sizes(tx, jnp.float32(epoch), reads=True) for epoch in (0.0, 1.0))
    return Phases(_share(), _by_use(first), _by_use(last))


def classical_sizes(name: str) -> Mapping[str, Float[np.ndarray, " window"]]:
    """Measure the steps of a classical optimizer whose rate falls linearly to 0, by use."""
    tx = classical(name, 1.0)
    falls = 1.0 - _share()
    found = _by_use(_sizes(tx, jnp.float32(0.0), reads=False))
    return {use: falls * sizes for use, sizes in found.items()}


def _share() -> Float[np.ndarray, " window"]:
    return (np.arange(RUN) / (RUN - 1)).reshape(-1, WINDOW).mean(axis=1)


def _by_use(sizes: Array) -> Mapping[str, Float[np.ndarray, " window"]]:
    """Return the mean size over networks and windows for each use."""
    means = np.asarray(sizes, np.float64).reshape(NETWORKS, -1, WINDOW, len(TENSORS)).mean((0, 2))
    return dict(zip(TENSORS, means.T, strict=True))


def _draw(key: Array, scale: float) -> Network:
    """Return normal numbers in the network's tensors."""
    keys = jax.random.split(key, len(TENSORS))
    network: Network = {}
    for k, (layer, name, shape) in zip(keys, TENSORS.values(), strict=True):
        network.setdefault(layer, {})[name] = scale * jax.random.normal(k, shape)
    return network


@partial(jax.jit, static_argnames=("tx", "reads"))
def _sizes(
    tx: optax.GradientTransformationExtraArgs, epoch: Float[Array, ""], *, reads: bool
) -> Float[Array, "network age use"]:
    """Return the root mean square of each tensor's step; `reads`: tell the rule the phase."""

    def of_network(key: Array) -> Float[Array, "age use"]:
        key_params, key_mean, key_noise = jax.random.split(key, 3)
        params, mean = _draw(key_params, 0.1), _draw(key_mean, SIGNAL_TO_NOISE * TYPICAL)

        def body(state: optax.OptState, age: Array) -> tuple[optax.OptState, Array]:
            noise = _draw(jax.random.fold_in(key_noise, age), TYPICAL)
            told = {"training_proportion": age / (RUN - 1), "epoch_proportion": epoch}
            gradients = jax.tree.map(jnp.add, mean, noise)
            steps, state = tx.update(gradients, state, params, **(told if reads else {}))
            ordered = [steps[layer][name] for layer, name, _ in TENSORS.values()]
            return state, jnp.stack([jnp.sqrt(jnp.mean(jnp.square(x))) for x in ordered])

        return jax.lax.scan(body, tx.init(params), jnp.arange(RUN))[1]

    return jax.vmap(of_network)(jax.random.split(jax.random.key(0), NETWORKS))
