"""A recipe: the rule to meta-train, its tasks and settings. Only building a recipe needs JAX."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, check_fields
from optim4rl.meta.config import Augmentation, EstimatorName, MetaConfig
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.tasks import A2CConfig, MapOrder, PPOConfig, TaskConfig, default_config
from optim4rl.tasks.config import Activation

if TYPE_CHECKING:
    from optim4rl.meta.estimators import MetaTask
    from optim4rl.optimizers.rule import MetaParameters

LearnerName = Literal["a2c", "ppo"]
Observations = Literal["raw", "normalised"]
_LEARNERS: dict[LearnerName, type[A2CConfig] | type[PPOConfig]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
}


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the weights of a meta-training.

    Attributes:
        optimizer: learned optimizer to train; `optim4rl list optimizers` names them.
        tasks: tasks to train on at the same time; `optim4rl list tasks` names them.
        learning_rate: inner learning rate alpha of each task; one value serves all.
        step_scale: multiplies alpha of each task; one value serves all.
        windows: K of each task. Default: --inner-updates.
        estimators: estimator of each task's meta-gradient. Default: --estimator.
        populations: agents M of each task. Default: --agents.
        learners: learner of each task, "a2c" or "ppo" with its usual settings. Default: the task's
            own.
        num_envs: environments of an agent in each task. Default: --envs-per-agent.
        horizons: steps of a rollout in each task, in every environment. Default: the learner's own.
        minibatches: minibatches of each task's PPO. Default: the task's own. A2C has 1.
        epochs: epochs of each task's PPO. Default: the task's own. A2C has 1.
        layers: hidden layers of policy and value in each task with separate networks (`mlp`), such
            as 64-64. Default: the task's own.
        activations: activation of each task with separate networks. Default: the task's own.
        observations: observations of each task, "raw" or "normalised" by each agent. Default: the
            task's own.
        value_weight: weight of the squared error of values in every learner's loss, and so in the
            meta-objective. Default: the learners' own.
        reward_scale: multiplies each task's usual rewards; one value serves all.
        normalise_rewards: each agent scales its rewards by those that it has seen.
        width: units of the agents' dense layer; 0 takes each task's own network. With several
            values every fresh agent draws one. Separate networks (`mlp`) do not change.
        maps: order of the observation's maps in a convolution. Default: the task's own. "rows" on a
            grid world is the paper's release.
        envs_per_agent: environments of each agent.
        clip: elementwise gradient clip of the rule; 0: none, as on Catch in the paper.
        zero_head: whether the rule's heads start at zero. Default: the optimizer's own choice.
        start: weights to start from, a shipped name or a file; "": fresh ones. The options must
            describe the same rule.
        augmentation: random rescaling of the tasks, drawn for every life of an agent.
        meta: the meta-training itself.
    """

    optimizer: str = "anchored"
    tasks: tuple[str, ...] = ("catch",)
    learning_rate: tuple[float, ...] = (1e-2,)
    step_scale: tuple[float, ...] = (1.0,)
    windows: tuple[int, ...] = ()
    estimators: tuple[EstimatorName, ...] = ()
    populations: tuple[int, ...] = ()
    learners: tuple[LearnerName, ...] = ()
    num_envs: tuple[int, ...] = ()
    horizons: tuple[int, ...] = ()
    minibatches: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    activations: tuple[Activation, ...] = ()
    observations: tuple[Observations, ...] = ()
    value_weight: float | None = None
    reward_scale: tuple[float, ...] = (1.0,)
    normalise_rewards: bool = False
    width: tuple[int, ...] = (32,)
    maps: MapOrder | None = None
    envs_per_agent: int = 64
    clip: float = 0.0
    zero_head: bool | None = None
    start: str = ""
    augmentation: Augmentation = Augmentation()
    meta: MetaConfig = MetaConfig()


def per_task(name: str, values: tuple[float, ...], tasks: tuple[str, ...]) -> tuple[float, ...]:
    """Return one value for each task, from one value for all or one for each.

    Raises:
        ValueError: there is neither one value nor one for each task, or a value is not positive.
    """
    if len(values) not in (1, len(tasks)) or any(not 0 < x < float("inf") for x in values):
        several = f", or {len(tasks)}, one for each task" if len(tasks) > 1 else ""
        raise ValueError(f"{name} = {values!r}: give one positive number{several}")
    return values * (len(tasks) // len(values))


def build(recipe: Recipe) -> tuple[OptimizerSpec, "tuple[MetaTask, ...]"]:
    """Return the rule and the tasks that a recipe describes.

    Raises:
        ValueError: a field is wrong; the message names it.
    """
    from optim4rl.meta.augmentation import augment
    from optim4rl.meta.estimators import MetaTask
    from optim4rl.tasks import make_task

    configs = task_configs(recipe)
    usual = learned_spec(recipe.optimizer)
    zero_head = usual.zero_head if recipe.zero_head is None else recipe.zero_head
    spec = dataclasses.replace(usual, clip=recipe.clip or None, zero_head=zero_head)
    rates = per_task("learning_rate", recipe.learning_rate, recipe.tasks)
    scales = per_task("step_scale", recipe.step_scale, recipe.tasks)
    tasks = []
    for config, rate, scale, its in zip(configs, rates, scales, _own_settings(recipe), strict=True):
        task = augment(make_task(config), recipe.augmentation)
        of_meta_task = (its["windows"], its["estimators"], its["populations"])
        tasks.append(MetaTask(task, rate * scale, *of_meta_task))
    return spec, tuple(tasks)


def task_configs(recipe: Recipe) -> tuple[TaskConfig, ...]:
    """Return the config of each task of a recipe.

    Raises:
        ValueError: a field is wrong; the message names it.
    """
    check_fields(
        recipe,
        width=COUNT_OR_ZERO,
        envs_per_agent=COUNT,
        num_envs=COUNT,
        horizons=COUNT,
        clip=NOT_NEGATIVE,
        minibatches=COUNT,
        epochs=COUNT,
        value_weight=NOT_NEGATIVE,
    )
    if not recipe.width:
        raise ValueError("width = (): at least one width is needed, or 0 for the paper's network")
    if not recipe.tasks:
        raise ValueError("tasks = (): at least one task is needed")
    if (number := recipe.meta.tasks_per_iteration or 1) > len(recipe.tasks):
        raise ValueError(f"tasks_per_iteration = {number}: there are {len(recipe.tasks)} tasks")
    usual = [default_config(name) for name in recipe.tasks]
    if not any(config.torso == "mlp" for config in usual):
        for field in ("layers", "activations"):
            if given := getattr(recipe, field):
                raise ValueError(f"{field} = {given!r}: no task has separate networks (mlp)")
    rewards = per_task("reward_scale", recipe.reward_scale, recipe.tasks)
    return tuple(
        _task_config(recipe, *each)
        for each in zip(usual, rewards, _own_settings(recipe), strict=True)
    )


def _task_config(
    recipe: Recipe, usual: TaskConfig, reward: float, its: dict[str, Any]
) -> TaskConfig:
    """Return a task's usual config with the recipe's settings and the task's own.

    Raises:
        ValueError: a setting does not fit the task; the message names it.
    """
    learner = _learner(usual.learner, its, recipe.value_weight)
    observations = its["observations"]
    config = dataclasses.replace(
        usual,
        num_envs=its["num_envs"] or recipe.envs_per_agent,
        maps=recipe.maps or usual.maps,
        learner=dataclasses.replace(learner, reward_scale=reward * learner.reward_scale),
        normalise_rewards=recipe.normalise_rewards or usual.normalise_rewards,
        normalise_observations=usual.normalise_observations
        if observations is None
        else observations == "normalised",
    )
    if usual.torso == "mlp":
        layers = _layers(its["layers"]) if its["layers"] else None
        return dataclasses.replace(
            config,
            policy_layers=layers or usual.policy_layers,
            value_layers=layers or usual.value_layers,
            activation=its["activations"] or usual.activation,
        )
    if recipe.width == (0,):
        return config
    # A narrow dense network trains the rule as well as the paper's convolution.
    width = recipe.width if len(recipe.width) > 1 else recipe.width[0]
    return dataclasses.replace(config, width=width, torso="dense")


def _layers(text: str) -> tuple[int, ...]:
    """Read hidden layers, such as "64-64".

    Raises:
        ValueError: the text has another form.
    """
    sizes = text.split("-")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"layers = {text!r}: give the units of each layer, such as 64-64")
    return tuple(map(int, sizes))


def _learner(
    learner: A2CConfig | PPOConfig, its: dict[str, Any], value_weight: float | None
) -> A2CConfig | PPOConfig:
    """Return a task's usual learner, or the named learner if its kind differs, with its settings.

    Raises:
        ValueError: minibatches or epochs are given for A2C.
    """
    name = its["learners"]
    if name is not None and not isinstance(learner, _LEARNERS[name]):
        learner = _LEARNERS[name](reward_scale=learner.reward_scale)
    learner = dataclasses.replace(learner, rollout=its["horizons"] or learner.rollout)
    for field in ("minibatches", "epochs"):
        value = its[field]
        if isinstance(learner, PPOConfig):
            learner = dataclasses.replace(learner, **{field: value or getattr(learner, field)})
        elif value not in (None, 1):
            raise ValueError(f"{field} = {value!r}: A2C has 1; give the task the learner ppo")
    if value_weight is None:
        return learner
    return dataclasses.replace(learner, value_weight=value_weight)


_OF_EACH_TASK = (
    *("windows", "estimators", "populations", "learners", "num_envs", "horizons"),
    *("minibatches", "epochs", "layers", "activations", "observations"),
)


def _own_settings(recipe: Recipe) -> list[dict[str, Any]]:
    """Return each task's own settings beside its rate, by the recipe's fields; None: not given.

    Raises:
        ValueError: the number of values is neither 0 nor the number of tasks.
    """
    number = len(recipe.tasks)
    given = {name: getattr(recipe, name) for name in _OF_EACH_TASK}
    for name, values in given.items():
        if values and len(values) != number:
            raise ValueError(f"{name} = {values!r}: {number} are needed, one for each task")
    return [{name: x[i] if x else None for name, x in given.items()} for i in range(number)]


def starting_weights(recipe: Recipe, spec: OptimizerSpec) -> "MetaParameters | None":
    """Return the meta-parameters that `--start` names.

    Raises:
        ValueError: there are no such weights, or they have another rule; the message names the
            differences.
    """
    from optim4rl.optimizers.weights import load_weights

    if not recipe.start:
        return None
    weights = load_weights(recipe.start)
    # Settings that decide only fresh weights may differ.
    there = dataclasses.replace(weights.spec, zero_head=spec.zero_head)
    names = [field.name for field in dataclasses.fields(spec)]
    values = [(name, getattr(there, name), getattr(spec, name)) for name in names]
    differing = [f"{name} is {a!r} there and {b!r} here" for name, a, b in values if a != b]
    if differing:
        raise ValueError(f"start = {recipe.start!r}: another rule: {'; '.join(differing)}")
    return weights.meta_parameters


# Fields that checkpoints of version 0.1.0 lack. They mean the defaults there.
_LATER = {
    *("epochs", "layers", "activations", "num_envs", "horizons", "rescale_initial"),
    *("fitness", "final_share", "tasks_per_iteration"),
}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return all settings that decide the result, as JSON values.

    Fields that version 0.1.0 lacks are left out if they have their defaults.
    """

    def told(values: dict[str, Any], default: Any) -> dict[str, Any]:
        return {x: v for x, v in values.items() if x not in _LATER or v != getattr(default, x)}

    settings = told(dataclasses.asdict(recipe), Recipe())
    settings["meta"] = told(settings["meta"], MetaConfig())
    settings["augmentation"] = told(settings["augmentation"], Augmentation())
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found
