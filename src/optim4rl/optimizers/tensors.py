"""The tensors of a network: their uses, told from names and shapes, and inputs made from them.

| input | rows | what they hold |
|---|---|---|
| kind | 4 | one-hot: weight, bias, policy head, value head |
| layer | 1 | the depth of the tensor's layer, 0 to 1 |
| fan_in | 1 | the logarithm of the inputs that each output sums: 0 for vectors, 1 for 1,024 |

This module does not need JAX: every framework that runs a rule tells tensors apart with this code.
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

# Treatments of a tensor's direction: nothing, scaling to a root mean square of 1, centring
# (`is_centred`) and scaling (`layer_scale`) by layer, or turning a kernel into an orthogonal matrix
# of the same size.
Normalisation = Literal["none", "rms", "layers", "orthogonal"]
# The treatments that need all of a tensor to compute one coordinate.
WHOLE_TENSOR: frozenset[Normalisation] = frozenset({"rms", "orthogonal"})

# Added to squares before a division by their root.
EPSILON = 1e-9
# Newton and Schulz's iteration (`orthogonalise`): its polynomial, and its number of steps.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
# From so many columns a row on, products of `y y'` alone are faster: 0.7 of the time at 3 columns,
# 0.4 at 8 and more. Their rounding error is larger, up to 7e-4 of the largest entry (from 4e-5).
_WIDE = 3

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
        kind: use of its coordinates.
        depth: its layer's place among the layers, 0 for the first and 1 for the last.
        actor: whether it serves only the policy, in its head or before it.
        outputs: axis of its outputs, the first or the last; None if it has fewer than two axes.
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
        """Return how many inputs each output sums; None if there are fewer than two axes."""
        return math.prod(self.shape[axis] for axis in self.inputs) if self.inputs else None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the axes that an output sums over."""
        if self.outputs is None:
            return ()
        return tuple(axis for axis in range(len(self.shape)) if axis != self.outputs)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """Return the matrix shape of a kernel, its outputs on their axis; None for a vector."""
        if self.outputs is None or self.fan_in is None:
            return None
        outputs = self.shape[self.outputs]
        return (outputs, self.fan_in) if self.outputs == 0 else (self.fan_in, outputs)

    @property
    def of_head(self) -> bool:
        """Return whether it is part of a head."""
        return self.kind in ("policy_head", "value_head")


# In the order of the leaves.
Layout = tuple[Tensor, ...]


def pieces(layout: Layout, n: int) -> list[tuple[Tensor, slice]]:
    """Return the slice of each tensor among `n` flattened coordinates, without empty tensors.

    Raises:
        ValueError: the layout has another number of coordinates.
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
    """One part of a leaf's path: its name, and its position among its siblings."""

    name: str
    order: tuple[str | int, ...]


Path = tuple[Part, ...]


def layout_of(
    paths: Sequence[Path],
    shapes: Sequence[tuple[int, ...]],
    choose: Callable[[list[Kind]], Sequence[Any]] = list,
) -> Layout:
    """Infer the layout of tensors from their names.

    A leaf whose path names a policy (policy, actor, pi, logits, action) or a value (value, critic,
    vf, v) belongs to that head. Of several layers, only the last is the head if numbers or names
    tell the order. Any other leaf is a weight, or a bias if it has at most one axis.

    Args:
        paths: path of each tensor.
        shapes: shape of each tensor.
        choose: takes the inferred kinds and returns the kinds to use.

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
    """Return the factor by which "layers" multiplies a tensor's direction.

    In a head: 32 / fan-in, at most 1. With steps of one size at every weight, the change of a
    head's outputs grows with the number of units before it. Dividing by this number gives the
    policies of wide and narrow networks the same change, as in the maximal update parametrisation
    (Yang et al. 2022, arXiv 2203.03466, table 3).

    In all layers before the heads of a network with a convolution of images: a quarter, for kernels
    and biases alike. A step of a convolution acts at all places. The next layer sums thousands of
    numbers that are never negative, so large steps soon switch its units off for good. The quarter
    is measured (docs/results/mirrored-grid.md); scaled by its fan-in, such a layer became too slow
    (ibid.).

    Elsewhere: 1.
    """
    if tensor.of_head:
        return USUAL_FAN_IN / max(tensor.fan_in or 0, USUAL_FAN_IN)
    return 0.25 if tensor.of_images else 1.0


def is_centred(tensor: Tensor) -> bool:
    """Return whether "layers" subtracts the mean over the inputs from each output's direction.

    It does in kernels before the heads whose fan-in is above 32. This is gradient centralisation
    (Yong et al. 2020, arXiv 2004.01461), applied to the direction. Inputs that are never negative,
    for example after a ReLU, pull all weights of a unit the same way. In steps of one size this
    soon moves the unit more than everything else together, until it is off for good. The bias
    handles the common part of the inputs.
    """
    return not tensor.of_head and (tensor.fan_in or 0) > USUAL_FAN_IN


def clip_apart(limit: float, layout: Sequence[Tensor], gradients: Sequence[Any]) -> list[Any]:
    """Scale the policy's own gradients, and all others, each to a global norm of at most a limit.

    Args:
        limit: the largest norm.
        layout: the tensor of each gradient.
        gradients: arrays of any framework, in float32.
    """
    factors = {}
    for actor in {tensor.actor for tensor in layout}:
        own = [g for g, tensor in zip(gradients, layout, strict=True) if tensor.actor == actor]
        square = sum((g * g).sum() for g in own)
        # Take the larger one under the root: then the derivative at zero is finite.
        largest = namespace(square).maximum(square, constant(limit * limit, square))
        factors[actor] = limit * rsqrt(largest)
    return [factors[tensor.actor] * g for g, tensor in zip(gradients, layout, strict=True)]


def clip_flat(limit: float, layout: Layout, gradient: Any) -> Any:
    """Apply `clip_apart` to tensors that are flattened one after the other."""
    parts = pieces(layout, gradient.shape[0])
    if not parts:
        return gradient
    tensors, where = zip(*parts, strict=True)
    clipped = clip_apart(limit, tensors, [gradient[x] for x in where])
    return namespace(gradient).concatenate(clipped)


def without_mean(directions: Sequence[Any]) -> list[Any]:
    """Subtract from all directions the mean over all their coordinates together."""
    count = sum(math.prod(x.shape) for x in directions)
    if not count:
        return list(directions)
    mean = sum(x.sum() for x in directions) / count
    return [x - mean for x in directions]


def orthogonalise(tensor: Tensor, direction: Any) -> Any:
    """Make all singular values of a kernel's direction nearly equal; return a vector unchanged.

    Args:
        tensor: the tensor of the direction.
        direction: an array of any framework, in the tensor's shape; several may be stacked along
            axes before the tensor's axes.
    """
    # A single row or column is orthogonal already.
    if tensor.matrix is None or 1 in tensor.matrix:
        return direction
    leading = direction.shape[: -len(tensor.shape)]
    kernel = direction.reshape((*leading, *tensor.matrix))
    rows, columns = tensor.matrix
    found = orthogonal(kernel.mT).mT if rows > columns else orthogonal(kernel)
    return found.reshape(direction.shape)


def orthogonal(matrix: Any) -> Any:
    """Return a matrix of the same norm with all singular values nearly equal.

    It is Newton and Schulz's iteration with the polynomial `x (a + b x^2 + c x^4)` of singular
    values x. It brings singular values above 0.01 of the norm to between 0.7 and 1.2 (Jordan 2024,
    https://kellerjordan.github.io/posts/muon). With `y = c^(1/4) x` it is `y ((y^2 + h)^2 + r)`, so
    that only products are as large as the matrix. Rows and columns of zeros stay.

    Args:
        matrix: an array of any framework, or several stacked along axes before; it is faster with
            at most as many rows as columns.
    """
    size = _norm(matrix)
    a, b, c = _NEWTON_SCHULZ
    y = matrix * (c**0.25 / size)
    h = b / (2.0 * c**0.5)

    def polynomial(gram: Any) -> Any:
        square = shift(1.0 * gram, h)  # a copy, because `shift` changes tensors in place
        return shift(square @ square, a - h * h)

    rows, columns = matrix.shape[-2:]
    if columns < _WIDE * rows:
        for _ in range(_NEWTON_SCHULZ_STEPS):
            y = polynomial(y @ y.mT) @ y
    else:
        y = _product(polynomial, y @ y.mT) @ y
    return y * (size / _norm(y))


def _product(polynomial: Callable[[Any], Any], gram: Any) -> Any:
    """Return the product of all steps' polynomials from the first `y y'`.

    All of them commute, so only two products are as large as the matrix, not two in each step.
    """
    product = polynomial(gram)
    last = product
    for _ in range(_NEWTON_SCHULZ_STEPS - 1):
        gram = last @ gram @ last
        last = polynomial(gram)
        product = last @ product
    return product


def _norm(matrix: Any) -> Any:
    return ((matrix * matrix).sum((-2, -1), keepdims=True) + EPSILON) ** 0.5


def _outputs(path: Path, shape: tuple[int, ...]) -> int | None:
    """Return the axis of outputs: the last, or the first for a `weight` (PyTorch, Equinox)."""
    if len(shape) < 2:
        return None
    return 0 if path and path[-1].name.startswith("weight") else len(shape) - 1


def parts_of(name: str) -> Path:
    """Split a dotted name, such as "policy_net.0.weight", into parts."""
    return tuple(Part(part, _natural(part)) for part in re.split(r"[./]", name))


def _told(paths: Sequence[Path]) -> list[Path]:
    # A name that all leaves end in, such as the `value` of a boxed parameter, tells nothing. The
    # exception is `weight`: it means layers without biases.
    last = {path[-1].name if path else None for path in paths}
    if len(paths) > 1 and len(last) == 1 and last != {"weight"}:
        return [path[:-1] for path in paths]
    return list(paths)


def _natural(name: str) -> tuple[str | int, ...]:
    """Return a sorting key that puts `hidden_2` before `hidden_10`."""
    return tuple(int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name))


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


class _Branch(NamedTuple):
    """The part of a network that leads to one head."""

    kind: Kind
    root: tuple[str, ...]


def _branch(path: Path) -> _Branch | None:
    """Return a leaf's branch; None if it belongs to several, or its path names none.

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
    """Return the path of a leaf's layer: the leaf's own path if a branch is a single tensor."""
    bare = branch is not None and len(path) == len(branch.root) + 1
    return path if bare else path[:-1]


def _heads(paths: list[Path], branches: list[_Branch | None]) -> list[Kind | None]:
    """Return for each leaf the head that it is part of: the last layer of each branch."""
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
    """Return the last layer of a branch; all of its layers if the order is unknown."""
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
    """Return each leaf's depth: shared layers come first, then each branch by itself."""
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


InputName = Literal["kind", "layer", "fan_in"]
INPUT_NAMES: tuple[InputName, ...] = get_args(InputName)

_OF_TENSOR: dict[InputName, Callable[[Tensor], list[float]]] = {
    "kind": lambda tensor: [float(tensor.kind == kind) for kind in KINDS],
    "layer": lambda tensor: [tensor.depth],
    "fan_in": lambda tensor: [math.log(max(tensor.fan_in or 1, 1)) / math.log(1024)],
}
_ROWS: dict[InputName, int] = {"kind": len(KINDS), "layer": 1, "fan_in": 1}


def num_rows(names: tuple[InputName, ...]) -> int:
    """Return the number of rows that the inputs of these names take together."""
    return sum(_ROWS[name] for name in names)


def tensor_inputs(names: tuple[InputName, ...], tensor: Tensor) -> list[float]:
    """Return the inputs of a tensor's coordinates, one number for each row."""
    return [x for name in names for x in _OF_TENSOR[name](tensor)]
