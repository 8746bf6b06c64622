"""The agents' networks over batches of observations, forward and backward.

A `BatchNetwork` maps a batch to outputs and values, and their cotangents to the gradient of the
parameters. The forward pass fills a cache for the backward pass, so the gradient of a rollout needs
no second forward pass.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from optim4rl.tasks.inputs import Inputs
from optim4rl.tasks.kernels.select import choose
from optim4rl.tasks.networks import (
    Activation,
    ActorCritic,
    Conv2x2,
    Dense,
    Initialisation,
    Network,
    SeparateMLPs,
    activation,
    make_mlps,
    make_network,
)


@runtime_checkable
class BatchNetwork(Protocol):
    """A kind of agent network that runs on batches.

    Attributes:
        inputs: how it reads observations.
    """

    @property
    def inputs(self) -> Inputs: ...

    def init(self, key: PRNGKeyArray) -> Any:
        """Return fresh parameters; `key` is the agent's."""

    def live(self, key: PRNGKeyArray) -> Float[Array, "width"] | None:
        """Return 1 for the agent's units, else 0; None if all agents have the same width."""

    def prepare(self, params: Any, live: Float[Array, "width"] | None) -> Any:
        """Return the first argument of both passes; passes with the same parameters share it."""

    def forward(
        self, prepared: Any, observation: Num[Array, "..."]
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "batch"], Any]:
        """Return the policy's outputs, the values, and a cache of arrays with the batch first."""

    def backward(
        self,
        prepared: Any,
        observation: Num[Array, "..."],
        cache: Any,
        outputs: Float[Array, "batch outputs"],
        value: Float[Array, "batch"],
    ) -> Any:
        """Return the gradient of the parameters, from the cotangents of outputs and values."""

    def dormancy(self, prepared: Any, observation: Num[Array, "..."]) -> Any:
        """Return each unit's activity over a batch, relative to the mean of its layer.

        The result is a tree like the parameters, with one number for each unit: units are on a
        parameter's last axis.
        """


class Prepared(NamedTuple):
    """A network with a shared torso, whose two heads are joined into one layer.

    Attributes:
        network: the parameters.
        kernel: kernel of the policy head; its last row is the value head's kernel.
        bias: biases of both heads.
        live: 1 for the agent's own units, 0 for units that only fill the arrays; None: all units
            are its own.
    """

    network: ActorCritic
    kernel: Float[Array, "outputs width"]
    bias: Float[Array, "outputs"]
    live: Float[Array, "width"] | None


@dataclass(frozen=True)
class SharedTorso:
    """`networks.ActorCritic` over batches, with a backward pass by hand.

    Attributes:
        inputs: how it reads observations.
        kind: a dense layer, or a convolution before it.
        outputs: number of outputs for the policy's distribution.
        widths: possible numbers of units in the dense layer; every agent draws one. The arrays have
            the largest size, and the units beyond an agent's own are masked out.
    """

    inputs: Inputs
    kind: Literal["dense", "conv"]
    outputs: int
    widths: tuple[int, ...]

    def init(self, key: PRNGKeyArray) -> ActorCritic:
        """Return fresh parameters."""
        network = make_network(
            self.kind,
            self.inputs.shape,
            self.outputs,
            width=max(self.widths),
            maps=self.inputs.maps,
            key=jax.random.fold_in(key, 0),
        )
        if len(self.widths) == 1:
            return network
        # The heads' variance is 1 / fan-in, where fan-in counts only the agent's own units.
        scale = jnp.sqrt(max(self.widths) / self._width(key).astype(jnp.float32))
        scaled: ActorCritic = eqx.tree_at(
            lambda tree: (tree.policy.kernel, tree.value.kernel),
            network,
            replace_fn=lambda kernel: scale * kernel,
        )
        return scaled

    def live(self, key: PRNGKeyArray) -> Float[Array, "width"] | None:
        """Return 1 for the first units, as many as the agent's width, and 0 for the others."""
        if len(self.widths) == 1:
            return None
        units = jnp.arange(max(self.widths), dtype=jnp.int32)
        return (units < self._width(key)).astype(jnp.float32)

    def _width(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """Return the width of the agent with this key."""
        widths = jnp.asarray(self.widths, jnp.int32)
        return jax.random.choice(jax.random.fold_in(key, 2), widths)

    def prepare(self, params: ActorCritic, live: Float[Array, "width"] | None) -> Prepared:
        """Join the heads.

        The barrier lays the heads out with the units last, so that batches of one run twice as
        fast.
        """
        kernel = jnp.concatenate([params.policy.kernel, params.value.kernel], axis=1).T
        bias = jnp.concatenate([params.policy.bias, params.value.bias])
        kernel, bias = jax.lax.optimization_barrier((kernel, bias))
        return Prepared(params, kernel, bias, live)

    def forward(
        self, prepared: Prepared, observation: Num[Array, "..."]
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "batch"], Float[Array, "batch width"]]:
        """Return outputs and values; the cache holds the hidden units."""
        network = prepared.network
        if network.conv is None:
            hidden = self.inputs.full(network.dense.kernel, observation)
        else:
            layers = choose(self.inputs)
            hidden = layers.forward(network.conv, network.dense.kernel, observation)
        hidden = jax.nn.relu(hidden + network.dense.bias[None])
        if prepared.live is not None:
            hidden = hidden * prepared.live[None]
        outputs = jnp.einsum("bw,ow->bo", hidden, prepared.kernel) + prepared.bias[None]
        return outputs[:, :-1], outputs[:, -1], hidden

    def backward(
        self,
        prepared: Prepared,
        observation: Num[Array, "..."],
        cache: Float[Array, "batch width"],
        outputs: Float[Array, "batch outputs"],
        value: Float[Array, "batch"],
    ) -> ActorCritic:
        """Return the gradient: the transpose of `forward`."""
        network, hidden = prepared.network, cache
        outputs = jnp.concatenate([outputs, value[:, None]], axis=1)
        # The barrier keeps XLA from folding the transposition into the product, which would be 2 to
        # 8 times as slow.
        head_kernel = jax.lax.optimization_barrier(jnp.einsum("bo,bw->ow", outputs, hidden)).T
        head_bias = jnp.sum(outputs, axis=0)
        # If a unit gave 0, ReLU or the mask stops the gradient. The product is unrolled over the
        # few outputs, so it joins one loop and takes half the time.
        columns = [x[:, None] * k[None] for x, k in zip(outputs.T, prepared.kernel, strict=True)]
        hidden = jnp.where(hidden > 0, functools.reduce(jnp.add, columns), 0.0)
        conv: Conv2x2 | None = None
        if network.conv is None:
            kernel = self.inputs.full_gradient(observation, hidden)
        else:
            layers = choose(self.inputs)
            conv, kernel = layers.backward(network.conv, network.dense.kernel, observation, hidden)
        return ActorCritic(
            conv,
            Dense(kernel, jnp.sum(hidden, axis=0)),
            Dense(head_kernel[:, :-1], head_bias[:-1]),
            Dense(head_kernel[:, -1:], head_bias[-1:]),
        )

    def dormancy(self, prepared: Prepared, observation: Num[Array, "..."]) -> ActorCritic:
        """Return the dormancy, of filters over all positions; masked-out units do not count."""
        network = prepared.network
        outputs, value, hidden = self.forward(prepared, observation)
        layers = [activity(hidden, prepared.live), activity(outputs), activity(value[:, None])]
        if network.conv is not None:
            image = self.inputs.conv(network.conv.kernel, observation)
            image = jax.nn.relu(image + network.conv.bias[None, None])
            layers.insert(0, activity(image.reshape(-1, image.shape[-1])))
        return _of_each_layer(network, layers)


@dataclass(frozen=True)
class SeparateTorsos:
    """`networks.SeparateMLPs` over batches, differentiated by JAX.

    The backward pass runs the forward pass again. If both are in one program, as in PPO, XLA merges
    them.

    Attributes:
        inputs: how it reads observations.
        outputs: number of outputs for the policy's distribution.
        policy_layers: units of the policy's hidden layers.
        value_layers: units of the value's hidden layers.
        activation: activation between the layers.
        initialisation: initialisation of the kernels, see `networks.make_mlps`.
    """

    inputs: Inputs
    outputs: int
    policy_layers: tuple[int, ...]
    value_layers: tuple[int, ...]
    activation: Activation
    initialisation: Initialisation

    def init(self, key: PRNGKeyArray) -> SeparateMLPs:
        """Return fresh parameters."""
        return make_mlps(
            math.prod(self.inputs.shape),
            self.outputs,
            self.policy_layers,
            self.value_layers,
            self.initialisation,
            key=jax.random.fold_in(key, 0),
        )

    def live(self, key: PRNGKeyArray) -> Float[Array, "width"] | None:
        """Return None: all agents have the same units."""
        return None

    def prepare(self, params: SeparateMLPs, live: Float[Array, "width"] | None) -> SeparateMLPs:
        """Return the parameters as they are."""
        return params

    def forward(
        self, prepared: SeparateMLPs, observation: Num[Array, "..."]
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "batch"], tuple[()]]:
        """Return outputs and values; the cache is empty."""
        policy = self._run(prepared.policy, observation)[-1]
        return policy, self._run(prepared.value, observation)[-1][:, 0], ()

    def backward(
        self,
        prepared: SeparateMLPs,
        observation: Num[Array, "..."],
        cache: tuple[()],
        outputs: Float[Array, "batch outputs"],
        value: Float[Array, "batch"],
    ) -> SeparateMLPs:
        """Return the gradient: the transpose of `forward`."""
        _, transpose = jax.vjp(lambda params: self.forward(params, observation)[:2], prepared)
        gradient: SeparateMLPs = transpose((outputs, value))[0]
        return gradient

    def dormancy(self, prepared: SeparateMLPs, observation: Num[Array, "..."]) -> SeparateMLPs:
        """Return the dormancy: of hidden units after the activation, of outputs as they are."""
        both = (prepared.policy, prepared.value)
        units = [x for layers in both for x in self._run(layers, observation)]
        return _of_each_layer(prepared, [activity(x) for x in units])

    def _run(
        self, layers: tuple[Dense, ...], observation: Num[Array, "..."]
    ) -> list[Float[Array, "batch _"]]:
        """Return each layer's output, in order; the last layer has no activation."""
        activate = activation(self.activation)
        units = [self.inputs.full(layers[0].kernel, observation) + layers[0].bias[None]]
        for layer in layers[1:]:
            units[-1] = activate(units[-1])
            units.append(units[-1] @ layer.kernel + layer.bias[None])
        return units


def activity(
    units: Float[Array, "batch units"], live: Float[Array, "units"] | None = None
) -> Float[Array, "units"]:
    """Return each unit's mean size over a batch, relative to the mean of the live units.

    Source: Goldie et al. 2024 (arXiv 2407.07082), after Sokar et al. 2023 (arXiv 2302.12902).
    """
    size = jnp.mean(jnp.abs(units), axis=0) + 1e-11
    count = size.size if live is None else jnp.sum(live)
    return size * (count / jnp.sum(size))


def _of_each_layer(network: Network, layers: list[Float[Array, "_"]]) -> Network:
    """Return a tree like the parameters; a layer's kernel and bias get the same array."""
    leaves = [x for layer in layers for x in (layer, layer)]
    tree: Network = jax.tree.unflatten(jax.tree.structure(network), leaves)
    return tree
