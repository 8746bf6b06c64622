"""Learned optimizers as values and as files.

A weights file is a safetensors file: the meta-parameters as float32 tensors and, in its metadata,
the card: a readable JSON text with the spec, where the weights come from and what they achieved.
Nothing in a file is ever executed.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from optim4rl.optimizers.files import write_atomically
from optim4rl.optimizers.presets import ScalarOrSchedule, learned_spec
from optim4rl.optimizers.rule import (
    MetaParameters,
    OptimizerSpec,
    init_meta_parameters,
    spec_from_dict,
    spec_to_dict,
)
from optim4rl.optimizers.transform import learned_optimizer

FORMAT = "optim4rl-weights"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"


class WeightsError(ValueError):
    """A weights file that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class LearnedOptimizer:
    """A rule with its weights: the value that meta-training returns and everything else takes.

    Attributes:
        spec: the rule.
        meta_parameters: its weights.
        learning_rate: the inner learning rate that the weights were trained with.
        card: where they come from: task, seeds, settings, results, package versions (JSON values).
    """

    spec: OptimizerSpec
    meta_parameters: MetaParameters
    learning_rate: float
    card: Mapping[str, Any] = field(default_factory=dict)

    def transformation(
        self,
        learning_rate: ScalarOrSchedule | None = None,
        *,
        step_scale: float = 1.0,
        block: int | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer for optax. `step_scale` multiplies every update; tune it like a rate."""
        spec = dataclasses.replace(self.spec, step_scale=self.spec.step_scale * step_scale)
        rate = self.learning_rate if learning_rate is None else learning_rate
        return learned_optimizer(spec, self.meta_parameters, rate, block=block)


def untrained(preset: str, learning_rate: float, key: PRNGKeyArray) -> LearnedOptimizer:
    """A preset with fresh weights: the control that every trained optimizer is compared with."""
    spec = learned_spec(preset)
    return LearnedOptimizer(spec, init_meta_parameters(spec, key), learning_rate)


def save_weights(path: str | Path, optimizer: LearnedOptimizer) -> None:
    """Write a weights file, atomically."""
    from safetensors.numpy import save

    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "learning_rate": optimizer.learning_rate,
        "spec": spec_to_dict(optimizer.spec),
        **optimizer.card,
    }
    tensors = {name: np.asarray(x) for name, x in _flatten(optimizer.meta_parameters).items()}
    metadata = {"card": json.dumps(card, indent=1, sort_keys=True)}
    write_atomically(Path(path), save(tensors, metadata=metadata))


def load_weights(weights: str | Path) -> LearnedOptimizer:
    """Read a learned optimizer by shipped name or by path.

    Raises:
        WeightsError: the file is missing, truncated, corrupt, of another format or version, or its
            tensors do not fit its spec. A pickle is refused unread.
    """
    path, data = _read(weights)
    card, tensors = _parse(path, data)
    reserved = {"format", "format_version", "learning_rate", "spec"}
    try:
        spec = spec_from_dict(_mapping(card.get("spec"), "spec"))
        learning_rate = card.get("learning_rate")
        if isinstance(learning_rate, bool) or not isinstance(learning_rate, (int, float)):
            raise ValueError(f"learning_rate = {learning_rate!r}: a number is needed")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    meta_parameters = _unflatten(path, spec, tensors)
    rest = {key: value for key, value in card.items() if key not in reserved}
    return LearnedOptimizer(spec, meta_parameters, float(learning_rate), rest)


def load(
    weights: str | Path,
    learning_rate: ScalarOrSchedule | None = None,
    *,
    step_scale: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """A pretrained learned optimizer as a drop-in optax optimizer.

    Args:
        weights: a shipped name (`optim4rl list weights`) or the path of a weights file.
        learning_rate: a float or an optax schedule; None for the rate it was trained with.
        step_scale: multiplies every update. Small networks often stand 2, large ones like 0.3.

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
    """
    return load_weights(weights).transformation(learning_rate, step_scale=step_scale)


def shipped_names() -> tuple[str, ...]:
    """The names of the weights inside the package."""
    zoo = resources.files("optim4rl.optimizers") / "zoo"
    if not zoo.is_dir():
        return ()
    return tuple(
        sorted(f.name.removesuffix(SUFFIX) for f in zoo.iterdir() if f.name.endswith(SUFFIX))
    )


def _read(weights: str | Path) -> tuple[str, bytes]:
    if str(weights) in shipped_names():
        file = resources.files("optim4rl.optimizers") / "zoo" / f"{weights}{SUFFIX}"
        return str(weights), file.read_bytes()
    try:
        return str(weights), Path(weights).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"weights = {str(weights)!r}: no readable file there ({error.strerror}); shipped "
            f"weights are {', '.join(shipped_names()) or 'none'}"
        ) from error


def _parse(path: str, data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse_tensors

    if data[:1] == b"\x80" or data[:2] == b"PK":
        raise WeightsError(f"{path}: looks like a pickle or a zip; a {SUFFIX} file is needed")
    try:
        tensors = parse_tensors(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, ValueError, struct.error, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a readable {SUFFIX} file: {error}") from error
    try:
        card = _mapping(json.loads(header["__metadata__"]["card"]), "card")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: carries no optim4rl card") from error
    if card.get("format") != FORMAT or card.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format {card.get('format')!r} version {card.get('format_version')!r}; this "
            f"release reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    return dict(card), tensors


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: an object is needed, not {type(value).__name__}")
    return value


def _flatten(meta_parameters: MetaParameters) -> dict[str, Any]:
    return {
        f"{network}.{name}": x
        for network, weights in meta_parameters.items()
        for name, x in weights.items()
    }


def _unflatten(path: str, spec: OptimizerSpec, tensors: Mapping[str, np.ndarray]) -> MetaParameters:
    expected = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    wanted = _flatten(expected)
    if set(wanted) != set(tensors):
        wrong = sorted(set(wanted) ^ set(tensors))
        raise WeightsError(f"{path}: tensors {wrong} are missing or not part of the spec")
    for name, leaf in wanted.items():
        found = tensors[name]
        if found.shape != leaf.shape or found.dtype != np.float32:
            raise WeightsError(
                f"{path}: tensor {name} is {found.dtype}{list(found.shape)}; the spec needs "
                f"float32{list(leaf.shape)}"
            )
        if not np.isfinite(found).all():
            raise WeightsError(f"{path}: tensor {name} holds numbers that are not finite")
    return {
        network: {name: jnp.asarray(tensors[f"{network}.{name}"]) for name in weights}
        for network, weights in expected.items()
    }
