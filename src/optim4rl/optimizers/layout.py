"""What a coordinate belongs to: the tensors of a parameter tree, their kinds and their depths.

A layout is static and hashable: it follows from the tree's structure and shapes alone, costs no
memory, and is the same for all agents of a task.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Kind = Literal["weight", "bias", "policy_head", "value_head"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The words that name a head, one of the layers before it, and the last layer of several.
_HEADS: dict[Kind, frozenset[str]] = {
    "policy_head": frozenset({"policy", "actor", "pi", "logits", "action", "actions"}),
    "value_head": frozenset({"value", "values", "critic", "vf", "v"}),
}
_TORSO = frozenset({"torso", "extractor", "features", "encoder", "trunk", "body", "backbone"})
_LAST = frozenset({"head", "out", "output", "last", "final", "logits", "mean", "mu"})


class Tensor(NamedTuple):
    """One tensor of a parameter tree.

    Attributes:
        shape: its shape.
        kind: what its coordinates are for.
        depth: its layer's place among the layers, 0 for the first and 1 for the last.
        actor: whether it serves the policy alone, in its head or before it.
    """

    shape: tuple[int, ...]
    kind: Kind
    depth: float
    actor: bool = False


# In the order of `jax.tree.leaves`.
Layout = tuple[Tensor, ...]
# A tree of kinds (a prefix of the parameters' will do), or a function of a leaf's path, such as
# "policy/kernel", and the leaf; where that gives None, the kind is inferred.
Kinds = Any | Callable[[str, Any], Kind | None]


def pieces(layout: Layout, n: int) -> list[tuple[Tensor, slice]]:
    """Where each tensor lies among `n` flattened coordinates; empty ones are left out.

    Raises:
        ValueError: the layout is that of another number of coordinates.
    """
    sizes = [math.prod(tensor.shape) for tensor in layout]
    ends = list(itertools.accumulate(sizes))
    if sum(sizes) != n:
        raise ValueError(
            f"layout: {len(layout)} tensors of {sum(sizes)} coordinates in all, but there are {n}"
        )
    return [
        (tensor, slice(end - size, end))
        for tensor, size, end in zip(layout, sizes, ends, strict=True)
        if size
    ]


class _Part(NamedTuple):
    """One part of a leaf's path: its name, and where it comes among its siblings."""

    name: str
    order: tuple[str | int, ...]


_Path = tuple[_Part, ...]


def infer_layout(params: Any, kinds: Kinds = None) -> Layout:
    """The layout of any tree of parameters or gradients, arrays or their shapes.

    A leaf whose path names a policy (policy, actor, pi, logits, action) or a value (value, critic,
    vf, v) belongs to that head; of several layers, only to the last one where numbers or names tell
    which that is. Any other leaf is a weight, or a bias if it has at most one axis. What names
    cannot tell (flax's `Dense_3`), `kinds` can.

    Args:
        params: the tree; its leaves need a shape alone.
        kinds: what to take instead of the inferred kinds.

    Raises:
        ValueError: `kinds` does not fit the tree, or one of them is unknown.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = [tuple(getattr(leaf, "shape", ())) for _, leaf in leaves]
    paths = _paths([path for path, _ in leaves])
    branches = [_branch(path) for path in paths]
    heads = _heads(paths, branches)
    inferred = [
        head or ("weight" if len(shape) > 1 else "bias")
        for head, shape in zip(heads, shapes, strict=True)
    ]
    return tuple(
        Tensor(shape, kind, depth, actor="policy_head" in (kind, branch and branch.kind))
        for shape, kind, depth, branch in zip(
            shapes,
            _chosen(params, kinds, inferred),
            _depths(paths, branches),
            branches,
            strict=True,
        )
    )


def _chosen(params: Any, kinds: Kinds, inferred: list[Kind]) -> list[Kind]:
    """The user's kinds where there are any."""
    if kinds is None:
        return inferred
    if callable(kinds):
        chosen = [
            kinds(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) or kind
            for (path, leaf), kind in zip(
                jax.tree_util.tree_leaves_with_path(params), inferred, strict=True
            )
        ]
    else:
        try:
            chosen = jax.tree.leaves(jax.tree.broadcast(kinds, params))
        except ValueError as error:
            raise ValueError(f"kinds = {kinds!r}: not a tree like the parameters'") from error
    for kind in chosen:
        if kind not in KINDS:
            raise ValueError(f"kinds: {kind!r} is none; known kinds are {', '.join(KINDS)}")
    return chosen


def _paths(key_paths: list[tuple[Any, ...]]) -> list[_Path]:
    """Each leaf's path in parts, that of a torch-like name ("policy_net.0.weight") split."""
    first: dict[tuple[Any, ...], int] = {}
    paths = []
    for index, keys in enumerate(key_paths):
        parts: list[_Part] = []
        for end, key in enumerate(keys, 1):
            if isinstance(key, GetAttrKey):
                # A module's fields come in the order in which they are defined.
                place = first.setdefault(keys[:end], index)
                parts.append(_Part(key.name, ("", place)))
            else:
                parts += [_Part(name, _natural(name)) for name in re.split(r"[./]", _text(key))]
        paths.append(tuple(parts))
    # A name that all leaves end in, such as the `value` of a boxed parameter, tells nothing.
    if len(paths) > 1 and len({path[-1].name if path else None for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return paths


def _text(key: Any) -> str:
    if isinstance(key, (DictKey, FlattenedIndexKey)):
        return str(key.key)
    return str(key.idx) if isinstance(key, SequenceKey) else str(key)


def _natural(name: str) -> tuple[str | int, ...]:
    """A sorting key that puts `hidden_2` before `hidden_10`."""
    return tuple(int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name))


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


class _Branch(NamedTuple):
    """The part of a network that leads to one head."""

    kind: Kind
    root: tuple[str, ...]


def _branch(path: _Path) -> _Branch | None:
    """The branch that a leaf belongs to; None where it belongs to several or its path names none.

    The last name counts: a network called policy may hold a value head.
    """
    if any(_words(part.name) & _TORSO for part in path):
        return None
    named = []
    for index, part in enumerate(path):
        found = [kind for kind, words in _HEADS.items() if words & _words(part.name)]
        if len(found) == 1:
            named.append((found[0], index))
    if not named:
        return None
    kind = named[-1][0]
    root = next(index for other, index in named if other == kind)
    return _Branch(kind, tuple(part.name for part in path[:root]))


def _layer(path: _Path, branch: _Branch | None) -> _Path:
    """The path of a leaf's layer: that of the leaf itself where a branch is a single tensor."""
    bare = branch is not None and len(path) == len(branch.root) + 1
    return path if bare else path[:-1]


def _heads(paths: list[_Path], branches: list[_Branch | None]) -> list[Kind | None]:
    """For each leaf the head that it is part of: of each branch, the last layer."""
    layers: dict[_Branch, set[_Path]] = defaultdict(set)
    for path, branch in zip(paths, branches, strict=True):
        if branch is not None and len(path) > len(branch.root) + 1:
            layers[branch].add(path[:-1])
    last = {branch: _last(branch, found) for branch, found in layers.items()}
    return [
        branch.kind
        if branch is not None
        and (_layer(path, branch) == path or _layer(path, branch) in last[branch])
        else None
        for path, branch in zip(paths, branches, strict=True)
    ]


def _last(branch: _Branch, layers: set[_Path]) -> set[_Path]:
    """The last layer of a branch; all of them where that cannot be told."""
    names = {tuple(re.sub(r"\d+", "", part.name) for part in layer) for layer in layers}
    if len(names) == 1:
        return {max(layers, key=_order)}
    start = len(branch.root)
    named = {layer for layer in layers if any(_words(part.name) & _LAST for part in layer[start:])}
    return named or layers


def _order(path: _Path) -> tuple[tuple[str | int, ...], ...]:
    return tuple(part.order for part in path)


def _depths(paths: list[_Path], branches: list[_Branch | None]) -> list[float]:
    """Each leaf's depth: what the branches share comes first, then each branch by itself."""
    layers: dict[Kind | None, set[_Path]] = defaultdict(set)
    for path, branch in zip(paths, branches, strict=True):
        layers[branch and branch.kind].add(_layer(path, branch))
    ranks = {
        kind: {layer: rank for rank, layer in enumerate(sorted(found, key=_order))}
        for kind, found in layers.items()
    }
    shared = len(layers.pop(None, ()))
    deepest = shared + max(map(len, layers.values()), default=0)
    depths = []
    for path, branch in zip(paths, branches, strict=True):
        rank = ranks[branch and branch.kind][_layer(path, branch)]
        total = deepest if branch is None else shared + len(layers[branch.kind])
        index = rank if branch is None else shared + rank
        depths.append(index / max(total - 1, 1))
    return depths
