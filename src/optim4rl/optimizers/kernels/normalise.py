"""Directions normalised tensor by tensor, around any kernel: `d_hat` in the place of `d`.

With "layers" `d_hat = d s`, `s` a constant of the tensor (`tensors.layer_scale`), and in some
tensors the mean over the inputs is taken from `d` before (`tensors.is_centred`). That is a
symmetric linear map, so that a cotangent of `d_hat` goes through the same map to be one of `d`.

With "rms" `d_hat = d / sqrt(mean(d^2) + epsilon)`, the mean over a tensor.

With "orthogonal" a kernel's `d = U S V'` becomes `U V'` in the size of `d`: as large in every
direction that it goes in, where `d` may go in few. Vectors stay as they are. It is what Muon does
to a momentum (Jordan 2024, https://kellerjordan.github.io/posts/muon).

All couple the coordinates of a tensor, so they stay outside the kernels.
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
from optim4rl.optimizers.tensors import EPSILON, is_centred, layer_scale, orthogonalise


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
            partial(_normalise_flat, spec), layout, direction
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
                partial(_normalise_flat, spec), layout, cotangents
            )
            return replay(raw(spec), meta_parameters, gradients, state, cotangents, extras)

        def body(state: RuleState, met: tuple[Array, Extras]) -> tuple[RuleState, Array]:
            step = partial(kernel.step, layout=layout)
            direction, state = step(raw(spec), meta_parameters, met[0], state, met[1])
            return state, direction

        _, directions = jax.lax.scan(body, state, (gradients, extras))
        cotangents = spec.step_scale * _tensor_by_tensor(
            partial(_pull_back, spec), layout, directions, cotangents
        )
        return replay(raw(spec), meta_parameters, gradients, state, cotangents, extras)

    return dataclasses.replace(kernel, step=step, replay_vjp=replay_vjp)


def raw(spec: OptimizerSpec) -> OptimizerSpec:
    """The rule before it is normalised and scaled."""
    return dataclasses.replace(spec, normalise="none", step_scale=1.0)


def normalise(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """One tensor's direction as `spec.normalise` has it, which is not "none".

    There may be several directions, along axes before the tensor's own.
    """
    if spec.normalise == "layers":
        return layer_scale(tensor) * (
            centre(tensor, direction) if is_centred(tensor) else direction
        )
    if spec.normalise == "orthogonal":
        return orthogonalise(tensor, direction)
    return scale_to_unit_rms(tensor, direction)


def centre(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A kernel's direction without what an output's inputs have in common."""
    inputs = tuple(axis - len(tensor.shape) for axis in tensor.inputs)
    return direction - direction.mean(inputs, keepdims=True)


def _normalise_flat(
    spec: OptimizerSpec, tensor: Tensor, direction: Float[Array, "*K size"]
) -> Float[Array, "*K size"]:
    shaped = direction.reshape(*direction.shape[:-1], *tensor.shape)
    return normalise(spec, tensor, shaped).reshape(direction.shape)


def scale_to_unit_rms(tensor: Tensor, direction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """One tensor's direction, scaled."""
    axes = tuple(range(direction.ndim - len(tensor.shape), direction.ndim))
    mean_square = jnp.mean(jnp.square(direction), axes, keepdims=True)
    return direction * jax.lax.rsqrt(mean_square + EPSILON)


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
