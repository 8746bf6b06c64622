"""Meta-training: agents of all ages, the truncated meta-gradient, a meta-optimizer.

The whole state of meta-training is one pytree, so saving it is resuming. Whole chunks of
meta-iterations run inside jit, which updates the state in place; the host returns to report, log
and save.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.meta.meta_gradient import VALIDATIONS, Agents, Validation, init_agents
from optim4rl.meta.population import REPLICATED, SHARDED, Execution, advance
from optim4rl.meta.resets import (
    RESET_SCHEDULES,
    ResetSchedule,
    reset_intervals,
    reset_mask,
    reset_offsets,
)
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, init_meta_parameters
from optim4rl.tasks.interface import InnerTask

TaskClip = Literal["value", "norm", "normalise", "none"]
MetaClip = TaskClip | Literal["running"]
META_CLIPS: tuple[MetaClip, ...] = ("value", "norm", "normalise", "none", "running")

# Of the running mean that a task's meta-gradient is normalised by: about the last ten iterations,
# and no meta-gradient counts for more than sqrt(10) of the usual ones.
RUNNING_DECAY = 0.9


@dataclass(frozen=True)
class MetaConfig:
    """Settings of meta-training, apart from the rule and the tasks.

    Attributes:
        iterations: meta-iterations, each of K inner updates and one update of the rule.
        agents: agents M of each task.
        inner_updates: K.
        resets: reset schedule; "staggered" is pipeline training.
        reset_interval: I, in meta-iterations: one life is I * K inner updates.
        shortest_interval: lives of mixed length: each agent has an interval of its own, spread from
            this to `reset_interval` evenly in logarithm; None: all have `reset_interval`.
        validation: "last" (the paper's) or "dense".
        meta_learning_rate: of Adam, the meta-optimizer.
        cosine_to: share of the meta-learning rate that a cosine decay ends at; 1 is constant.
        meta_clip: what happens to each task's meta-gradient: "value" clips it elementwise, "norm"
            caps its global norm, "normalise" scales it to the limit, "running" divides it by a
            running root mean square of its norm, so that the scale of a task's rewards drops out,
            and caps the global norm of the mean over tasks; "none" leaves it.
        meta_clip_limit: the limit of that.
        seed: of everything random in meta-training.
    """

    iterations: int = 200
    agents: int = 8
    inner_updates: int = 4
    resets: ResetSchedule = "staggered"
    reset_interval: int = 98
    shortest_interval: int | None = None
    validation: Validation = "dense"
    meta_learning_rate: float = 3e-3
    cosine_to: float = 1.0
    meta_clip: MetaClip = "value"
    meta_clip_limit: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("iterations", "agents", "inner_updates", "reset_interval"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} = {value!r}: a whole number of at least 1 is needed")
        shortest = self.shortest_interval
        if shortest is not None and not 1 <= shortest <= self.reset_interval:
            raise ValueError(
                f"shortest_interval = {shortest!r}: 1 to reset_interval = {self.reset_interval} is "
                "needed, or None"
            )
        for field, choices in (
            ("resets", RESET_SCHEDULES),
            ("validation", VALIDATIONS),
            ("meta_clip", META_CLIPS),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} = {getattr(self, field)!r}: known values are {', '.join(choices)}"
                )
        for field in ("meta_learning_rate", "meta_clip_limit"):
            value = getattr(self, field)
            if not 0 < value < float("inf"):
                raise ValueError(f"{field} = {value!r}: a positive finite number is needed")
        if not 0 <= self.cosine_to <= 1:
            raise ValueError(f"cosine_to = {self.cosine_to!r}: a share in [0, 1] is needed")


@dataclass(frozen=True)
class MetaTask:
    """One task of meta-training and the inner learning rate that the rule is used with there."""

    task: InnerTask
    learning_rate: float


class MetaState(NamedTuple):
    """The whole state of meta-training.

    Attributes:
        meta_parameters: the rule's weights.
        meta_optimizer: the meta-optimizer's state.
        agents: one `Agents` for each task.
        offsets: the reset index of each agent, one array for each task.
        squared_norms: each task's running mean of its meta-gradient's squared norm, from 0 on.
        key: the random key that every iteration's keys are folded from.
        iteration: meta-iterations done.
        stopped: numbers ceased to be finite. The rule, its optimizer and the iteration are those of
            the last good iteration; the agents are as the next one left them.
    """

    meta_parameters: MetaParameters
    meta_optimizer: Any
    agents: tuple[Agents, ...]
    offsets: tuple[Int[Array, " M"], ...]
    squared_norms: Float[Array, " tasks"]
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    stopped: Bool[Array, ""]


class Progress(NamedTuple):
    """What meta-training reports, one entry for each iteration.

    Attributes:
        meta_gradient_norm: global norm, before clipping, mean over tasks.
        stats: each task's stats, summed over the rollouts and agents of the iteration.
    """

    meta_gradient_norm: Float[Array, " iterations"]
    stats: tuple[Any, ...]


class MetaDivergenceError(RuntimeError):
    """Meta-training ran out of finite numbers. `state` has the last good rule."""

    def __init__(self, state: MetaState) -> None:
        self.state = state
        super().__init__(
            f"meta-training ran out of finite numbers at iteration {int(state.iteration)}; the "
            "rule before it is kept. A smaller meta-learning rate or inner learning rate helps."
        )


def meta_optimizer(config: MetaConfig) -> optax.GradientTransformation:
    """Adam, with a cosine decay where the config asks for one."""
    schedule = optax.cosine_decay_schedule(
        config.meta_learning_rate, config.iterations, alpha=config.cosine_to
    )
    return optax.adam(schedule)


def clip_meta_gradient(gradient: MetaParameters, clip: TaskClip, limit: float) -> MetaParameters:
    """One task's meta-gradient, clipped or normalised."""
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
    iteration: Int[Array, ""],
    clip: MetaClip,
    limit: float,
) -> tuple[MetaParameters, Float[Array, " tasks"]]:
    """The mean over tasks of meta-gradients made comparable, and the running mean of their norms.

    "running" corrects that mean for its start at zero as Adam does (Kingma & Ba 2015, section 3).
    """
    found = jnp.stack([optax.tree.norm(gradient, squared=True) for gradient in gradients])
    squared_norms = RUNNING_DECAY * squared_norms + (1 - RUNNING_DECAY) * found
    if clip == "running":
        usual = jnp.sqrt(squared_norms / (1 - RUNNING_DECAY ** (iteration + 1)))
        scaled = [
            jax.tree.map(lambda x, norm=norm: x / jnp.maximum(norm, 1e-12), gradient)
            for gradient, norm in zip(gradients, usual, strict=True)
        ]
        return clip_meta_gradient(_mean(scaled), "norm", limit), squared_norms
    clipped = [clip_meta_gradient(gradient, clip, limit) for gradient in gradients]
    return _mean(clipped), squared_norms


def _mean(trees: list[MetaParameters]) -> MetaParameters:
    return jax.tree.map(lambda *x: sum(x) / len(trees), *trees)


def init(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    meta_parameters: MetaParameters | None = None,
    execution: Execution = Execution(),
) -> MetaState:
    """The state before the first iteration; `meta_parameters` to start from given weights."""
    execution.chunk(config.agents)
    return _init(
        spec, tasks, dataclasses.replace(config, seed=0), execution, config.seed, meta_parameters
    )


def _program(config: MetaConfig) -> MetaConfig:
    """The config as a key of compiled programs: what is kept in the state does not matter."""
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
    key_agents, key_offsets, key = jax.random.split(jax.random.fold_in(key, 1), 3)

    def agents(index: int) -> Agents:
        keys = jax.random.split(jax.random.fold_in(key_agents, index), config.agents)
        return init_agents(spec, tasks[index].task, keys)

    def offsets(index: int) -> Array:
        return reset_offsets(
            config.resets, _intervals(config), jax.random.fold_in(key_offsets, index)
        )

    state = MetaState(
        meta_parameters=meta_parameters,
        meta_optimizer=meta_optimizer(config).init(meta_parameters),
        agents=tuple(agents(index) for index in range(len(tasks))),
        offsets=tuple(offsets(index) for index in range(len(tasks))),
        squared_norms=jnp.zeros(len(tasks)),
        key=key,
        iteration=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), jnp.bool),
    )
    return jax.lax.with_sharding_constraint(state, state_shardings(state, execution))


def _intervals(config: MetaConfig) -> Int[np.ndarray, " M"]:
    return reset_intervals(config.agents, config.reset_interval, config.shortest_interval)


def state_shardings(state: MetaState, execution: Execution) -> MetaState:
    """The sharding of each leaf: agents over the devices, all else on each of them."""
    replicated = execution.sharding(REPLICATED)
    sharded = execution.sharding(SHARDED)
    return jax.tree.map(lambda _: replicated, state)._replace(
        agents=jax.tree.map(lambda _: sharded, state.agents)
    )


def iterate(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    state: MetaState,
    execution: Execution = Execution(),
) -> tuple[MetaState, Progress]:
    """One meta-iteration: resets, K inner updates, validation, one update of the rule."""
    key = jax.random.fold_in(state.key, state.iteration)
    results = [
        advance(
            spec,
            state.meta_parameters,
            meta_task.task,
            agents,
            reset_mask(state.iteration, offsets, _intervals(config)),
            jax.random.fold_in(key, index),
            learning_rate=meta_task.learning_rate,
            inner_updates=config.inner_updates,
            validation=config.validation,
            execution=execution,
        )
        for index, (meta_task, agents, offsets) in enumerate(
            zip(tasks, state.agents, state.offsets, strict=True)
        )
    ]
    mean, squared_norms = combine_meta_gradients(
        [result.gradient for result in results],
        state.squared_norms,
        state.iteration,
        config.meta_clip,
        config.meta_clip_limit,
    )
    updates, optimizer_state = meta_optimizer(config).update(
        mean, state.meta_optimizer, state.meta_parameters
    )
    norm = sum(optax.tree.norm(result.gradient) for result in results) / len(tasks)
    after = state._replace(
        meta_parameters=optax.apply_updates(state.meta_parameters, updates),
        meta_optimizer=optimizer_state,
        squared_norms=squared_norms,
        iteration=state.iteration + 1,
    )
    after = _keep_last_good(state, after, jnp.isfinite(norm))
    after = after._replace(agents=tuple(result.agents for result in results))
    return after, Progress(norm, tuple(result.stats for result in results))


def _keep_last_good(before: MetaState, after: MetaState, finite: Bool[Array, ""]) -> MetaState:
    """Take the update of the rule back, and stop, where it left the finite numbers."""
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
    report: Callable[[MetaState, Progress], None] = lambda state, progress: None,
    execution: Execution = Execution(),
) -> tuple[MetaState, Progress | None]:
    """Meta-train from the start, or on from `state`.

    Args:
        spec: the rule to train.
        tasks: what its agents learn; the meta-gradients of several tasks are averaged.
        config: the settings.
        state: where to go on; None starts afresh. Its arrays are given up: the run updates them in
            place, so keep a copy (`jax.tree.map(jnp.copy, state)`) where it is needed again.
        chunk: iterations that run before the host sees progress.
        report: called after every chunk with the state, which lasts until it returns, and that
            chunk's progress.
        execution: devices, chunks of agents, kernel.

    Returns:
        The final state, and the progress of the iterations done here (None if none were left).

    Raises:
        MetaDivergenceError: numbers ceased to be finite; it carries the last good rule.
    """
    if state is None:
        state = init(spec, tasks, config, execution=execution)
    chunks = []
    while (first := int(state.iteration)) < config.iterations:
        end = min(first + chunk, config.iterations)
        state, progress = _run(spec, tasks, _program(config), execution, chunk, state, end)
        # The iteration that ran out of finite numbers, if one did, is reported too.
        done = int(state.iteration) - first + bool(state.stopped)
        progress = jax.tree.map(lambda x, done=done: np.asarray(x)[:done], progress)
        chunks.append(progress)
        report(state, progress)
        if state.stopped:
            raise MetaDivergenceError(state)
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
    """Iterate up to iteration `end`, at most `chunk` times, with one row of progress for each."""
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
