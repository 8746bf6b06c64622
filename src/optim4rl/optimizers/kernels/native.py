"""The common rules in C++ for CPUs: `rule.cc` through XLA's foreign function interface.

One source with vector extensions is compiled for AVX-512, AVX2, any x86-64 and any other CPU
(NEON); `optim4rl.cpp.library` loads the best version for the machine.

XLA's own threads share the agents (`jax.vmap`) and the chunks of coordinates. Results do not
depend on the number of threads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optim4rl.optimizers.inputs import segments
from optim4rl.optimizers.kernels import packing
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.kernels.packing import LIBRARY as LIBRARY
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import Anchored


def refusal(spec: OptimizerSpec) -> str | None:
    """Return why this kernel cannot run the rule here, in one line; None if it can."""
    return packing.unknown_part(spec) or LIBRARY.refusal()


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, " n"],
    state: RuleState,
    *,
    layout: Layout = (),
) -> tuple[Float[Array, " n"], RuleState]:
    """Run `rule.step`; XLA updates the state in place if it can."""
    hidden = [h for carry in state.carries for h in carry]
    rows = (*hidden, state.moments)
    call = jax.ffi.ffi_call(
        LIBRARY.target(packing.STEP),
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (gradient, *rows)],
        vmap_method="broadcast_all",
        input_output_aliases={3 + index: 1 + index for index in range(len(rows))},
    )
    weights, (clock,) = _pack(spec, meta_parameters), _clocks(spec, state.age, 1)
    attributes = _attributes(spec, layout, gradient.shape[0])
    direction, *hidden, moments = call(weights, clock, gradient, *rows, **attributes)
    carries = jax.tree.unflatten(jax.tree.structure(state.carries), hidden)
    return direction, RuleState(carries, moments, state.age + 1)


def replay_vjp(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradients: Float[Array, "K n"],
    state: RuleState,
    cotangents: Float[Array, "K n"],
    *,
    layout: Layout = (),
) -> MetaParameters:
    """Return the meta-gradient of `sum(cotangents * directions)`, like `xla.replay_vjp`."""
    weights, unpack = jax.vjp(partial(_pack, spec), meta_parameters)
    call = jax.ffi.ffi_call(
        LIBRARY.target(packing.REPLAY),
        jax.ShapeDtypeStruct(weights.shape, jnp.float32),
        vmap_method="broadcast_all",
    )
    gradient = call(
        weights,
        _clocks(spec, state.age, gradients.shape[0]),
        gradients,
        *(h for carry in state.carries for h in carry),
        state.moments,
        cotangents,
        **_attributes(spec, layout, gradients.shape[1]),
    )
    (unpacked,) = unpack(gradient)
    return unpacked


KERNEL = Kernel("native", refusal, step, replay_vjp, LIBRARY.status)


def _pack(spec: OptimizerSpec, meta_parameters: MetaParameters) -> Float[Array, " weights"]:
    return jnp.concatenate(
        [meta_parameters[network][name].ravel() for network, name in packing.weight_names(spec)]
    )


def _clocks(spec: OptimizerSpec, age: Int[Array, ""], K: int) -> Float[Array, "K 4"]:
    """Return the values that an anchored rule computes from the age alone, for each of K steps."""
    structure = spec.structure
    if not isinstance(structure, Anchored):
        return jnp.zeros((K, 4), jnp.float32)
    ages = age + jnp.arange(K, dtype=jnp.int32)
    steps = (ages + 1).astype(jnp.float32)
    betas = (structure.beta1, structure.beta2, structure.beta_slow)
    log_age = jnp.log1p(ages.astype(jnp.float32)) / 6.0
    return jnp.stack([*(1.0 - beta**steps for beta in betas), log_age], axis=1)


def _attributes(spec: OptimizerSpec, layout: Layout, n: int) -> dict[str, Any]:
    """Return the rule in the form that `ffi.cc` reads."""
    runs = segments(spec.inputs, layout, n)
    return {
        "sizes": np.array(packing.sizes(spec), np.int64),
        "settings": np.array(packing.settings(spec), np.float32),
        "segment_ends": runs.ends,
        "segment_inputs": runs.values.ravel(),
    }
