"""Meta-training: an estimate of each task's meta-gradient, their mean, a meta-optimizer.

The whole state of meta-training is one pytree, so a saved state is a checkpoint. Whole chunks of
meta-iterations run inside jit, which updates the state in place. Between chunks the host reports,
logs and saves.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.meta.agents import stats_shapes
from optim4rl.meta.config import MetaClip, MetaConfig as MetaConfig, TaskClip
from optim4rl.meta.estimators import (
    Estimate,
    EstimatorState,
    GradientEstimator,
    MetaTask as MetaTask,
    TruncatedMetaGradient,
)
from optim4rl.meta.evolution import EvolutionStrategies, PersistentEvolutionStrategies
from optim4rl.meta.population import REPLICATED, SHARDED, Execution
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, init_meta_parameters

# Decay of the running mean that normalises a task's meta-gradient. It covers about ten iterations,
# so no meta-gradient counts more than sqrt(10) usual ones.
RUNNING_DECAY = 0.9

# Folded into an iteration's key to draw its tasks. The tasks fold in their numbers.
_DRAW = 2**31 - 1


class MetaState(NamedTuple):
    """The whole state of meta-training.

    Attributes:
        meta_parameters: the rule's weights.
        meta_optimizer: the meta-optimizer's state.
        estimators: the state of each task's estimator, its agents above all.
        squared_norms: each task's running mean of its meta-gradient's squared norm; it starts at 0.
        key: the random key from which every iteration folds its keys.
        iteration: meta-iterations done.
        stopped: whether a number was not finite. Then the rule, the meta-optimizer and the
            iteration are from the last good iteration, and the estimators from the next iteration.
    """

    meta_parameters: MetaParameters
    meta_optimizer: Any
    estimators: tuple[EstimatorState, ...]
    squared_norms: Float[Array, " tasks"]
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    stopped: Bool[Array, ""]


class Progress(NamedTuple):
    """Reports of meta-training, one entry for each iteration.

    Attributes:
        meta_gradient_norm: global norm, before clipping, mean over the tasks of the iteration.
        stats: each task's stats, summed over the rollouts and agents of the iteration. They and
            everything below are 0 for a task that the iteration did not draw.
        task_norms: global norm of each task's own meta-gradient.
        rollouts: rollouts of each task's agents.
    """

    meta_gradient_norm: Float[Array, " iterations"]
    stats: tuple[Any, ...]
    task_norms: Float[Array, "iterations tasks"]
    rollouts: Int[Array, "iterations tasks"]


class MetaDivergenceError(RuntimeError):
    """Meta-training diverged: a number is not finite. `state` holds the last good rule."""

    def __init__(self, state: MetaState, progress: Progress) -> None:
        self.state = state
        super().__init__(
            f"meta-training ran out of finite numbers at iteration {int(state.iteration)}: "
            f"{'; '.join(_not_finite(state, progress)) or 'the update of the rule'}. The rule "
            "before it is kept. A smaller meta-learning rate or inner learning rate helps."
        )


def _not_finite(state: MetaState, progress: Progress) -> Iterator[str]:
    """Yield the numbers that are not finite after the last iteration, in words, task by task."""
    for index, (estimator, stats) in enumerate(zip(state.estimators, progress.stats, strict=True)):
        found = [name for name, _ in _broken_leaves(jax.tree.map(lambda x: x[-1], stats))]
        if not np.isfinite(progress.task_norms[-1, index]):
            found.append("meta-gradient")
        for name, leaf in _broken_leaves(estimator.agents):
            broken = ~jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
            found.append(f"{name} of {int(broken.sum())} of {len(leaf)} agents")
        if found:
            yield f"task {index} ({', '.join(found)})"


def _broken_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.isfinite(leaf).all():
            yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def meta_optimizer(config: MetaConfig) -> optax.GradientTransformation:
    """Return Adam, with a cosine decay if the config asks for one."""
    schedule = optax.cosine_decay_schedule(
        config.meta_learning_rate, config.iterations, alpha=config.cosine_to
    )
    return optax.adam(schedule)


def clip_meta_gradient(gradient: MetaParameters, clip: TaskClip, limit: float) -> MetaParameters:
    """Return one task's meta-gradient, clipped or normalised."""
    if clip == "value":
        return jax.tree.map(lambda x: jnp.clip(x, -limit, limit), gradient)
    if clip == "none":
        return gradient
    norm = optax.tree.norm(gradient)
    floor = limit if clip == "norm" else 1e-12
    return jax.tree.map(lambda x: x * (limit / jnp.maximum(norm, floor)), gradient)


def combine_meta_gradients(
    gradients: list[MetaParameters],
    squared_norms: Float[Array, " tasks"],
    estimates: Int[Array, " tasks"],
    drawn: Bool[Array, " tasks"],
    clip: MetaClip,
    limit: float,
) -> tuple[MetaParameters, Float[Array, " tasks"]]:
    """Return the mean over drawn tasks of comparable meta-gradients, and the running mean norms.

    "running" corrects this mean for its start at zero as Adam does (Kingma & Ba 2015, section 3).

    Args:
        gradients: each task's meta-gradient, 0 for a task that is not drawn.
        squared_norms: each task's running mean of the squared norm.
        estimates: how many meta-gradients of each task there were, with this one.
        drawn: which tasks the iteration has drawn.
        clip: how meta-gradients are made comparable (`MetaConfig.meta_clip`).
        limit: its limit.
    """
    found = jnp.stack([optax.tree.norm(gradient, squared=True) for gradient in gradients])
    after = RUNNING_DECAY * squared_norms + (1 - RUNNING_DECAY) * found
    squared_norms = jnp.where(drawn, after, squared_norms)
    if clip == "running":
        usual = jnp.sqrt(squared_norms / (1 - RUNNING_DECAY ** jnp.maximum(estimates, 1)))
        scaled = [
            jax.tree.map(lambda x, norm=norm: x / jnp.maximum(norm, 1e-12), gradient)
            for gradient, norm in zip(gradients, usual, strict=True)
        ]
        return clip_meta_gradient(_mean(scaled, drawn), "norm", limit), squared_norms
    clipped = [clip_meta_gradient(gradient, clip, limit) for gradient in gradients]
    return _mean(clipped, drawn), squared_norms


def _mean(trees: list[MetaParameters], drawn: Bool[Array, " tasks"]) -> MetaParameters:
    return jax.tree.map(lambda *x: sum(x) / drawn.sum(), *trees)


def make_estimator(
    spec: OptimizerSpec, meta_task: MetaTask, config: MetaConfig, execution: Execution
) -> GradientEstimator:
    """Return the estimator of a task's meta-gradient, named by the task or the config.

    Raises:
        ValueError: the estimator needs returns, which the task does not report, or pairs of agents.
    """
    kinds: dict[str, type[GradientEstimator]] = {
        "truncated": TruncatedMetaGradient,
        "es": EvolutionStrategies,
        "pes": PersistentEvolutionStrategies,
    }
    settings = meta_task.settings(config)
    return kinds[settings.estimator](spec, meta_task, settings, execution)


def init(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    meta_parameters: MetaParameters | None = None,
    execution: Execution = Execution(),
) -> MetaState:
    """Return the state before the first iteration; with `meta_parameters`, start from these."""
    for task in tasks:
        execution.chunk(task.settings(config).agents)
    return _init(
        spec, tasks, dataclasses.replace(config, seed=0), execution, config.seed, meta_parameters
    )


def _program(config: MetaConfig) -> MetaConfig:
    """Return the config as a key of compiled programs, without settings that the state holds."""
    return dataclasses.replace(config, seed=0, resets="staggered")


@partial(jax.jit, static_argnames=("spec", "tasks", "config", "execution"))
def _init(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    execution: Execution,
    seed: int | Int[Array, ""],
    meta_parameters: MetaParameters | None,
) -> MetaState:
    key = jax.random.key(seed)
    if meta_parameters is None:
        meta_parameters = init_meta_parameters(spec, jax.random.fold_in(key, 0))
    key_estimators, _, key = jax.random.split(jax.random.fold_in(key, 1), 3)
    state = MetaState(
        meta_parameters=meta_parameters,
        meta_optimizer=meta_optimizer(config).init(meta_parameters),
        estimators=tuple(
            make_estimator(spec, task, config, execution).init(
                meta_parameters, jax.random.fold_in(key_estimators, index)
            )
            for index, task in enumerate(tasks)
        ),
        squared_norms=jnp.zeros(len(tasks)),
        key=key,
        iteration=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), jnp.bool),
    )
    return jax.lax.with_sharding_constraint(state, state_shardings(state, execution))


def state_shardings(state: MetaState, execution: Execution) -> MetaState:
    """Return the sharding of each leaf: agents over the devices, everything else on each device."""
    replicated = execution.sharding(REPLICATED)
    sharded = execution.sharding(SHARDED)
    return jax.tree.map(lambda _: replicated, state)._replace(
        estimators=tuple(
            jax.tree.map(lambda _: replicated, estimator)._replace(
                agents=jax.tree.map(lambda _: sharded, estimator.agents)
            )
            for estimator in state.estimators
        )
    )


def iterate(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    state: MetaState,
    execution: Execution = Execution(),
) -> tuple[MetaState, Progress]:
    """Run one meta-iteration: estimate its tasks' meta-gradients, and update the rule once."""
    key = jax.random.fold_in(state.key, state.iteration)
    drawn = _draw_tasks(config, len(tasks), jax.random.fold_in(key, _DRAW))
    results = [
        _estimate_if(
            drawn[index],
            make_estimator(spec, task, config, execution),
            state.meta_parameters,
            estimator,
            jax.random.fold_in(key, index),
        )
        for index, (task, estimator) in enumerate(zip(tasks, state.estimators, strict=True))
    ]
    mean, squared_norms = combine_meta_gradients(
        [result.gradient for result in results],
        state.squared_norms,
        jnp.stack([result.state.iteration for result in results]),
        jnp.asarray(drawn),
        config.meta_clip,
        config.meta_clip_limit,
    )
    updates, optimizer_state = meta_optimizer(config).update(
        mean, state.meta_optimizer, state.meta_parameters
    )
    norms = [optax.tree.norm(result.gradient) for result in results]
    norm = sum(norms) / sum(drawn)
    after = state._replace(
        meta_parameters=optax.apply_updates(state.meta_parameters, updates),
        meta_optimizer=optimizer_state,
        squared_norms=squared_norms,
        iteration=state.iteration + 1,
    )
    after = _keep_last_good(state, after, jnp.isfinite(norm))
    after = after._replace(estimators=tuple(result.state for result in results))
    return after, Progress(
        norm,
        tuple(result.stats for result in results),
        jnp.stack(norms),
        jnp.stack([result.rollouts for result in results]),
    )


def _draw_tasks(
    config: MetaConfig, tasks: int, key: PRNGKeyArray
) -> Bool[Array | np.ndarray, " tasks"]:
    """Return which tasks this iteration trains on; a NumPy array if always all."""
    number = config.tasks_per_iteration
    if number is None or number >= tasks:
        return np.ones(tasks, bool)
    return jax.random.permutation(key, tasks) < number


def _estimate_if(
    drawn: Bool[Array | np.bool, ""],
    estimator: GradientEstimator,
    meta_parameters: MetaParameters,
    state: EstimatorState,
    key: PRNGKeyArray,
) -> Estimate:
    """Return an estimate, or for a task that is not drawn zeros and the state as it is."""

    def estimate() -> Estimate:
        return estimator.estimate(meta_parameters, state, key)

    def wait() -> Estimate:
        shapes = stats_shapes(estimator.meta_task.task)
        stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return Estimate(optax.tree.zeros_like(meta_parameters), state, stats, jnp.int32(0))

    return jax.lax.cond(drawn, estimate, wait) if isinstance(drawn, Array) else estimate()


def _keep_last_good(before: MetaState, after: MetaState, finite: Bool[Array, ""]) -> MetaState:
    """Undo the rule's update and stop if a number is not finite."""
    for leaf in jax.tree.leaves(after.meta_parameters):
        finite = jnp.logical_and(finite, jnp.all(jnp.isfinite(leaf)))

    def keep(after: Any, before: Any) -> Any:
        return jax.tree.map(partial(jnp.where, finite), after, before)

    return after._replace(
        meta_parameters=keep(after.meta_parameters, before.meta_parameters),
        meta_optimizer=keep(after.meta_optimizer, before.meta_optimizer),
        squared_norms=keep(after.squared_norms, before.squared_norms),
        iteration=keep(after.iteration, before.iteration),
        stopped=jnp.logical_not(finite),
    )


def train(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    *,
    state: MetaState | None = None,
    chunk: int = 20,
    size: Callable[[], int] | None = None,
    report: Callable[[MetaState, Progress], None] | None = None,
    execution: Execution = Execution(),
) -> tuple[MetaState, Progress | None]:
    """Meta-train a rule, from the start or from `state`.

    Args:
        spec: the rule to train.
        tasks: the tasks that its agents learn; meta-gradients of several tasks are averaged.
        config: the settings.
        state: the state to go on from; None: a fresh one. The run updates its arrays in place, so
            keep a copy (`jax.tree.map(jnp.copy, state)`) if you need it again.
        chunk: iterations between two reports.
        size: called before every chunk; returns its number of iterations, 1 to `chunk`. None:
            always `chunk`.
        report: called after every chunk with the state, which is valid until `report` returns, and
            the chunk's progress. Then no progress is kept here, because a run may take days.
        execution: devices, chunks of agents, kernel.

    Returns:
        The final state, and the progress of the iterations done here: None if no iteration was
        left, or if `report` received it.

    Raises:
        MetaDivergenceError: a number is not finite; the error carries the last good rule.
    """
    if state is None:
        state = init(spec, tasks, config, execution=execution)
    chunks = []
    while (first := int(state.iteration)) < config.iterations:
        end = min(first + (chunk if size is None else size()), config.iterations)
        state, progress = _run(spec, tasks, _program(config), execution, chunk, state, end)
        # Also report the iteration with a number that is not finite, if there is one.
        done = int(state.iteration) - first + bool(state.stopped)
        progress = jax.tree.map(lambda x, done=done: np.asarray(x)[:done], progress)
        if report is None:
            chunks.append(progress)
        else:
            report(state, progress)
        if state.stopped:
            raise MetaDivergenceError(state, progress)
    return state, jax.tree.map(lambda *x: np.concatenate(x), *chunks) if chunks else None


@partial(
    jax.jit,
    static_argnames=("spec", "tasks", "config", "execution", "chunk"),
    donate_argnames="state",
)
def _run(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    execution: Execution,
    chunk: int,
    state: MetaState,
    end: int | Int[Array, ""],
) -> tuple[MetaState, Progress]:
    """Iterate up to iteration `end`, at most `chunk` times; return one row of progress for each."""
    start = state.iteration
    step = partial(iterate, spec, tasks, config, execution=execution)
    rows = jax.tree.map(
        lambda x: jnp.zeros((chunk, *x.shape), x.dtype), jax.eval_shape(step, state)[1]
    )

    def goes_on(carry: tuple[MetaState, Progress]) -> Bool[Array, ""]:
        state, _ = carry
        return jnp.logical_and(state.iteration < end, jnp.logical_not(state.stopped))

    def advance_once(carry: tuple[MetaState, Progress]) -> tuple[MetaState, Progress]:
        state, rows = carry
        row = state.iteration - start
        state, now = step(state)
        return state, jax.tree.map(lambda whole, x: whole.at[row].set(x), rows, now)

    return jax.lax.while_loop(goes_on, advance_once, (state, rows))
