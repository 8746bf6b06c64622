"""The description of a learned rule, and its form in files; JAX and PyTorch share it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optim4rl.fields import COUNT, DECAY, POSITIVE, check_fields, check_values, shown
from optim4rl.optimizers.cells import CARRIES, CellKind, weight_shapes
from optim4rl.optimizers.processing import PROCESSINGS, Processing, SignLog
from optim4rl.optimizers.structures import STRUCTURES, Adaptive, NetworkShape, Structure
from optim4rl.optimizers.tensors import WHOLE_TENSOR, InputName, Normalisation, num_rows

# Ranges of the rule's own settings, and of its processing's and structure's.
RANGES = {
    "hidden_size": COUNT,
    "head_sizes": COUNT,
    "clip": POSITIVE,
    "clip_norm": POSITIVE,
    "step_scale": POSITIVE,
    "epsilon": POSITIVE,
    "beta1": DECAY,
    "beta2": DECAY,
    "beta_slow": DECAY,
    "c": POSITIVE,
    "p": POSITIVE,
    "rollouts": COUNT,
    "epochs": COUNT,
    "minibatches": COUNT,
}


@dataclass(frozen=True)
class OptimizerSpec:
    """A learned rule without its weights. Every field is one independent choice.

    Attributes:
        processing: how the networks read a gradient.
        structure: the update formula.
        cell: recurrent cell of each network, "gru" or "lstm". "none": only the head, which reads
            the features and has no memory beside the structure's moments.
        hidden_size: hidden units H of each cell.
        head_sizes: hidden layers of the MLP head on each cell; () is one linear layer.
        zero_head: start the heads' last layer at zero.
        head_norm: normalise the units of each hidden layer of the heads, before their ReLU.
        clip_norm: first, clip the policy's own gradients, and separately all others, to this global
            norm; None: do not clip.
        clip: clip gradients elementwise to [-clip, clip]; None: do not clip.
        step_scale: multiplies every update.
        inputs: names of further inputs of every network (`tensors`).
        normalise: "rms" scales each tensor's direction to a root mean square of 1, before
            `step_scale`, so that a step size means the same everywhere (`normalise`); "layers"
            makes the steps of heads on wide layers, and of networks that see images, smaller
            (`tensors.layer_scale`), and centres wide kernels (`tensors.is_centred`);
            "orthogonal" makes each kernel's direction an orthogonal matrix of the same size.
        zero_mean: subtract from every step the mean over all coordinates of all tensors, last.
    """

    processing: Processing = SignLog()
    structure: Structure = Adaptive()
    cell: CellKind = "gru"
    hidden_size: int = 8
    head_sizes: tuple[int, ...] = (16, 16)
    zero_head: bool = False
    head_norm: bool = False
    clip_norm: float | None = None
    clip: float | None = 1.0
    step_scale: float = 1.0
    inputs: tuple[InputName, ...] = ()
    normalise: Normalisation = "none"
    zero_mean: bool = False

    def __post_init__(self) -> None:
        check_fields(self, **RANGES)
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"inputs = {self.inputs!r}: give each input once")
        if any(network.inputs == 0 for network in self.networks):
            raise ValueError("inputs = (): the structure reads nothing, so name at least one input")
        for field in ("processing", "structure"):
            choice = getattr(self, field)
            if dataclasses.is_dataclass(choice):
                check_choice(field, type(choice), vars(choice))

    @property
    def networks(self) -> tuple[NetworkShape, ...]:
        """Return the shapes of the structure's networks, with the further inputs."""
        return tuple(
            NetworkShape(network.inputs + num_rows(self.inputs), network.outputs)
            for network in self.structure.networks(self.processing)
        )

    @property
    def tensorwise(self) -> bool:
        """Return whether a coordinate's step depends on the others of its tensor."""
        return self.structure.tensorwise or self.normalise in WHOLE_TENSOR or self.networkwise

    @property
    def per_tensor(self) -> bool:
        """Return whether the networks run once for a tensor (`structure.Structure`)."""
        return getattr(self.structure, "per_tensor", False)

    @property
    def networkwise(self) -> bool:
        """Return whether a tensor's step depends on the other tensors."""
        return self.zero_mean or self.clip_norm is not None

    @property
    def state_floats(self) -> int:
        """Return the floats of optimizer state for each parameter (Adam keeps 2)."""
        carries = len(self.networks) * CARRIES[self.cell] * self.hidden_size
        return carries + self.structure.num_moments

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of all weights, as in files: `network0.input`."""
        cell, hidden, heads, norm = self.cell, self.hidden_size, self.head_sizes, self.head_norm
        return {
            f"network{index}.{name}": shape
            for index, (inputs, outputs) in enumerate(self.networks)
            for name, shape in weight_shapes(cell, inputs, hidden, heads, outputs, norm).items()
        }


def spec_to_dict(spec: OptimizerSpec) -> dict[str, Any]:
    """Return the spec as plain JSON values."""
    named = {
        field: {"name": choice.name, **dataclasses.asdict(choice)}  # type: ignore[call-overload]
        for field, choice in (("processing", spec.processing), ("structure", spec.structure))
    }
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    lists = {name: list(x) for name, x in values.items() if isinstance(x, tuple)}
    return {**values, **lists, **named}


def spec_from_dict(values: Mapping[str, Any]) -> OptimizerSpec:
    """Return the spec that `spec_to_dict` wrote; fields that an older release lacks have defaults.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type; the message names it.
    """
    fields = {field.name for field in dataclasses.fields(OptimizerSpec)}
    wrong = sorted((set(values) ^ fields) - _ADDED)
    if wrong:
        raise ValueError(f"optimizer spec: fields {wrong} are missing or unknown")
    choices = {
        "processing": _build("processing", PROCESSINGS, values["processing"]),
        "structure": _build("structure", STRUCTURES, values["structure"]),
    }
    plain: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x
        for name, x in values.items()
        if name not in choices
    }
    check_values(OptimizerSpec, plain, **RANGES)
    return OptimizerSpec(**choices, **plain)


# Fields that files of older releases lack.
_ADDED = {"inputs", "normalise", "head_norm", "clip_norm", "zero_mean"}


def _build(field: str, registry: Mapping[str, type[Any]], values: Any) -> Any:
    settings = dict(values) if isinstance(values, Mapping) else {}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{field} = {shown(values)}: known names are {', '.join(registry)}")
    check_choice(field, registry[name], settings)
    return registry[name](**settings)


def check_choice(field: str, cls: type[Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings of a processing or a structure that have the wrong type or range.

    Raises:
        ValueError: the message names the setting as `structure.beta1`, and what would be right.
    """
    try:
        check_values(cls, settings, **RANGES)
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from error
