"""Pieces: the training runs that a suite's evaluation is made of, a batch of them at a time.

A piece is a value; its address is a hash of that value and of the code that runs it. So no piece is
ever run twice, whichever table asks for it, and no stale result is ever taken for a fresh one.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.learning import BATCH, Classical, Family, Learned, learning_curves
from optim4rl.optimizers.rule import MetaParameters, spec_to_dict
from optim4rl.optimizers.weights import LearnedOptimizer, load_weights, save_weights
from optim4rl.study.cells import CellResult, pack_curves, unpack_curves
from optim4rl.study.store import StoreError, read_result, write_result
from optim4rl.tasks import TaskConfig, default_config, make_task


@dataclass(frozen=True)
class Method:
    """A way to train an agent, but for its rate.

    Attributes:
        optimizer: name of a classical optimizer; None for a learned one.
        weights: address of a learned optimizer's weights, see `keep_weights`.
        decay: the rate falls to zero over the run, linearly.
        raw_rewards: the agent learns from rewards as they are, scaled as is usual for the
            environment, whatever the task says.
    """

    optimizer: str | None
    weights: str | None = None
    decay: bool = False
    raw_rewards: bool = False


# Agents that never update.
UNTRAINED = Method("sgd")


@dataclass(frozen=True)
class Piece:
    """Runs of one method on one task, at every rate with every seed.

    Attributes:
        config: the task.
        method: how agents are trained.
        rates: learning rates.
        seeds: one agent for each, at each rate.
        rollouts: how long a run is.
        schedule: how long the decay takes, in rollouts; for a method without one as long as a run.
    """

    config: TaskConfig
    method: Method
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    rollouts: int
    schedule: int

    @property
    def program(self) -> tuple[TaskConfig, Method]:
        """Pieces of which this is the same mostly share a compiled program."""
        return self.config, dataclasses.replace(self.method, weights=None)


def split(
    config: TaskConfig,
    method: Method,
    rates: Sequence[float],
    seeds: Sequence[int],
    rollouts: int,
    schedule: int | None = None,
) -> list[Piece]:
    """Runs as pieces of at most a batch each, always the same ones.

    A piece has whole rates, or a part of the seeds of one rate.
    """
    if method.raw_rewards:
        usual = default_config(config.environment).learner.reward_scale
        learner = dataclasses.replace(config.learner, reward_scale=usual)
        config = dataclasses.replace(config, normalise_rewards=False, learner=learner)
    schedule = (schedule or rollouts) if method.decay else rollouts
    together = max(1, BATCH // len(seeds))
    return [
        Piece(config, method, tuple(some), tuple(few), rollouts, schedule)
        for some in _parts(rates, together)
        for few in _parts(seeds, BATCH)
    ]


def _parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


# Values as JSON


def piece_to_dict(piece: Piece) -> dict[str, Any]:
    """The piece as plain JSON values."""
    values = json.loads(json.dumps(dataclasses.asdict(piece)))
    return {**values, "config": config_to_dict(piece.config)}


def config_to_dict(config: TaskConfig) -> dict[str, Any]:
    """The task as plain JSON values; its learner says of which type it is."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    values["learner"]["type"] = type(config.learner).__name__
    return values


def piece_from_dict(values: Mapping[str, Any]) -> Piece:
    """The piece that `piece_to_dict` wrote."""
    hint = typing.get_type_hints(TaskConfig)["learner"]
    learners = {learner.__name__: learner for learner in typing.get_args(hint) or (hint,)}
    settings = _tuples(values["config"]["learner"])
    learner = learners[settings.pop("type")](**settings)
    config = TaskConfig(**{**_tuples(values["config"]), "learner": learner})
    method = Method(**values["method"])
    return Piece(**{**_tuples(values), "config": config, "method": method})


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}


# Addresses


def piece_address(piece: Piece) -> str:
    """Where the piece's curves are kept: a hash of what it asks for and of the code that runs."""
    library, colon, _ = piece.config.environment.partition(":")
    packages = ["jax", "jaxlib", "optax", "equinox", *[library] * bool(colon)]
    versions = {name: _version(name) for name in packages}
    code = _code(learned=piece.method.weights is not None)
    text = json.dumps([piece_to_dict(piece), versions, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


_version = cache(metadata.version)


@cache
def _code(*, learned: bool) -> str:
    """A hash of the modules that can change a run: a classical one knows nothing of the rule."""
    package = resources.files("optim4rl")
    files = [package / "evaluation" / name for name in ("curves.py", "learning.py")]
    floors = ["tasks", "tasks/environments", "tasks/kernels", "cpp"]
    if learned:
        floors += ["optimizers", "optimizers/kernels"]
    else:
        files.append(package / "optimizers" / "presets.py")
    for floor in floors:
        files += sorted(package.joinpath(*floor.split("/")).iterdir(), key=lambda file: file.name)
    digest = hashlib.sha256()
    for file in files:
        if file.name.endswith((".py", ".cc", ".h")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


# What is kept


def keep_weights(folder: Path, optimizer: LearnedOptimizer) -> str:
    """Put a learned optimizer's weights where workers find them, under their content's address."""
    address = weights_address(optimizer)
    path = _weights_path(folder, address)
    if not path.is_file():
        save_weights(path, optimizer)
    return address


def weights_address(optimizer: LearnedOptimizer) -> str:
    """A hash of the rule and its weights."""
    digest = hashlib.sha256(json.dumps(spec_to_dict(optimizer.spec), sort_keys=True).encode())
    for network, tensors in sorted(optimizer.meta_parameters.items()):
        for name, x in sorted(tensors.items()):
            digest.update(f"{network}.{name}".encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:24]


def _weights_path(folder: Path, address: str) -> Path:
    return folder / "weights" / f"{address}.safetensors"


def files_of(piece: Piece) -> tuple[str, ...]:
    """The files that the piece is run with, as paths below the folder."""
    weights = piece.method.weights
    return () if weights is None else (_weights_path(Path(), weights).as_posix(),)


def _piece_path(folder: Path, piece: Piece) -> Path:
    return folder / "pieces" / f"{piece_address(piece)}.safetensors"


def is_done(folder: Path, piece: Piece) -> bool:
    """Whether the piece's curves are there."""
    return _piece_path(folder, piece).is_file()


def put_curves(folder: Path, piece: Piece, curves: Sequence[Curves]) -> None:
    """Keep a piece's curves, atomically, beside what was asked."""
    arrays: dict[str, np.ndarray] = {}
    for index, each in enumerate(curves):
        arrays |= pack_curves(f"{index}", each)
    write_result(_piece_path(folder, piece), piece_to_dict(piece), CellResult(arrays, {}))


def get_curves(folder: Path, piece: Piece) -> tuple[Curves, ...]:
    """A finished piece's curves, one for each rate.

    Raises:
        StoreError: the file is missing or damaged; deleting it makes the command run it again.
    """
    arrays = read_result(_piece_path(folder, piece), piece_to_dict(piece)).arrays
    return tuple(unpack_curves(f"{index}", arrays) for index in range(len(piece.rates)))


# The work


def run_piece(folder: Path, piece: Piece) -> tuple[Curves, ...]:
    """Make a piece's runs: curves for each rate. The weights are in the folder."""
    task = make_task(piece.config)
    family, parameters = _family(folder, piece.method, piece.schedule * task.updates_per_rollout)
    return learning_curves(
        task,
        family,
        parameters,
        rates=piece.rates,
        seeds=piece.seeds,
        updates=piece.rollouts,
    )


def _family(folder: Path, method: Method, updates: int) -> tuple[Family, MetaParameters | None]:
    if method.optimizer is not None:
        return Classical(method.optimizer, updates if method.decay else None), None
    path = _weights_path(folder, str(method.weights))
    learned = load_weights(path)
    if weights_address(learned) != method.weights:
        raise StoreError(f"{path}: other weights than its name says; delete it and start again")
    return Learned(learned.spec), learned.meta_parameters
