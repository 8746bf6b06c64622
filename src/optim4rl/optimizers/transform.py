"""A learned rule as an optax gradient transformation.

`scale_by_learned_rule` is the rule itself, without a learning rate; `learned_optimizer` chains it
with `optax.scale_by_learning_rate`, as optax's own aliases do.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32
from optax._src import base as optax_base

from optim4rl.optimizers.inputs import draw_noise, tensor_rows
from optim4rl.optimizers.kernels.interface import Kernel, KernelName
from optim4rl.optimizers.kernels.normalise import normalise, raw
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.layout import Kinds, Layout, Tensor, infer_layout
from optim4rl.optimizers.networks import Carry
from optim4rl.optimizers.presets import ScalarOrSchedule
from optim4rl.optimizers.rule import (
    MetaParameters,
    OptimizerSpec,
    RuleState,
    init_state,
    step,
)
from optim4rl.optimizers.structures import NO_EXTRAS, Extras


class LeafState(NamedTuple):
    """What the rule remembers of one leaf: `RuleState` without the count that all leaves share."""

    carries: tuple[Carry, ...]
    moments: Float[Array, "moments *shape"]


class LearnedRuleState(NamedTuple):
    """State of `scale_by_learned_rule`.

    Attributes:
        count: updates made so far.
        leaves: a tree like the parameters' with a `LeafState` in place of each leaf:
            `spec.state_floats` numbers for each parameter.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # optax's own name for it
    leaves: Any


def scale_by_learned_rule(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    *,
    kernel: KernelName | None = "auto",
    kinds: Kinds = None,
    state_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Replace each gradient by the rule's direction (an ascent direction, as in optax).

    Args:
        spec: the rule.
        meta_parameters: its weights, shared by all coordinates and never copied into the state.
        kernel: the implementation of the rule, by name (`kernels.select`). None is plain JAX, which
            keeps the sharding of each leaf and can be differentiated. "auto" is the fastest that
            runs the rule here, and None where there are several devices to shard over.
        kinds: what each parameter is for, where the rule reads it: a tree of kinds or a function of
            path and leaf (`layout.infer_layout`). None: inferred from the names and shapes of the
            gradients that the rule is given.
        state_dtype: what the state is kept in between updates: float32, or bfloat16 at half the
            memory. Rounding to bfloat16 is stochastic, so that it is right in the mean: rounded to
            the nearest, a moment that decays by 0.999 would stand still.

    Raises:
        ValueError: the kernel is unknown, or cannot run the rule here; the message says why. Or the
            state cannot be kept in that dtype. On update: a gradient is complex.

    A structure may read more than gradients (`Structure.reads`): `params`; `dormancy`, a tree like
    the updates'; `noise_key` for its noise, drawn from the update's number where there is none.

    All arithmetic is float32; updates come back in each gradient's own dtype. An infinite gradient
    is clipped where the spec clips. A NaN stays in its own coordinate, for good; wrap with
    `optax.apply_if_finite` to skip such steps instead.
    """
    if kernel is None or (kernel == "auto" and jax.device_count() > 1):
        step_leaf = _step_plain
    else:
        step_leaf = partial(_step_flat, choose(spec, kernel))

    kept = _state_dtype(state_dtype)
    blank = jax.eval_shape(lambda: init_state(spec, ()))
    memory = jax.tree.structure(LeafState(blank.carries, blank.moments))

    def init(params: optax.Params) -> LearnedRuleState:
        def init_leaf(leaf: Any) -> LeafState:
            # The zeros of `init_state`, made from the leaf's own so that they keep its sharding.
            zeros = jnp.zeros_like(leaf, kept)
            state = jax.eval_shape(lambda: init_state(spec, zeros.shape))
            return jax.tree.map(
                lambda x: jnp.broadcast_to(zeros, x.shape), LeafState(state.carries, state.moments)
            )

        return LearnedRuleState(jnp.zeros((), jnp.int32), jax.tree.map(init_leaf, params))

    def update(
        updates: optax.Updates,
        state: LearnedRuleState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, LearnedRuleState]:
        layout = infer_layout(updates, kinds)
        extras = _extras(spec, layout, updates, state.count, params, extra)

        def update_leaf(
            gradient: Any, leaf: Any, index: int, tensor: Tensor, extras: Extras
        ) -> tuple[Array, LeafState]:
            gradient = jnp.asarray(gradient)
            if jnp.iscomplexobj(gradient):
                raise ValueError(
                    f"updates: a gradient is {gradient.dtype}; the rule reads real ones"
                )
            # Flax nnx brings dicts back in place of the tuples that it was given.
            known = [x.astype(jnp.float32) for x in jax.tree.leaves(leaf)]
            carries, moments = jax.tree.unflatten(memory, known)
            before = RuleState(carries, moments, state.count)
            exact = gradient.astype(jnp.float32)
            direction, after = step_leaf(spec, meta_parameters, exact, before, tensor, extras)
            remembered = LeafState(after.carries, after.moments)
            if kept != jnp.float32:
                remembered = _in_half(remembered, gradient.shape, state.count, index)
            return direction.astype(gradient.dtype), remembered

        structure = jax.tree.structure(updates)
        indices, tensors, told = (
            jax.tree.unflatten(structure, x) for x in (range(len(layout)), layout, extras)
        )
        results = jax.tree.map(update_leaf, updates, state.leaves, indices, tensors, told)
        directions, leaves = (
            jax.tree.map(lambda _, result, i=i: result[i], updates, results) for i in (0, 1)
        )
        return directions, LearnedRuleState(optax.safe_increment(state.count), leaves)

    return optax.GradientTransformationExtraArgs(init, update)


def _state_dtype(dtype: DTypeLike) -> Any:
    kept = jnp.dtype(dtype)
    if kept not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"state_dtype = {kept.name!r}: float32 and bfloat16 will do")
    return kept


def _in_half(
    state: LeafState, shape: tuple[int, ...], count: Int[Array, ""], index: int
) -> LeafState:
    """A leaf's state in bfloat16. The numbers of one coordinate share their chance."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), count), index)
    dither = jax.random.bits(key, shape, jnp.uint32) >> 16
    return jax.tree.map(partial(stochastic_round, dither=dither), state)


@jax.custom_jvp
def stochastic_round(
    x: Float[Array, "rows *shape"], dither: UInt32[Array, "*shape"]
) -> Float[Array, "rows *shape"]:
    """`x` in bfloat16, rounded up as often as it is close to the larger of its neighbours.

    Zamirai et al. 2020, "Revisiting BFloat16 Training" (arXiv 2010.06192). Its derivative is 1.

    Args:
        x: the numbers. Infinities and NaN stay what they are.
        dither: random numbers from 0 to 65,535; rows share them.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + dither[None]
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


stochastic_round.defjvps(lambda tangent, _, *__: tangent.astype(jnp.bfloat16), None)


def _extras(
    spec: OptimizerSpec,
    layout: Layout,
    updates: optax.Updates,
    count: Int[Array, ""],
    params: optax.Params | None,
    extra: Mapping[str, Any],
) -> list[Extras]:
    """What the structure reads of each leaf beside its gradient."""

    def leaves(tree: Any) -> list[Array | None]:
        if tree is None:
            return [None] * len(layout)
        exact = jax.tree.map(lambda _, x: jnp.asarray(x).astype(jnp.float32), updates, tree)
        return jax.tree.leaves(exact)

    if not spec.structure.reads:
        return [NO_EXTRAS] * len(layout)

    if "params" in spec.structure.reads and params is None and layout:
        raise ValueError(optax_base.NO_PARAMS_MSG)
    noise: list[Array | None] = [None] * len(layout)
    if "noise" in spec.structure.reads:
        key = extra.get("noise_key")
        key = jax.random.fold_in(jax.random.key(0), count) if key is None else key
        noise = [*draw_noise(layout, key)]
    return [
        Extras(*leaf)
        for leaf in zip(leaves(params), noise, leaves(extra.get("dormancy")), strict=True)
    ]


def _step_plain(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    tensor: Tensor,
    extras: Extras,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """The rule's step on a leaf, whose shape is kept."""
    rows = tensor_rows(spec.inputs, tensor)
    if rows is not None:
        rows = rows + jnp.zeros_like(gradient)[None]  # sharded as the gradient is
    if spec.normalise == "none":
        return step(spec, meta_parameters, gradient, state, rows, extras)
    direction, after = step(raw(spec), meta_parameters, gradient, state, rows, extras)
    return spec.step_scale * normalise(spec, tensor, direction), after


def _step_flat(
    kernel: Kernel,
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    tensor: Tensor,
    extras: Extras,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """A kernel's step on a leaf of any shape."""
    if gradient.size == 0:
        return gradient, state

    def flatten(x: Array) -> Array:
        return x.reshape(*x.shape[: x.ndim - gradient.ndim], gradient.size)

    carries, moments = jax.tree.map(flatten, (state.carries, state.moments))
    flat = RuleState(carries, moments, state.age)
    gradient_flat, extras = jax.tree.map(lambda x: x.reshape(-1), (gradient, extras))
    direction, after = kernel.step(
        spec, meta_parameters, gradient_flat, flat, extras, layout=(tensor,)
    )
    return jax.tree.map(
        lambda x, like: x.reshape(like.shape), (direction, after), (gradient, state)
    )


def learned_optimizer(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    learning_rate: ScalarOrSchedule,
    *,
    step_scale: ScalarOrSchedule = 1.0,
    kernel: KernelName | None = "auto",
    kinds: Kinds = None,
    state_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """The rule as an optimizer: `scale_by_learned_rule`, then `-learning_rate * step_scale`.

    Both may be schedules, and both are numbers to `optax.inject_hyperparams`. The other arguments
    are those of `scale_by_learned_rule`.

    Raises:
        ValueError: as there, or a step scale that is not positive.
    """
    return optax.chain(
        scale_by_learned_rule(
            spec, meta_parameters, kernel=kernel, kinds=kinds, state_dtype=state_dtype
        ),
        optax.scale_by_learning_rate(_product(learning_rate, step_scale)),
    )


def _product(learning_rate: ScalarOrSchedule, step_scale: ScalarOrSchedule) -> ScalarOrSchedule:
    if isinstance(step_scale, int | float) and not 0 < step_scale < float("inf"):
        raise ValueError(f"step_scale = {step_scale!r}: a positive finite number is needed")
    factors = (learning_rate, step_scale)
    if not any(map(callable, factors)):
        return learning_rate * step_scale

    def schedule(count: Int[Array, ""]) -> Any:
        rate, scale = (x(count) if callable(x) else x for x in factors)
        return rate * scale

    return schedule
