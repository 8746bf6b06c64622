"""Directions normalised tensor by tensor, around any kernel.

- "layers": `s d`, with a constant `s` of the tensor (`tensors.layer_scale`). In some tensors
  (`tensors.is_centred`) the mean over the inputs is subtracted first.
- "rms": `d / sqrt(mean(d^2) + epsilon)`, with the mean over the tensor.
- "orthogonal": a kernel's `d = U S V'` becomes `U V'`, as large as `d`; vectors stay as they are.
  Muon does this to a momentum (Jordan 2024, https://kellerjordan.github.io/posts/muon).

All couple the coordinates of a tensor, so they stay outside the kernels.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import Layout, Tensor, pieces
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.tensors import (
    EPSILON,
    WHOLE_TENSOR,
    is_centred,
    layer_scale,
    orthogonalise,
)


def normalised(kernel: Kernel) -> Kernel:
    """The kernel with `spec.normalise`."""

    def step(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradient: Float[Array, " n"],
        state: RuleState,
        *,
        layout: Layout = (),
    ) -> tuple[Float[Array, " n"], RuleState]:
        if spec.normalise == "none":
            return kernel.step(spec, meta_parameters, gradient, state, layout=layout)
        direction, state = kernel.step(raw(spec), meta_parameters, gradient, state, layout=layout)
        return _tensor_by_tensor(partial(_normalise_flat, spec), layout, direction), state

    def replay_vjp(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradients: Float[Array, "K n"],
        state: RuleState,
        cotangents: Float[Array, "K n"],
        *,
        layout: Layout = (),
    ) -> MetaParameters:
        replay = partial(kernel.replay_vjp, layout=layout)
        if spec.normalise == "none":
            return replay(spec, meta_parameters, gradients, state, cotangents)
        if spec.normalise in WHOLE_TENSOR:
            # The raw directions once more: to keep them from the first time, all kernels would
            # have to return them, and agents to hold K of them.
            def body(state: RuleState, gradient: Array) -> tuple[RuleState, Array]:
                return kernel.step(raw(spec), meta_parameters, gradient, state, layout=layout)[::-1]

            _, directions = jax.lax.scan(body, state, gradients)
            cotangents = _tensor_by_tensor(
                partial(_pull_back, spec), layout, directions, cotangents
            )
        else:  # Linear and symmetric: the transpose is the map itself.
            cotangents = _tensor_by_tensor(partial(_normalise_flat, spec), layout, cotangents)
        return replay(raw(spec), meta_parameters, gradients, state, cotangents)

    return dataclasses.replace(kernel, step=step, replay_vjp=replay_vjp)


def raw(spec: OptimizerSpec) -> OptimizerSpec:
    """The rule before it is normalised and scaled."""
    return dataclasses.replace(spec, normalise="none", step_scale=1.0)


def normalise(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """A tensor's raw direction, normalised as `spec.normalise` says, times `spec.step_scale`.

    There may be several directions, along axes before the tensor's own.
    """
    return spec.step_scale * _NORMALISE[spec.normalise](tensor, direction)


def centre(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A kernel's direction without what an output's inputs have in common."""
    inputs = tuple(axis - len(tensor.shape) for axis in tensor.inputs)
    return direction - direction.mean(inputs, keepdims=True)


def scale_to_unit_rms(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """One tensor's direction, scaled."""
    axes = tuple(range(direction.ndim - len(tensor.shape), direction.ndim))
    mean_square = jnp.mean(jnp.square(direction), axes, keepdims=True)
    return direction * jax.lax.rsqrt(mean_square + EPSILON)


def _as_its_layer(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return layer_scale(tensor) * (centre(tensor, direction) if is_centred(tensor) else direction)


def _orthogonal(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # Where shardings are explicit, JAX merges no sharded axes and multiplies along none: gather.
    own = jax.typeof(direction).sharding.spec
    if not any(own):
        return orthogonalise(tensor, direction)
    whole = jax.sharding.reshard(direction, PartitionSpec())
    return jax.sharding.reshard(orthogonalise(tensor, whole), own)


_NORMALISE: dict[str, Callable[[Tensor, Array], Array]] = {
    "rms": scale_to_unit_rms,
    "layers": _as_its_layer,
    "orthogonal": _orthogonal,
}


def _normalise_flat(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*K size"]
) -> Float[Array, "*K size"]:
    shaped = direction.reshape(*direction.shape[:-1], *tensor.shape)
    return normalise(spec, tensor, shaped).reshape(direction.shape)


def _pull_back(
    spec: OptimizerSpec,
    tensor: Tensor,
    directions: Float[Array, "K size"],
    cotangents: Float[Array, "K size"],
) -> Float[Array, "K size"]:
    """Cotangents of one tensor's raw directions, given those of the normalised ones."""
    _, pull_back = jax.vjp(partial(_normalise_flat, spec, tensor), directions)
    return pull_back(cotangents)[0]


def _tensor_by_tensor(
    function: Callable[..., Array], layout: Layout, *arrays: Float[Array, "*K n"]
) -> Float[Array, "*K n"]:
    return jnp.concatenate(
        [
            function(tensor, *(x[..., where] for x in arrays))
            for tensor, where in pieces(layout, arrays[0].shape[-1])
        ],
        axis=-1,
    )
