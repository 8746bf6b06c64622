"""The common rules in C++ for CPUs: `rule.cc` through XLA's foreign function interface.

One source with vector extensions, compiled for AVX-512, AVX2, any x86-64 and any other CPU (NEON);
`optim4rl.cpp.library` loads what suits the machine.

Agents (`jax.vmap`) and chunks of coordinates are shared out to XLA's own threads. Results do not
depend on the number of threads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optim4rl.cpp.library import Library
from optim4rl.optimizers.inputs import segments
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.processing import RawAndSquare, SignLog
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import Adaptive, Anchored, Mirrored

MAX_LAYERS = 8
# In the order of the enumerations in rule.h.
_PROCESSINGS = (SignLog, RawAndSquare)
_STRUCTURES = (Adaptive, Anchored, Mirrored)
_STEP, _REPLAY = "optim4rl_step", "optim4rl_replay"
LIBRARY = Library(Path(__file__).with_name("rule.so"), (_STEP, _REPLAY))


def refusal(spec: OptimizerSpec) -> str | None:
    """Why this kernel cannot run the rule here, in one line; None where it can."""
    if spec.cell != "gru":
        return f"cell = {spec.cell!r}: only gru"
    if type(spec.structure) not in _STRUCTURES:
        return f"structure = {spec.structure.name!r}: only {_names(_STRUCTURES)}"
    if type(spec.processing) not in _PROCESSINGS:
        return f"processing = {spec.processing.name!r}: only {_names(_PROCESSINGS)}"
    if len(spec.head_sizes) >= MAX_LAYERS:
        return f"head_sizes = {spec.head_sizes!r}: fewer than {MAX_LAYERS} hidden layers"
    return LIBRARY.refusal()


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    *,
    layout: Layout = (),
) -> tuple[Float[Array, " n"], RuleState]:
    """`rule.step`; the state is updated in place where XLA finds that it can be."""
    hidden = [carry[0] for carry in state.carries]
    rows = (*hidden, state.moments)
    call = jax.ffi.ffi_call(
        LIBRARY.target(_STEP),
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (gradient, *rows)],
        vmap_method="broadcast_all",
        input_output_aliases={3 + index: 1 + index for index in range(len(rows))},
    )
    weights, (clock,) = _pack(spec, meta_parameters), _clocks(spec, state.age, 1)
    attributes = _attributes(spec, layout, gradient.shape[0])
    direction, *hidden, moments = call(weights, clock, gradient, *rows, **attributes)
    return direction, RuleState(tuple((h,) for h in hidden), moments, state.age + 1)


def replay_vjp(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K n"],
    state: RuleState,
    cotangents: Float[Array, "K n"],
    *,
    layout: Layout = (),
) -> MetaParameters:
    """The meta-gradient of `sum(cotangents * directions)`, as `xla.replay_vjp` has it."""
    weights = _pack(spec, meta_parameters)
    call = jax.ffi.ffi_call(
        LIBRARY.target(_REPLAY),
        jax.ShapeDtypeStruct(weights.shape, jnp.float32),
        vmap_method="broadcast_all",
    )
    packed = call(
        weights,
        _clocks(spec, state.age, gradients.shape[0]),
        gradients,
        *(carry[0] for carry in state.carries),
        state.moments,
        cotangents,
        **_attributes(spec, layout, gradients.shape[1]),
    )
    return _unpack(spec, packed, meta_parameters)


KERNEL = Kernel("native", refusal, step, replay_vjp, LIBRARY.status)


def _names(classes: tuple[Any, ...]) -> str:
    return ", ".join(cls.name for cls in classes)


def _weight_names(spec: OptimizerSpec) -> Iterator[tuple[str, str]]:
    """Where each array of the meta-parameters lies, in the order of the packed weights."""
    for network in range(len(spec.networks)):
        for name in ("input", "bias", "hidden", "bias_new"):
            yield f"network{network}", name
        for layer in range(len(spec.head_sizes) + 1):
            yield f"network{network}", f"head{layer}"
            yield f"network{network}", f"head{layer}_bias"


def _pack(spec: OptimizerSpec, meta_parameters: MetaParameters) -> Float[Array, " weights"]:
    return jnp.concatenate(
        [meta_parameters[network][name].ravel() for network, name in _weight_names(spec)]
    )


def _unpack(
    spec: OptimizerSpec, packed: Float[Array, " weights"], like: MetaParameters
) -> MetaParameters:
    names = list(_weight_names(spec))
    arrays = [like[network][name] for network, name in names]
    parts = jnp.split(packed, np.cumsum([x.size for x in arrays])[:-1])
    result: MetaParameters = {network: {} for network in like}
    for (network, name), part, array in zip(names, parts, arrays, strict=True):
        result[network][name] = part.reshape(array.shape)
    return result


def _clocks(spec: OptimizerSpec, age: Int[Array, ""], K: int) -> Float[Array, "K 4"]:
    """What an anchored rule computes of the age alone, for each of K steps."""
    structure = spec.structure
    if not isinstance(structure, Anchored):
        return jnp.zeros((K, 4), jnp.float32)
    ages = age + jnp.arange(K, dtype=jnp.int32)
    steps = (ages + 1).astype(jnp.float32)
    betas = (structure.beta1, structure.beta2, structure.beta_slow)
    log_age = jnp.log1p(ages.astype(jnp.float32)) / 6.0
    return jnp.stack([*(1.0 - beta**steps for beta in betas), log_age], axis=1)


def _attributes(spec: OptimizerSpec, layout: Layout, n: int) -> dict[str, Any]:
    """The rule as `ffi.cc` reads it; settings that it lacks are zero."""
    runs = segments(spec.inputs, layout, n)
    settings = {
        "clip": np.inf if spec.clip is None else spec.clip,
        "step_scale": spec.step_scale,
        "log_epsilon": getattr(spec.processing, "epsilon", 0.0),
        "log_shift": getattr(spec.processing, "shift", 0.0),
        "log_scale": getattr(spec.processing, "scale", 0.0),
    }
    for name in ("epsilon", "beta1", "beta2", "beta_slow", "fresh_weight", "slow_weight"):
        settings[name] = getattr(spec.structure, name, 0.0)
    return {
        "processing": np.int32(_PROCESSINGS.index(type(spec.processing))),
        "structure": np.int32(_STRUCTURES.index(type(spec.structure))),
        "has_sign": np.bool_(getattr(spec.structure, "signed", False)),
        "num_moments": np.int32(spec.structure.num_moments),
        "inputs": np.array([network.inputs for network in spec.networks], np.int64),
        "outputs": np.array([network.outputs for network in spec.networks], np.int64),
        "head_inputs": np.array([spec.hidden_size, *spec.head_sizes], np.int64),
        "num_segment_inputs": np.int32(runs.values.shape[1]),
        "segment_ends": runs.ends,
        "segment_inputs": runs.values.ravel(),
        **{name: np.float32(value) for name, value in settings.items()},
    }
