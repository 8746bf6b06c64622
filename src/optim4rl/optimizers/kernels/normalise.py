"""Normalises directions tensor by tensor, after any kernel's step.

- "layers": `s d`, with a constant `s` of the tensor (`tensors.layer_scale`). In some tensors
  (`tensors.is_centred`) the mean over the inputs is subtracted first. So it is a symmetric linear
  map: the same map turns a cotangent of the result into a cotangent of `d`.
- "rms": `d / sqrt(mean(d^2) + epsilon)`, with the mean over the tensor.
- "orthogonal": a kernel's `d = U S V'` becomes `U V'`, as large as `d`; vectors stay as they are.
  Muon does this to a momentum (Jordan 2024, https://kellerjordan.github.io/posts/muon).

All three couple the coordinates of a tensor, so they stay outside the kernels.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from optim4rl.optimizers.arrays import unit_rms
from optim4rl.optimizers.layout import Layout, Tensor, pieces
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.optimizers.tensors import EPSILON, is_centred, layer_scale, orthogonalise


def raw(spec: OptimizerSpec) -> OptimizerSpec:
    """Return the rule without its normalisation and scale."""
    return dataclasses.replace(spec, normalise="none", step_scale=1.0)


def normalise(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Normalise a tensor's raw direction by `spec.normalise`, and multiply by `spec.step_scale`.

    Several directions may be stacked along axes before the tensor's own.
    """
    return spec.step_scale * _NORMALISE[spec.normalise](tensor, direction)


def _as_its_layer(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    if is_centred(tensor):
        inputs = tuple(axis - len(tensor.shape) for axis in tensor.inputs)
        direction = direction - direction.mean(inputs, keepdims=True)
    return layer_scale(tensor) * direction


def _orthogonal(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # With explicit shardings, JAX neither merges nor contracts sharded axes, so gather first.
    own = jax.typeof(direction).sharding.spec
    if not any(own):
        return orthogonalise(tensor, direction)
    whole = jax.sharding.reshard(direction, PartitionSpec())
    return jax.sharding.reshard(orthogonalise(tensor, whole), own)


_NORMALISE: dict[str, Callable[[Tensor, Array], Array]] = {
    "rms": lambda tensor, x: unit_rms(x, EPSILON, x.ndim - len(tensor.shape)),
    "layers": _as_its_layer,
    "orthogonal": _orthogonal,
}


def normalise_flat(
    spec: OptimizerSpec, layout: Layout, direction: Float[Array, "*K n"]
) -> Float[Array, "*K n"]:
    """Normalise all tensors of a layout, flattened one after the other."""
    axes = direction.shape[:-1]
    parts = [
        normalise(spec, tensor, direction[..., where].reshape(*axes, *tensor.shape))
        for tensor, where in pieces(layout, direction.shape[-1])
    ]
    return jnp.concatenate([x.reshape(*axes, -1) for x in parts], axis=-1)
