"""Packs a rule for the C++ kernel (`driver.h`): flat numbers, without JAX."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optim4rl.cpp.library import Library
from optim4rl.optimizers.processing import RawAndSquare, SignLog
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.optimizers.structures import Adaptive, Anchored, Mirrored
from optim4rl.optimizers.tensors import num_rows

STEP, REPLAY = "optim4rl_step", "optim4rl_replay"
LIBRARY = Library(Path(__file__).with_name("rule.so"), (STEP, REPLAY))
_MAX_LAYERS = 8
# In the order of the enumerations in rule.h.
_PROCESSINGS = (SignLog, RawAndSquare)
_STRUCTURES = (Adaptive, Anchored, Mirrored)


def unknown_part(spec: OptimizerSpec) -> str | None:
    """Return the part of the rule that the kernel cannot run, in one line; None if none."""
    if spec.cell not in ("gru", "none"):
        return f"cell = {spec.cell!r}: it runs only gru, none"
    if type(spec.structure) not in _STRUCTURES:
        return f"structure = {spec.structure.name!r}: it runs only {_names(_STRUCTURES)}"
    if type(spec.processing) not in _PROCESSINGS:
        return f"processing = {spec.processing.name!r}: it runs only {_names(_PROCESSINGS)}"
    for field in ("head_norm", "clip_norm", "zero_mean"):
        if getattr(spec, field):
            return f"{field} = {getattr(spec, field)!r}: it runs only rules without {field}"
    if len(spec.head_sizes) >= _MAX_LAYERS:
        return f"head_sizes = {spec.head_sizes!r}: it runs at most {_MAX_LAYERS - 1} hidden layers"
    return None


def weight_names(spec: OptimizerSpec) -> Iterator[tuple[str, str]]:
    """Yield network and name of each array of the weights, in the order of packing."""
    for network in range(len(spec.networks)):
        if spec.cell != "none":
            for name in ("input", "bias", "hidden", "bias_new"):
                yield f"network{network}", name
        for layer in range(len(spec.head_sizes) + 1):
            yield f"network{network}", f"head{layer}"
            yield f"network{network}", f"head{layer}_bias"


def sizes(spec: OptimizerSpec) -> list[int]:
    """Return the rule's whole numbers, in the order of `unpack_rule` in driver.h."""
    return [
        _PROCESSINGS.index(type(spec.processing)),
        _STRUCTURES.index(type(spec.structure)),
        int(getattr(spec.structure, "signed", False)),
        spec.structure.num_moments,
        num_rows(spec.inputs),
        0 if spec.cell == "none" else spec.hidden_size,
        len(spec.networks),
        len(spec.head_sizes) + 1,
        *(size for network in spec.networks for size in network),
        *spec.head_sizes,
    ]


def settings(spec: OptimizerSpec) -> list[float]:
    """Return the rule's settings in the same order; missing settings are zero."""
    log = ("epsilon", "shift", "scale")
    own = ("epsilon", "beta1", "beta2", "beta_slow", "fresh_weight", "slow_weight")
    return [
        float("inf") if spec.clip is None else spec.clip,
        spec.step_scale,
        *(getattr(spec.processing, name, 0.0) for name in log),
        *(getattr(spec.structure, name, 0.0) for name in own),
    ]


def _names(classes: tuple[Any, ...]) -> str:
    return ", ".join(cls.name for cls in classes)
