"""The learned rule: processing x cell x structure, applied coordinate by coordinate.

`OptimizerSpec` is the whole description of a rule; meta-parameters are its weights; `RuleState` is
what it remembers of each coordinate. All functions here are pure and know nothing of trees, tasks
or agents: a gradient is an array of any shape and the update has the same shape.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.optimizers.networks import (
    CELL_KINDS,
    Carry,
    CellKind,
    Weights,
    apply_network,
    carry_floats,
    init_carry,
    init_network,
)
from optim4rl.optimizers.processing import PROCESSINGS, Processing, SignLog
from optim4rl.optimizers.structures import STRUCTURES, Adaptive, Structure

MetaParameters = dict[str, Weights]


@dataclass(frozen=True)
class OptimizerSpec:
    """A learned rule without its weights. Every field is one independent choice.

    Attributes:
        processing: what the networks read of a gradient.
        structure: the update formula.
        cell: recurrent cell of each network, "gru" or "lstm".
        hidden_size: hidden units H of each cell.
        head_sizes: hidden layers of the MLP head on each cell; () is one linear layer.
        zero_head: start the heads' last layer at zero.
        clip: gradients are clipped to [-clip, clip], elementwise, first; None: not at all.
        step_scale: every update is multiplied by this.
    """

    processing: Processing = SignLog()
    structure: Structure = Adaptive()
    cell: CellKind = "gru"
    hidden_size: int = 8
    head_sizes: tuple[int, ...] = (16, 16)
    zero_head: bool = False
    clip: float | None = 1.0
    step_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_cell(self.cell)
        if self.hidden_size < 1 or any(size < 1 for size in self.head_sizes):
            raise ValueError(
                f"hidden_size = {self.hidden_size!r}, head_sizes = {self.head_sizes!r}: "
                "layer sizes are positive whole numbers"
            )
        for field, value in (("clip", self.clip), ("step_scale", self.step_scale)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{field} = {value!r}: a positive finite number is needed")

    @property
    def state_floats(self) -> int:
        """Floats of optimizer state for each parameter (Adam keeps 2)."""
        networks = len(self.structure.networks(self.processing))
        return networks * carry_floats(self.cell, self.hidden_size) + self.structure.num_moments


class RuleState(NamedTuple):
    """What a rule remembers, for coordinates of shape `*shape`.

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
    """Fresh weights for the rule's networks."""
    shapes = spec.structure.networks(spec.processing)
    return {
        f"network{index}": init_network(
            k,
            spec.cell,
            shape.inputs,
            spec.hidden_size,
            spec.head_sizes,
            shape.outputs,
            zero_head=spec.zero_head,
        )
        for index, (k, shape) in enumerate(
            zip(jax.random.split(key, len(shapes)), shapes, strict=True)
        )
    }


def init_state(spec: OptimizerSpec, shape: tuple[int, ...]) -> RuleState:
    """The state of coordinates that have seen no gradient."""
    return RuleState(
        carries=tuple(
            init_carry(spec.cell, spec.hidden_size, shape)
            for _ in spec.structure.networks(spec.processing)
        ),
        moments=jnp.zeros((spec.structure.num_moments, *shape), jnp.float32),
        age=jnp.zeros((), jnp.int32),
    )


def step(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    gradient: Float[Array, "*shape"],
    state: RuleState,
) -> tuple[Float[Array, "*shape"], RuleState]:
    """One step of the rule: the direction `d` and the new state; parameters move by `-alpha * d`.

    Infinite gradients are clipped where the spec clips; a NaN stays in its own coordinate.
    """
    if spec.clip is not None:
        gradient = jnp.clip(gradient, -spec.clip, spec.clip)
    structure, processing = spec.structure, spec.processing
    moments = structure.accumulate(gradient, state.moments)
    features = structure.features(processing, gradient, moments, state.age)
    outputs, carries = zip(
        *(
            apply_network(meta_parameters[f"network{index}"], spec.cell, x, carry)
            for index, (x, carry) in enumerate(zip(features, state.carries, strict=True))
        ),
        strict=True,
    )
    direction = structure.direction(processing, gradient, moments, state.age, outputs)
    return spec.step_scale * direction, RuleState(carries, moments, state.age + 1)


def spec_to_dict(spec: OptimizerSpec) -> dict[str, Any]:
    """The spec as plain JSON values."""
    named = {
        field: {"name": choice.name, **dataclasses.asdict(choice)}  # type: ignore[call-overload]
        for field, choice in (("processing", spec.processing), ("structure", spec.structure))
    }
    plain = {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if field.name not in named
    }
    return {**named, **plain, "head_sizes": list(spec.head_sizes)}


def spec_from_dict(values: Mapping[str, Any]) -> OptimizerSpec:
    """The spec that `spec_to_dict` wrote.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type; the message names it.
    """
    fields = {field.name for field in dataclasses.fields(OptimizerSpec)}
    if set(values) != fields:
        wrong = sorted(set(values) ^ fields)
        raise ValueError(f"optimizer spec: fields {wrong} are missing or unknown")
    head_sizes = values["head_sizes"]
    if not isinstance(head_sizes, (list, tuple)):
        raise ValueError(f"head_sizes = {head_sizes!r}: a list of layer sizes is needed")
    _require_types(values)
    return OptimizerSpec(
        processing=_build("processing", PROCESSINGS, values["processing"]),
        structure=_build("structure", STRUCTURES, values["structure"]),
        head_sizes=tuple(head_sizes),
        **{
            name: values[name]
            for name in ("cell", "hidden_size", "zero_head", "clip", "step_scale")
        },
    )


def _require_types(values: Mapping[str, Any]) -> None:
    number = (int, float)
    kinds: dict[str, tuple[type, ...]] = {
        "cell": (str,),
        "hidden_size": (int,),
        "zero_head": (bool,),
        "clip": (*number, type(None)),
        "step_scale": number,
    }
    entries = [(name, values[name], kind) for name, kind in kinds.items()]
    entries += [("head_sizes", size, (int,)) for size in values["head_sizes"]]
    for name, value, kind in entries:
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            wanted = " or ".join(t.__name__ for t in kind)
            raise ValueError(f"{name} = {value!r}: {wanted} is needed")
    _require_cell(values["cell"])


def _require_cell(cell: str) -> None:
    if cell not in CELL_KINDS:
        raise ValueError(f"cell = {cell!r}: known cells are {', '.join(CELL_KINDS)}")


def _build(field: str, registry: Mapping[str, type[Any]], values: Any) -> Any:
    if not isinstance(values, Mapping) or values.get("name") not in registry:
        raise ValueError(f"{field} = {values!r}: known names are {', '.join(registry)}")
    cls = registry[values["name"]]
    settings = {key: value for key, value in values.items() if key != "name"}
    defaults = {setting.name: setting.default for setting in dataclasses.fields(cls)}
    for name, value in settings.items():
        default = defaults.get(name)
        wanted = bool if isinstance(default, bool) else (int, float)
        if (
            default is None
            or not isinstance(value, wanted)
            or isinstance(value, bool) != (wanted is bool)
        ):
            known = ", ".join(f"{n} (default {d})" for n, d in defaults.items()) or "no settings"
            raise ValueError(f"{field}.{name} = {value!r}: {values['name']} takes {known}")
    return cls(**settings)
