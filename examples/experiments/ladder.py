"""A ladder from Muon's step to a learned optimizer: what is each learned part worth?

Every rung learns one part more than the rung below it. All are meta-trained by evolution strategies
with the same budget, and judged on tasks that they were not trained on. The plan is
`plans/ladder.md`. A training takes about an hour of one core. It leaves checkpoints below `FOLDER`
and goes on from them. It also leaves its weights after every chunk, for `optim4rl.load` and
`optim4rl evaluate`, and the agents' returns by iteration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optim4rl.cli.progress_log import ProgressLog, task_labels
from optim4rl.evaluation.learning import Accompanied, Classical, Family, Learned, train_runs
from optim4rl.meta.checkpoint import has_checkpoint, resume_checkpoint, save_checkpoint
from optim4rl.meta.config import MetaConfig
from optim4rl.meta.estimators import MetaTask
from optim4rl.meta.population import Execution
from optim4rl.meta.recipe import Recipe, build, settings_of
from optim4rl.meta.trainer import (
    MetaDivergenceError,
    MetaState,
    Progress,
    init,
    train as meta_train,
)
from optim4rl.optimizers.modulated import Modulated
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.rule import init_meta_parameters
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.optimizers.weights import LearnedOptimizer, flatten, save_weights, unflatten
from optim4rl.study import Choice, Component, Control, Divergence, Experiment, Metric

# The parts that each rung adds. Every rung knows a tensor's kind, layer and fan-in.
RUNGS: dict[str, tuple[str, ...]] = {
    "kinds": (),
    "training": ("training", "age"),
    "epochs": ("epochs",),
    "noise": ("noise", "size"),
    "directions": ("directions",),
}
CLASSICAL: dict[str, Family] = {"adam": Classical("adam", 1e-5), "muon": Classical("muon")}
ROLLOUTS = 64  # of a life on most tasks
AGENTS = 8  # that learn side by side in a run
FOLDER = Path("runs/ladder-checkpoints")

_PPO = replace(
    Recipe(),
    optimizer="modulated",
    envs_per_agent=16,
    normalise_rewards=True,
    meta=MetaConfig(
        iterations=60,
        agents=16,
        inner_updates=16 * ROLLOUTS,
        reset_interval=1,
        estimator="es",
        sigma=0.3,
        fitness="ranks",
        final_share=0.5,
        meta_learning_rate=0.03,
        cosine_to=0.1,
        meta_clip="running",
    ),
)
RECIPE = replace(
    _PPO,
    tasks=(
        "catch",
        "small_dense_long/free",
        "gymnax:CartPole-v1",
        "gymnax:CartPole-v1",
        "gymnax:Reacher-misc",
        "gymnax:Swimmer-misc",
    ),
    learners=("ppo",) * 6,
    minibatches=(4, 8, 4, 8, 8, 4),
    epochs=(4, 2, 4, 2, 2, 4),
    # Lives of many lengths: else a rule cannot tell its age from the share of training.
    windows=(512, 2048, 1024, 1536, 512, 1024),
    layers=("64-64", "64-64", "64-64", "32-32", "64-64", "32-32-32"),
    activations=("tanh", "tanh", "tanh", "relu", "tanh", "relu"),
    # Swimmer hardly learns from normalised observations (docs/tasks.md).
    observations=("raw", "raw", "raw", "raw", "normalised", "raw"),
    width=(32, 64),
)
# Not trained on here, and not in the suites that judge the result (`mixed`, `discobench`).
VALIDATION = replace(
    _PPO,
    tasks=("small_sparse_short/free", "gymnax:FourRooms-misc", "gymnax:PointRobot-misc"),
    learners=("ppo",) * 3,
    minibatches=(4, 4, 8),
    epochs=(4, 4, 2),
    layers=("64-64",) * 3,
    activations=("tanh",) * 3,
    width=(64,),
)


# The last task asks whether a rule serves lives longer than any that it was trained on.
LENGTHS = {
    "small_sparse_short/free": ROLLOUTS,
    "gymnax:FourRooms-misc": ROLLOUTS,
    "gymnax:PointRobot-misc": 4 * ROLLOUTS,
}


@dataclass(frozen=True)
class Settings:
    """What chooses the steps, and how large they are.

    Attributes:
        rung: the highest rung whose parts are learned; "adam" and "muon" learn nothing.
        rate: the learning rate, which falls to 0.
    """

    rung: str = "directions"
    rate: float = 1e-2


def make_spec(rung: str) -> OptimizerSpec:
    """Return the rule of a rung: it has the parts of this rung and of all rungs below."""
    names = list(RUNGS)
    learned = {part for name in names[: names.index(rung) + 1] for part in RUNGS[name]}
    parts = {part: part in learned for added in RUNGS.values() for part in added}
    return replace(learned_spec("modulated"), structure=Modulated(**parts))


def checkpoint_path(settings: Settings, meta_seed: int) -> Path:
    """Return where a training leaves its state: a folder for each version of the code.

    A study runs a copy of this file in a folder that is named after a hash of the file and of all
    code that it imports. So no training goes on from a state that other code has left.
    """
    return FOLDER / Path(__file__).parent.name / f"{settings.rung}-{meta_seed}.safetensors"


def train(settings: Settings, meta_seed: int) -> dict[str, Any]:
    """Meta-train a rung, and return its weights."""
    recipe = replace(RECIPE, meta=replace(RECIPE.meta, seed=meta_seed))
    spec, (_, tasks), execution = make_spec(settings.rung), build(recipe), Execution()
    path = checkpoint_path(settings, meta_seed)
    known = {"rung": settings.rung, "recipe": settings_of(recipe)}
    state = init(spec, tasks, recipe.meta, execution=execution)
    extent = None
    if has_checkpoint(path):
        resumed = resume_checkpoint(path, state, known, execution)
        state, extent = resumed.state, resumed.notes["log"]
    log = ProgressLog(path.with_suffix(".csv"), task_labels(recipe.tasks), extent)

    def keep(state: MetaState, progress: Progress) -> None:
        done = int(np.asarray(state.iteration))
        log.append(done + int(state.stopped) - len(progress.meta_gradient_norm), progress)
        optimizer = LearnedOptimizer(
            spec, state.meta_parameters, tasks[0].learning_rate, {**known, "seed": meta_seed}
        )
        save_weights(path.with_name(f"{path.stem}-after-{done}.weights.safetensors"), optimizer)
        save_checkpoint(path, state, known, {"log": log.extent})

    try:
        state, _ = meta_train(
            spec, tasks, recipe.meta, state=state, chunk=2, report=keep, execution=execution
        )
    except MetaDivergenceError as error:
        raise Divergence(str(error)) from error
    return {name: np.asarray(x) for name, x in flatten(state.meta_parameters).items()}


@cache
def validation_tasks() -> dict[str, MetaTask]:
    """Return the tasks of evaluation by name."""
    return dict(zip(VALIDATION.tasks, build(VALIDATION)[1], strict=True))


def measure(
    settings: Settings, seed: int, weights: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Return the mean return of the agents on every task, at `ROLLOUTS` points of their lives."""
    parameters: Any = None
    found = {}
    for name, each in validation_tasks().items():
        rollouts = LENGTHS[name]
        if settings.rung in CLASSICAL:
            updates = rollouts * each.task.updates_per_rollout
            family: Family = Accompanied(CLASSICAL[settings.rung], clip=0.5, decay_over=updates)
        else:  # These rules let their rate fall themselves.
            spec = make_spec(settings.rung)
            family = Learned(spec)
            fresh = init_meta_parameters(spec, jax.random.key(0))
            parameters = fresh if weights is None else unflatten(weights)
        runs = [(settings.rate, AGENTS * seed + index) for index in range(AGENTS)]
        curves = train_runs(each.task, family, parameters, runs, rollouts)
        found[name] = curves.returns.mean(axis=0).reshape(ROLLOUTS, -1).mean(axis=1)
    return found


# The mean return over training of a policy that never learns, and of Adam at the best of `RATES`.
# On this scale all tasks count alike. `python examples/experiments/ladder.py` measures them.
SCALE = {
    "small_sparse_short/free": (-0.0266, 0.308),  # at 0.01
    "gymnax:FourRooms-misc": (0.471, 0.816),  # at 0.001
    "gymnax:PointRobot-misc": (0.208, 0.915),  # at 0.01
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def run(
    settings: Settings, seed: int, weights: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Train agents on the tasks of evaluation."""
    curves = measure(settings, seed, weights)
    scores = [
        (x - SCALE[name][0]) / (SCALE[name][1] - SCALE[name][0]) for name, x in curves.items()
    ]
    return {"score": np.mean(scores, axis=0), **{short(name): x for name, x in curves.items()}}


def short(task: str) -> str:
    """Return a task's name as a key: "gymnax:FourRooms-misc" is FourRooms."""
    return task.removeprefix("gymnax:").split("-")[0].split("/")[0]


experiment = Experiment(
    name="ladder",
    about="Muon's step with learned gains for each tensor",
    reference=Settings(),
    components=(
        Component(
            "rung",
            ("learned parts", "learned part"),
            (
                Choice("kinds", ("gains of kinds alone", "gains of kinds")),
                Choice("training", ("up to the phase of training", "phase of training")),
                Choice("epochs", ("up to the phase of the rollout", "phase of the rollout")),
                Choice("noise", ("up to the noise ratios", "noise ratios")),
                Choice("directions", ("up to directions", "directions")),
            ),
            "A small network chooses each tensor's step from these parts.",
            defaults=("kinds", "training", "epochs", "noise"),
        ),
    ),
    metrics=(
        Metric("score", ("score", "return"), "Mean over tasks: 0 untrained policy, 1 tuned Adam."),
        *(
            Metric(short(name), (short(name).replace("_", " "),), "Mean return of an episode.")
            for name in VALIDATION.tasks
        ),
    ),
    default_metrics=("score",),
    run=run,
    train=train,
    grid={"rate": RATES},
    controls=(
        Control("untrained", "Untrained", Settings(), change="meta-training: no", trained=False),
        Control("muon", "Muon", Settings("muon"), "baseline", trained=False),
        Control("adam", "Adam", Settings("adam"), "baseline", trained=False),
    ),
    seeds=5,
    tuning_seeds=1,
    meta_seeds=3,
    task="three tasks of validation",
    steps="64ths of a life",
    seconds=4 * 3600.0,
)


def measure_scale() -> None:
    """Print the numbers of `SCALE`, measured with a seed that no study uses."""
    rows = {rate: measure(Settings("adam", rate), 100, None) for rate in (0.0, *RATES)}
    for name in VALIDATION.tasks:
        still, *others = (float(curves[name].mean()) for curves in rows.values())
        best = max(others)
        print(f'    "{name}": ({still:.3g}, {best:.3g}),  # at {RATES[others.index(best)]:g}')


if __name__ == "__main__":
    measure_scale()
