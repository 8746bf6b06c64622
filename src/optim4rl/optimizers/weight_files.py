"""The format of weights files, for every framework; nothing here needs JAX.

A weights file is a safetensors file: the meta-parameters as float32 tensors and, in its metadata,
the card: a readable JSON text with the spec, the origin of the weights and their results. A
checksum covers both. Nothing in a file is ever executed.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optim4rl.fields import float32
from optim4rl.files.reading import read_file, why
from optim4rl.optimizers.spec import OptimizerSpec, spec_from_dict

FORMAT = "optim4rl-weights"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
# Bytes; a rule has thousands of weights.
LARGEST_WEIGHTS = 100_000_000
# The weights that we recommend for RL, which `load()` takes without a name.
DEFAULT_WEIGHTS = "ppo-generalist"


class WeightsError(ValueError):
    """A weights file cannot be used; the message names the file and the fault."""


class WeightFile(NamedTuple):
    """Contents of a weights file.

    Attributes:
        path: its path or shipped name, for messages.
        spec: the rule, as plain JSON values that are not checked yet.
        learning_rate: the inner learning rate that the weights were trained with.
        card: the rest of the card.
        tensors: the meta-parameters, by "network0.input" and so on.
    """

    path: str
    spec: Mapping[str, Any]
    learning_rate: float
    card: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_weights(weights: str | Path) -> WeightFile:
    """Read and check a weights file by shipped name or by path.

    Raises:
        WeightsError: the file is missing, truncated, corrupt, or of another format or version. A
            pickle is never opened as one.
    """
    path, data = _read(weights)
    card, tensors = _parse(path, data)
    reserved = {"format", "format_version", "learning_rate", "sha256", "spec"}
    try:
        spec = _mapping(card.get("spec"), "spec")
        learning_rate = card.get("learning_rate")
        if not (isinstance(learning_rate, float) and 0 < float32(learning_rate) < float("inf")):
            raise ValueError(f"learning_rate = {learning_rate!r}: a positive float32 is needed")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    rest = {key: value for key, value in card.items() if key not in reserved}
    return WeightFile(path, spec, learning_rate, rest, tensors)


def read_rule(weights: str | Path) -> tuple[OptimizerSpec, WeightFile]:
    """Read a weights file by shipped name or by path, and check its rule and its tensors.

    Raises:
        WeightsError: as in `read_weights`, or the rule is unknown, or the file does not hold its
            weights, finite float32 tensors, and no others.
    """
    file = read_weights(weights)
    try:
        spec = spec_from_dict(file.spec)
        shapes = spec.weight_shapes
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{file.path}: {error}") from error
    if set(shapes) != set(file.tensors):
        wrong = sorted(set(shapes) ^ set(file.tensors))
        raise WeightsError(f"{file.path}: tensors {wrong} are missing or not part of the spec")
    for name, shape in shapes.items():
        found = file.tensors[name]
        if found.shape != shape or found.dtype != np.float32:
            raise WeightsError(
                f"{file.path}: tensor {name} is {found.dtype}{list(found.shape)}; the spec needs "
                f"float32{list(shape)}"
            )
        if not np.isfinite(found).all():
            raise WeightsError(f"{file.path}: tensor {name} holds numbers that are not finite")
    return spec, file


def weights_as_bytes(
    spec: Mapping[str, Any],
    learning_rate: float,
    card: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> bytes:
    """Return the contents of a weights file."""
    from safetensors.numpy import save

    said = {
        **card,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "learning_rate": float(learning_rate),
        "spec": spec,
    }
    said = json.loads(json.dumps(said))  # as readers will see it: lists for tuples, text for keys
    # Use C order: safetensors writes an array's memory unchanged.
    tensors = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    said["sha256"] = _digest(said, tensors)
    return save(tensors, metadata={"card": json.dumps(said, indent=1, sort_keys=True)})


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped weights."""
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
        return str(weights), read_file(weights, LARGEST_WEIGHTS)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"weights = {str(weights)!r}: no readable file there ({why(error)}); shipped "
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
        # Check this only now: a good file's header length may look like a pickle or a zip.
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
    """Return the SHA-256 of card and tensors.

    A flipped bit is still a valid float; only a checksum finds it.
    """
    said = {key: value for key, value in card.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: an object is needed, not {type(value).__name__}")
    return value
