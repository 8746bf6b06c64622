"""Meta-training that a stop interrupts for a few minutes at most: it goes on from a checkpoint."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from optim4rl.files.sealed import SECONDS_BETWEEN_SAVES as SECONDS_BETWEEN_SAVES
from optim4rl.meta.checkpoint import (
    has_checkpoint,
    previous_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from optim4rl.meta.config import MetaConfig
from optim4rl.meta.estimators import MetaTask
from optim4rl.meta.population import Execution
from optim4rl.meta.trainer import MetaDivergenceError, MetaState, Progress, init, train
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec

# A training runs in this many chunks of iterations, and may save its state after each of them.
CHUNKS = 20


def train_resumably(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    path: Path,
    settings: Mapping[str, Any],
    execution: Execution = Execution(),
) -> tuple[MetaParameters, Float[np.ndarray, " iterations"]]:
    """Meta-train a rule, or go on from the checkpoint at a path; remove the checkpoint at the end.

    Args:
        spec: the rule.
        tasks: the tasks that its agents learn.
        config: the settings of the meta-training.
        path: the checkpoint.
        settings: everything that shapes the training, as JSON values; the checkpoint must have the
            same.
        execution: devices, chunks of agents, kernel.

    Returns:
        The trained weights, and the norm of the meta-gradient in each iteration.

    Raises:
        MetaDivergenceError: a number is not finite.
        CheckpointError: the checkpoint is damaged, or belongs to another training.
    """
    fresh = partial(init, spec, tasks, config, execution=execution)
    norms: list[float] = []
    if has_checkpoint(path):
        # Only the shapes: a state of 512 agents takes gigabytes, and a second one may not fit.
        state, notes, _ = resume_checkpoint(path, jax.eval_shape(fresh), settings, execution)
        norms += notes["meta_gradient_norm"]
    else:
        state = fresh()
    saved = time.monotonic()

    def report(state: MetaState, progress: Progress) -> None:
        nonlocal saved
        norms.extend(progress.meta_gradient_norm.tolist())
        done = state.stopped or int(state.iteration) == config.iterations
        if not done and time.monotonic() - saved >= SECONDS_BETWEEN_SAVES:
            save_checkpoint(path, state, settings, {"meta_gradient_norm": norms})
            saved = time.monotonic()

    try:
        state, _ = train(
            spec,
            tasks,
            config,
            state=state,
            chunk=-(-config.iterations // CHUNKS),
            report=report,
            execution=execution,
        )
    except MetaDivergenceError:
        _remove(path)
        raise
    _remove(path)
    return state.meta_parameters, np.array(norms, np.float32)


def _remove(path: Path) -> None:
    """Remove the checkpoints of a training that has ended."""
    for old in (path, previous_checkpoint(path)):
        old.unlink(missing_ok=True)
