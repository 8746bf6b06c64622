"""The learned rule in torch: `optim4rl.optimizers.rule` on flattened coordinates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from optim4rl.optimizers.arrays import unit_rms
from optim4rl.optimizers.cells import CARRIES, Carry, Weights, cell_kernel, forward
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.optimizers.structures import Extras, Features, Reading
from optim4rl.optimizers.tensors import (
    EPSILON,
    Layout,
    Normalisation,
    Tensor as NamedTensor,
    clip_flat,
    is_centred,
    layer_scale,
    orthogonal,
    pieces,
    tensor_inputs,
)
from optim4rl.optimizers.weight_files import WeightFile, read_rule
from optim4rl.torch.native import NativeRule, native_rule


class Given(NamedTuple):
    """Hold the inputs of one step of a rule: several tensors' coordinates, one after the other.

    Attributes:
        gradient: the gradient.
        memory: the rule's memory: carries of each network, then moments.
        ages: number of earlier updates of each tensor.
        params: the parameters, if the structure reads them.
        layout: the tensors that the coordinates belong to.
        dormancy: how active each coordinate's unit is; None if unknown.
        proportions: the proportions of training and of epochs; each is None if unknown.
    """

    gradient: Float[Tensor, " n"]
    memory: Float[Tensor, "state n"]
    ages: Float[Tensor, " tensors"]
    params: Float[Tensor, " n"] | None
    layout: Layout
    dormancy: Float[Tensor, " n"] | None = None
    proportions: Sequence[Float[Tensor, ""] | None] = (None, None)

    def spread(self, values: Float[Tensor, "*rows tensors"]) -> Float[Tensor, "*rows n"]:
        """Repeat each tensor's value for each of its coordinates."""
        sizes = torch.tensor(
            [math.prod(tensor.shape) for tensor in self.layout], device=values.device
        )
        return values.repeat_interleave(sizes, dim=-1, output_size=self.gradient.numel())


def _normalise_layers(layout: Layout, direction: Float[Tensor, " n"]) -> None:
    for tensor, where in pieces(layout, direction.numel()):
        if is_centred(tensor):
            kernel = direction[where].view(tensor.shape)
            kernel -= kernel.mean(tensor.inputs, keepdim=True)
        if layer_scale(tensor) != 1.0:
            direction[where] *= layer_scale(tensor)


def _normalise_sizes(layout: Layout, direction: Float[Tensor, " n"]) -> None:
    for _, where in pieces(layout, direction.numel()):
        direction[where] = unit_rms(direction[None, where], EPSILON)[0]


def _make_orthogonal(layout: Layout, direction: Float[Tensor, " n"]) -> None:
    """Make kernels orthogonal; small ones in groups, padded with zeros, to save calls."""
    together: dict[object, list[Tensor]] = {}
    for tensor, where in pieces(layout, direction.numel()):
        shape = tensor.matrix
        if shape is None or 1 in shape:  # A single row or column is orthogonal already.
            continue
        rows, columns = sorted(shape)
        kernel = direction[where].view(shape)
        kernel = kernel if shape[1] == columns else kernel.mT
        key = where.start if rows * columns > _LARGE else (max(rows, _FEW_ROWS), columns)
        together.setdefault(key, []).append(kernel)
    for kernels in together.values():
        if len(kernels) == 1:
            kernels[0].copy_(orthogonal(kernels[0]))
            continue
        longest = max(map(len, kernels))
        filled = direction.new_zeros(len(kernels), longest, kernels[0].shape[1])
        torch._foreach_copy_([x[: len(k)] for x, k in zip(filled, kernels, strict=True)], kernels)
        found = orthogonal(filled)
        torch._foreach_copy_(kernels, [x[: len(k)] for x, k in zip(found, kernels, strict=True)])


# Each changes directions in place.
_NORMALISE: dict[Normalisation, Callable[[Layout, Tensor], None]] = {
    "layers": _normalise_layers,
    "rms": _normalise_sizes,
    "orthogonal": _make_orthogonal,
}
# A kernel with more numbers than `_LARGE` runs alone. A kernel with fewer rows than `_FEW_ROWS` is
# grouped as if it had `_FEW_ROWS`.
_LARGE, _FEW_ROWS = 2**16, 16


@dataclass(frozen=True)
class Rule:
    """Hold a learned rule with its weights.

    Attributes:
        spec: the rule.
        weights: weights of each network.
        kernels: the single matrix of each network's cell; None without a cell.
        native: the rule for the C++ kernel; None if the kernel cannot run it.
        learning_rate: the inner learning rate that the weights were trained with.
    """

    spec: OptimizerSpec
    weights: tuple[Weights, ...]
    kernels: tuple[Tensor | None, ...]
    native: NativeRule | None
    learning_rate: float

    def to(self, device: torch.device) -> "Rule":
        """Return the rule with its weights on a device."""
        weights = tuple({k: x.to(device) for k, x in network.items()} for network in self.weights)
        kernels = tuple(None if x is None else x.to(device) for x in self.kernels)
        return dataclasses.replace(self, weights=weights, kernels=kernels)

    def step(
        self, given: Given, noise: Float[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "state n"]]:
        """Return the direction `d` (parameters move by `-alpha d`) and the new memory.

        If the structure reads noise and none is given, it is drawn from torch's generator.
        """
        spec = self.spec
        carries, moments = self._split(given.memory)
        reading = self._read(given, moments, noise)
        outputs: list[Tensor] = []
        memory: list[Tensor] = []
        for weights, kernel, x, carry in zip(
            self.weights, self.kernels, self._features(reading, given), carries, strict=True
        ):
            output, carry, *_ = forward(weights, spec.cell, x, carry, kernel)
            outputs.append(output)
            memory += carry
        direction = self._direction(reading, outputs, given.layout)
        self.finish(direction, given.layout)
        return direction, torch.cat([*memory, reading.moments])

    def finish(self, direction: Float[Tensor, " n"], layout: Layout) -> None:
        """Normalise and scale the structure's directions, in place."""
        if self.spec.normalise != "none":
            _NORMALISE[self.spec.normalise](layout, direction)
        direction *= self.spec.step_scale
        if self.spec.zero_mean:
            direction -= direction.mean()

    def _split(self, memory: Float[Tensor, "state n"]) -> tuple[list[Carry], Tensor]:
        """Return the memory as carries of each network and moments."""
        width = CARRIES[self.spec.cell]
        sizes = [self.spec.hidden_size] * width * len(self.weights)
        *carries, moments = torch.split(memory, [*sizes, self.spec.structure.num_moments])
        return [
            tuple(carries[width * i : width * (i + 1)]) for i in range(len(self.weights))
        ], moments

    def _read(
        self, given: Given, moments: Float[Tensor, "moments n"], noise: Float[Tensor, " n"] | None
    ) -> Reading:
        """Return the rule's inputs for its coordinates."""
        structure, clip, gradient = self.spec.structure, self.spec.clip, given.gradient
        if self.spec.clip_norm is not None:
            gradient = clip_flat(self.spec.clip_norm, given.layout, gradient)
        if clip is not None:
            gradient = gradient.clamp(-clip, clip)
        if noise is None and "noise" in structure.reads:
            actor = given.ages.new_tensor([tensor.actor for tensor in given.layout])
            noise = torch.randn_like(gradient) * given.spread(actor)
        return Reading(
            gradient,
            structure.accumulate(gradient, moments),
            given.spread(given.ages),
            Extras(given.params, noise, given.dormancy, *given.proportions),
        )

    @property
    def _keeps_carries(self) -> bool:
        """Return whether the networks remember something of each coordinate."""
        return self.spec.cell != "none"

    def _direction(
        self, reading: Reading, outputs: list[Tensor], layout: Layout
    ) -> Float[Tensor, " n"]:
        """Return the structure's direction; with outputs for each tensor, tensor by tensor."""
        structure, processing = self.spec.structure, self.spec.processing
        if not self.spec.per_tensor:
            return structure.direction(processing, reading, tuple(outputs))
        parts = []
        for index, (tensor, where) in enumerate(pieces(layout, reading.gradient.numel())):
            its = where if self._keeps_carries else slice(index, index + 1)
            shape = tensor.shape if self._keeps_carries else (1,) * len(tensor.shape)
            own = tuple(x[:, its].reshape(-1, *shape) for x in outputs)
            found = structure.direction(processing, _of_tensor(reading, where, tensor), own)
            parts.append(found.reshape(-1))
        return torch.cat(parts)

    def _features(self, reading: Reading, given: Given) -> Features:
        """Return each network's inputs."""
        spec = self.spec
        if not spec.structure.tensorwise:
            features = spec.structure.features(spec.processing, reading)
        else:
            found = [
                tuple(
                    x.expand(-1, *tensor.shape) if self._keeps_carries else x
                    for x in spec.structure.features(
                        spec.processing, _of_tensor(reading, where, tensor)
                    )
                )
                for tensor, where in pieces(given.layout, given.gradient.numel())
            ]
            features = tuple(
                torch.cat([x.reshape(len(x), math.prod(x.shape[1:])) for x in network], dim=1)
                for network in zip(*found, strict=True)
            )
        if not spec.inputs:
            return features
        per_tensor = spec.per_tensor and not self._keeps_carries
        layout = given.layout
        if per_tensor:
            layout = tuple(tensor for tensor, _ in pieces(layout, given.gradient.numel()))
        rows = given.ages.new_tensor([tensor_inputs(spec.inputs, x) for x in layout]).T
        rows = rows if per_tensor else given.spread(rows)
        return tuple(torch.cat([x, rows]) for x in features)


def _of_tensor(reading: Reading, where: slice, tensor: NamedTensor) -> Reading:
    """Return the inputs of one tensor, in its shape, and its age."""

    def shaped(x: Tensor) -> Tensor:
        return x[..., where].reshape((*x.shape[:-1], *tensor.shape)) if x.ndim else x

    return Reading(
        shaped(reading.gradient),
        shaped(reading.moments),
        reading.age[where.start],
        Extras(*(None if x is None else shaped(x) for x in reading.extras)),
    )


def load_rule(weights: str | Path) -> Rule:
    """Read a rule by shipped name or by path.

    Raises:
        WeightsError: the file cannot be used, or its rule does not exist in PyTorch.
    """
    spec, file = read_rule(weights)
    networks = tuple(_network(file, f"network{i}.") for i in range(len(spec.networks)))
    kernels = tuple(None if spec.cell == "none" else cell_kernel(x, spec.cell) for x in networks)
    return Rule(spec, networks, kernels, native_rule(spec, networks), file.learning_rate)


def _network(file: WeightFile, prefix: str) -> Weights:
    return {
        name.removeprefix(prefix): torch.tensor(x, device="cpu")
        for name, x in file.tensors.items()
        if name.startswith(prefix)
    }
