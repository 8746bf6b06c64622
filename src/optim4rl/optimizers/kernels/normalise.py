"""Directions scaled tensor by tensor, around any kernel: `d_hat = d s`.

With "layers" `s` is a constant of the tensor (`tensors.layer_scale`), and in some tensors the mean
over the inputs is taken from `d` before (`tensors.is_centred`). That is a symmetric linear map, so
that a cotangent of `d_hat` goes through the same map to be one of `d`.

With "rms" `s = 1 / sqrt(mean(d^2) + epsilon)`, the mean over a tensor, and the cotangent of `d` is

    s (c - d_hat mean(c d_hat)).

Both couple the coordinates of a tensor, so they stay outside the kernels.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import Layout, Tensor, pieces
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import NO_EXTRAS, Extras
from optim4rl.optimizers.tensors import is_centred, layer_scale

EPSILON = 1e-9


def normalised(kernel: Kernel) -> Kernel:
    """The kernel with `spec.normalise`; a replay takes the raw directions once more for it."""

    def step(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradient: Float[Array, " n"],
        state: RuleState,
        extras: Extras = NO_EXTRAS,
        /,
        *,
        layout: Layout = (),
    ) -> tuple[Float[Array, " n"], RuleState]:
        step = partial(kernel.step, layout=layout)
        if spec.normalise == "none":
            return step(spec, meta_parameters, gradient, state, extras)
        direction, state = step(raw(spec), meta_parameters, gradient, state, extras)
        return spec.step_scale * _tensor_by_tensor(
            partial(_scale_flat, spec), layout, direction
        ), state

    def replay_vjp(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradients: Float[Array, "K n"],
        state: RuleState,
        cotangents: Float[Array, "K n"],
        extras: Extras = NO_EXTRAS,
        /,
        *,
        layout: Layout = (),
    ) -> MetaParameters:
        replay = partial(kernel.replay_vjp, layout=layout)
        if spec.normalise == "none":
            return replay(spec, meta_parameters, gradients, state, cotangents, extras)
        if spec.normalise == "layers":  # Linear and symmetric, so its transpose is itself.
            cotangents = spec.step_scale * _tensor_by_tensor(
                partial(_scale_flat, spec), layout, cotangents
            )
            return replay(raw(spec), meta_parameters, gradients, state, cotangents, extras)

        def body(state: RuleState, met: tuple[Array, Extras]) -> tuple[RuleState, Array]:
            step = partial(kernel.step, layout=layout)
            direction, state = step(raw(spec), meta_parameters, met[0], state, met[1])
            return state, direction

        _, directions = jax.lax.scan(body, state, (gradients, extras))
        cotangents = spec.step_scale * _tensor_by_tensor(_pull_back, layout, directions, cotangents)
        return replay(raw(spec), meta_parameters, gradients, state, cotangents, extras)

    return dataclasses.replace(kernel, step=step, replay_vjp=replay_vjp)


def raw(spec: OptimizerSpec) -> OptimizerSpec:
    """The rule before it is normalised and scaled."""
    return dataclasses.replace(spec, normalise="none", step_scale=1.0)


def scale(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """One tensor's direction as `spec.normalise` has it, which is not "none".

    With "layers" there may be several directions, along axes before the tensor's own.
    """
    if spec.normalise == "layers":
        return layer_scale(tensor) * (
            centre(tensor, direction) if is_centred(tensor) else direction
        )
    return scale_to_unit_rms(direction)


def centre(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A kernel's direction without what an output's inputs have in common."""
    inputs = tuple(axis - len(tensor.shape) for axis in tensor.inputs)
    return direction - direction.mean(inputs, keepdims=True)


def _scale_flat(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*K size"]
) -> Float[Array, "*K size"]:
    shaped = direction.reshape(*direction.shape[:-1], *tensor.shape)
    return scale(spec, tensor, shaped).reshape(direction.shape)


def scale_to_unit_rms(direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """One tensor's direction, scaled."""
    return direction * jax.lax.rsqrt(jnp.mean(jnp.square(direction)) + EPSILON)


def _pull_back(
    tensor: Tensor, directions: Float[Array, "K size"], cotangents: Float[Array, "K size"]
) -> Float[Array, "K size"]:
    """Cotangents of one tensor's directions, given those of the directions of unit size."""
    del tensor
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(directions), axis=-1, keepdims=True) + EPSILON)
    scaled = directions * scale
    return scale * (cotangents - scaled * jnp.mean(cotangents * scaled, axis=-1, keepdims=True))


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
