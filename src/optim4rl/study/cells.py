"""Cells: the independent pieces of work that a study is made of.

A cell is a value; its address is a hash of that value and of the code that computes it. So a cell
that is finished is never run twice, whoever asks for it, and no stale result is ever taken for a
fresh one.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import jax
import numpy as np

from optim4rl.evaluation import identity
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.learning import Classical, Family, Learned
from optim4rl.evaluation.protocol import Evaluation, EvaluationSettings, evaluate, tune
from optim4rl.evaluation.tuning import Tuning
from optim4rl.meta.trainer import MetaConfig, MetaDivergenceError, MetaTask, init, train
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.study.settings import IdentityScale, TrainingSettings
from optim4rl.study.variant import Variant, variant_spec, variant_training
from optim4rl.tasks import Task, TaskConfig, default_config, make_task

IDENTITY_SCALES: dict[IdentityScale, identity.IdentityConfig] = {
    "smoke": identity.SMOKE,
    "quick": identity.QUICK,
    "paper": identity.PAPER,
}
# The identity experiment's gradients come from the paper's task at its scale, from its small
# sister below.
IDENTITY_TASKS: dict[IdentityScale, str] = {
    "smoke": "small_dense_short/free",
    "quick": "small_dense_long/free",
    "paper": "big_dense_long",
}


@dataclass(frozen=True)
class LearnedCell:
    """Meta-train a variant once and evaluate it.

    Attributes:
        purpose: "report" evaluates at a tuned step scale and under stress; "tune" only scores the
            meta-learning rate on the tuning seeds.
        trained: False leaves the fresh weights as they are: the untrained control.
    """

    environment: str
    variant: Variant
    training: TrainingSettings
    evaluation: EvaluationSettings
    meta_learning_rate: float
    meta_seed: int
    purpose: Literal["report", "tune"] = "report"
    trained: bool = True
    kind: Literal["learned"] = "learned"


@dataclass(frozen=True)
class ClassicalCell:
    """Tune a classical optimizer and evaluate it."""

    environment: str
    name: str
    evaluation: EvaluationSettings
    kind: Literal["classical"] = "classical"


@dataclass(frozen=True)
class IdentityCell:
    """The identity experiment."""

    scale: IdentityScale
    kind: Literal["identity"] = "identity"


Cell = LearnedCell | ClassicalCell | IdentityCell


@dataclass(frozen=True)
class CellResult:
    """What a cell found.

    Attributes:
        arrays: named numbers.
        info: JSON values; "seconds" always, "failure" where meta-training diverged.
    """

    arrays: Mapping[str, np.ndarray]
    info: Mapping[str, Any]


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """The cell as plain JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(cell)))
    return values


def cell_from_dict(values: Mapping[str, Any]) -> Cell:
    """The cell that `cell_to_dict` wrote."""
    fields = dict(values)
    if "evaluation" in fields:
        evaluation: dict[str, Any] = {
            key: tuple(x) if isinstance(x, list) else x for key, x in fields["evaluation"].items()
        }
        fields["evaluation"] = EvaluationSettings(**evaluation)
    if "training" in fields:
        fields["training"] = TrainingSettings(**fields["training"])
    if "variant" in fields:
        fields["variant"] = Variant(**fields["variant"])
    kinds: dict[str, type[Cell]] = {
        "learned": LearnedCell,
        "classical": ClassicalCell,
        "identity": IdentityCell,
    }
    return kinds[fields["kind"]](**fields)


def cell_address(cell: Cell) -> str:
    """Where the cell's result is kept: a hash of what it asks for and of the code that answers."""
    text = json.dumps([cell_to_dict(cell), code_hash()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def code_hash() -> str:
    """A hash of every module, and of JAX's version, that can change a cell's result."""
    digest = hashlib.sha256(f"jax {jax.__version__}".encode())
    package = resources.files("optim4rl")
    floors = (
        "cpp",
        "optimizers",
        "optimizers/kernels",
        "tasks",
        "tasks/environments",
        "tasks/kernels",
        "meta",
        "evaluation",
    )
    for floor in floors:
        folder = package.joinpath(*floor.split("/"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith((".py", ".cc", ".h")):
                digest.update(file.read_bytes())
    for name in ("cells.py", "variant.py"):
        digest.update((package / "study" / name).read_bytes())
    return digest.hexdigest()


def run_cell(cell: Cell) -> CellResult:
    """Do a cell's work. The same cell gives the same arrays, bit for bit, on one machine."""
    started = time.perf_counter()
    if isinstance(cell, LearnedCell):
        result = _run_learned(cell)
    elif isinstance(cell, ClassicalCell):
        task = evaluation_task(cell.environment, cell.evaluation)
        rates = cell.evaluation.classical_rates
        result = _evaluate(task, Classical(cell.name), None, rates, cell.evaluation)
    else:
        result = _run_identity(cell)
    return CellResult(result.arrays, {**result.info, "seconds": time.perf_counter() - started})


def training_of(cell: LearnedCell) -> TrainingSettings:
    """The meta-training of a cell: the study's, but for what its variant replaces there."""
    return variant_training(cell.variant, cell.training, cell.evaluation.width)


def training_tasks(environment: str, training: TrainingSettings) -> tuple[MetaTask, ...]:
    """The task that a study meta-trains on."""
    config = dataclasses.replace(
        default_config(environment), width=training.width, num_envs=training.envs_per_agent
    )
    return (MetaTask(make_task(config), training.learning_rate),)


def evaluation_task(environment: str, evaluation: EvaluationSettings) -> Task:
    """The task that a study evaluates on."""
    config: TaskConfig = dataclasses.replace(
        default_config(environment), width=evaluation.width, num_envs=evaluation.num_envs
    )
    return make_task(config)


def learned_spec_for(cell: LearnedCell) -> OptimizerSpec:
    """The rule of a cell; as in the paper, gradients are not clipped on Catch."""
    return variant_spec(cell.variant, clip=None if cell.environment == "catch" else 1.0)


def meta_config(cell: LearnedCell) -> MetaConfig:
    """How a cell meta-trains."""
    training = training_of(cell)
    return MetaConfig(
        iterations=training.iterations,
        agents=training.agents,
        inner_updates=training.inner_updates,
        resets=cell.variant.resets,
        reset_interval=training.reset_interval,
        validation=cell.variant.validation,
        meta_learning_rate=cell.meta_learning_rate,
        meta_clip=training.meta_clip,
        seed=cell.meta_seed,
    )


def does_the_same(cell: LearnedCell, other: LearnedCell) -> bool:
    """Whether two cells meta-train one rule in one way, whatever their variants are called."""
    reads = (learned_spec_for, meta_config, _training_that_counts)
    return all(read(cell) == read(other) for read in reads)


def _training_that_counts(cell: LearnedCell) -> TrainingSettings:
    """Without the width, where the agents have networks of their own that know none."""
    training = training_of(cell)
    if default_config(cell.environment).torso == "mlp":
        return dataclasses.replace(training, width=TrainingSettings.width)
    return training


def _run_learned(cell: LearnedCell) -> CellResult:
    spec, config = learned_spec_for(cell), meta_config(cell)
    tasks = training_tasks(cell.environment, training_of(cell))
    state = init(spec, tasks, config)
    norms = np.zeros(0, np.float32)
    if cell.trained:
        try:
            state, progress = train(spec, tasks, config, state=state, chunk=config.iterations)
            norms = np.asarray(progress.meta_gradient_norm) if progress else norms
        except MetaDivergenceError as error:
            return CellResult({}, {"failure": str(error)})
    task = evaluation_task(cell.environment, cell.evaluation)
    rates = [cell.training.learning_rate * scale for scale in cell.evaluation.step_scales]
    judge = _score if cell.purpose == "tune" else _evaluate
    result = judge(task, Learned(spec), state.meta_parameters, rates, cell.evaluation)
    weights = {
        f"weights/{network}.{name}": np.asarray(x)
        for network, tensors in state.meta_parameters.items()
        for name, x in tensors.items()
    }
    arrays = {**result.arrays, **weights, "meta_gradient_norm": norms}
    return CellResult(arrays, result.info)


def _evaluate(
    task: Task,
    family: Family,
    parameters: MetaParameters | None,
    rates: Sequence[float],
    settings: EvaluationSettings,
) -> CellResult:
    return pack_evaluation(evaluate(task, family, parameters, rates, settings))


def _score(
    task: Task,
    family: Family,
    parameters: MetaParameters | None,
    rates: Sequence[float],
    settings: EvaluationSettings,
) -> CellResult:
    return CellResult({}, _tuning_info(tune(task, family, parameters, rates, settings)))


def _tuning_info(tuning: Tuning) -> dict[str, Any]:
    scores = [score if np.isfinite(score) else None for score in tuning.scores]
    return {
        "rate": tuning.rate,
        "rates": list(tuning.rates),
        "scores": scores,
        "at_edge": tuning.at_edge,
    }


def pack_evaluation(evaluation: Evaluation) -> CellResult:
    """An evaluation as named arrays and JSON values."""
    arrays = pack_curves("curves", evaluation.curves)
    for scale, runs in evaluation.stress.items():
        arrays |= pack_curves(f"stress/{scale:g}", runs)
    return CellResult(arrays, _tuning_info(evaluation.tuning))


def unpack_evaluation(result: CellResult, settings: EvaluationSettings) -> Evaluation:
    """The evaluation that `pack_evaluation` packed, made with those settings."""
    info = result.info
    scores = tuple(-np.inf if score is None else score for score in info["scores"])
    return Evaluation(
        Tuning(info["rate"], tuple(info["rates"]), scores),
        unpack_curves("curves", result.arrays),
        {
            scale: unpack_curves(f"stress/{scale:g}", result.arrays)
            for scale in settings.stress_scales
        },
    )


def pack_curves(prefix: str, curves: Curves) -> dict[str, np.ndarray]:
    """Curves as named arrays."""
    return {
        f"{prefix}/returns": curves.returns,
        f"{prefix}/diverged_at": curves.diverged_at,
        f"{prefix}/env_steps": curves.env_steps,
    }


def unpack_curves(prefix: str, arrays: Mapping[str, np.ndarray]) -> Curves:
    """The curves that `pack_curves` named."""
    return Curves(
        arrays[f"{prefix}/returns"],
        arrays[f"{prefix}/diverged_at"],
        arrays[f"{prefix}/env_steps"],
    )


def _run_identity(cell: IdentityCell) -> CellResult:
    name = IDENTITY_TASKS[cell.scale]
    result = identity.identity_experiment(
        make_task(default_config(name)), name, IDENTITY_SCALES[cell.scale]
    )
    values = json.dumps(dataclasses.asdict(result), default=lambda array: array.tolist())
    return CellResult({}, {"identity": json.loads(values)})


def pack_identity_rows(rows: Sequence[identity.IdentityRow]) -> CellResult:
    """Rows of the identity experiment as JSON values."""
    values = [dataclasses.asdict(row) for row in rows]
    return CellResult(
        {}, {"rows": json.loads(json.dumps(values, default=lambda array: array.tolist()))}
    )


def unpack_identity_rows(result: CellResult) -> tuple[identity.IdentityRow, ...]:
    """The rows that `pack_identity_rows` packed, or those of a whole result."""
    return tuple(
        identity.IdentityRow(
            **{
                **row,
                "curve": np.asarray(row["curve"], np.float64),
                "by_decade": {int(decade): share for decade, share in row["by_decade"].items()},
                "spread": {name: tuple(ends) for name, ends in row["spread"].items()},
            }
        )
        for row in result.info["rows"]
    )


def unpack_identity(values: Mapping[str, Any]) -> identity.IdentityResult:
    """The identity experiment's result from a cell's info."""
    rows = unpack_identity_rows(CellResult({}, values))
    histograms = tuple(
        identity.Histogram(
            **{
                **histogram,
                "edges": np.asarray(histogram["edges"], np.float64),
                "share": np.asarray(histogram["share"], np.float64),
            }
        )
        for histogram in values["histograms"]
    )
    return identity.IdentityResult(values["task"], rows, histograms, values["settings"])
