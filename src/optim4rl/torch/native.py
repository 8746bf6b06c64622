"""Calls the C++ kernel on the memory of tensors through ctypes, without XLA and JAX."""

import ctypes
import dataclasses
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from optim4rl.optimizers.cells import Weights
from optim4rl.optimizers.kernels import packing
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.optimizers.tensors import InputName, Layout, tensor_inputs

_WHOLE = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class NativeRule:
    """Hold a rule with its weights in the form that the kernel reads (`driver.h`).

    Attributes:
        sizes: the rule's whole numbers (`packing.sizes`).
        settings: the rule's settings (`packing.settings`).
        weights: the packed weights.
        inputs: further inputs of the networks.
    """

    sizes: "array[int]"
    settings: "array[float]"
    weights: "array[float]"
    inputs: tuple[InputName, ...]

    def directions(
        self,
        gradients: Sequence[Tensor],
        memories: Sequence[Float[Tensor, "state _"]],
        steps: Sequence[Float[Tensor, ""]],
        layout: Layout,
    ) -> Float[Tensor, " n"]:
        """Return the directions of several tensors, one after the other; update memories and steps.

        Directions come from the structure, neither normalised nor scaled. `runs_on` checks the
        tensors.
        """
        gradients = [g.resolve_neg().float().contiguous() for g in gradients]
        sizes = [g.numel() for g in gradients]
        direction = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        rows = zip(sizes, gradients, memories, steps, strict=True)
        table = array("q", [x for n, *row in rows for x in (n, *(t.data_ptr() for t in row))])
        arrays = (self.sizes, self.settings, self.weights)
        packing.LIBRARY.functions.optim4rl_direct_step(
            *(_address(x) for x in arrays),
            ctypes.c_int64(len(gradients)),
            _address(table),
            _address(_inputs(self.inputs, layout)),
            ctypes.c_void_p(direction.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return direction


def native_rule(spec: OptimizerSpec, weights: Sequence[Weights]) -> NativeRule | None:
    """Return the rule for the kernel; None if the kernel cannot run it."""
    if packing.unknown_part(spec) is not None:
        return None
    packed = array("f")
    for network, name in packing.weight_names(spec):
        packed.extend(weights[int(network.removeprefix("network"))][name].flatten().tolist())
    sizes = packing.sizes(spec)
    settings = packing.settings(dataclasses.replace(spec, step_scale=1.0))
    return NativeRule(array("q", sizes), array("f", settings), packed, spec.inputs)


def runs_on(gradients: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
    """Return whether the kernel exists, and these are plain tensors in this machine's memory.

    Inside `torch.compile` they are not, and a loaded state may have another layout.
    """
    if torch.compiler.is_compiling() or packing.LIBRARY.functions is None:
        return False
    return all(type(x) in _WHOLE and x.device.type == "cpu" for x in (*gradients, *state)) and all(
        x.dtype == torch.float32 and x.is_contiguous() for x in state
    )


def _address(x: "array[int] | array[float]") -> ctypes.c_void_p:
    return ctypes.c_void_p(x.buffer_info()[0])


@lru_cache(maxsize=256)
def _inputs(names: tuple[InputName, ...], layout: Layout) -> "array[float]":
    return array("f", [x for tensor in layout for x in tensor_inputs(names, tensor)])
