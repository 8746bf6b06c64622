"""Checkpoints: the whole state of meta-training as one file, so that a cut-off run goes on.

A checkpoint is a safetensors file: every leaf of the state under its path in the tree, random keys
as their key data, and in the metadata the run's config and a digest of the tensors. A run that goes
on from one is the uninterrupted run, bit for bit on as many devices, to float tolerance on another
number of them. Nothing in a file is ever executed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from optim4rl.meta.population import Execution
from optim4rl.meta.trainer import MetaState, state_shardings
from optim4rl.optimizers.files import replacing

FORMAT = "optim4rl-checkpoint"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from; the message names the file and what differs."""


def save_checkpoint(path: str | Path, state: MetaState, config: Mapping[str, Any]) -> None:
    """Write the state, atomically. Of several processes all call this, and the first one writes.

    Args:
        path: the file, replaced if it is there.
        state: the whole state of meta-training.
        config: everything that shaped the run, JSON values only; loading compares it.

    Raises:
        ValueError: the config holds something that JSON does not.
    """
    from safetensors.numpy import save_file

    config = _as_json(config)
    # In C order: safetensors writes an array's memory as it lies.
    tensors = {
        name: np.asarray(_whole(_data(x)), order="C") for name, x in _named_leaves(state).items()
    }
    if jax.process_index() != 0:
        return
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": config,
        "digest": _digest(tensors),
    }
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"card": json.dumps(card)})


def load_checkpoint(
    path: str | Path,
    like: MetaState,
    config: Mapping[str, Any],
    execution: Execution = Execution(),
) -> MetaState:
    """Read a state that `save_checkpoint` wrote.

    Args:
        path: the file.
        like: a state of the same run, or its `jax.eval_shape`.
        config: the config of the run that is to go on. It must equal the saved one, except that
            `iterations` may differ where no cosine decay (`cosine_to` beside it) depends on it.
        execution: the devices to go on with, whatever those were that wrote it.

    Raises:
        CheckpointError: the file is missing, corrupt or not a checkpoint, or is that of a run with
            another config or a state of another shape.
    """
    card, tensors = _read(Path(path))
    _check_config(path, card["config"], _as_json(config))
    _check_tensors(path, tensors, _named_leaves(jax.eval_shape(_data_tree, like)))
    if card["digest"] != _digest(tensors):
        raise CheckpointError(f"{path}: corrupt: its tensors do not match its digest")
    placed = {
        name: _place(tensors[name], sharding)
        for name, sharding in _named_leaves(state_shardings(like, execution)).items()
    }
    leaves = [_restore(placed[name], leaf) for name, leaf in _named_leaves(like).items()]
    state: MetaState = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _data_tree(tree: Any) -> Any:
    return jax.tree.map(_data, tree)


def _whole(array: Any) -> Any:
    """An array that may be spread over processes, on each of them."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def _place(tensor: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array on its devices, of which each process fills its own."""
    return jax.make_array_from_callback(tensor.shape, sharding, lambda index: tensor[index])


def _restore(array: jax.Array, like: Any) -> Any:
    if not _is_key(like):
        return array
    implementation = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(array, impl=implementation)


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        # The memory itself, not a copy: a state can take most of what there is.
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path}: no readable file there ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, corrupt or no checkpoint: {error}") from error
    try:
        card = json.loads(metadata["card"])
        found = (card["format"], card["format_version"])
        complete = card.keys() >= {"config", "digest"}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint") from error
    if found != (FORMAT, FORMAT_VERSION) or not complete:
        raise CheckpointError(
            f"{path}: format {found[0]!r} version {found[1]!r}; this release reads {FORMAT!r} "
            f"version {FORMAT_VERSION}"
        )
    return card, tensors


def _as_json(config: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: JSON values are needed: {error}") from error


def _check_config(path: str | Path, saved: Any, wanted: Any) -> None:
    differing = _differences(saved, wanted, "config")
    if differing:
        raise CheckpointError(f"{path}: the checkpoint of another run: {'; '.join(differing)}")


def _differences(saved: Any, wanted: Any, name: str) -> list[str]:
    """A phrase for each field that differs, with both values."""
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
    """Whether the meta-learning rate depends on the number of iterations."""
    return bool(config.get("cosine_to", 1) != 1)


def _check_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> None:
    if tensors.keys() != wanted.keys():
        absent = sorted(wanted.keys() - tensors.keys())
        extra = sorted(tensors.keys() - wanted.keys())
        raise CheckpointError(f"{path}: another state: it lacks {absent} and has {extra} besides")
    for name, leaf in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(
                f"{path}: {name} is {found.dtype}{list(found.shape)} there and "
                f"{leaf.dtype}{list(leaf.shape)} here"
            )
