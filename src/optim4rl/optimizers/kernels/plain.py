"""The rule in plain JAX, tensor by tensor: runs every rule, with its tensors' shardings.

Only this kernel runs rules that read whole tensors, parameters or noise.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optim4rl.optimizers import rule
from optim4rl.optimizers.inputs import tensor_rows
from optim4rl.optimizers.kernels.interface import Kernel, Met
from optim4rl.optimizers.kernels.normalise import normalise, raw
from optim4rl.optimizers.kernels.xla import one_by_one
from optim4rl.optimizers.layout import Layout, Tensor, pieces
from optim4rl.optimizers.networks import apply_network
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import NO_EXTRAS, Extras
from optim4rl.optimizers.tensors import clip_flat, without_mean


def step_tensor(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    extras: Extras,
    *,
    tensor: Tensor,
    apply: Callable[..., Any] = apply_network,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """Run one step on a tensor in its own shape: return the normalised direction and new state."""
    given = (meta_parameters, gradient, state, tensor_rows(spec.inputs, tensor), extras, apply)
    if spec.normalise == "none":
        return rule.step(spec, *given)
    direction, after = rule.step(raw(spec), *given)
    return normalise(spec, tensor, direction), after


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"] | Met,
    state: RuleState,
    *,
    layout: Layout,
) -> tuple[Float[Array, " n"], RuleState]:
    """Run one step on all tensors of a layout, flattened one after the other."""
    met = gradient if isinstance(gradient, Met) else Met(gradient, NO_EXTRAS)
    if spec.clip_norm is not None:
        met = met._replace(gradient=clip_flat(spec.clip_norm, layout, met.gradient))
    parts = []
    for tensor, where in pieces(layout, met.gradient.shape[0]):

        def shaped(x: Array, where: slice = where, tensor: Tensor = tensor) -> Array:
            return x[..., where].reshape(*x.shape[:-1], *tensor.shape) if x.ndim else x

        def flat(
            x: Array, axes: int = len(tensor.shape), size: int = math.prod(tensor.shape)
        ) -> Array:
            return x.reshape(*x.shape[: x.ndim - axes], size)  # Not -1: there may be no rows.

        (own, extras), before = jax.tree.map(shaped, (met, state))
        found, after = step_tensor(spec, meta_parameters, own, before, extras, tensor=tensor)
        parts.append(jax.tree.map(flat, (found, after.carries, after.moments)))
    direction, carries, moments = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *parts)
    if spec.zero_mean:
        (direction,) = without_mean([direction])
    return direction, RuleState(carries, moments, state.age + 1)


def replay_vjp(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K n"] | Met,
    state: RuleState,
    cotangents: Float[Array, "K n"],
    *,
    layout: Layout,
) -> MetaParameters:
    """Return the meta-gradient of `sum(cotangents * directions)`; the directions are K steps.

    It keeps K states and the activations of one step, and recomputes all other activations.
    """

    def unroll(meta_parameters: MetaParameters) -> Float[Array, "K n"]:
        @jax.checkpoint
        def body(state: RuleState, met: Any) -> tuple[RuleState, Array]:
            return step(spec, meta_parameters, met, state, layout=layout)[::-1]

        return jax.lax.scan(body, state, gradients)[1]

    _, pullback = jax.vjp(unroll, meta_parameters)
    gradient: MetaParameters = pullback(cotangents)[0]
    return gradient


def step_agents(spec: OptimizerSpec, *arrays: Any, layout: Layout) -> tuple[Array, RuleState]:
    """Run `step`; `jax.vmap` runs it for one agent after the other, as `xla.one_by_one` says.

    The exception is a rule whose networks run once for a tensor. It works on few numbers at a time,
    so its cost is that of starting operations, and agents share that cost side by side.
    """
    run = step if spec.per_tensor else one_by_one(step)
    after: tuple[Array, RuleState] = run(spec, *arrays, layout=layout)
    return after


KERNEL = Kernel(
    name="plain",
    refusal=lambda spec: None,
    step=step_agents,
    replay_vjp=one_by_one(replay_vjp),
    status=lambda: "runs every rule everywhere",
)
