"""The tensors of a parameter tree, their kinds and their depths.

A layout depends only on the tree's structure and shapes. It is static and hashable, takes no memory
on a device, and is the same for all agents of a task.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey, keystr

from optim4rl.optimizers.tensors import (
    KINDS as KINDS,
    Kind as Kind,
    Layout as Layout,
    Part,
    Path,
    Tensor as Tensor,
    layout_of,
    parts_of,
    pieces as pieces,
)

# A tree of kinds (a prefix of the parameters' tree is enough), or a function of a leaf's path, such
# as "policy/kernel", and the leaf. If the function returns None, the kind is inferred.
Kinds = Any | Callable[[str, Any], Kind | None]


def infer_layout(params: Any, kinds: Kinds = None) -> Layout:
    """Return the layout of any tree of parameters or gradients, arrays or their shapes.

    Kinds are inferred from names (`tensors.layout_of`). Pass `kinds` if the names do not tell the
    kinds, such as flax's `Dense_3`.

    Args:
        params: the tree; its leaves need only a shape.
        kinds: replaces the inferred kinds.

    Raises:
        ValueError: `kinds` does not fit the tree, or one of them is unknown.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return layout_of(
        _paths([path for path, _ in leaves]),
        [tuple(getattr(leaf, "shape", ())) for _, leaf in leaves],
        lambda inferred: _chosen(params, kinds, inferred),
    )


def _chosen(params: Any, kinds: Kinds, inferred: list[Kind]) -> Sequence[Any]:
    """Return the user's kinds if there are any."""
    if kinds is None:
        return inferred
    if _is_function(kinds):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return [
            kinds(keystr(path, simple=True, separator="/"), leaf) or kind
            for (path, leaf), kind in zip(leaves, inferred, strict=True)
        ]
    try:
        return jax.tree.leaves(jax.tree.broadcast(kinds, params))
    except ValueError as error:
        raise ValueError(f"kinds = {kinds!r}: not a tree like the parameters'") from error


def _is_function(kinds: Kinds) -> bool:
    """Return whether `kinds` is a function.

    A module is callable, too, but is a tree with leaves.
    """
    whole = all(leaf is kinds for leaf in jax.tree.leaves(kinds))
    return callable(kinds) and (whole or isinstance(kinds, jax.tree_util.Partial))


def _paths(key_paths: list[tuple[Any, ...]]) -> list[Path]:
    """Split each leaf's path into parts, including torch-like names ("policy_net.0.weight")."""
    first: dict[tuple[Any, ...], int] = {}
    paths = []
    for index, keys in enumerate(key_paths):
        parts: list[Part] = []
        for end, key in enumerate(keys, 1):
            if isinstance(key, GetAttrKey):
                # A module's fields come in the order in which they are defined.
                place = first.setdefault(keys[:end], index)
                parts.append(Part(key.name, ("", place)))
            else:
                parts += parts_of(keystr((key,), simple=True))
        paths.append(tuple(parts))
    return paths
