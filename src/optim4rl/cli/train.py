"""`optim4rl train`: meta-train an optimizer."""

import dataclasses
import io
import json
import math
import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from optim4rl.cli.pace import Pace
from optim4rl.cli.processes import ProcessOptions
from optim4rl.cli.progress_log import ProgressLog, mean_returns, task_labels
from optim4rl.cli.runtime import CompileClock, progress_bar
from optim4rl.cli.signals import StopRequest, keeping, stop_in_order
from optim4rl.cli.terminal import print_table
from optim4rl.cli.trackers import Tracker, TrackerName, log_progress, require_tracker, tracking
from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, check_fields
from optim4rl.files.atomic import write_atomically
from optim4rl.files.folders import locked
from optim4rl.files.manifest import remove_manifest, write_manifest
from optim4rl.files.reading import read_text
from optim4rl.jobs.provenance import provenance
from optim4rl.meta.checkpoint import (
    Resumed,
    has_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from optim4rl.meta.memory import MemoryPlan, available_bytes, choose_chunk
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.recipe import Recipe, build, settings_of, starting_weights
from optim4rl.meta.trainer import (
    MetaDivergenceError,
    MetaState,
    MetaTask,
    Progress,
    init,
    train,
)
from optim4rl.meta.variants import draw_variants
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.weights import LearnedOptimizer, save_weights
from optim4rl.pages.plots import plot_training


@dataclass(frozen=True)
class ExecutionOptions:
    """How the run is executed. The results are the same, to float tolerance.

    Attributes:
        devices: devices of all processes, over which agents are sharded; 0: as many as divide them
            evenly.
        agents_per_chunk: agents of a task side by side on a device, at most; 0: what fits.
        memory: GiB that this process may use; 0: all that is free.
        kernel: implementation of the rule (`optim4rl list kernels`); auto: the fastest one.
    """

    devices: int = 0
    agents_per_chunk: int = 0
    memory: float = 0.0
    kernel: KernelName = "auto"

    def __post_init__(self) -> None:
        check_fields(
            self, devices=COUNT_OR_ZERO, agents_per_chunk=COUNT_OR_ZERO, memory=NOT_NEGATIVE
        )


@dataclass(frozen=True)
class TrainOptions:
    """Meta-train a learned optimizer.

    The agents of each task train side by side with the optimizer, and a schedule resets them. After
    every K updates one meta-gradient improves the optimizer. The output folder gets weights, a
    checkpoint, the progress as CSV and as a picture, and the settings. `--recipe NAME` starts from
    a recipe (`optim4rl list recipes`); other options change it.

      optim4rl train --out runs/mine --tasks catch --learning-rate 1e-2
      optim4rl train --recipe zoo/anchored-catch --out runs/again

    Attributes:
        out: output folder.
        recipe: the optimizer, its tasks, and the meta-training.
        variants: train on so many variants of the tasks in their place. Each draws its layers,
            activation, environments, horizon, minibatches and epochs by --seed. All learners must
            be PPO.
            Default: the tasks as they are.
        chunk: meta-iterations between two checkpoints. Default: as many as take about five seconds.
        keep_every: keep the weights after every so many iterations, too, as
            weights-after-N.safetensors, so that tasks of validation can choose among them. Default:
            keep the last.
        resume: continue from the checkpoint in the output folder.
        execution: devices, memory, kernel.
        processes: several processes.
        tracker: send the progress to TensorBoard or Weights & Biases, too.
        dry_run: print the settings and the predicted memory, and stop.
        json: print the result as JSON.
    """

    out: Path
    recipe: Recipe = Recipe()
    variants: int | None = None
    chunk: int | None = None
    keep_every: int | None = None
    resume: bool = False
    execution: ExecutionOptions = ExecutionOptions()
    processes: ProcessOptions = ProcessOptions()
    tracker: TrackerName | None = None
    dry_run: bool = False
    json: bool = False


@dataclass(frozen=True)
class _Training:
    """What the options ask for, in the form that meta-training takes.

    `settings` are all settings that decide the result, as JSON values.
    """

    options: TrainOptions
    spec: OptimizerSpec
    tasks: tuple[MetaTask, ...]
    settings: dict[str, Any]
    execution: Execution

    @property
    def checkpoint(self) -> Path:
        return self.options.out / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        return self.options.out / "progress.csv"

    @property
    def labels(self) -> tuple[str, ...]:
        return task_labels(self.options.recipe.tasks)

    def save(self, name: str, state: MetaState, seconds: float | None) -> Path:
        """Save the rule with its card in the output folder, and return its path."""
        recipe = self.options.recipe
        card = {
            "tasks": list(recipe.tasks),
            "seed": recipe.meta.seed,
            "settings": self.settings,
            **provenance(__name__),
            "training_seconds": None if seconds is None else round(seconds, 1),
            "results": {},
        }
        rate, path = self.tasks[0].learning_rate, self.options.out / name
        save_weights(path, LearnedOptimizer(self.spec, state.meta_parameters, rate, card))
        return path


def run(options: TrainOptions) -> None:
    """Run the command."""
    check_fields(options, variants=COUNT, chunk=COUNT, keep_every=COUNT)
    if options.variants is not None:
        recipe = draw_variants(options.recipe, options.variants, options.recipe.meta.seed)
        options = dataclasses.replace(options, recipe=recipe)
    require_tracker(options.tracker, options.out)
    compiling = CompileClock()
    first_process = jax.process_index() == 0
    recipe, out = options.recipe, options.out
    spec, tasks = build(recipe)
    settings = settings_of(recipe)
    start = starting_weights(recipe, spec)
    execution, plan = plan_execution(options, spec, tasks)
    training = _Training(options, spec, tasks, settings, execution)
    if options.dry_run:
        if first_process:
            _show_plan(training, plan)
        return
    with (
        locked(out) if first_process else nullcontext(),
        keeping(lambda: has_checkpoint(training.checkpoint)),
    ):
        resumed = _resumed(training, start)
        # The time of earlier sessions is not known.
        timed = int(resumed.state.iteration) == 0
        started = time.perf_counter()
        try:
            state, figures = _meta_train(training, resumed, compiling)
        except MetaDivergenceError as error:
            if first_process:
                seconds = time.perf_counter() - started if timed else None
                kept = training.save("last-good.safetensors", error.state, seconds)
                said = f"last good rule: {kept}; train --start begins with it, in another folder"
                print(said, file=sys.stderr)
            raise
        if not first_process:
            return
        weights = training.save("weights.safetensors", state, figures["seconds"] if timed else None)
        table, picture = out / "progress.parquet", out / "progress.svg"
        plot_training(training.log, picture)
        _write_table(training.log, table)
        write_manifest(out)
    summary = {
        "weights": str(weights),
        "progress": str(training.log),
        "table": str(table),
        "picture": str(picture),
        "iterations": int(state.iteration),
        **figures,
        "peak_memory_gib": round(_peak_memory() / 2**30, 2),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print_table("meta-training", ["", "value"], [[k, str(v)] for k, v in summary.items()])
        words = ["optim4rl", "evaluate", str(weights), "--task", recipe.tasks[0]]
        print(f"next: {shlex.join(words)}")


def _resumed(training: _Training, start: MetaParameters | None) -> Resumed:
    """Return the state to start from: a checkpoint, or a fresh one.

    Raises:
        ValueError: there is a run already, and `--resume` was not given.
        CheckpointError: the checkpoint is damaged, or belongs to another run.
    """
    options, execution = training.options, training.execution
    fresh = partial(init, training.spec, training.tasks, options.recipe.meta, execution=execution)
    if not has_checkpoint(training.checkpoint):
        return Resumed(fresh(start), {})
    if not options.resume:
        raise ValueError(
            f"out = {str(options.out)!r}: the folder already has a run; continue it with --resume, "
            "or choose another folder"
        )
    like = jax.eval_shape(fresh)
    resumed = resume_checkpoint(training.checkpoint, like, training.settings, execution)
    if resumed.damage and jax.process_index() == 0:
        print(
            f"{resumed.damage}; continuing from the checkpoint before it, at iteration "
            f"{int(resumed.state.iteration)}",
            file=sys.stderr,
        )
    return resumed


def _meta_train(
    training: _Training, resumed: Resumed, compiling: CompileClock
) -> tuple[MetaState, dict[str, Any]]:
    """Meta-train chunk by chunk, each with a checkpoint; return the final state and the speed.

    Raises:
        StoppedBySignalError: a signal has stopped it; the last chunk is saved.
    """
    options, settings, execution = training.options, training.settings, training.execution
    meta, devices = options.recipe.meta, execution.devices.size
    first_process = jax.process_index() == 0
    if first_process:
        remove_manifest(options.out)
        written = json.dumps({**settings, **provenance(__name__)}, indent=1)
        write_atomically(options.out / "settings.json", written.encode())
    steps = np.array(
        [t.settings(meta).agents * t.task.env_steps_per_rollout for t in training.tasks]
    )
    started, first = time.perf_counter(), int(resumed.state.iteration)
    pace = Pace(options.chunk, lambda: compiling.seconds)
    title = f"meta-training {options.recipe.optimizer}"
    on = f"{devices} device{'s' * (devices > 1)}"
    bar = progress_bar(title, "iterations", on, silent=not first_process, guess=False)
    chosen = options.tracker if first_process else None
    with (
        tracking(chosen, options.out, settings, first + 1) as tracker,
        bar as update,
        stop_in_order(pace.ending) as stop,
    ):
        update(first, meta.iterations)
        log = None
        if first_process:
            log = ProgressLog(training.log, training.labels, resumed.notes.get("log"))
        keeper = _ChunkKeeper(
            training, steps, log, tracker, update, stop, pace, first, rotate=not resumed.damage
        )
        state, _ = train(
            training.spec,
            training.tasks,
            meta,
            state=resumed.state,
            chunk=pace.most,
            size=keeper.start,
            report=keeper.keep,
            execution=execution,
        )
    seconds = time.perf_counter() - started
    return state, {
        "seconds": round(seconds, 1),
        # The speed of the whole run, and of its fastest chunk, which compiled nothing.
        "env_steps_per_second": round(keeper.played / seconds),
        "env_steps_per_second_at_best": round(keeper.best),
        "compile_seconds": round(compiling.seconds, 1),
    }


@dataclass
class _ChunkKeeper:
    """Keep every finished chunk: its log and checkpoint; show it in the terminal and a tracker.

    Attributes:
        steps: environment steps of one rollout of all agents, for each task.
        log: the log; only the first process has one.
        update: the progress bar's update.
        done: iterations that are kept.
        rotate: whether to keep the checkpoint before the new one; a damaged one must not replace
            the good one before it.
        best: speed of the fastest chunk, in environment steps a second.
        played: environment steps so far.
    """

    training: _Training
    steps: Int[np.ndarray, " tasks"]
    log: ProgressLog | None
    tracker: Tracker
    update: Callable[..., None]
    stop: StopRequest
    pace: Pace
    done: int
    rotate: bool
    best: float = 0.0
    played: int = 0

    def start(self) -> int:
        """Start a chunk, and return its number of iterations: up to the next weights to keep."""
        size, every = self.pace.start(), self.training.options.keep_every
        return size if every is None else min(size, every - self.done % every)

    def keep(self, state: MetaState, progress: Progress) -> None:
        """Keep a chunk, and stop after it if a signal asked for that."""
        training, pace, before = self.training, self.pace, self.done
        done, iterations = int(state.iteration), training.options.recipe.meta.iterations
        count, seconds = done - before, pace.elapsed
        notes = dict(provenance(__name__))
        if self.log is not None:
            self.log.append(before, progress)
            notes["log"] = self.log.extent
            every = training.options.keep_every
            if every is not None and done > before and done % every == 0:
                training.save(f"weights-after-{done}.safetensors", state, None)
        save_checkpoint(training.checkpoint, state, training.settings, notes, rotate=self.rotate)
        pace.note(count, seconds)
        played = int((progress.rollouts @ self.steps).sum())
        self.played += played
        rate = played / pace.elapsed
        self.best = max(self.best, rate)
        log_progress(self.tracker, before, progress, training.labels, rate)
        self.rotate, self.done = True, done
        returns = mean_returns(progress, slice(None))
        drawn = np.flatnonzero(progress.rollouts.sum(axis=0))
        labels = [training.labels[task] for task in drawn]
        note = returns_in_words(labels, [returns[task] for task in drawn])
        self.update(done, iterations, note, f"{rate:,.0f} steps/s", pace.left(iterations - done))
        self.stop.number, pace.size = _agreed(self.stop.number, pace.size)
        if done < iterations and not state.stopped:
            self.stop.raise_if_asked()


def returns_in_words(labels: Sequence[str], returns: Sequence[float | None]) -> str:
    """Write the return of each task; None is "nan": no episode ended."""
    values = [f"{math.nan if x is None else x:.3g}" for x in returns]
    if len(values) == 1:
        return f"return {values[0]}"
    return "returns: " + ", ".join(map(" ".join, zip(labels, values, strict=True)))


def _write_table(log: Path, path: Path) -> None:
    """Write the progress as Parquet: the columns of the CSV, null where no episode ended."""
    import polars as pl

    columns = read_text(log).partition("\n")[0].split(",")
    types = dict.fromkeys(columns, pl.Float64) | {"iteration": pl.Int64}
    buffer = io.BytesIO()
    pl.read_csv(log, schema_overrides=types).write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def _agreed(*numbers: int) -> tuple[int, ...]:
    """Return the largest of each number over all processes, so that all do the same."""
    if jax.process_count() == 1:
        return numbers
    found = multihost_utils.process_allgather(np.array(numbers, np.int32))
    return tuple(int(x) for x in np.max(found, axis=0))


def plan_execution(
    options: TrainOptions, spec: OptimizerSpec, tasks: tuple[MetaTask, ...]
) -> tuple[Execution, MemoryPlan]:
    """Choose devices and chunks of agents that fit into the memory.

    Raises:
        ValueError: there are too few devices, the kernel cannot run the rule, or the run does not
            fit; the message says how to make it fit.
    """
    chosen = options.execution
    shared = math.gcd(*(task.settings(options.recipe.meta).agents for task in tasks))
    devices = chosen.devices or max(n for n in range(1, jax.device_count() + 1) if shared % n == 0)
    execution = Execution(agents_mesh(devices), chosen.agents_per_chunk or None, chosen.kernel)
    available = int(chosen.memory * 2**30) or available_bytes()
    plan = choose_chunk(spec, tasks, options.recipe.meta, execution, available)
    # All processes run one program, which must fit the process with the least memory.
    chunk = int(np.min(multihost_utils.process_allgather(np.int32(plan.agents_per_chunk))))
    return dataclasses.replace(execution, agents_per_chunk=chunk), plan


def _show_plan(training: _Training, plan: MemoryPlan) -> None:
    options, settings, execution = training.options, training.settings, training.execution
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
    """Return the most bytes that this process has held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
