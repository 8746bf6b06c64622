"""The paper's experiments at its own scale (Lan et al. 2024, sections 5 and 6).

An arm is a recipe: a rule and its meta-training. Every arm is meta-trained at each setting of a
grid on a tuning meta-seed, and at the best setting on the reported meta-seeds. From then on it is a
contender like any other. It runs once with its trained step, as in the paper, and once with its
step tuned. Its untrained rule is its control.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product, starmap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optim4rl.benchmark.contender import Contender, Maker, baseline, keep_weights
from optim4rl.benchmark.loop import (
    Benchmark,
    Results,
    expected_jobs,
    read,
    run_stages,
    scoring_runs,
)
from optim4rl.benchmark.protocol import Protocol, require_grid
from optim4rl.benchmark.runs import job, read_batches
from optim4rl.benchmark.suites import task_suite
from optim4rl.evaluation.learning import BATCH
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.fields import COUNT, POSITIVE, check_fields, from_json, to_json
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.pool import Stages
from optim4rl.jobs.pools import Workers, open_pool
from optim4rl.jobs.store import get_result
from optim4rl.meta.memory import available_bytes, choose_chunk
from optim4rl.meta.population import Execution
from optim4rl.meta.recipe import Recipe, build
from optim4rl.meta.resumable import train_resumably
from optim4rl.meta.trainer import MetaDivergenceError, init
from optim4rl.optimizers.weights import LearnedOptimizer, flatten, unflatten
from optim4rl.study.experiment import META_SEEDS, TUNING_META_SEED

# The paper's grid for Adam and RMSProp, and the optimizers that the paper compares.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CLASSICAL = ("adam", "rmsprop")
# The seeds of evaluation. Runs of this length have no stress test.
PROTOCOL = Protocol(seeds=10, tuning_seeds=4, stress_scales=(1.0,), stress_seeds=1)
TUNED_STEP = ", step tuned"


@dataclass(frozen=True)
class Arm:
    """A rule and its meta-training.

    Attributes:
        name: name in tables.
        recipe: rule, task and settings; its seed, meta-learning rate and reset interval are set.
        meta_seeds: number of reported meta-trainings.
        control: whether the untrained rule runs as well.
    """

    name: str
    recipe: Recipe
    meta_seeds: int
    control: bool = True

    def __post_init__(self) -> None:
        check_fields(self, meta_seeds=META_SEEDS)


@dataclass(frozen=True)
class Setting:
    """A point of the grid on which an arm is meta-trained."""

    meta_learning_rate: float
    reset_interval: int


@dataclass(frozen=True)
class Replication:
    """An experiment of the paper.

    Attributes:
        environment: the task.
        arms: the arms to meta-train.
        meta_learning_rates: the grid of the meta-learning rate.
        reset_intervals: the grid of the reset interval, in meta-iterations.
        rollouts: length of an evaluation run.
        num_envs: environments per agent in evaluation.
        step_scales: multiples of alpha for tuning the step, as many as there are rates.
        rates: learning rates of the classical optimizers.
        protocol: seeds of the evaluation.
        tuning_rollouts: length of a run that chooses a setting or a step; None: `rollouts`.
    """

    environment: str
    arms: tuple[Arm, ...]
    meta_learning_rates: tuple[float, ...]
    reset_intervals: tuple[int, ...]
    rollouts: int
    num_envs: int
    step_scales: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    rates: tuple[float, ...] = RATES
    protocol: Protocol = PROTOCOL
    tuning_rollouts: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            meta_learning_rates=POSITIVE,
            reset_intervals=COUNT,
            rollouts=COUNT,
            num_envs=COUNT,
            tuning_rollouts=COUNT,
        )
        for name in ("meta_learning_rates", "reset_intervals", "step_scales", "rates"):
            require_grid(name, [float(x) for x in getattr(self, name)])

    def settings_of(self, arm: Arm) -> tuple[Setting, ...]:
        """Return the grid of an arm: agents that are never reset have no interval."""
        resets = arm.recipe.meta.resets == "staggered"
        intervals = self.reset_intervals if resets else self.reset_intervals[:1]
        return tuple(starmap(Setting, product(self.meta_learning_rates, intervals)))


@dataclass(frozen=True)
class Trained:
    """One meta-training of an arm; `trained` is False for the untrained rule."""

    recipe: Recipe
    trained: bool = True


def make_training(arm: Arm, setting: Setting, meta_seed: int, *, trained: bool = True) -> Trained:
    """Return an arm at a setting and a meta-seed."""
    meta = replace(
        arm.recipe.meta,
        meta_learning_rate=setting.meta_learning_rate,
        reset_interval=setting.reset_interval,
        seed=meta_seed,
    )
    return Trained(replace(arm.recipe, meta=meta), trained)


def training_job(training: Trained) -> Job:
    """Return the meta-training as a job."""
    recipe = training.recipe
    state = f"rate {recipe.meta.meta_learning_rate:g}" if training.trained else "untrained"
    return Job(
        function="optim4rl.study.replication:meta_train",
        arguments=to_json(training),
        what=f"meta-training: {recipe.optimizer}, {state}, meta-seed {recipe.meta.seed}",
        program=replace(recipe, meta=replace(recipe.meta, seed=0, meta_learning_rate=1.0)),
    )


def meta_train(folder: Path, arguments: Mapping[str, Any]) -> Result:
    """Meta-train by a recipe: return the weights, or "failure" in the info if it diverges.

    It saves checkpoints below the folder, and goes on from them.
    """
    training: Trained = from_json(Trained, arguments)
    spec, tasks = build(training.recipe)
    meta = training.recipe.meta
    if training.trained:
        available = available_bytes() // max(1, jax.local_device_count())
        plan = choose_chunk(spec, tasks, meta, Execution(), available)
        execution = Execution(agents_per_chunk=plan.agents_per_chunk)
        path = folder / "checkpoints" / f"{training_job(training).address}.safetensors"
        try:
            weights, _ = train_resumably(spec, tasks, meta, path, to_json(training), execution)
        except MetaDivergenceError as error:
            return Result({}, {"failure": str(error)})
    else:
        # They are the same for any number of agents, and 512 agents take gigabytes.
        weights = init(spec, tasks, replace(meta, agents=1)).meta_parameters
    return Result({k: np.asarray(x) for k, x in flatten(weights).items()}, {})


def keep_members(
    folder: Path, trainings: Sequence[Trained]
) -> tuple[tuple[Maker, ...], tuple[str, ...]]:
    """Return how to make the optimizers of finished meta-trainings, and failure messages."""
    members, failures = [], []
    for training in trainings:
        result = get_result(folder, training_job(training))
        if "failure" in result.info:
            failures.append(str(result.info["failure"]))
            continue
        spec, tasks = build(training.recipe)
        optimizer = LearnedOptimizer(spec, unflatten(result.arrays), tasks[0].learning_rate)
        members.append(Maker(weights=keep_weights(folder, optimizer)))
    return tuple(members), tuple(failures)


# Maps meta-trainings to the makers of their optimizers and the messages of diverged trainings.
Members = Callable[[Sequence[Trained]], tuple[tuple[Maker, ...], tuple[str, ...]]]


# How settings are chosen


@dataclass(frozen=True)
class Tried:
    """An arm at a setting of its grid, on a tuning meta-seed and tuning seeds.

    Attributes:
        arm: name of the arm.
        setting: the setting.
        auc: mean return of the runs over all their updates; NaN if a run diverged.
        final: mean return of their last updates.
    """

    arm: str
    setting: Setting
    auc: float
    final: float


def choosing_benchmark(replication: Replication, folder: Path) -> Benchmark:
    """Return the benchmark whose tuning seeds choose settings: as many as fill their batches.

    A setting has one step, so its runs share a batch with no other setting's.
    """
    b = benchmark_of(replication, folder, ())
    seeds = -(-b.protocol.tuning_seeds // BATCH) * BATCH
    return replace(b, protocol=replace(b.protocol, tuning_seeds=seeds))


def tuning_contenders(
    replication: Replication, members_of: Members
) -> list[tuple[Arm, Setting, Contender | None]]:
    """Return every arm at every setting of its grid; None if the meta-training diverged."""
    found = []
    for arm in replication.arms:
        for setting in replication.settings_of(arm):
            members, _ = members_of([make_training(arm, setting, TUNING_META_SEED)])
            alpha = arm.recipe.learning_rate[0]
            contender = Contender(arm.name, "learned", members, (1.0,), alpha) if members else None
            found.append((arm, setting, contender))
    return found


def tried_settings(replication: Replication, folder: Path) -> list[Tried]:
    """Return the outcome of every setting of the grid, once all its runs are finished."""
    b = choosing_benchmark(replication, folder)
    found = []
    for arm, setting, contender in tuning_contenders(replication, partial(keep_members, folder)):
        auc = final = float("nan")
        if contender is not None:
            runs = scoring_runs(b, b.suite.tasks[0], contender, 0)
            (curves,) = read_batches(folder, runs).values()
            auc, final = (float(f(curves).mean()) for f in (area_under_curve, final_return))
        found.append(Tried(arm.name, setting, auc, final))
    return found


def choose_settings(tried: Sequence[Tried]) -> dict[str, Setting]:
    """Choose each arm's setting by the highest AUC; a setting with a diverged run comes last."""

    def score(each: Tried) -> float:
        return -np.inf if np.isnan(each.auc) else each.auc

    arms = dict.fromkeys(each.arm for each in tried)
    return {arm: max((x for x in tried if x.arm == arm), key=score).setting for arm in arms}


# The runs


def benchmark_of(
    replication: Replication, folder: Path, contenders: Sequence[Contender]
) -> Benchmark:
    """Return the comparison of contenders and classical optimizers, on the experiment's task."""
    suite = task_suite(
        replication.environment,
        rollouts=replication.rollouts,
        stress_rollouts=1,
        num_envs=replication.num_envs,
    )
    task = replace(
        suite.tasks[0], stress_rollouts=None, tuning_rollouts=replication.tuning_rollouts
    )
    classical = tuple(baseline(name, replication.rates) for name in CLASSICAL)
    return Benchmark(
        replace(suite, tasks=(task,)), (*contenders, *classical), folder, replication.protocol
    )


def reported_trainings(arm: Arm, setting: Setting) -> list[Trained]:
    """Return an arm's reported meta-trainings."""
    return [make_training(arm, setting, seed) for seed in range(arm.meta_seeds)]


def control_trainings(arm: Arm, setting: Setting) -> list[Trained]:
    """Return the untrained rule: once if its heads start at zero, else once per meta-seed."""
    spec, _ = build(arm.recipe)
    seeds = range(1 if spec.zero_head else arm.meta_seeds)
    return [make_training(arm, setting, seed, trained=False) for seed in seeds]


def contenders_of(
    replication: Replication, settings: Mapping[str, Setting], members_of: Members
) -> tuple[list[Contender], dict[str, tuple[str, ...]]]:
    """Return every arm, with its step as trained and tuned, and its control; and the failures."""
    contenders, failures = [], {}
    for arm in replication.arms:
        setting, alpha = settings[arm.name], arm.recipe.learning_rate[0]
        members, failures[arm.name] = members_of(reported_trainings(arm, setting))
        untrained = f"{arm.name} untrained" if arm.control else None
        for suffix, grid in (("", (1.0,)), (TUNED_STEP, replication.step_scales)):
            control = None if untrained is None else untrained + suffix
            if members:
                contenders.append(
                    Contender(arm.name + suffix, "learned", members, grid, alpha, control)
                )
            if control is not None:
                blank, _ = members_of(control_trainings(arm, setting))
                contenders.append(Contender(control, "control", blank, grid, alpha))
    return contenders, failures


@dataclass(frozen=True)
class Replicated:
    """The outcome of an experiment.

    Attributes:
        results: the comparison.
        tried: every setting of every arm's grid.
        failures: by arm the messages of meta-trainings that diverged.
    """

    results: Results
    tried: tuple[Tried, ...]
    failures: Mapping[str, tuple[str, ...]]


def run_replication(
    replication: Replication,
    folder: Path,
    workers: Workers = Workers(),
    on_progress: Callable[..., None] = lambda *_, **__: None,
) -> Replicated:
    """Run all unfinished jobs, and read the results.

    Args:
        replication: the experiment.
        folder: where finished jobs are kept.
        workers: run the jobs.
        on_progress: called with the finished jobs, all jobs, and a description of the last job.

    Raises:
        JobError: a job failed; all finished jobs are kept.
        ClusterError: the cluster does not exist.
    """
    members = partial(keep_members, folder)
    with open_pool(folder, workers) as pool:
        stages = Stages(pool, folder, _all_jobs(replication, folder), on_progress)
        stages.run(_tuning_trainings(replication))
        stages.run(_tuning_runs(replication, folder, members))
        tried = tried_settings(replication, folder)
        settings = choose_settings(tried)
        stages.run(_reported_trainings(replication, settings))
        contenders, failures = contenders_of(replication, settings, members)
        runs = run_stages(benchmark_of(replication, folder, contenders), stages)
    return Replicated(read(runs), tuple(tried), failures)


def _tuning_trainings(replication: Replication) -> list[Job]:
    return [
        training_job(make_training(arm, setting, TUNING_META_SEED))
        for arm in replication.arms
        for setting in replication.settings_of(arm)
    ]


def _tuning_runs(replication: Replication, folder: Path, members: Members) -> list[Job]:
    b = choosing_benchmark(replication, folder)
    return [
        job(batch)
        for _, _, contender in tuning_contenders(replication, members)
        if contender is not None
        for batch in scoring_runs(b, b.suite.tasks[0], contender, 0)
    ]


def _reported_trainings(replication: Replication, settings: Mapping[str, Setting]) -> list[Job]:
    """Seeds are the outer loop, so that every arm has one result early."""
    found = []
    for arm in replication.arms:
        trainings = reported_trainings(arm, settings[arm.name])
        if arm.control:
            trainings += control_trainings(arm, settings[arm.name])
        found += trainings
    return [training_job(x) for x in sorted(found, key=lambda x: x.recipe.meta.seed)]


def _all_jobs(replication: Replication, folder: Path) -> list[Job]:
    """Return all possible jobs, with placeholder names for weights that do not exist yet."""

    def members(wanted: Sequence[Trained]) -> tuple[tuple[Maker, ...], tuple[str, ...]]:
        return tuple(Maker(weights=training_job(x).address) for x in wanted), ()

    settings = {arm.name: replication.settings_of(arm)[-1] for arm in replication.arms}
    contenders, _ = contenders_of(replication, settings, members)
    return [
        *_tuning_trainings(replication),
        *_tuning_runs(replication, folder, members),
        *_reported_trainings(replication, settings),
        *expected_jobs(benchmark_of(replication, folder, contenders)),
    ]
