"""`optim4rl train`: meta-train an optimizer."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from optim4rl.cli.runtime import print_table, progress_bar
from optim4rl.meta.checkpoint import load_checkpoint, save_checkpoint
from optim4rl.meta.trainer import MetaConfig, MetaState, MetaTask, Progress, init, train
from optim4rl.optimizers.files import write_atomically
from optim4rl.optimizers.presets import learned_spec
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.optimizers.weights import LearnedOptimizer, save_weights
from optim4rl.study.runner import package_versions
from optim4rl.tasks import default_config, make_task


@dataclass(frozen=True)
class TrainOptions:
    """Meta-train a learned optimizer.

    The agents of each task train side by side with the optimizer, are reset by the schedule, and
    after every K updates the optimizer is improved by one meta-gradient. Writes weights, a
    checkpoint, the progress as CSV and the settings into the output folder. `--preset NAME` starts
    from a recipe (`optim4rl list presets`), whose options the others then change.

    Attributes:
        out: output folder.
        optimizer: learned optimizer to train; `optim4rl list optimizers` names them.
        tasks: tasks to train on, together; `optim4rl list tasks` names them.
        learning_rate: inner learning rate alpha of each task; one value serves all.
        step_scale: multiplies alpha, per task; one value serves all.
        reward_scale: multiplies each task's rewards; one value serves all.
        width: units of the agents' dense layer; 0 is the paper's own network for each task.
        envs_per_agent: environments of each agent.
        clip: elementwise gradient clip of the rule; 0 is none, as on Catch in the paper.
        zero_head: start the rule's heads at zero.
        meta: the meta-training itself.
        chunk: meta-iterations between two checkpoints.
        resume: go on from the checkpoint in the output folder.
        dry_run: print what would be run, and stop.
        json: print the result as JSON.
    """

    out: Path
    optimizer: str = "anchored"
    tasks: tuple[str, ...] = ("catch",)
    learning_rate: tuple[float, ...] = (1e-2,)
    step_scale: tuple[float, ...] = (1.0,)
    reward_scale: tuple[float, ...] = (1.0,)
    width: int = 32
    envs_per_agent: int = 64
    clip: float = 0.0
    zero_head: bool = True
    meta: Annotated[MetaConfig, tyro.conf.arg(name="")] = field(default_factory=MetaConfig)
    chunk: int = 20
    resume: bool = False
    dry_run: bool = False
    json: bool = False


_PAPER = MetaConfig(
    agents=512,
    reset_interval=72,
    validation="last",
    meta_learning_rate=1e-4,
    meta_clip="value",
    # 3e7 environment steps, K + 1 rollouts of 512 environments x 20 steps to an iteration.
    iterations=586,
)
_SIX = (
    "small_dense_long",
    "small_dense_short",
    "big_sparse_short",
    "big_dense_short",
    "big_sparse_long",
    "big_dense_long",
)
# Recipes: what made the shipped weights ("zoo/..."), and the paper's experiments.
PRESETS: dict[str, dict[str, Any]] = {
    "zoo/anchored-catch": {
        "optimizer": "anchored",
        "learning_rate": (2e-2,),
        "meta": MetaConfig(meta_learning_rate=1e-2, cosine_to=0.1),
    },
    "zoo/optim4rl-catch": {
        "optimizer": "optim4rl",
        "learning_rate": (3e-3,),
        "meta": MetaConfig(meta_learning_rate=3e-3),
    },
    "zoo/optim4rl-rlc-catch": {
        "optimizer": "optim4rl-rlc",
        "learning_rate": (3e-3,),
        "meta": MetaConfig(meta_learning_rate=3e-3),
    },
    "paper/catch": {
        "optimizer": "optim4rl",
        "learning_rate": (1e-3,),
        "width": 256,
        "envs_per_agent": 1,
        "zero_head": False,
        # 5e5 environment steps, K + 1 rollouts of 64 environments x 20 steps to an iteration.
        "meta": dataclasses.replace(
            _PAPER, agents=64, reset_interval=64, iterations=78, meta_learning_rate=1e-3
        ),
    },
    "paper/small_dense_long": {
        "optimizer": "optim4rl",
        "tasks": ("small_dense_long",),
        "learning_rate": (3e-2,),
        "width": 0,
        "envs_per_agent": 1,
        "clip": 1.0,
        "zero_head": False,
        "meta": _PAPER,
    },
    "paper/big_dense_long": {
        "optimizer": "optim4rl",
        "tasks": ("big_dense_long",),
        "learning_rate": (3e-3,),
        "width": 0,
        "envs_per_agent": 1,
        "clip": 1.0,
        "zero_head": False,
        "meta": _PAPER,
    },
    "paper/six": {
        "optimizer": "optim4rl",
        "tasks": _SIX,
        "learning_rate": (1e-3, 3e-3, 3e-3, 3e-3, 1e-3, 3e-3),
        "reward_scale": (1e3, 1e2, 1e2, 1e1, 1e1, 1.0),
        "width": 0,
        "envs_per_agent": 1,
        "clip": 1.0,
        "zero_head": False,
        "meta": dataclasses.replace(_PAPER, meta_clip="normalise", meta_clip_limit=0.5),
    },
}


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
    spec = dataclasses.replace(
        learned_spec(options.optimizer),
        clip=options.clip or None,
        zero_head=options.zero_head,
    )
    if options.chunk < 1:
        raise ValueError(f"chunk = {options.chunk!r}: at least 1 is needed")
    if not options.tasks:
        raise ValueError("tasks = (): at least one task is needed")
    rates = per_task("learning_rate", options.learning_rate, options.tasks)
    scales = per_task("step_scale", options.step_scale, options.tasks)
    rewards = per_task("reward_scale", options.reward_scale, options.tasks)
    tasks = []
    for name, rate, scale, reward in zip(options.tasks, rates, scales, rewards, strict=True):
        config = default_config(name)
        config = dataclasses.replace(
            config,
            num_envs=options.envs_per_agent,
            width=options.width or config.width,
            # A narrow dense network trains the rule as well as the paper's convolution does.
            torso="dense" if options.width else config.torso,
            a2c=dataclasses.replace(config.a2c, reward_scale=reward),
        )
        tasks.append(MetaTask(make_task(config), rate * scale))
    return spec, tuple(tasks)


def run(options: TrainOptions) -> None:
    """The command."""
    spec, tasks = build(options)
    settings = _settings(options)
    if options.dry_run:
        print(json.dumps(settings, indent=1))
        return
    checkpoint = options.out / "checkpoint.safetensors"
    if checkpoint.exists() and not options.resume:
        raise ValueError(
            f"out = {str(options.out)!r}: a run is there already; --resume goes on with it, or "
            "choose another folder"
        )
    state = init(spec, tasks, options.meta)
    if options.resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, state, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "settings.json", json.dumps(settings, indent=1).encode())
    log = options.out / "progress.csv"
    _start_log(log, options.tasks, int(state.iteration))
    steps = sum(t.task.env_steps_per_update for t in tasks)  # type: ignore[attr-defined]
    steps *= options.meta.agents * (options.meta.inner_updates + 1)
    started, first = time.perf_counter(), int(state.iteration)

    with progress_bar(f"meta-training {options.optimizer}", "iterations") as update:
        update(first, options.meta.iterations)

        done = first

        def report(state: MetaState, progress: Progress) -> None:
            nonlocal done
            _append_progress(log, done, int(state.iteration), progress)
            save_checkpoint(checkpoint, state, settings)
            done = int(state.iteration)
            rate = (done - first) * steps / (time.perf_counter() - started)
            returns = _mean_returns(progress)
            note = " ".join(f"return {x:.3g}" for x in returns)
            update(done, options.meta.iterations, note, f"{rate:,.0f} steps/s")

        state, _ = train(spec, tasks, options.meta, state=state, chunk=options.chunk, report=report)
    seconds = time.perf_counter() - started
    weights = options.out / "weights.safetensors"
    save_weights(weights, _learned(options, spec, tasks, state, settings, seconds))
    rate = (options.meta.iterations - first) * steps / seconds
    summary = {
        "weights": str(weights),
        "progress": str(log),
        "iterations": int(state.iteration),
        "seconds": round(seconds, 1),
        "env_steps_per_second": round(rate),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print_table("meta-training", ["", "value"], [[k, str(v)] for k, v in summary.items()])
        print(f"next: optim4rl evaluate {weights} --task {options.tasks[0]}")


def _settings(options: TrainOptions) -> dict[str, Any]:
    """All that decides the result, as JSON values."""
    values = dataclasses.asdict(options)
    for name in ("out", "resume", "dry_run", "json", "chunk"):
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
        "versions": package_versions(),
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


def _start_log(log: Path, tasks: tuple[str, ...], done: int) -> None:
    """The header, and of an earlier log the lines up to the checkpoint: the rest is done again."""
    lines = log.read_text().splitlines()[1:] if log.exists() else []
    kept = [line for line in lines if int(line.partition(",")[0]) <= done]
    header = ",".join(["iteration", "meta_gradient_norm", *(f"return_{task}" for task in tasks)])
    write_atomically(log, "\n".join([header, *kept, ""]).encode())


def _append_progress(log: Path, before: int, after: int, progress: Progress) -> None:
    """One line for each iteration: its number, the meta-gradient's norm, each task's return.

    The iteration that ran out of finite numbers, if one did, is the last line.
    """
    lines = []
    for index, norm in enumerate(progress.meta_gradient_norm[: after - before + 1]):
        returns = [
            f"{s.return_sum[index] / s.episode_count[index]:.6g}" if s.episode_count[index] else ""
            for s in progress.stats
        ]
        lines.append(",".join([str(before + index + 1), f"{norm:.6g}", *returns]))
    with log.open("a") as file:
        file.write("\n".join(lines) + "\n")
