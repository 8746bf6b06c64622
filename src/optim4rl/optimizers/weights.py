"""Learned optimizers as values and as files.

A weights file is a safetensors file: the meta-parameters as float32 tensors and, in its metadata,
the card: a readable JSON text with the spec, where the weights come from and what they achieved. A
checksum covers both. Nothing in a file is ever executed.
"""

import dataclasses
import hashlib
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
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.layout import Kinds
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
        kernel: KernelName | None = "auto",
        kinds: Kinds = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer for optax. `step_scale` multiplies every update; tune it like a rate.

        `kernel` and `kinds` are those of `scale_by_learned_rule`.
        """
        spec = dataclasses.replace(self.spec, step_scale=self.spec.step_scale * step_scale)
        rate = self.learning_rate if learning_rate is None else learning_rate
        return learned_optimizer(spec, self.meta_parameters, rate, kernel=kernel, kinds=kinds)


def untrained(preset: str, learning_rate: float, key: PRNGKeyArray) -> LearnedOptimizer:
    """A preset with fresh weights: the control that every trained optimizer is compared with."""
    spec = learned_spec(preset)
    return LearnedOptimizer(spec, init_meta_parameters(spec, key), learning_rate)


def save_weights(path: str | Path, optimizer: LearnedOptimizer) -> None:
    """Write a weights file, atomically."""
    from safetensors.numpy import save

    card = {
        **optimizer.card,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "learning_rate": float(optimizer.learning_rate),
        "spec": spec_to_dict(optimizer.spec),
    }
    card = json.loads(json.dumps(card))  # as a reader will see it: lists for tuples, text for keys
    # In C order: safetensors writes an array's memory as it lies.
    tensors = {
        name: np.asarray(x, order="C") for name, x in _flatten(optimizer.meta_parameters).items()
    }
    card["sha256"] = _digest(card, tensors)
    metadata = {"card": json.dumps(card, indent=1, sort_keys=True)}
    write_atomically(Path(path), save(tensors, metadata=metadata))


def load_weights(weights: str | Path) -> LearnedOptimizer:
    """Read a learned optimizer by shipped name or by path.

    Raises:
        WeightsError: the file is missing, truncated, corrupt, of another format or version, or its
            tensors do not fit its spec or its checksum. A pickle is never opened as one.
    """
    path, data = _read(weights)
    card, tensors = _parse(path, data)
    reserved = {"format", "format_version", "learning_rate", "sha256", "spec"}
    try:
        spec = spec_from_dict(_mapping(card.get("spec"), "spec"))
        learning_rate = card.get("learning_rate")
        if not (isinstance(learning_rate, float) and 0 < learning_rate < float("inf")):
            raise ValueError(f"learning_rate = {learning_rate!r}: a positive float is needed")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    meta_parameters = _unflatten(path, spec, tensors)
    rest = {key: value for key, value in card.items() if key not in reserved}
    return LearnedOptimizer(spec, meta_parameters, learning_rate, rest)


def load(
    weights: str | Path,
    learning_rate: ScalarOrSchedule | None = None,
    *,
    step_scale: float = 1.0,
    kinds: Kinds = None,
) -> optax.GradientTransformationExtraArgs:
    """A pretrained learned optimizer as a drop-in optax optimizer.

    Args:
        weights: a shipped name (`optim4rl list weights`) or the path of a weights file.
        learning_rate: a float or an optax schedule; None for the rate it was trained with.
        step_scale: multiplies every update; tune it like a learning rate.
        kinds: what each parameter is for, for weights that read it: a tree of "weight", "bias",
            "policy_head" and "value_head", or a function of a leaf's path and the leaf. None:
            inferred from names and shapes (`layout.infer_layout`).

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
    """
    optimizer = load_weights(weights)
    return optimizer.transformation(learning_rate, step_scale=step_scale, kinds=kinds)


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

    try:
        tensors = parse_tensors(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, ValueError, struct.error, KeyError, TypeError) as error:
        # Only now: the header length that a good file starts with may look like either.
        foreign = data.startswith((b"\x80", b"PK"))
        hint = " (it looks like a pickle or a zip)" if foreign else ""
        raise WeightsError(f"{path}: not a readable {SUFFIX} file{hint}: {error}") from error
    try:
        card = _mapping(json.loads(header["__metadata__"]["card"]), "card")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: carries no optim4rl card") from error
    if card.get("format") != FORMAT or card.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format {card.get('format')!r} version {card.get('format_version')!r}; this "
            f"release reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    if card.get("sha256") != _digest(card, tensors):
        raise WeightsError(f"{path}: corrupt: card and tensors do not match the file's checksum")
    return dict(card), tensors


def _digest(card: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of card and tensors: a flipped bit makes another valid float, only this tells."""
    said = {key: value for key, value in card.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: an object is needed, not {type(value).__name__}")
    return value


def _flatten(meta_parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{network}.{name}": x
        for network, weights in meta_parameters.items()
        for name, x in weights.items()
    }


def _unflatten(path: str, spec: OptimizerSpec, tensors: Mapping[str, np.ndarray]) -> MetaParameters:
    try:
        expected = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    except (OverflowError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: no network has the sizes of this spec: {error}") from error
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
