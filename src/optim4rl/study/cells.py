"""The jobs of a study besides evaluation: meta-trainings, and the identity experiment."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optim4rl.benchmark.contender import Maker, keep_weights
from optim4rl.fields import from_json, to_json
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.store import get_result, kept
from optim4rl.meta.resumable import train_resumably
from optim4rl.meta.trainer import MetaConfig, MetaDivergenceError, MetaTask, init
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.optimizers.weights import LearnedOptimizer, flatten, unflatten
from optim4rl.study import identity
from optim4rl.study.experiment import describe_change
from optim4rl.study.settings import IdentityScale, TrainingSettings
from optim4rl.study.variant import REFERENCE, Variant, variant_spec, variant_training
from optim4rl.tasks import Task, default_config, make_task

IDENTITY_SCALES: dict[IdentityScale, identity.IdentityConfig] = {
    "smoke": identity.SMOKE,
    "quick": identity.QUICK,
    "paper": identity.PAPER,
}
# The identity experiment records gradients on the paper's task at the paper's scale, and on a
# smaller version of the task at the other scales.
IDENTITY_TASKS: dict[IdentityScale, str] = {
    "smoke": "small_dense_short/free",
    "quick": "small_dense_long/free",
    "paper": "big_dense_long",
}


@dataclass(frozen=True)
class Training:
    """Meta-train a variant once.

    Attributes:
        environment: the task, by name.
        variant: the variant to train.
        training: the study's meta-training settings; the variant replaces some of them.
        evaluation_width: units of the agents' dense layer in evaluation.
        meta_learning_rate: learning rate of the meta-optimizer.
        meta_seed: seed of all random numbers.
        trained: False keeps the fresh weights, for the untrained control.
    """

    environment: str
    variant: Variant
    training: TrainingSettings
    evaluation_width: int
    meta_learning_rate: float
    meta_seed: int
    trained: bool = True

    @property
    def spec(self) -> OptimizerSpec:
        """Return the rule. Gradients are not clipped on Catch, as in the paper."""
        return variant_spec(self.variant, clip=None if self.environment == "catch" else 1.0)

    @property
    def settings(self) -> TrainingSettings:
        """Return the study's meta-training settings with the variant's replacements."""
        return variant_training(self.variant, self.training, self.evaluation_width)

    @property
    def config(self) -> MetaConfig:
        """Return the configuration of the meta-training."""
        training = self.settings
        return MetaConfig(
            iterations=training.iterations,
            agents=training.agents,
            inner_updates=training.inner_updates,
            resets=self.variant.resets,
            reset_interval=training.reset_interval,
            validation=self.variant.validation,
            meta_learning_rate=self.meta_learning_rate,
            meta_clip=training.meta_clip,
            seed=self.meta_seed,
        )


def training_job(training: Training) -> Job:
    """Return the job that runs the meta-training."""
    default = "reference" if training.trained else "untrained"
    change = describe_change(training.variant, REFERENCE) or default
    return Job(
        function="optim4rl.study.cells:meta_train",
        arguments=to_json(training),
        what=f"meta-training: {change}, meta-seed {training.meta_seed}",
        program=dataclasses.replace(training, meta_seed=0, meta_learning_rate=1.0),
        kind="meta-training" if training.trained else "fresh weights",
        work=3.0 if training.trained else 0.1,
    )


def identity_job(scale: IdentityScale) -> Job:
    """Return the job that runs the identity experiment."""
    return Job(
        "optim4rl.study.cells:run_identity",
        {"scale": scale},
        "identity experiment",
        kind="identity",
        work=25.0,
    )


def meta_train(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Meta-train, and return the weights and the norm of the meta-gradient by iteration.

    The same training gives the same arrays, bit for bit, on one machine. A long one saves
    checkpoints below the folder, and goes on from them. A training that diverges returns no arrays,
    and its info has the key "failure".
    """
    training: Training = from_json(Training, arguments)
    spec, config = training.spec, training.config
    tasks = training_tasks(training.environment, training.settings)
    if training.trained:
        path = folder / "checkpoints" / f"{training_job(training).address}.safetensors"
        try:
            weights, norms = train_resumably(spec, tasks, config, path, to_json(training))
        except MetaDivergenceError as error:
            return Result({}, {"failure": str(error)})
    else:
        weights, norms = init(spec, tasks, config).meta_parameters, np.zeros(0, np.float32)
    arrays = {name: np.asarray(x) for name, x in flatten(weights).items()}
    return Result({**arrays, "meta_gradient_norm": norms}, {})


def keep_member(folder: Path, training: Training) -> Maker:
    """Put the weights of a finished meta-training into the folder, where workers find them.

    The training must not have diverged.

    Raises:
        StoreError: the training is not finished, or its result is damaged.
    """
    arrays = dict(get_result(folder, training_job(training)).arrays)
    del arrays["meta_gradient_norm"]
    optimizer = LearnedOptimizer(training.spec, unflatten(arrays), training.training.learning_rate)
    return Maker(weights=keep_weights(folder, optimizer))


def training_tasks(environment: str, training: TrainingSettings) -> tuple[MetaTask, ...]:
    """Return the tasks that a study meta-trains on."""
    config = dataclasses.replace(
        default_config(environment), width=training.width, num_envs=training.envs_per_agent
    )
    return (MetaTask(make_task(config), training.learning_rate),)


def does_the_same(one: Training, other: Training) -> bool:
    """Return whether both meta-train the same rule in the same way, whatever their names."""
    return _what_counts(one) == _what_counts(other)


def _what_counts(training: Training) -> tuple[OptimizerSpec, MetaConfig, TrainingSettings]:
    """Return all that decides a training, without a width that the agents' networks ignore."""
    settings = training.settings
    if default_config(training.environment).torso == "mlp":
        settings = dataclasses.replace(settings, width=TrainingSettings.width)
    return training.spec, training.config, settings


def run_identity(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Run the identity experiment at a scale; the result is in the info.

    A stop costs one network: recordings and the rows of finished networks are kept below the
    folder.
    """
    name, config = IDENTITY_TASKS[arguments["scale"]], IDENTITY_SCALES[arguments["scale"]]
    keep = keep_parts(folder / "identity.parts")
    result = identity.identity_experiment(identity_task(name, config), name, config, keep)
    return Result({}, {"identity": identity.to_json(result)})


def identity_task(name: str, config: identity.IdentityConfig) -> Task:
    """Return the task whose gradients the identity experiment records."""
    usual = default_config(name)
    return make_task(dataclasses.replace(usual, num_envs=config.num_envs or usual.num_envs))


def keep_parts(folder: Path | None) -> identity.Keep:
    """Return a function that keeps the parts of the experiment in a folder; None: nowhere."""

    def keep(question: Mapping[str, Any], make: Callable[[], Result]) -> Result:
        return kept(folder, Job("optim4rl.study.cells:run_identity", question), make)

    return keep
