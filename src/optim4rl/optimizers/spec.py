"""The description of a learned rule, and its form in files; JAX and PyTorch share it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optim4rl.fields import COUNT, POSITIVE, check_fields, shown
from optim4rl.optimizers.cells import CELL_KINDS, CellKind, carry_floats, weight_shapes
from optim4rl.optimizers.processing import PROCESSINGS, Processing, SignLog
from optim4rl.optimizers.structures import STRUCTURES, Adaptive, NetworkShape, Structure
from optim4rl.optimizers.tensors import (
    INPUT_NAMES,
    NORMALISATIONS,
    WHOLE_TENSOR,
    InputName,
    Normalisation,
    num_rows,
)


@dataclass(frozen=True)
class OptimizerSpec:
    """A learned rule without its weights. Every field is one independent choice.

    Attributes:
        processing: what the networks read of a gradient.
        structure: the update formula.
        cell: recurrent cell of each network, "gru" or "lstm"; "none" is the head alone, on the
            features, without memory beside the structure's moments.
        hidden_size: hidden units H of each cell.
        head_sizes: hidden layers of the MLP head on each cell; () is one linear layer.
        zero_head: start the heads' last layer at zero.
        clip: gradients are clipped to [-clip, clip], elementwise, first; None: not at all.
        step_scale: every update is multiplied by this.
        inputs: what every network reads beside the structure's features, by name (`inputs`).
        normalise: "rms" scales each tensor's direction to a root mean square of 1, before
            `step_scale`, so that a step size means the same everywhere (`normalise`); "layers"
            makes the steps of heads on wide layers, and of networks that see images, smaller
            (`tensors.layer_scale`), and centres wide kernels (`tensors.is_centred`);
            "orthogonal" makes each kernel's direction an orthogonal matrix of the same size.
    """

    processing: Processing = SignLog()
    structure: Structure = Adaptive()
    cell: CellKind = "gru"
    hidden_size: int = 8
    head_sizes: tuple[int, ...] = (16, 16)
    zero_head: bool = False
    clip: float | None = 1.0
    step_scale: float = 1.0
    inputs: tuple[InputName, ...] = ()
    normalise: Normalisation = "none"

    def __post_init__(self) -> None:
        check_fields(self, hidden_size=COUNT, head_sizes=COUNT, clip=POSITIVE, step_scale=POSITIVE)
        _require_inputs(self.inputs)
        for choice in (self.processing, self.structure):
            if hasattr(choice, "__dataclass_fields__"):
                check_fields(choice)

    @property
    def networks(self) -> tuple[NetworkShape, ...]:
        """The shapes of the networks: those of the structure, with the further inputs."""
        return tuple(
            NetworkShape(network.inputs + num_rows(self.inputs), network.outputs)
            for network in self.structure.networks(self.processing)
        )

    @property
    def tensorwise(self) -> bool:
        """Whether a coordinate's step depends on the others of its tensor."""
        return self.structure.tensorwise or self.normalise in WHOLE_TENSOR

    @property
    def state_floats(self) -> int:
        """Floats of optimizer state for each parameter (Adam keeps 2)."""
        carries = len(self.networks) * carry_floats(self.cell, self.hidden_size)
        return carries + self.structure.num_moments

    @property
    def weight_shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The names and shapes of each network's weights."""
        return [
            weight_shapes(self.cell, shape.inputs, self.hidden_size, self.head_sizes, shape.outputs)
            for shape in self.networks
        ]


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
    return {**named, **plain, **{name: list(plain[name]) for name in _LISTS}}


def spec_from_dict(values: Mapping[str, Any]) -> OptimizerSpec:
    """The spec that `spec_to_dict` wrote; what an older release did not write has its default.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type; the message names it.
    """
    fields = {field.name for field in dataclasses.fields(OptimizerSpec)}
    wrong = sorted((set(values) ^ fields) - _ADDED)
    if wrong:
        raise ValueError(f"optimizer spec: fields {wrong} are missing or unknown")
    _require_types(values)
    built = {
        field: _build(field, registry, values[field])
        for field, registry in (("processing", PROCESSINGS), ("structure", STRUCTURES))
    }
    lists = {field: tuple(values[field]) for field in _LISTS if field in values}
    return OptimizerSpec(**{**values, **built, **lists})


# What the files of older releases lack.
_ADDED = {"inputs", "normalise"}
_NUMBER = (int, float)
_LISTS: dict[str, tuple[type, ...]] = {"head_sizes": (int,), "inputs": (str,)}
_PLAIN: dict[str, tuple[type, ...]] = {
    "cell": (str,),
    "hidden_size": (int,),
    "zero_head": (bool,),
    "clip": (*_NUMBER, type(None)),
    "step_scale": _NUMBER,
    "normalise": (str,),
}


def _require_types(values: Mapping[str, Any]) -> None:
    entries = [(name, values[name], kind) for name, kind in _PLAIN.items() if name in values]
    for name, kind in _LISTS.items():
        listed = values.get(name, ())
        if not isinstance(listed, (list, tuple)):
            raise ValueError(f"{name} = {listed!r}: a list is needed")
        entries += [(name, entry, kind) for entry in listed]
    for name, value, kind in entries:
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            wanted = " or ".join(t.__name__ for t in kind)
            raise ValueError(f"{name} = {value!r}: {wanted} is needed")
    _require_cell(values["cell"])
    _require_inputs(values.get("inputs", ()))
    _require_normalisation(values.get("normalise", "none"))


def _require_cell(cell: str) -> None:
    if cell not in CELL_KINDS:
        raise ValueError(f"cell = {cell!r}: known cells are {', '.join(CELL_KINDS)}")


def _require_inputs(inputs: Sequence[str]) -> None:
    if not set(inputs) <= set(INPUT_NAMES) or len(set(inputs)) != len(inputs):
        raise ValueError(
            f"inputs = {inputs!r}: each is one of {', '.join(INPUT_NAMES)}, at most once"
        )


def _require_normalisation(normalise: str) -> None:
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise = {normalise!r}: known are {', '.join(NORMALISATIONS)}")


def _build(field: str, registry: Mapping[str, type[Any]], values: Any) -> Any:
    named = isinstance(values, Mapping) and isinstance(values.get("name"), str)
    if not named or values["name"] not in registry:
        raise ValueError(f"{field} = {shown(values)}: known names are {', '.join(registry)}")
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
