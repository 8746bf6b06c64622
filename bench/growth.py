"""How the time of a meta-iteration grows with agents, parameters, K and devices, on Catch."""

import dataclasses
import time

import jax
import numpy as np

from bench.measure import Table, rounded
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.trainer import MetaConfig, MetaTask, train
from optim4rl.optimizers.presets import LEARNED
from optim4rl.tasks import TaskConfig, make_task

TASK = TaskConfig("catch", num_envs=16, width=64)
CONFIG = MetaConfig(agents=16, inner_updates=4)
GRID = {
    "agents": (4, 8, 16, 32, 64),
    "width": (32, 64, 128, 256),
    "inner_updates": (1, 4, 16),
    "devices": (1, 2, 4, 8),
}
ITERATIONS, TIMINGS = 5, 5


def tables() -> list[Table]:
    """One row for each value of each quantity, all else as it is."""
    rows = []
    for quantity, values in GRID.items():
        for value in values:
            if quantity != "devices" or value <= jax.device_count():
                rows.append({"quantity": quantity, "value": value, **_measure(quantity, value)})
    note = (
        f"Catch, optim4rl-rlc, {CONFIG.agents} agents x {TASK.num_envs} environments, width "
        f"{TASK.width}, K = {CONFIG.inner_updates}, all devices, unless the row says otherwise."
    )
    return [Table("Growth", note, rows)]


def _measure(quantity: str, value: int) -> dict[str, float]:
    task, config, devices = TASK, CONFIG, jax.device_count()
    if quantity == "width":
        task = dataclasses.replace(task, width=value)
    elif quantity == "devices":
        devices = value
    else:
        config = dataclasses.replace(config, **{quantity: value})
    config = dataclasses.replace(config, iterations=ITERATIONS * (TIMINGS + 1))
    tasks = (MetaTask(make_task(task), 1e-2),)
    marks = [time.perf_counter()]
    train(
        LEARNED["optim4rl-rlc"],
        tasks,
        config,
        chunk=ITERATIONS,
        report=lambda *_: marks.append(time.perf_counter()),
        execution=Execution(agents_mesh(devices)),
    )
    seconds = float(np.median(np.diff(marks)[1:])) / ITERATIONS
    steps = tasks[0].task.env_steps_per_rollout * config.agents * (config.inner_updates + 1)
    return {
        "ms an iteration": rounded(seconds * 1e3),
        "env steps a second": round(steps / seconds, -2),
    }
