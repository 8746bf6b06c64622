"""Whole meta-training steps: speed, compile time and memory, each case in a process of its own."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.measure import Table, peak_memory_gib, rounded
from optim4rl.cli.runtime import CompileClock
from optim4rl.cli.train import TrainOptions, plan_execution
from optim4rl.meta.recipe import build
from optim4rl.meta.recipes import RECIPES
from optim4rl.meta.trainer import MetaConfig, init, train

# Case: recipe of `optim4rl train`, changes to it, iterations in one timing, timings.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Catch, the paper's settings (64 agents x 1 environment, B)": ("release/catch", {}, 5, 5),
    "Catch, the recipe (8 agents x 64 environments, anchored)": ("zoo/anchored-catch", {}, 50, 5),
    "four grids, K = 16 (8 x 64 each, widths 16 to 32)": (
        "zoo/anchored-catch",
        {
            "tasks": ("catch", "small_dense_long", "big_dense_short", "small_sparse_short"),
            "width": (16, 24, 32),
            "meta": MetaConfig(inner_updates=16, reset_interval=25, meta_learning_rate=1e-2),
        },
        5,
        5,
    ),
    "small_dense_long, the paper's settings (512 agents, B)": (
        "paper/small_dense_long",
        {"optimizer": "optim4rl-rlc"},
        3,
        3,
    ),
    "big_dense_long, the paper's settings (512 agents, 39,482 parameters, B)": (
        "release/big_dense_long",
        {},
        1,
        3,
    ),
}


def tables(case: str) -> list[Table]:
    """One row for one case."""
    name, changes, iterations, timings = CASES[case]
    recipe = dataclasses.replace(RECIPES[name], **changes)
    spec, tasks = build(recipe)
    execution, plan = plan_execution(TrainOptions(Path("unused"), recipe), spec, tasks)
    config = dataclasses.replace(recipe.meta, iterations=iterations * (timings + 1))
    steps = sum(t.task.env_steps_per_rollout for t in tasks)
    steps *= config.agents * (config.inner_updates + 1) * iterations
    compiling = CompileClock()
    state = init(spec, tasks, config, execution=execution)
    marks = [time.perf_counter()]
    train(
        spec,
        tasks,
        config,
        state=state,
        chunk=iterations,
        report=lambda *_: marks.append(time.perf_counter()),
        execution=execution,
    )
    seconds = float(np.median(np.diff(marks)[1:]))
    row = {
        "case": case,
        "env steps a second": round(steps / seconds, -2),
        "ms an iteration": rounded(seconds / iterations * 1e3),
        "compiling, s": rounded(compiling.seconds),
        "peak memory, GiB": rounded(peak_memory_gib()),
        "predicted, GiB": rounded(plan.peak / 2**30),
        "agents a chunk": plan.agents_per_chunk,
        "devices": execution.devices.size,
    }
    cpu = jax.default_backend() == "cpu"
    note = (
        "Median over iterations after the first; fresh compilation, without the cache on disk."
        + (" The CPU is one device for each core." if cpu else "")
    )
    return [Table("Meta-training", note, [row])]
