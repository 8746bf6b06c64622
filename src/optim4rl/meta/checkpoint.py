"""Checkpoints: the whole state of meta-training as one file, so that a cut-off run goes on.

A checkpoint is a safetensors file: every leaf of the state under its path in the tree, random keys
as their key data, and in the metadata the run's config and a digest of the tensors. A run that goes
on from one is the uninterrupted run, bit for bit on as many devices, to float tolerance on another
number of them. Nothing in a file is ever executed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
# What the format calls the types that a state can hold.
_DTYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
}


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from; the message names the file and what differs."""


def save_checkpoint(path: str | Path, state: MetaState, config: Mapping[str, Any]) -> None:
    """Write the state, atomically. Of several processes all call this, and the first one writes.

    Args:
        path: the file, replaced if it is there.
        state: the whole state of meta-training. It is written from where it lies: only of several
            processes' arrays a copy is made, one at a time.
        config: everything that shaped the run, JSON values only; loading compares it.

    Raises:
        ValueError: the config holds something that JSON does not.
    """
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": _as_json(config)}
    leaves = {name: _data(leaf) for name, leaf in sorted(_named_leaves(state).items())}
    if jax.process_index() != 0:
        for leaf in leaves.values():
            for _ in _pieces(leaf):
                pass
        return
    digest = hashlib.sha256()
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        # The digest is known at the end and has its place, of a known size, at the start.
        file.write(_header(leaves, card | {"digest": digest.hexdigest()}))
        for name, leaf in leaves.items():
            digest.update(name.encode())
            for piece in _pieces(leaf):
                digest.update(piece)
                file.write(piece)
        file.seek(0)
        file.write(_header(leaves, card | {"digest": digest.hexdigest()}))


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
    wanted = _named_leaves(jax.eval_shape(_data_tree, like))
    shardings = _named_leaves(state_shardings(like, execution))
    digest, placed = hashlib.sha256(), {}
    with _opened(Path(path)) as (card, file):
        _check_config(path, card["config"], _as_json(config))
        _check_tensors(path, file, wanted)
        for name in sorted(wanted):
            tensor = file.get_tensor(name)
            digest.update(name.encode())
            digest.update(_bytes(tensor))
            placed[name] = _place(tensor, shardings[name])
    if card["digest"] != digest.hexdigest():
        raise CheckpointError(f"{path}: corrupt: its tensors do not match its digest")
    leaves = [_restore(placed[name], leaf) for name, leaf in _named_leaves(like).items()]
    state: MetaState = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state


def _header(leaves: Mapping[str, Any], card: Mapping[str, Any]) -> bytes:
    """The head of a safetensors file: https://github.com/huggingface/safetensors#format."""
    entries: dict[str, Any] = {"__metadata__": {"card": json.dumps(card)}}
    end = 0
    for name, leaf in leaves.items():
        start, end = end, end + leaf.size * leaf.dtype.itemsize
        entries[name] = {
            "dtype": _DTYPES[leaf.dtype.name],
            "shape": list(leaf.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(array: Any) -> Iterator[memoryview]:
    """An array's bytes in C order. Its shards, which split the first axis, come one by one."""
    if not isinstance(array, jax.Array):
        yield _bytes(np.asarray(array))
    elif array.is_fully_replicated:
        yield _bytes(np.asarray(array.addressable_data(0)))
    elif array.is_fully_addressable:
        for shard in sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0):
            yield _bytes(np.asarray(shard.data))
    else:
        yield _bytes(multihost_utils.process_allgather(array, tiled=True))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


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


def _place(tensor: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array on its devices, of which each process fills its own."""
    return jax.make_array_from_callback(tensor.shape, sharding, lambda index: tensor[index])


def _restore(array: jax.Array, like: Any) -> Any:
    if not _is_key(like):
        return array
    implementation = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(array, impl=implementation)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """The card and the open file, of which nothing else has been read yet."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield _card(path, file.metadata() or {}), file
    except OSError as error:
        raise CheckpointError(f"{path}: no readable file there ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, corrupt or no checkpoint: {error}") from error


def _card(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(metadata["card"])
        found = (card["format"], card["format_version"])
        complete = card.keys() >= {"config", "digest"}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint") from error
    if found != (FORMAT, FORMAT_VERSION) or not complete:
        raise CheckpointError(
            f"{path}: format {found[0]!r} version {found[1]!r}; this release reads {FORMAT!r} "
            f"version {FORMAT_VERSION}"
        )
    return card


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


def _check_tensors(path: str | Path, file: Any, wanted: Mapping[str, Any]) -> None:
    names = set(file.keys())
    if names != wanted.keys():
        absent = sorted(wanted.keys() - names)
        extra = sorted(names - wanted.keys())
        raise CheckpointError(f"{path}: another state: it lacks {absent} and has {extra} besides")
    for name, leaf in wanted.items():
        stored = file.get_slice(name)
        found = (stored.get_dtype(), list(stored.get_shape()))
        needed = (_DTYPES[leaf.dtype.name], list(leaf.shape))
        if found != needed:
            raise CheckpointError(
                f"{path}: {name} is {found[0]}{found[1]} there and {needed[0]}{needed[1]} here"
            )
