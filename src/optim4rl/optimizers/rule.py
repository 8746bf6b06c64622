"""The learned rule: processing x cell x structure, applied coordinate by coordinate.

`OptimizerSpec` is the whole description of a rule; meta-parameters are its weights; `RuleState` is
its memory of each coordinate. All functions here are pure and know nothing of trees, tasks or
agents: a gradient is an array of any shape, and the update has the same shape.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.optimizers.cells import Carry, Weights
from optim4rl.optimizers.networks import apply_network, init_carry, init_network
from optim4rl.optimizers.spec import (
    OptimizerSpec as OptimizerSpec,
    spec_from_dict as spec_from_dict,
    spec_to_dict as spec_to_dict,
)
from optim4rl.optimizers.structures import NO_EXTRAS, Extras, Features, Outputs, Reading

MetaParameters = dict[str, Weights]


class RuleState(NamedTuple):
    """A rule's memory, for coordinates of shape `*shape`.

    Attributes:
        carries: one carry per network, arrays `[hidden, *shape]`.
        moments: running moments `[moments, *shape]`.
        age: updates made so far.
    """

    carries: tuple[Carry, ...]
    moments: Float[Array, "moments *shape"]
    age: Int[Array, ""]


@partial(jax.jit, static_argnums=0)
def init_meta_parameters(spec: OptimizerSpec, key: PRNGKeyArray) -> MetaParameters:
    """Return fresh weights for the rule's networks."""
    shapes = spec.networks
    return {
        f"network{index}": init_network(
            k,
            spec.cell,
            shape.inputs,
            spec.hidden_size,
            spec.head_sizes,
            shape.outputs,
            zero_head=spec.zero_head,
            head_norm=spec.head_norm,
        )
        for index, (k, shape) in enumerate(
            zip(jax.random.split(key, len(shapes)), shapes, strict=True)
        )
    }


def init_state(spec: OptimizerSpec, shape: tuple[int, ...]) -> RuleState:
    """Return the state of coordinates that have seen no gradient."""
    return RuleState(
        carries=tuple(init_carry(spec.cell, spec.hidden_size, shape) for _ in spec.networks),
        moments=jnp.zeros((spec.structure.num_moments, *shape), jnp.float32),
        age=jnp.zeros((), jnp.int32),
    )


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
    rows: Float[Array, "rows ..."] | None = None,
    extras: Extras = NO_EXTRAS,
    apply: Callable[..., tuple[Array, Carry]] = apply_network,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """Make one step of the rule; return the direction `d` and the new state.

    Parameters move by `-alpha * d`. The direction comes from the formula, before `spec.normalise`,
    which needs the whole tensor. `rows` holds the inputs that `spec.inputs` names, for each
    coordinate or with axes of length 1, or None; `extras` holds what the structure reads; `apply`
    runs the networks. Infinite gradients are clipped if the spec clips; a NaN stays in its own
    coordinate.
    """
    features, reading = read(spec, gradient, state.moments, state.age, rows, extras)
    outputs, carries = zip(
        *(
            apply(meta_parameters[f"network{index}"], spec.cell, x, carry)
            for index, (x, carry) in enumerate(zip(features, state.carries, strict=True))
        ),
        strict=True,
    )
    after = RuleState(carries, reading.moments, state.age + 1)
    return write(spec, reading, outputs), after


def read(
    spec: OptimizerSpec,
    gradient: Float[Array, "*shape"],
    moments: Float[Array, "moments *shape"],
    age: Int[Array, ""],
    rows: Float[Array, "rows ..."] | None = None,
    extras: Extras = NO_EXTRAS,
) -> tuple[Features, Reading]:
    """Return each network's features of a gradient, and the new moments; this uses no weight."""
    if spec.clip is not None:
        gradient = jnp.clip(gradient, -spec.clip, spec.clip)
    reading = Reading(gradient, spec.structure.accumulate(gradient, moments), age, extras)
    features = spec.structure.features(spec.processing, reading)
    if spec.per_tensor and spec.cell != "none":  # A carry has the tensor's shape.
        features = tuple(x + jnp.zeros_like(gradient)[None] for x in features)
    if rows is not None:
        features = tuple(jnp.concatenate([x, rows + _blank_row(x)]) for x in features)
    return features, reading


def _blank_row(features: Float[Array, "features *shape"]) -> Float[Array, "1 *shape"]:
    """Return a row of zeros with the features' shape and, if there is a feature, their sharding."""
    if features.shape[0]:
        return jnp.zeros_like(features[:1])
    return jnp.zeros((1, *features.shape[1:]), features.dtype)


def write(spec: OptimizerSpec, reading: Reading, outputs: Outputs) -> Float[Array, "*shape"]:
    """Return the direction that the networks' outputs make."""
    return spec.step_scale * spec.structure.direction(spec.processing, reading, outputs)
