"""Weights that other groups publish, as learned optimizers of this project."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optim4rl.fields import COUNT, check_values
from optim4rl.files.reading import read_file, why
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.structures import Open
from optim4rl.optimizers.weight_files import LARGEST_WEIGHTS
from optim4rl.optimizers.weights import LearnedOptimizer, WeightsError

# Hidden units and head of the optimizers that OPEN's authors publish: for one task, for several.
_OPEN_SIZES = ((8, (16, 16)), (16, (32, 32)))
# OPEN reads the layer's proportion before the epochs' proportion and dormancy; this project last.
_OPEN_INPUTS = (*range(16), 17, 18, 16)
_NPY = b"\x93NUMPY"


def import_open(
    path: str | Path, *, rollouts: int = 1220, epochs: int = 4, minibatches: int = 8
) -> LearnedOptimizer:
    """Read OPEN as published (Goldie et al. 2024, arXiv 2407.07082) from one of its weights files.

    The files are in https://github.com/AlexGoldie/rl-learned-optimization, folder
    `rl_optimizer/pretrained`: a `.npy` with one flat vector, the leaves of a tree of flax
    parameters, keys in alphabetical order. Nothing in a file is executed.

    Args:
        path: the file.
        rollouts, epochs, minibatches: sizes of the runs that the optimizer is for. It counts with
            them if it is not told the proportions of training and of epochs (`structures.Open`).

    Raises:
        WeightsError: the file is not such a vector; the message names the file and the fault.
        ValueError: a count is not positive.
    """
    settings = {"rollouts": rollouts, "epochs": epochs, "minibatches": minibatches}
    check_values(Open, settings, **dict.fromkeys(settings, COUNT))
    vector, digest = _read_vector(Path(path))
    specs = {
        sum(map(math.prod, spec.weight_shapes.values())): spec
        for spec in (
            dataclasses.replace(learned_spec("open"), hidden_size=hidden, head_sizes=head)
            for hidden, head in _OPEN_SIZES
        )
    }
    if vector.size not in specs:
        known = " or ".join(
            f"{size:,} (GRU of {spec.hidden_size}, head {'-'.join(map(str, spec.head_sizes))})"
            for size, spec in specs.items()
        )
        raise WeightsError(f"{path}: {vector.size:,} numbers; OPEN's weights are {known}")
    spec = dataclasses.replace(specs[vector.size], structure=Open(**settings))
    card = {"source": {"optimizer": "OPEN", "file": Path(path).name, "sha256": digest}}
    return LearnedOptimizer(spec, _open_weights(spec, vector), 1e-3, card)


def _read_vector(path: Path) -> tuple[Float[np.ndarray, " n"], str]:
    """Return the numbers, and the file's SHA-256."""
    try:
        data = read_file(path, LARGEST_WEIGHTS)
    except OSError as error:
        raise WeightsError(f"{path}: no readable file there ({why(error)})") from error
    if not data.startswith(_NPY):
        raise WeightsError(f"{path}: not a .npy file; a pickle or a zip is never opened as one")
    try:
        # Mapped, so that a header cannot ask for more memory than the file has.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy does not document the errors of a damaged header.
        raise WeightsError(f"{path}: not a readable .npy file: {error}") from error
    if found.ndim != 1 or found.dtype.kind != "f":
        raise WeightsError(
            f"{path}: {found.dtype} of shape {found.shape}; one vector of floats is needed"
        )
    with np.errstate(over="ignore"):
        vector = np.array(found, np.float32)
    if not np.isfinite(vector).all():
        raise WeightsError(f"{path}: holds numbers that are not finite")
    return vector, hashlib.sha256(data).hexdigest()


def _open_tensors(spec: OptimizerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in the order of the vector; flax's kernels are (inputs, outputs)."""
    ((inputs, outputs),), hidden = spec.networks, spec.hidden_size
    yield from (("hn_bias", (hidden,)), ("hn", (hidden, hidden)))
    yield from (("hr", (hidden, hidden)), ("hz", (hidden, hidden)))
    for gate in ("in", "ir", "iz"):
        yield from ((f"{gate}_bias", (hidden,)), (gate, (inputs, hidden)))
    for layer, (n, m) in enumerate(itertools.pairwise((hidden, *spec.head_sizes, outputs))):
        yield from ((f"head{layer}_bias", (m,)), (f"head{layer}", (n, m)))
        if layer < len(spec.head_sizes):
            yield from ((f"norm{layer}_bias", (m,)), (f"norm{layer}", (m,)))


def _open_weights(spec: OptimizerSpec, vector: Float[np.ndarray, " n"]) -> MetaParameters:
    """Return the vector as weights of this project, whose kernels are (outputs, inputs)."""
    read, start = {}, 0
    for name, shape in _open_tensors(spec):
        end = start + int(np.prod(shape))
        read[name], start = vector[start:end].reshape(shape).T, end
    weights = {
        "input": np.concatenate([read.pop(gate) for gate in ("ir", "iz", "in")])[:, _OPEN_INPUTS],
        "hidden": np.concatenate([read.pop(gate) for gate in ("hr", "hz", "hn")]),
        "bias": np.concatenate([read.pop(f"{gate}_bias") for gate in ("ir", "iz", "in")]),
        "bias_new": read.pop("hn_bias"),
        **read,
    }
    return {"network0": {name: jnp.asarray(x) for name, x in weights.items()}}
