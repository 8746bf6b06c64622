"""Checkpoints: the whole state of meta-training in one file, to continue a stopped run.

A checkpoint is a sealed file (`files.sealed`): every leaf of the state under its path in the
tree, random keys as their key data, and in the metadata the run's config and its notes. The last
two checkpoints are kept. A continued run equals the uninterrupted one: bit for bit on the same
number of devices, to float tolerance on another.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from optim4rl.files.sealed import DTYPES, DamagedFileError, as_bytes, check_seal, write_sealed
from optim4rl.meta.population import Execution
from optim4rl.meta.trainer import MetaState, state_shardings

FORMAT = "optim4rl-checkpoint"
FORMAT_VERSION = 2


class CheckpointError(ValueError):
    """A checkpoint does not fit the run; the message names the file and the differences."""


class DamagedCheckpointError(CheckpointError):
    """A damaged checkpoint."""


class Resumed(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        state: the state of meta-training.
        notes: the notes that were saved with it.
        damage: the fault of the newest checkpoint if the previous one was read; else "".
    """

    state: MetaState
    notes: dict[str, Any]
    damage: str = ""


def previous_checkpoint(path: Path) -> Path:
    """Return the path of the checkpoint before the newest one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint, whole or damaged."""
    return path.exists() or previous_checkpoint(path).exists()


def save_checkpoint(
    path: str | Path,
    state: MetaState,
    config: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    *,
    rotate: bool = True,
) -> None:
    """Write the state atomically. If there are several processes, all call this; the first writes.

    Args:
        path: the file. If it is there, it becomes the previous checkpoint.
        state: the whole state of meta-training. It is written without a copy; only arrays of
            several processes are copied, one at a time.
        config: everything that shaped the run, as JSON values; loading compares it.
        notes: more JSON values, which are not compared.
        rotate: False replaces the file and leaves the previous checkpoint as it is.

    Raises:
        ValueError: the config or the notes hold something that JSON cannot express.
    """
    path = Path(path)
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": _as_json("config", config),
        "notes": _as_json("notes", notes or {}),
    }
    leaves = {name: _data(leaf) for name, leaf in sorted(_named_leaves(state).items())}
    if jax.process_index() != 0:
        for leaf in leaves.values():
            for _ in _pieces(leaf):
                pass
        return
    keep = previous_checkpoint(path) if rotate else None
    write_sealed(path, leaves, {"card": json.dumps(card)}, pieces=_pieces, keep=keep)


def resume_checkpoint(
    path: Path,
    like: MetaState,
    config: Mapping[str, Any],
    execution: Execution = Execution(),
) -> Resumed:
    """Read the newest whole checkpoint; see `load_checkpoint` for the arguments.

    Raises:
        CheckpointError: neither the newest checkpoint nor the one before it is whole, or it belongs
            to another run.
    """
    before = previous_checkpoint(path)
    try:
        return load_checkpoint(path, like, config, execution)
    except DamagedCheckpointError as error:
        if not before.exists():
            raise
        resumed = load_checkpoint(before, like, config, execution)
        return resumed._replace(damage=str(error))


def load_checkpoint(
    path: str | Path,
    like: MetaState,
    config: Mapping[str, Any],
    execution: Execution = Execution(),
) -> Resumed:
    """Read a checkpoint that `save_checkpoint` wrote.

    Args:
        path: the file.
        like: a state of the same run, or its `jax.eval_shape`.
        config: the config of the run that goes on. It must equal the saved one, but `iterations`
            may differ unless a cosine decay (`cosine_to` beside it) depends on it.
        execution: the devices to go on with; they may differ from those that wrote the checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint, or its run has another
            config or a state of another shape.
    """
    from safetensors import safe_open

    path = Path(path)
    card = _card(path)
    if differing := _differences(card["config"], _as_json("config", config), "config"):
        raise CheckpointError(f"{path}: the checkpoint of another run: {'; '.join(differing)}")
    wanted = _named_leaves(jax.eval_shape(partial(jax.tree.map, _data), like))
    shardings = _named_leaves(state_shardings(like, execution))
    with safe_open(path, framework="numpy") as file:
        _check_tensors(path, file, wanted)
        placed = {name: _place(file.get_tensor(name), shardings[name]) for name in sorted(wanted)}
    leaves = [_restore(placed[name], leaf) for name, leaf in _named_leaves(like).items()]
    return Resumed(jax.tree.unflatten(jax.tree.structure(like), leaves), card["notes"])


def _pieces(array: Any) -> Iterator[memoryview]:
    """Yield an array's bytes in C order, one shard of the first axis after the other."""
    if not isinstance(array, jax.Array):
        yield as_bytes(np.asarray(array))
    elif array.is_fully_replicated:
        yield as_bytes(np.asarray(array.addressable_data(0)))
    elif array.is_fully_addressable:
        for shard in sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0):
            yield as_bytes(np.asarray(shard.data))
    else:
        yield as_bytes(multihost_utils.process_allgather(array, tiled=True))


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _place(tensor: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array on its devices; each process fills its own part."""
    return jax.make_array_from_callback(tensor.shape, sharding, lambda index: tensor[index])


def _restore(array: jax.Array, like: Any) -> Any:
    if not _is_key(like):
        return array
    implementation = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(array, impl=implementation)


def _card(path: Path) -> dict[str, Any]:
    """Read the whole checkpoint, check it, and return its card."""
    try:
        metadata = check_seal(path)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path}: no readable file there") from error
    except OSError as error:
        raise CheckpointError(f"{path}: no readable file there ({error.strerror})") from error
    except DamagedFileError as error:
        raise DamagedCheckpointError(str(error)) from error
    try:
        card: dict[str, Any] = json.loads(metadata["card"])
        found = (card["format"], card["format_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a sealed file, but not a checkpoint") from error
    if found != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format {found[0]!r} version {found[1]!r}; this release reads {FORMAT!r} "
            f"version {FORMAT_VERSION}"
        )
    return card


def _as_json(name: str, values: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: JSON values are needed: {error}") from error


def _differences(saved: Any, wanted: Any, name: str) -> list[str]:
    """Return a phrase for each field that differs, with both values."""
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return [] if saved == wanted else [f"{name} is {saved!r} there and {wanted!r} here"]
    free = set() if _decays(saved) or _decays(wanted) else {"iterations"}
    differing = []
    for field in sorted((saved.keys() | wanted.keys()) - free):
        if field not in saved or field not in wanted:
            side = "here" if field in wanted else "there"
            value = wanted.get(field, saved.get(field))
            differing.append(f"{name}.{field} is {value!r} {side} alone")
        else:
            differing += _differences(saved[field], wanted[field], f"{name}.{field}")
    return differing


def _decays(config: Mapping[str, Any]) -> bool:
    """Return whether the meta-learning rate depends on the number of iterations."""
    return bool(config.get("cosine_to", 1) != 1)


def _check_tensors(path: Path, file: Any, wanted: Mapping[str, Any]) -> None:
    names = set(file.keys())
    if names != wanted.keys():
        absent = sorted(wanted.keys() - names)
        extra = sorted(names - wanted.keys())
        raise CheckpointError(f"{path}: another state: it lacks {absent} and also has {extra}")
    for name, leaf in wanted.items():
        stored = file.get_slice(name)
        found = (stored.get_dtype(), list(stored.get_shape()))
        needed = (DTYPES[leaf.dtype.name], list(leaf.shape))
        if found != needed:
            raise CheckpointError(
                f"{path}: {name} is {found[0]}{found[1]} there and {needed[0]}{needed[1]} here"
            )
