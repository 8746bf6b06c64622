"""The learned rule in torch: what `optim4rl.optimizers.rule` says, on flattened coordinates."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from optim4rl.fields import check_values
from optim4rl.optimizers.ranges import RANGES, check_choice
from optim4rl.optimizers.tensors import (
    EPSILON,
    INPUT_NAMES,
    NORMALISATIONS,
    InputName,
    Layout,
    Tensor as NamedTensor,
    is_centred,
    layer_scale,
    num_rows,
    orthogonalise,
    pieces,
    tensor_inputs,
)
from optim4rl.optimizers.weight_files import (
    WeightFile,
    WeightsError,
    read_weights,
    require_tensors,
)
from optim4rl.torch.networks import (
    CARRIES,
    CELL_KINDS,
    Carry,
    CellKind,
    Weights,
    apply_network,
    weight_shapes,
)
from optim4rl.torch.processing import PROCESSINGS, Processing
from optim4rl.torch.structures import (
    STRUCTURES,
    Features,
    NetworkShape,
    Reading,
    Structure,
    unit_rms,
)


@dataclass(frozen=True)
class Spec:
    """A learned rule without its weights; the fields are those of `optimizers.OptimizerSpec`."""

    processing: Processing
    structure: Structure
    cell: CellKind
    hidden_size: int
    head_sizes: tuple[int, ...]
    zero_head: bool
    clip: float | None
    step_scale: float
    inputs: tuple[InputName, ...] = ()
    normalise: str = "none"

    @property
    def networks(self) -> tuple[NetworkShape, ...]:
        """The shapes of the networks: those of the structure, with the further inputs."""
        rows = num_rows(self.inputs)
        return tuple(
            NetworkShape(network.inputs + rows, network.outputs)
            for network in self.structure.networks(self.processing)
        )

    @property
    def state_floats(self) -> int:
        """Floats of optimizer state for each parameter."""
        carries = CARRIES[self.cell] * self.hidden_size * len(self.networks)
        return carries + self.structure.num_moments


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """The rule that a card describes.

    Raises:
        ValueError: a field is missing or unknown here; the message names it.
    """
    fields = {field.name: field for field in dataclasses.fields(Spec)}
    needed = {name for name, x in fields.items() if x.default is dataclasses.MISSING}
    wrong = sorted(set(values) - set(fields) | needed - set(values))
    if wrong:
        raise ValueError(f"optimizer spec: fields {wrong} are missing or unknown")
    for name, known in (("cell", CELL_KINDS), ("normalise", NORMALISATIONS)):
        if name in values and values[name] not in known:
            raise ValueError(f"{name} = {values[name]!r}: known are {', '.join(known)}")
    check_values(Spec, {name: values[name] for name in ("clip", "step_scale")}, **RANGES)
    inputs = tuple(values.get("inputs", ()))
    if not set(inputs) <= set(INPUT_NAMES):
        raise ValueError(f"inputs = {inputs!r}: known are {', '.join(INPUT_NAMES)}")
    return Spec(
        **{
            **values,
            "processing": _build("processing", PROCESSINGS, values["processing"]),
            "structure": _build("structure", STRUCTURES, values["structure"]),
            "head_sizes": tuple(values["head_sizes"]),
            "inputs": inputs,
        }
    )


def _build(field: str, registry: Mapping[str, type[Any]], values: Mapping[str, Any]) -> Any:
    settings = dict(values)
    name = settings.pop("name", None)
    if name not in registry:
        raise ValueError(f"{field} = {name!r}: in PyTorch there are {', '.join(registry)}")
    try:
        check_choice(field, registry[name], settings)
        return registry[name](**settings)
    except TypeError as error:
        raise ValueError(f"{field} = {values!r}: {error}") from error


class Given(NamedTuple):
    """What one step of a rule is given: the coordinates of several tensors, one after the other.

    Attributes:
        gradient: the gradient.
        memory: what the rule remembers: carries of each network, then moments.
        ages: updates made before this one, of each tensor.
        params: the parameters, where the structure reads them.
        layout: the tensors that the coordinates belong to.
    """

    gradient: Float[Tensor, " n"]
    memory: Float[Tensor, "state n"]
    ages: Float[Tensor, " tensors"]
    params: Float[Tensor, " n"] | None
    layout: Layout

    def spread(self, values: Float[Tensor, "*rows tensors"]) -> Float[Tensor, "*rows n"]:
        """A value of each tensor as one of each coordinate."""
        sizes = torch.tensor([math.prod(tensor.shape) for tensor in self.layout])
        sizes = sizes.to(values.device)
        return values.repeat_interleave(sizes, dim=-1, output_size=self.gradient.numel())


def _centred(tensor: NamedTensor, direction: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
    """A kernel's direction without what an output's inputs have in common, where that is wanted."""
    if not is_centred(tensor):
        return direction
    kernel = direction.reshape(tensor.shape)
    return (kernel - kernel.mean(tensor.inputs, keepdim=True)).reshape(-1)


def _orthogonal(tensor: NamedTensor, direction: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
    """A direction, orthogonal where it is a kernel's."""
    return orthogonalise(tensor, direction.reshape(tensor.shape)).reshape(-1)


_NORMALISE: dict[str, Callable[[NamedTensor, Tensor], Tensor]] = {
    "layers": lambda tensor, direction: layer_scale(tensor) * _centred(tensor, direction),
    "rms": lambda _, direction: unit_rms(direction[None], EPSILON)[0],
    "orthogonal": _orthogonal,
}


@dataclass(frozen=True)
class Rule:
    """A learned rule with its weights.

    Attributes:
        spec: the rule.
        weights: of each network.
        learning_rate: the inner learning rate that the weights were trained with.
    """

    spec: Spec
    weights: tuple[Weights, ...]
    learning_rate: float

    def to(self, device: torch.device) -> "Rule":
        """The rule with its weights on a device."""
        weights = tuple({k: x.to(device) for k, x in network.items()} for network in self.weights)
        return dataclasses.replace(self, weights=weights)

    def step(
        self, given: Given, noise: Float[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "state n"]]:
        """The direction `d` (parameters move by `-alpha d`) and the memory after it.

        Where the structure reads noise and there is none, it is drawn from torch's generator.
        """
        spec = self.spec
        carries, moments = self._split(given.memory)
        reading = self._read(given, moments, noise)
        outputs: list[Tensor] = []
        memory: list[Tensor] = []
        for weights, x, carry in zip(
            self.weights, self._features(reading, given), carries, strict=True
        ):
            output, carry = apply_network(weights, spec.cell, x, carry)
            outputs.append(output)
            memory += carry
        direction = spec.structure.direction(spec.processing, reading, tuple(outputs))
        if spec.normalise != "none":
            normalise = _NORMALISE[spec.normalise]
            direction = torch.cat(
                [
                    normalise(tensor, direction[where])
                    for tensor, where in pieces(given.layout, direction.numel())
                ]
            )
        return spec.step_scale * direction, torch.cat([*memory, reading.moments])

    def _split(self, memory: Float[Tensor, "state n"]) -> tuple[list[Carry], Tensor]:
        """The memory as carries of each network and moments."""
        width = CARRIES[self.spec.cell]
        sizes = [self.spec.hidden_size] * width * len(self.weights)
        *carries, moments = torch.split(memory, [*sizes, self.spec.structure.num_moments])
        return [
            tuple(carries[width * i : width * (i + 1)]) for i in range(len(self.weights))
        ], moments

    def _read(
        self, given: Given, moments: Float[Tensor, "moments n"], noise: Float[Tensor, " n"] | None
    ) -> Reading:
        """What the rule knows of its coordinates."""
        structure, clip = self.spec.structure, self.spec.clip
        gradient = given.gradient if clip is None else given.gradient.clamp(-clip, clip)
        if noise is None and "noise" in structure.reads:
            actor = given.ages.new_tensor([tensor.actor for tensor in given.layout])
            noise = torch.randn_like(gradient) * given.spread(actor)
        return Reading(
            gradient,
            structure.accumulate(gradient, moments),
            given.spread(given.ages),
            given.params,
            noise,
        )

    def _features(self, reading: Reading, given: Given) -> Features:
        """What each network reads."""
        spec = self.spec
        if not spec.structure.tensorwise:
            features = spec.structure.features(spec.processing, reading)
        else:
            found = [
                spec.structure.features(spec.processing, _of_tensor(reading, where, tensor))
                for tensor, where in pieces(given.layout, given.gradient.numel())
            ]
            features = tuple(
                torch.cat([x.reshape(len(x), -1) for x in network], dim=1)
                for network in zip(*found, strict=True)
            )
        if not spec.inputs:
            return features
        rows = [tensor_inputs(spec.inputs, tensor) for tensor in given.layout]
        spread = given.spread(given.ages.new_tensor(rows).T)
        return tuple(torch.cat([x, spread]) for x in features)


def _of_tensor(reading: Reading, where: slice, tensor: NamedTensor) -> Reading:
    """What is known of one tensor, in its shape."""

    def shaped(x: Any) -> Any:
        return None if x is None else x[..., where].reshape((*x.shape[:-1], *tensor.shape))

    return Reading(*map(shaped, reading))


def load_rule(weights: str | Path) -> Rule:
    """Read a rule by shipped name or by path.

    Raises:
        WeightsError: the file cannot be used, or holds a rule that is not there in PyTorch.
    """
    file = read_weights(weights)
    try:
        spec = spec_from_dict(file.spec)
        shapes = {
            f"network{index}.{name}": size
            for index, network in enumerate(spec.networks)
            for name, size in weight_shapes(
                spec.cell, network.inputs, spec.hidden_size, spec.head_sizes, network.outputs
            ).items()
        }
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{file.path}: {error}") from error
    require_tensors(file, shapes)
    networks = tuple(_network(file, f"network{i}.") for i in range(len(spec.networks)))
    return Rule(spec, networks, file.learning_rate)


def _network(file: WeightFile, prefix: str) -> Weights:
    return {
        name.removeprefix(prefix): torch.tensor(x)
        for name, x in file.tensors.items()
        if name.startswith(prefix)
    }
