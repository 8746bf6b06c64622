"""A learned rule as an optax gradient transformation.

`scale_by_learned_rule` is the rule itself, without a learning rate; `learned_optimizer` multiplies
its steps by minus a rate or a schedule, as optax's own aliases do.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import sequential_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32
from optax._src import base as optax_base

from optim4rl.fields import float32
from optim4rl.optimizers.inputs import draw_noise
from optim4rl.optimizers.kernels import plain
from optim4rl.optimizers.kernels.interface import Kernel, KernelName, Step
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.layout import Kinds, Layout, Tensor, infer_layout
from optim4rl.optimizers.networks import BLOCK, apply_in_blocks
from optim4rl.optimizers.presets import ScalarOrSchedule
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState, init_state
from optim4rl.optimizers.structures import NO_EXTRAS, Extras
from optim4rl.optimizers.tensors import clip_apart, without_mean

# The extra arguments that are numbers, in the order of `Extras`.
PROPORTIONS = ("training_proportion", "epoch_proportion")


class LearnedRuleState(NamedTuple):
    """State of `scale_by_learned_rule`.

    Attributes:
        count: updates made so far.
        memory: `spec.state_floats` trees, each like the parameters: the rule's memory of each
            parameter, first the carries of its networks, then the moments. So it shards and saves
            like Adam's moments.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # optax's own name for it
    memory: tuple[Any, ...]


def scale_by_learned_rule(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    *,
    kernel: KernelName | None = "auto",
    kinds: Kinds = None,
    state_dtype: DTypeLike = "float32",
    total_updates: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace each gradient by the rule's direction (an ascent direction, as in optax).

    Args:
        spec, meta_parameters: the rule and its weights; the state holds no copy of them.
        kernel: the implementation of the rule, by name (`kernels.select`). None is plain JAX, which
            keeps the sharding of each leaf; "plain" is the same in blocks of coordinates on CPUs.
            "auto" is the fastest that runs the rule here, or None if there are several devices to
            shard over. You can differentiate every kernel in reverse mode; the derivative is plain
            JAX's.
        kinds: what each parameter is for: a tree of kinds, or a function of path and leaf. None:
            inferred from names and shapes (`layout.infer_layout`).
        state_dtype: dtype of the state: float32, or bfloat16 at half the memory. bfloat16 rounds
            stochastically. With rounding to the nearest, a moment that decays by 0.999 would never
            move.
        total_updates: length of the run in updates, for rules that read the share of training done;
            None: unknown. The extra argument `training_proportion` takes precedence.

    Raises:
        ValueError: the kernel cannot run the rule, the dtype or the number of updates is wrong, or
            a gradient is complex.

    A structure may read more (`structure.Extras`): `params`, and extra arguments of `update`. These
    are `dormancy`, a tree of arrays that broadcast to the updates; `training_proportion` and
    `epoch_proportion`, numbers; and `noise_key`, the random key of its noise. Without a key, the
    noise is drawn from the number of the update. All arithmetic is float32; each update has its
    gradient's dtype. A NaN stays in its own coordinate for good; `optax.apply_if_finite` skips such
    steps instead.
    """
    step, kept = _step(spec, kernel), _state_dtype(state_dtype)
    if total_updates is not None and total_updates < 1:
        raise ValueError(f"total_updates = {total_updates!r}: a number of at least 1 is needed")

    def init(params: optax.Params) -> LearnedRuleState:
        memory = (optax.tree.zeros_like(params, kept) for _ in range(spec.state_floats))
        return LearnedRuleState(jnp.zeros((), jnp.int32), tuple(memory))

    def update(
        updates: optax.Updates,
        state: LearnedRuleState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, LearnedRuleState]:
        layout, count = infer_layout(updates, kinds), state.count
        if total_updates is not None and extra.get("training_proportion") is None:
            extra["training_proportion"] = _share_done(count, total_updates)
        extras = _extras(spec, layout, updates, count, params, extra)
        leaves, structure = jax.tree.flatten(updates)
        given = [_real(leaf) for leaf in leaves]
        gradients = _clipped(spec, layout, given)
        known = [_leaves(updates, tree) for tree in state.memory]
        directions, memory = [], []
        for index, (gradient, tensor) in enumerate(zip(gradients, layout, strict=True)):
            before = _rule_state(spec, [row[index] for row in known], count, gradient.shape)
            direction, after = step(meta_parameters, gradient, before, extras[index], tensor=tensor)
            directions.append(direction)
            memory.append(_memory(after, kept, index))
        directions = _finished(spec, directions, given)
        rows = [[leaf[row] for leaf in memory] for row in range(spec.state_floats)]
        tree, *trees = (jax.tree.unflatten(structure, leaves) for leaves in (directions, *rows))
        return tree, LearnedRuleState(optax.safe_increment(count), tuple(trees))

    return optax.GradientTransformationExtraArgs(init, update)


def _share_done(count: Int[Array, ""], total_updates: int) -> Float[Array, ""]:
    return jnp.minimum(count.astype(jnp.float32) / max(total_updates - 1, 1), 1.0)


def _clipped(spec: OptimizerSpec, layout: Layout, given: Sequence[Array]) -> list[Array]:
    """Return gradients in float32, with clipped global norms if the rule asks for it."""
    gradients = [x.astype(jnp.float32) for x in given]
    if spec.clip_norm is None:
        return gradients
    return clip_apart(spec.clip_norm, layout, gradients)


def _finished(
    spec: OptimizerSpec, directions: Sequence[Array], given: Sequence[Array]
) -> list[Array]:
    """Return directions in the gradients' dtypes, minus their mean if the rule asks for it."""
    whole = without_mean(directions) if spec.zero_mean else directions
    return [x.astype(like.dtype) for x, like in zip(whole, given, strict=True)]


def _leaves(like: Any, tree: Any) -> list[Array]:
    """Return the leaves of a tree, which must have the structure of `like`."""
    return jax.tree.leaves(jax.tree.map(lambda _, x: x, like, tree))


def _real(gradient: Any) -> Array:
    if jnp.iscomplexobj(gradient):
        raise ValueError(f"updates: a gradient is {gradient.dtype}; real numbers are needed")
    return jnp.asarray(gradient)


def _state_dtype(dtype: DTypeLike) -> Any:
    try:
        kept = jnp.dtype(dtype)
    except TypeError:
        kept = None
    if kept not in (jnp.float32, jnp.bfloat16):
        name = dtype if kept is None else kept.name
        raise ValueError(f"state_dtype = {name!r}: float32 or bfloat16 is needed")
    return kept


def _rule_state(
    spec: OptimizerSpec, rows: Sequence[Array], count: Int[Array, ""], shape: tuple[int, ...]
) -> RuleState:
    """Return the rule's state of a leaf, made from its rows in `LearnedRuleState.memory`."""
    remaining = iter(rows)

    def stack(like: Any) -> Array:
        taken = [next(remaining).astype(jnp.float32) for _ in range(like.shape[0])]
        return jnp.stack(taken) if taken else jnp.zeros((0, *shape), jnp.float32)

    blank = jax.eval_shape(lambda: init_state(spec, shape))
    carries, moments = jax.tree.map(stack, (blank.carries, blank.moments))
    return RuleState(carries, moments, count)


def _memory(state: RuleState, kept: Any, index: int) -> list[Array]:
    """Return the rows of leaf number `index`. In bfloat16 the rows share their random numbers."""
    # Iteration would lose an explicit sharding outside `jit`.
    arrays = (*jax.tree.leaves(state.carries), state.moments)
    rows = [row for array in arrays for row in jnp.unstack(array)]
    rows = jax.lax.optimization_barrier(rows)
    if kept == jnp.float32 or not rows:
        return rows
    # Not the key of the rule's own noise.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), state.age - 1), index)
    dither = jax.random.bits(key, rows[0].shape, jnp.uint32) >> 16
    return [stochastic_round(row, dither) for row in rows]


@jax.custom_jvp
def stochastic_round(
    x: Float[Array, "*shape"], dither: UInt32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Round `x` to a bfloat16 neighbour at random, with a probability in proportion to closeness.

    Source: Zamirai et al. 2020, "Revisiting BFloat16 Training" (arXiv 2010.06192). The derivative
    is 1.

    Args:
        x: the numbers. Infinities and NaN do not change.
        dither: random numbers from 0 to 65,535.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + dither
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
    """Return the structure's further inputs of each leaf, beside its gradient."""

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
    numbers = [_number(name, extra.get(name)) for name in PROPORTIONS]
    dormancy = [_dormancy(x, t) for x, t in zip(leaves(extra.get("dormancy")), layout, strict=True)]
    return [Extras(*leaf, *numbers) for leaf in zip(leaves(params), noise, dormancy, strict=True)]


def _dormancy(x: Array | None, tensor: Tensor) -> Array | None:
    """Return the dormancy of a tensor's coordinates, from an array that broadcasts to them."""
    if x is None or x.shape == tensor.shape:
        return x
    try:
        return jnp.broadcast_to(x, tensor.shape)
    except ValueError as error:
        raise ValueError(
            f"dormancy: an array of shape {x.shape} for a gradient of shape {tensor.shape}"
        ) from error


def _number(name: str, x: Any) -> Array | None:
    found = None if x is None else jnp.asarray(x, jnp.float32)
    if found is not None and found.shape:
        raise ValueError(f"{name}: an array of shape {found.shape}; one number is needed")
    return found


def _step(spec: OptimizerSpec, kernel: KernelName | None) -> Step:
    """Return the step on a leaf of any shape, `(weights, gradient, state, extras, *, tensor)`."""
    step_plain = partial(plain.step_tensor, spec)
    if kernel is None or (kernel == "auto" and jax.device_count() > 1):
        return step_plain
    chosen = choose(spec, kernel)
    if chosen.name != "plain":
        run = partial(_step_flat, chosen, spec)
    elif spec.per_tensor or jax.default_backend() != "cpu":
        return step_plain
    else:
        run = partial(_step_blocks, spec)

    def step_fused(*given: Any, tensor: Tensor) -> tuple[Float[Array, "*shape"], RuleState]:
        fused = jax.custom_vjp(partial(run, tensor))

        def oracle(*given: Any) -> Any:
            # JAX passes constants as NumPy numbers.
            return step_plain(*jax.tree.map(jnp.asarray, given), tensor=tensor)

        # The derivative is plain JAX's: no kernel has one of its own.
        fused.defvjp(
            lambda *given: (fused(*given), given),
            lambda given, cotangents: jax.vjp(oracle, *given)[1](cotangents),
        )
        stepped: tuple[Array, RuleState] = fused(*given)
        return stepped

    return step_fused


def _step_blocks(
    spec: OptimizerSpec,
    tensor: Tensor,
    meta_parameters: MetaParameters,
    gradient: Array,
    *more: Any,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """Make a plain step with the networks in blocks; `jax.vmap` runs one agent after the other."""
    run = partial(plain.step_tensor, spec, tensor=tensor, apply=apply_in_blocks)
    one_by_one = run if gradient.size <= BLOCK else sequential_vmap(run)
    stepped: tuple[Array, RuleState] = one_by_one(meta_parameters, gradient, *more)
    return stepped


def _step_flat(
    kernel: Kernel,
    spec: OptimizerSpec,
    tensor: Tensor,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    extras: Extras,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """Make a kernel's step on a leaf of any shape."""
    del extras  # Only the plain kernel runs rules that read them.
    if gradient.size == 0:
        return gradient, state._replace(age=state.age + 1)
    rows = jax.tree.map(
        lambda x: x.reshape(*x.shape[: x.ndim - gradient.ndim], gradient.size) if x.ndim else x,
        state,
    )
    # The barriers keep XLA from fusing the stacking and unstacking of rows. This halves the time to
    # compile and shortens the run.
    rows = jax.lax.optimization_barrier(rows)
    found = kernel.step(spec, meta_parameters, gradient.reshape(-1), rows, layout=(tensor,))
    found = jax.lax.optimization_barrier(found)
    return jax.tree.map(lambda x, like: x.reshape(like.shape), found, (gradient, state))


def learned_optimizer(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    learning_rate: ScalarOrSchedule,
    *,
    step_scale: ScalarOrSchedule = 1.0,
    kernel: KernelName | None = "auto",
    kinds: Kinds = None,
    state_dtype: DTypeLike = "float32",
    total_updates: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the rule as an optimizer: `scale_by_learned_rule`, then `-learning_rate * step_scale`.

    Rate and scale may be schedules; `optax.inject_hyperparams` treats both as numbers. For the
    other arguments see `scale_by_learned_rule`.

    Raises:
        ValueError: as in `scale_by_learned_rule`, or the step scale is not positive.
    """
    return optax.chain(
        scale_by_learned_rule(
            spec,
            meta_parameters,
            kernel=kernel,
            kinds=kinds,
            state_dtype=state_dtype,
            total_updates=total_updates,
        ),
        _scale_by_product(learning_rate, step_scale),
    )


def _scale_by_product(
    learning_rate: ScalarOrSchedule, step_scale: ScalarOrSchedule
) -> optax.GradientTransformation:
    if isinstance(step_scale, int | float) and not 0 < float32(step_scale) < float("inf"):
        raise ValueError(f"step_scale = {step_scale!r}: a positive finite number is needed")
    factors = (learning_rate, step_scale)
    if any(map(callable, factors)):

        def schedule(count: Int[Array, ""]) -> Any:
            rate, scale = (x(count) if callable(x) else x for x in factors)
            return rate * scale

        return optax.scale_by_learning_rate(schedule)
    return optax.stateless(lambda updates, _: _descend(learning_rate * step_scale, updates))


def _descend(rate: Any, updates: optax.Updates) -> optax.Updates:
    """Multiply updates by minus the rate; each keeps its own dtype and shape."""

    def scale(update: Array) -> Array:
        # `rate * update` would promote an update of bfloat16 to the rate's float32.
        factor = jnp.asarray(rate, update.dtype)
        if factor.size != 1 and factor.shape != update.shape:
            raise ValueError(
                f"learning_rate: an array of shape {factor.shape}; one number is needed, or an "
                f"array like the update of shape {update.shape}"
            )
        return -(factor.reshape(()) if factor.size == 1 else factor) * update

    return jax.tree.map(scale, updates)
