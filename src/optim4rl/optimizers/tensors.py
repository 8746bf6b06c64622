"""Tensors of a network: what each is for, told from names and shapes, and what rules read of it.

| input | rows | what they hold |
|---|---|---|
| kind | 4 | one-hot: weight, bias, policy head, value head |
| layer | 1 | the depth of the tensor's layer, 0 to 1 |

Nothing here needs JAX: every framework that runs a rule tells tensors apart by the same code.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from optim4rl.optimizers.arrays import constant, namespace, rsqrt, shift

Kind = Literal["weight", "bias", "policy_head", "value_head"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# What is done to a tensor's direction: nothing, scaling to a root mean square of 1, centring
# (`is_centred`) and scaling (`layer_scale`) as its layer wants them, or turning a kernel into an
# orthogonal matrix of the same size.
Normalisation = Literal["none", "rms", "layers", "orthogonal"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
# Those that need all of a tensor to tell what becomes of one coordinate.
WHOLE_TENSOR: frozenset[Normalisation] = frozenset({"rms", "orthogonal"})

# Added to squares of sizes that something is divided by.
EPSILON = 1e-9
# Of Newton and Schulz's iteration (`orthogonalise`): its polynomial, and how often.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5

_BEYOND_NAMES = "\U0010ffff"  # sorts after all other text

# The fan-in up to which a layer's steps are left as they are.
USUAL_FAN_IN = 32

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
        outputs: the axis of its outputs, the first or the last; None where it has fewer than two.
        of_images: whether its network has a convolution of images.
    """

    shape: tuple[int, ...]
    kind: Kind
    depth: float
    actor: bool = False
    outputs: int | None = None
    of_images: bool = False

    @property
    def fan_in(self) -> int | None:
        """How many inputs each output adds up; None where there are fewer than two axes."""
        return math.prod(self.shape[axis] for axis in self.inputs) if self.inputs else None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes that an output adds up."""
        if self.outputs is None:
            return ()
        return tuple(axis for axis in range(len(self.shape)) if axis != self.outputs)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """The shape that makes a kernel a matrix, its outputs on their axis; None for a vector."""
        if self.outputs is None or self.fan_in is None:
            return None
        outputs = self.shape[self.outputs]
        return (outputs, self.fan_in) if self.outputs == 0 else (self.fan_in, outputs)

    @property
    def of_head(self) -> bool:
        """Whether it is part of a head."""
        return self.kind in ("policy_head", "value_head")


# In the order of the leaves.
Layout = tuple[Tensor, ...]


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


class Part(NamedTuple):
    """One part of a leaf's path: its name, and where it comes among its siblings."""

    name: str
    order: tuple[str | int, ...]


Path = tuple[Part, ...]


def layout_of(
    paths: Sequence[Path],
    shapes: Sequence[tuple[int, ...]],
    choose: Callable[[list[Kind]], Sequence[Any]] = list,
) -> Layout:
    """The layout of tensors, told from their names.

    A leaf whose path names a policy (policy, actor, pi, logits, action) or a value (value, critic,
    vf, v) belongs to that head; of several layers, only to the last one where numbers or names tell
    which that is. Any other leaf is a weight, or a bias if it has at most one axis.

    Args:
        paths: of each tensor.
        shapes: of each tensor.
        choose: the kinds to take, given those inferred.

    Raises:
        ValueError: a chosen kind is unknown.
    """
    paths = _told(paths)
    branches = [_branch(path) for path in paths]
    kinds = choose(
        [
            head or ("weight" if len(shape) > 1 else "bias")
            for head, shape in zip(_heads(paths, branches), shapes, strict=True)
        ]
    )
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds: {kind!r} is unknown; known kinds are {', '.join(KINDS)}")
    depths = _depths(paths, branches)
    of_images = any(len(shape) >= 4 for shape in shapes)
    return tuple(
        Tensor(
            shape,
            kind,
            depth,
            actor="policy_head" in (kind, branch and branch.kind),
            outputs=_outputs(path, shape),
            of_images=of_images,
        )
        for path, shape, kind, depth, branch in zip(
            paths, shapes, kinds, depths, branches, strict=True
        )
    )


def layer_scale(tensor: Tensor) -> float:
    """What "layers" multiplies a tensor's direction by.

    In a head 32 / fan-in, at most 1. Steps of one size at every weight of a head change its outputs
    by as much as there are units before it; divided by their number, a step does the same to the
    policy of a wide network and of a narrow one, as in the maximal update parametrisation (Yang et
    al. 2022, arXiv 2203.03466, table 3).

    In all layers before the heads of a network with a convolution of images a quarter, in kernels
    and biases alike. What a step changes in a convolution it changes at all places, and the layer
    after it adds up thousands of numbers that are never negative, so that large steps soon leave
    its units off for good. The quarter is measured (docs/results/mirrored-grid.md); by its fan-in
    such a layer became too slow (ibid.).

    Elsewhere 1.
    """
    if tensor.of_head:
        return USUAL_FAN_IN / max(tensor.fan_in or 0, USUAL_FAN_IN)
    return 0.25 if tensor.of_images else 1.0


def is_centred(tensor: Tensor) -> bool:
    """Whether "layers" takes the mean over its inputs from each output's direction.

    It does in kernels before the heads whose fan-in is above 32: gradient centralisation (Yong et
    al. 2020, arXiv 2004.01461), of the direction. Inputs that are never negative, such as those
    after a ReLU, pull all weights of a unit the same way, and in steps of one size that soon moves
    the unit by more than all else together, until it is off for good. What the inputs have in
    common is left to the bias.
    """
    return not tensor.of_head and (tensor.fan_in or 0) > USUAL_FAN_IN


def clip_apart(limit: float, layout: Sequence[Tensor], gradients: Sequence[Any]) -> list[Any]:
    """The policy's own gradients, and all others, each scaled to a global norm of at most a limit.

    Args:
        limit: the norm.
        layout: what each gradient is of.
        gradients: arrays of any framework, in float32.
    """
    factors = {}
    for actor in {tensor.actor for tensor in layout}:
        own = [g for g, tensor in zip(gradients, layout, strict=True) if tensor.actor == actor]
        square = sum((g * g).sum() for g in own)
        # The larger under the root: the derivative at zero is then finite.
        largest = namespace(square).maximum(square, constant(limit * limit, square))
        factors[actor] = limit * rsqrt(largest)
    return [factors[tensor.actor] * g for g, tensor in zip(gradients, layout, strict=True)]


def clip_flat(limit: float, layout: Layout, gradient: Any) -> Any:
    """`clip_apart` of tensors that are flattened one after the other."""
    parts = pieces(layout, gradient.shape[0])
    if not parts:
        return gradient
    tensors, where = zip(*parts, strict=True)
    clipped = clip_apart(limit, tensors, [gradient[x] for x in where])
    return namespace(gradient).concatenate(clipped)


def without_mean(directions: Sequence[Any]) -> list[Any]:
    """Directions less the mean over all coordinates of all of them."""
    count = sum(math.prod(x.shape) for x in directions)
    if not count:
        return list(directions)
    mean = sum(x.sum() for x in directions) / count
    return [x - mean for x in directions]


def orthogonalise(tensor: Tensor, direction: Any) -> Any:
    """A kernel's direction with all of its singular values nearly equal; a vector's as it is.

    Args:
        tensor: what it is the direction of.
        direction: an array of any framework, in the tensor's shape; there may be several, along
            axes before the tensor's own.
    """
    if tensor.matrix is None:
        return direction
    leading = direction.shape[: -len(tensor.shape)]
    kernel = direction.reshape((*leading, *tensor.matrix))
    rows, columns = tensor.matrix
    found = orthogonal(kernel.mT).mT if rows > columns else orthogonal(kernel)
    return found.reshape(direction.shape)


def orthogonal(matrix: Any) -> Any:
    """A matrix with all of its singular values nearly equal, as large as before.

    Newton and Schulz's iteration in the polynomial `x (a + b x^2 + c x^4)` of singular values x: it
    brings those above 0.01 of the norm to between 0.7 and 1.2 (Jordan 2024,
    https://kellerjordan.github.io/posts/muon). With `y = c^(1/4) x` that is `y ((y^2 + h)^2 + r)`,
    so that nothing but products is as large as the matrix. Rows and columns of zeros stay.

    Args:
        matrix: an array of any framework, or several along axes before; at most as many rows as
            columns, or it takes longer.
    """
    size = _norm(matrix)
    a, b, c = _NEWTON_SCHULZ
    h = b / (2.0 * c**0.5)
    y = matrix * (c**0.25 / size)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        square = shift(y @ y.mT, h)
        y = shift(square @ square, a - h * h) @ y
    return y * (size / _norm(y))


def _norm(matrix: Any) -> Any:
    return ((matrix * matrix).sum((-2, -1), keepdims=True) + EPSILON) ** 0.5


def _outputs(path: Path, shape: tuple[int, ...]) -> int | None:
    """Outputs are on the last axis, but on the first of a `weight`, as in PyTorch and Equinox."""
    if len(shape) < 2:
        return None
    return 0 if path and path[-1].name.startswith("weight") else len(shape) - 1


def parts_of(name: str) -> Path:
    """The parts of a dotted name, such as "policy_net.0.weight"."""
    return tuple(Part(part, _natural(part)) for part in re.split(r"[./]", name))


def _told(paths: Sequence[Path]) -> list[Path]:
    # A name that all leaves end in, such as the `value` of a boxed parameter, tells nothing, but
    # for a `weight`: layers without biases.
    last = {path[-1].name if path else None for path in paths}
    if len(paths) > 1 and len(last) == 1 and last != {"weight"}:
        return [path[:-1] for path in paths]
    return list(paths)


def _natural(name: str) -> tuple[str | int, ...]:
    """A sorting key that puts `hidden_2` before `hidden_10`."""
    return tuple(int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name))


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


class _Branch(NamedTuple):
    """The part of a network that leads to one head."""

    kind: Kind
    root: tuple[str, ...]


def _branch(path: Path) -> _Branch | None:
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


def _layer(path: Path, branch: _Branch | None) -> Path:
    """The path of a leaf's layer: that of the leaf itself where a branch is a single tensor."""
    bare = branch is not None and len(path) == len(branch.root) + 1
    return path if bare else path[:-1]


def _heads(paths: list[Path], branches: list[_Branch | None]) -> list[Kind | None]:
    """For each leaf the head that it is part of: of each branch, the last layer."""
    layers: dict[_Branch, set[Path]] = defaultdict(set)
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


def _last(branch: _Branch, layers: set[Path]) -> set[Path]:
    """The last layer of a branch; all of them where that cannot be told."""
    names = {tuple(re.sub(r"\d+", "", part.name) for part in layer) for layer in layers}
    if len(names) == 1:
        return {max(layers, key=_order)}
    start = len(branch.root)
    named = {layer for layer in layers if any(_words(part.name) & _LAST for part in layer[start:])}
    return named or layers


def _order(path: Path) -> tuple[tuple[str | int, ...], ...]:
    return tuple(part.order for part in path)


def _in_order(layer: Path) -> tuple[tuple[str | int, ...], ...]:
    """Order layers; leaves beside layers, such as log standard deviations, come after them."""
    return (*_order(layer), (_BEYOND_NAMES,))


def _depths(paths: list[Path], branches: list[_Branch | None]) -> list[float]:
    """Each leaf's depth: what the branches share comes first, then each branch by itself."""
    layers: dict[Kind | None, set[Path]] = defaultdict(set)
    for path, branch in zip(paths, branches, strict=True):
        layers[branch and branch.kind].add(_layer(path, branch))
    ranks = {
        kind: {layer: rank for rank, layer in enumerate(sorted(found, key=_in_order))}
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


InputName = Literal["kind", "layer"]
INPUT_NAMES: tuple[InputName, ...] = get_args(InputName)

_OF_TENSOR: dict[InputName, Callable[[Tensor], list[float]]] = {
    "kind": lambda tensor: [float(tensor.kind == kind) for kind in KINDS],
    "layer": lambda tensor: [tensor.depth],
}
_ROWS: dict[InputName, int] = {"kind": len(KINDS), "layer": 1}


def num_rows(names: tuple[InputName, ...]) -> int:
    """Rows that the inputs of these names take together."""
    return sum(_ROWS[name] for name in names)


def tensor_inputs(names: tuple[InputName, ...], tensor: Tensor) -> list[float]:
    """The inputs of a tensor's coordinates, one number for each row."""
    return [x for name in names for x in _OF_TENSOR[name](tensor)]
