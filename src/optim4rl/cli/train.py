"""`optim4rl train`: meta-train an optimizer."""

import dataclasses
import io
import json
import math
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from optim4rl.cli.cluster import ClusterOptions
from optim4rl.cli.folders import locked
from optim4rl.cli.plots import plot_training
from optim4rl.cli.progress_log import ProgressLog, task_labels
from optim4rl.cli.runtime import CompileClock, print_table, progress_bar
from optim4rl.cli.signals import stop_in_order
from optim4rl.cli.trackers import TrackerName, log_progress, require_tracker, tracking
from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, check_fields
from optim4rl.meta.augmentation import Augmentation, augment
from optim4rl.meta.checkpoint import (
    Resumed,
    has_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from optim4rl.meta.config import EstimatorName
from optim4rl.meta.memory import MemoryPlan, available_bytes, choose_chunk
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.trainer import (
    MetaConfig,
    MetaState,
    MetaTask,
    Progress,
    init,
    make_estimator,
    train,
)
from optim4rl.optimizers.files import write_atomically
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.weights import LearnedOptimizer, load_weights, save_weights
from optim4rl.study.manifest import remove_manifest, write_manifest
from optim4rl.study.provenance import provenance
from optim4rl.tasks import A2CConfig, MapOrder, PPOConfig, default_config, make_task


@dataclass(frozen=True)
class ExecutionOptions:
    """How the run is carried out; what it computes is the same, to float tolerance.

    Attributes:
        devices: devices of all processes that the agents are sharded over; 0: as many as can share
            them out evenly.
        agents_per_chunk: agents of a task side by side on a device, at most; 0: what fits.
        memory: GiB that this process may take; 0: what is free.
        kernel: implementation of the rule (`optim4rl list kernels`); auto: the fastest there is.
    """

    devices: int = 0
    agents_per_chunk: int = 0
    memory: float = 0.0
    kernel: KernelName = "auto"

    def __post_init__(self) -> None:
        check_fields(
            self, devices=COUNT_OR_ZERO, agents_per_chunk=COUNT_OR_ZERO, memory=NOT_NEGATIVE
        )


LearnerName = Literal["a2c", "ppo"]
Observations = Literal["raw", "normalised"]
_LEARNERS: dict[LearnerName, type[A2CConfig] | type[PPOConfig]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
}


@dataclass(frozen=True)
class TrainOptions:
    """Meta-train a learned optimizer.

    The agents of each task train side by side with the optimizer, are reset by the schedule, and
    after every K updates the optimizer is improved by one meta-gradient. Writes weights, a
    checkpoint, the progress as CSV and as a picture, and the settings into the output folder.
    `--preset NAME` starts from a recipe (`optim4rl list presets`), whose options the others then
    change.

    Attributes:
        out: output folder.
        optimizer: learned optimizer to train; `optim4rl list optimizers` names them.
        tasks: tasks to train on, together; `optim4rl list tasks` names them.
        learning_rate: inner learning rate alpha of each task; one value serves all.
        step_scale: multiplies alpha, per task; one value serves all.
        windows: K of each task; by default all have the inner updates below.
        estimators: of each task's meta-gradient; by default all have the estimator below.
        populations: agents M of each task; by default all have the agents below.
        learners: of each task, "a2c" or "ppo" with their usual settings; by default its own.
        minibatches: of each task's PPO; by default its own. A2C has 1.
        observations: of each task, "raw" or "normalised" by each agent; by default its own.
        value_weight: weight of the squared error of values in every learner's loss, and so in the
            meta-objective; by default the learners' own.
        reward_scale: multiplies each task's rewards as they usually are; one value serves all.
        normalise_rewards: each agent scales its rewards by those that it has met.
        width: units of the agents' dense layer; 0 is each task's own network. With several, every
            fresh agent draws one of them. Separate networks (`mlp`) stay as they are.
        maps: order of the observation's maps in a convolution, if not the task's own; "rows" on a
            grid world is the paper's release.
        envs_per_agent: environments of each agent.
        clip: elementwise gradient clip of the rule; 0 is none, as on Catch in the paper.
        zero_head: whether the rule's heads start at zero; the optimizer's own choice by default.
        start: weights to go on from, a shipped name or a file; "": fresh ones. The options must
            describe their rule.
        augmentation: random rescaling of the tasks, drawn for every life of an agent.
        meta: the meta-training itself.
        chunk: meta-iterations between two checkpoints.
        resume: go on from the checkpoint in the output folder.
        execution: devices, memory, kernel.
        cluster: several processes.
        tracker: send the progress to TensorBoard or Weights & Biases, too.
        dry_run: print what would be run and the memory that it would need, and stop.
        json: print the result as JSON.
    """

    out: Path
    optimizer: str = "anchored"
    tasks: tuple[str, ...] = ("catch",)
    learning_rate: tuple[float, ...] = (1e-2,)
    step_scale: tuple[float, ...] = (1.0,)
    windows: tuple[int, ...] = ()
    estimators: tuple[EstimatorName, ...] = ()
    populations: tuple[int, ...] = ()
    learners: tuple[LearnerName, ...] = ()
    minibatches: tuple[int, ...] = ()
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
    augmentation: Annotated[Augmentation, tyro.conf.arg(name="")] = field(
        default_factory=Augmentation
    )
    meta: Annotated[MetaConfig, tyro.conf.arg(name="")] = field(default_factory=MetaConfig)
    chunk: int = 20
    resume: bool = False
    execution: Annotated[ExecutionOptions, tyro.conf.arg(name="")] = field(
        default_factory=ExecutionOptions
    )
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = field(
        default_factory=ClusterOptions
    )
    tracker: TrackerName | None = None
    dry_run: bool = False
    json: bool = False


def per_task(name: str, values: tuple[float, ...], tasks: tuple[str, ...]) -> tuple[float, ...]:
    """One value for each task, from one value or one for each.

    Raises:
        ValueError: there are neither one nor as many as tasks, or one is not positive.
    """
    if len(values) not in (1, len(tasks)) or any(not 0 < x < float("inf") for x in values):
        raise ValueError(
            f"{name} = {values!r}: one positive number is needed, or {len(tasks)}, one a task"
        )
    return values * (len(tasks) // len(values))


def build(options: TrainOptions) -> tuple[OptimizerSpec, tuple[MetaTask, ...]]:
    """The rule and the tasks that the options describe.

    Raises:
        ValueError: an option is wrong; the message names it.
    """
    check_fields(
        options,
        width=COUNT_OR_ZERO,
        envs_per_agent=COUNT,
        clip=NOT_NEGATIVE,
        minibatches=COUNT,
        value_weight=NOT_NEGATIVE,
        chunk=COUNT,
    )
    own = learned_spec(options.optimizer)
    zero_head = own.zero_head if options.zero_head is None else options.zero_head
    spec = dataclasses.replace(own, clip=options.clip or None, zero_head=zero_head)
    if not options.width:
        raise ValueError("width = (): at least one width is needed, or 0 for the paper's network")
    if not options.tasks:
        raise ValueError("tasks = (): at least one task is needed")
    rates = per_task("learning_rate", options.learning_rate, options.tasks)
    scales = per_task("step_scale", options.step_scale, options.tasks)
    rewards = per_task("reward_scale", options.reward_scale, options.tasks)
    own_settings = _own_settings(options)
    tasks = []
    own_network = options.width == (0,)
    width = options.width if len(options.width) > 1 else options.width[0]
    for name, rate, scale, reward, its in zip(
        options.tasks, rates, scales, rewards, own_settings, strict=True
    ):
        usual = default_config(name)
        learner = _learner(
            usual.learner,
            its.pop("learner", None),
            its.pop("minibatches", None),
            options.value_weight,
        )
        observations = its.pop("observations", None)
        config = dataclasses.replace(
            usual,
            num_envs=options.envs_per_agent,
            maps=options.maps or usual.maps,
            learner=dataclasses.replace(learner, reward_scale=reward * learner.reward_scale),
            normalise_rewards=options.normalise_rewards or usual.normalise_rewards,
            normalise_observations=usual.normalise_observations
            if observations is None
            else observations == "normalised",
        )
        if not own_network and usual.torso != "mlp":
            # A narrow dense network trains the rule as well as the paper's convolution does.
            config = dataclasses.replace(config, width=width, torso="dense")
        task = augment(make_task(config), options.augmentation)
        tasks.append(MetaTask(task, rate * scale, **its))
    return spec, tuple(tasks)


def _learner(
    learner: A2CConfig | PPOConfig,
    name: LearnerName | None,
    minibatches: int | None,
    value_weight: float | None,
) -> A2CConfig | PPOConfig:
    """A task's usual learner, or the one of that name if it is of another kind, and its settings.

    Raises:
        ValueError: A2C is to have minibatches.
    """
    if name is not None and not isinstance(learner, _LEARNERS[name]):
        learner = _LEARNERS[name](reward_scale=learner.reward_scale)
    if isinstance(learner, PPOConfig):
        learner = dataclasses.replace(learner, minibatches=minibatches or learner.minibatches)
    elif minibatches not in (None, 1):
        raise ValueError(f"minibatches = {minibatches!r}: A2C has 1; give the task the learner ppo")
    if value_weight is None:
        return learner
    return dataclasses.replace(learner, value_weight=value_weight)


def _own_settings(options: TrainOptions) -> list[dict[str, Any]]:
    """What each task has of its own beside its rate.

    Raises:
        ValueError: there are not as many as tasks, or none.
    """
    own: list[dict[str, Any]] = [{} for _ in options.tasks]
    for name, of_task in (
        ("windows", "window"),
        ("estimators", "estimator"),
        ("populations", "agents"),
        ("learners", "learner"),
        ("minibatches", "minibatches"),
        ("observations", "observations"),
    ):
        values = getattr(options, name)
        if values and len(values) != len(own):
            raise ValueError(f"{name} = {values!r}: {len(own)} are needed, one a task")
        for settings, value in zip(own, values, strict=False):
            settings[of_task] = value
    return own


def starting_weights(options: TrainOptions, spec: OptimizerSpec) -> MetaParameters | None:
    """The meta-parameters that `--start` names.

    Raises:
        ValueError: there are no such weights, or they are those of another rule; the message says
            where it differs.
    """
    if not options.start:
        return None
    weights = load_weights(options.start)
    # What only decides fresh weights may differ.
    there = dataclasses.replace(weights.spec, zero_head=spec.zero_head)
    names = [field.name for field in dataclasses.fields(spec)]
    values = [(name, getattr(there, name), getattr(spec, name)) for name in names]
    differing = [f"{name} is {a!r} there and {b!r} here" for name, a, b in values if a != b]
    if differing:
        raise ValueError(f"start = {options.start!r}: another rule: {'; '.join(differing)}")
    return weights.meta_parameters


def run(options: TrainOptions) -> None:
    """The command."""
    require_tracker(options.tracker, options.out)
    compiling = CompileClock()
    first_process = jax.process_index() == 0
    spec, tasks = build(options)
    settings = _settings(options)
    start = starting_weights(options, spec)
    execution, plan = plan_execution(options, spec, tasks)
    if options.dry_run:
        if first_process:
            _show_plan(options, settings, execution, plan)
        return
    with locked(options.out) if first_process else nullcontext():
        resumed = _resumed(options, spec, tasks, settings, start, execution)
        state, figures = _meta_train(options, spec, tasks, settings, resumed, execution)
        if not first_process:
            return
        weights = options.out / "weights.safetensors"
        save_weights(weights, _learned(options, spec, tasks, state, settings, figures["seconds"]))
        log = options.out / "progress.csv"
        plot_training(log, options.out / "progress.svg")
        _write_table(log, options.out / "progress.parquet")
        write_manifest(options.out)
    summary = {
        "weights": str(weights),
        "progress": str(log),
        "table": str(options.out / "progress.parquet"),
        "picture": str(options.out / "progress.svg"),
        "iterations": int(state.iteration),
        **figures,
        "compile_seconds": round(compiling.seconds, 1),
        "peak_memory_gib": round(_peak_memory() / 2**30, 2),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print_table("meta-training", ["", "value"], [[k, str(v)] for k, v in summary.items()])
        print(f"next: optim4rl evaluate {weights} --task {options.tasks[0]}")


def _resumed(
    options: TrainOptions,
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    settings: dict[str, Any],
    start: MetaParameters | None,
    execution: Execution,
) -> Resumed:
    """What the run goes on from: a checkpoint, or a fresh state.

    Raises:
        ValueError: there is a run already, and `--resume` was not given.
        CheckpointError: the checkpoint is damaged, or that of another run.
    """
    checkpoint = options.out / "checkpoint.safetensors"
    if not has_checkpoint(checkpoint):
        return Resumed(init(spec, tasks, options.meta, start, execution), {})
    if not options.resume:
        raise ValueError(
            f"out = {str(options.out)!r}: a run is there already; --resume goes on with it, or "
            "choose another folder"
        )
    like = jax.eval_shape(lambda: init(spec, tasks, options.meta, execution=execution))
    resumed = resume_checkpoint(checkpoint, like, settings, execution)
    if resumed.damage and jax.process_index() == 0:
        print(
            f"{resumed.damage}; going on from the checkpoint before it, at iteration "
            f"{int(resumed.state.iteration)}",
            file=sys.stderr,
        )
    return resumed


def _meta_train(
    options: TrainOptions,
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    settings: dict[str, Any],
    resumed: Resumed,
    execution: Execution,
) -> tuple[MetaState, dict[str, Any]]:
    """The meta-training, chunk by chunk, each with a checkpoint: its final state, and its speed.

    Raises:
        StoppedBySignalError: a signal has stopped it; the last chunk is saved.
    """
    first_process = jax.process_index() == 0
    about, labels = provenance(), task_labels(options.tasks)
    if first_process:
        remove_manifest(options.out)
        written = json.dumps({**settings, **about}, indent=1).encode()
        write_atomically(options.out / "settings.json", written)
        log = ProgressLog(options.out / "progress.csv", labels, resumed.notes.get("log"))
    steps = sum(
        t.settings(options.meta).agents
        * make_estimator(spec, t, options.meta, execution).rollouts
        * t.task.env_steps_per_rollout
        for t in tasks
    )
    started, first = time.perf_counter(), int(resumed.state.iteration)
    # A damaged checkpoint is not to take the place of the good one before it.
    done, since, best, rotate = first, started, 0.0, not resumed.damage
    bar = progress_bar(f"meta-training {options.optimizer}", "iterations", silent=not first_process)
    chosen = options.tracker if first_process else None
    with (
        tracking(chosen, options.out, settings, first + 1) as tracker,
        bar as update,
        stop_in_order("the chunk is finished and saved") as stop,
    ):
        update(first, options.meta.iterations)

        def report(state: MetaState, progress: Progress) -> None:
            nonlocal done, since, best, rotate
            notes: dict[str, Any] = dict(about)
            if first_process:
                log.append(done, progress)
                notes["log"] = log.extent
            checkpoint = options.out / "checkpoint.safetensors"
            save_checkpoint(checkpoint, state, settings, notes, rotate=rotate)
            rotate, now = True, time.perf_counter()
            rate = (int(state.iteration) - done) * steps / (now - since)
            best = max(best, rate)
            log_progress(tracker, done, progress, labels, rate)
            done, since = int(state.iteration), now
            note = " ".join(f"return {x:.3g}" for x in _mean_returns(progress))
            update(done, options.meta.iterations, note, f"{rate:,.0f} steps/s")
            stop.number = _first_signal(stop.number)
            if done < options.meta.iterations and not state.stopped:
                stop.raise_if_asked()

        state, _ = train(
            spec,
            tasks,
            options.meta,
            state=resumed.state,
            chunk=options.chunk,
            report=report,
            execution=execution,
        )
    seconds = time.perf_counter() - started
    return state, {
        "seconds": round(seconds, 1),
        # Of the whole run, and of its fastest chunk, which had nothing to compile.
        "env_steps_per_second": round((options.meta.iterations - first) * steps / seconds),
        "env_steps_per_second_at_best": round(best),
    }


def _write_table(log: Path, path: Path) -> None:
    """The progress as Parquet: the columns of the CSV, null where no episode ended."""
    import polars as pl

    columns = log.read_text().partition("\n")[0].split(",")
    types = dict.fromkeys(columns, pl.Float64) | {"iteration": pl.Int64}
    buffer = io.BytesIO()
    pl.read_csv(log, schema_overrides=types).write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def _first_signal(number: int) -> int:
    """The signal that has asked any of the processes to stop, so that all stop together."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def plan_execution(
    options: TrainOptions, spec: OptimizerSpec, tasks: tuple[MetaTask, ...]
) -> tuple[Execution, MemoryPlan]:
    """Devices and chunks of agents for the memory at hand.

    Raises:
        ValueError: there are too few devices, the kernel cannot run the rule, or the run does not
            fit; the message says how to make it fit.
    """
    chosen = options.execution
    shared = math.gcd(*(task.settings(options.meta).agents for task in tasks))
    devices = chosen.devices or max(n for n in range(1, jax.device_count() + 1) if shared % n == 0)
    execution = Execution(agents_mesh(devices), chosen.agents_per_chunk or None, chosen.kernel)
    available = int(chosen.memory * 2**30) or available_bytes()
    plan = choose_chunk(spec, tasks, options.meta, execution, available)
    # All processes run one program: that of the process with the least memory.
    chunk = int(np.min(multihost_utils.process_allgather(np.int32(plan.agents_per_chunk))))
    return dataclasses.replace(execution, agents_per_chunk=chunk), plan


def _show_plan(
    options: TrainOptions, settings: dict[str, Any], execution: Execution, plan: MemoryPlan
) -> None:
    memory = {
        "peak_gib": round(plan.peak / 2**30, 2),
        "state_gib": round(plan.state / 2**30, 2),
        "work_gib": round(plan.work / 2**30, 2),
        "available_gib": round((options.execution.memory or available_bytes() / 2**30), 2),
        "agents_per_chunk": execution.agents_per_chunk,
        "devices": execution.devices.size,
    }
    if options.json:
        print(json.dumps({**settings, "memory": memory}, indent=1))
        return
    print(json.dumps(settings, indent=1))
    rows = [[name.replace("_gib", ", GiB"), str(value)] for name, value in memory.items()]
    print_table("memory of each process, predicted", ["", "value"], rows)


def _peak_memory() -> int:
    """The most bytes that this process has held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _settings(options: TrainOptions) -> dict[str, Any]:
    """All that decides the result, as JSON values."""
    values = dataclasses.asdict(options)
    for name in ("out", "resume", "execution", "cluster", "tracker", "dry_run", "json", "chunk"):
        del values[name]
    settings: dict[str, Any] = json.loads(json.dumps(values))
    return settings


def _learned(
    options: TrainOptions,
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    state: MetaState,
    settings: dict[str, Any],
    seconds: float,
) -> LearnedOptimizer:
    card = {
        "tasks": list(options.tasks),
        "seed": options.meta.seed,
        "settings": settings,
        **provenance(),
        "training_seconds": round(seconds, 1),
        "results": {},
    }
    return LearnedOptimizer(spec, state.meta_parameters, tasks[0].learning_rate, card)


def _mean_returns(progress: Progress) -> list[float]:
    """Mean return of the episodes that ended in the chunk, for each task; NaN where none did."""
    return [
        float(stats.return_sum.sum() / count)
        if (count := stats.episode_count.sum())
        else float("nan")
        for stats in progress.stats
    ]
