"""Learning curves: train agents with an optimizer, many seeds and rates in one program."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.presets import ScalarOrSchedule, classical
from optim4rl.optimizers.resetting import Reset, resetting
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.transform import learned_optimizer
from optim4rl.tasks.interface import (
    EvaluationTask,
    GreedyTask,
    loss_extras,
    update_extras,
    update_gradient,
)


@runtime_checkable
class Family(Protocol):
    """Make an optimizer from its meta-parameters and its rate.

    A family is frozen and hashable: one compiled program serves all parameters, rates and seeds.
    """

    def __call__(self, parameters: Any, rate: ScalarOrSchedule) -> optax.GradientTransformation:
        """Make the optimizer at a learning rate or a schedule."""


@dataclass(frozen=True)
class Classical:
    """Make a classical optimizer by name.

    Attributes:
        name: one of `optimizers.presets.CLASSICAL`.
        epsilon: epsilon of an optimizer that has one; None: optax's default.
    """

    name: str
    epsilon: float | None = None

    def __call__(self, parameters: Any, rate: ScalarOrSchedule) -> optax.GradientTransformation:
        del parameters
        return classical(self.name, rate, self.epsilon)


@dataclass(frozen=True)
class Still:
    """Leave agents unchanged; their gradients are not computed."""

    def __call__(self, parameters: Any, rate: ScalarOrSchedule) -> optax.GradientTransformation:
        del parameters, rate
        return optax.set_to_zero()


def follow(
    make: Callable[[Any], optax.GradientTransformation], rate: ScalarOrSchedule
) -> optax.GradientTransformation:
    """Make an optimizer that takes a number as its rate, and let its steps follow a schedule.

    Args:
        make: makes the optimizer from a number; for a schedule it gets the first rate.
        rate: a number or a schedule.
    """
    if not callable(rate):
        return make(rate)
    first = rate(0)
    unit = jnp.where(first == 0, 1.0, first)  # With a rate of 0 all steps are 0 already.
    return optax.chain(make(first), optax.scale_by_schedule(lambda count: rate(count) / unit))


@dataclass(frozen=True)
class Accompanied:
    """Add the usual companions to an optimizer.

    Attributes:
        family: the optimizer.
        clip: clip the gradient's global norm to this; None: do not clip.
        decay_over: updates over which the rate falls linearly to zero; None: a constant rate.
        reset: which state is reset before every rollout; None: nothing. See `optimizers.resetting`.
        reset_every: updates per rollout.
    """

    family: Family
    clip: float | None = None
    decay_over: int | None = None
    reset: Reset | None = None
    reset_every: int = 1

    def __call__(self, parameters: Any, rate: ScalarOrSchedule) -> optax.GradientTransformation:
        if self.decay_over is not None:
            rate = optax.linear_schedule(rate, 0.0, self.decay_over)
        if self.reset is None:
            optimizer = self.family(parameters, rate)
        else:  # A reset does not restart the falling rate.
            every, what = self.reset_every, self.reset
            optimizer = follow(lambda x: resetting(self.family(parameters, x), every, what), rate)
        if self.clip is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self.clip), optimizer)


@dataclass(frozen=True)
class Learned:
    """Make a learned rule from its meta-parameters and its rate alpha.

    Attributes:
        spec: the rule.
        state_dtype: data type of its state, "float32" or "bfloat16".
    """

    spec: OptimizerSpec
    state_dtype: str = "float32"

    def __call__(
        self, parameters: MetaParameters | None, rate: ScalarOrSchedule
    ) -> optax.GradientTransformation:
        if parameters is None:
            raise ValueError("parameters = None: a learned rule needs its meta-parameters")
        # A single device runs it, even if there are several.
        kernel = choose(self.spec).name
        return learned_optimizer(
            self.spec, parameters, rate, kernel=kernel, state_dtype=self.state_dtype
        )


# Agents that learn side by side, and updates per host synchronisation. A batch is always full:
# missing runs are filled in. So an optimizer needs one program per task, and a run gives the same
# numbers whichever other runs are requested.
BATCH = 8
CHUNK = 30


@runtime_checkable
class Keeper(Protocol):
    """Keep the progress of a batch, a pytree of arrays, so that a stopped batch goes on."""

    def restore(self, fresh: Any) -> Any:
        """Return the progress that was kept; `fresh`, a tree of the same arrays, if none was."""

    def keep(self, progress: Any) -> None:
        """Keep the progress after another chunk; the arrays are gone after the call."""


def learning_curves(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    updates: int,
) -> tuple[Curves, ...]:
    """Train an agent for every rate and seed.

    The same seed gives the same agent and the same environments at every rate and for every
    optimizer, so that comparisons are paired.

    Args:
        task: the task to learn.
        family: makes the optimizer from its parameters and rate.
        parameters: meta-parameters of a learned rule, None for a classical optimizer.
        rates: learning rates; for a learned rule its alpha times a step scale.
        seeds: one agent for each.
        updates: rollouts of each agent, each followed by its learner's gradient steps.

    Returns:
        One `Curves` for each rate, with one run for each seed.
    """
    runs = [(rate, seed) for rate in rates for seed in seeds]
    curves = train_runs(task, family, parameters, runs, updates)
    return tuple(curves.take(group) for group in np.split(np.arange(len(runs)), len(rates)))


def train_runs(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    runs: Sequence[tuple[float, int]],
    updates: int,
    whole: int | None = None,
    keeper: Keeper | None = None,
) -> Curves:
    """Train an agent for every pair of a rate and a seed; see `learning_curves`.

    Optimizers are told which share of `whole` rollouts is done; None: of `updates`. A keeper is for
    runs of a single batch.

    A run's seconds are the seconds of its batch divided by the number of agents in it. On CPUs we
    measure CPU time of this process, which other processes change little. A worker of `jobs` has
    one thread, so there it is time of one core. On other devices we measure wall-clock time.
    """
    if keeper is not None and len(runs) > BATCH:
        raise ValueError(f"runs: {len(runs)} runs; with a keeper at most {BATCH} are possible")
    lengths = updates, whole or updates
    batches = [
        _train_batch(task, family, parameters, runs[start : start + BATCH], *lengths, keeper)
        for start in range(0, len(runs), BATCH)
    ]
    sums, counts, finite, greedy, seconds = (np.concatenate(x) for x in zip(*batches, strict=True))
    env_steps = task.env_steps_per_rollout * np.arange(1, updates + 1)
    healthy = finite.all(axis=1)
    diverged_at = np.where(healthy, HEALTHY, np.argmin(finite, axis=1))
    curves = Curves.from_episodes(sums, counts, diverged_at, env_steps)
    greedy = np.where(healthy, greedy, np.nan)
    return replace(curves, greedy=greedy if _is_greedy(task) else None, seconds=seconds)


def _is_greedy(task: EvaluationTask) -> TypeGuard[GreedyTask]:
    """Return whether finished agents play greedy episodes."""
    return isinstance(task, GreedyTask) and task.greedy_episodes > 0


class _Agent(NamedTuple):
    """Hold an agent in training: its parameters, its optimizer's state, its environments."""

    params: Any
    optimizer: Any
    actor: Any


class _Progress(NamedTuple):
    """Hold how far a batch is: its agents, what they did, rollouts done, and their seconds."""

    agents: _Agent
    outcomes: tuple[np.ndarray, ...]
    done: np.ndarray
    seconds: np.ndarray


def _train_batch(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    runs: Sequence[tuple[float, int]],
    updates: int,
    whole: int,
    keeper: Keeper | None,
) -> tuple[np.ndarray, ...]:
    """Train a batch of (rate, seed) pairs, filled up to `BATCH`."""
    filled = [*runs, *[runs[0]] * (BATCH - len(runs))]
    rates = jnp.asarray([rate for rate, _ in filled], jnp.float32)
    keys = jnp.stack([jax.random.key(seed) for _, seed in filled])
    agents = _start(task, family, parameters, rates, keys)
    # Compiled before the clock starts; the calls below find the program.
    counts = updates, whole
    program = _advance.lower(task, family, parameters, rates, keys, agents, 0, *counts)
    program.compile()
    length = -(-updates // CHUNK) * CHUNK
    outcomes = tuple(np.zeros((BATCH, length), x.dtype) for x in program.out_info[1])
    progress = _Progress(agents, outcomes, np.zeros((), np.int64), np.zeros(()))
    if keeper is not None:
        progress = keeper.restore(progress)
    agents, outcomes, done, seconds = progress
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for first in range(int(done), length, CHUNK):
        started = clock()
        agents, outcome = _advance(task, family, parameters, rates, keys, agents, first, *counts)
        for all_of_it, part in zip(outcomes, outcome, strict=True):
            all_of_it[:, first : first + CHUNK] = np.asarray(part)
        seconds = np.asarray(seconds + clock() - started)
        if keeper is not None:
            keeper.keep(_Progress(agents, outcomes, np.asarray(first + CHUNK), seconds))
    greedy = np.full(BATCH, np.nan)
    if _is_greedy(task):
        greedy = np.asarray(_play_greedily(task, keys, agents), np.float64)
    count = len(runs)
    each = np.full(count, float(seconds) * updates / length / BATCH)
    return *(x[:count, :updates] for x in outcomes), greedy[:count], each


@partial(jax.jit, static_argnames=("task", "family"))
def _start(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    rates: Float[Array, " run"],
    keys: Key[Array, " run"],
) -> _Agent:
    def start(rate: Float[Array, ""], key: PRNGKeyArray) -> _Agent:
        agent_key = jax.random.fold_in(key, 0)
        params = task.init_params(agent_key)
        return _Agent(params, family(parameters, rate).init(params), task.init_actor(agent_key))

    return jax.vmap(start)(rates, keys)


@partial(jax.jit, static_argnames="task")
def _play_greedily(
    task: GreedyTask, keys: Key[Array, " run"], agents: _Agent
) -> Float[Array, " run"]:
    """Return the mean return of each finished agent's greedy episodes."""

    def play(key: PRNGKeyArray, agent: _Agent) -> Float[Array, ""]:
        return task.greedy_return(agent.params, agent.actor, jax.random.fold_in(key, 2))

    return jax.vmap(play)(keys, agents)


@partial(jax.jit, static_argnames=("task", "family"), donate_argnames="agents")
def _advance(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    rates: Float[Array, " run"],
    keys: Key[Array, " run"],
    agents: _Agent,
    first: int | Int[Array, ""],
    updates: int | Int[Array, ""],
    whole: int | Int[Array, ""],
) -> tuple[
    _Agent, tuple[Float[Array, "run time"], Int[Array, "run time"], Bool[Array, "run time"]]
]:
    """Train for one chunk; return episode returns, counts, and whether all is finite.

    The last chunk may go beyond `updates`. Agents that play greedy episodes afterwards stay as they
    were after `updates`.
    """

    def advance(rate: Float[Array, ""], key: PRNGKeyArray, agent: _Agent) -> Any:
        optimizer = optax.with_extra_args_support(family(parameters, rate))
        rollouts, noise = jax.random.fold_in(key, 1), jax.random.fold_in(key, 3)

        def update(agent: _Agent, index: Array) -> tuple[_Agent, tuple[Array, Array, Array]]:
            key = jax.random.fold_in(rollouts, index)
            batch, actor, stats = task.rollout(agent.params, agent.actor, key)
            told = {
                "noise_key": jax.random.fold_in(noise, index),
                "training_proportion": index / jnp.maximum(whole - 1, 1),
                "updates_done": index * task.updates_per_rollout,
            }
            params, state = _learn(task, optimizer, batch, agent.params, agent.optimizer, told)
            numbers = jax.tree.leaves((params, stats.return_sum))
            finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]).all()
            after = _Agent(params, state, actor)
            if _is_greedy(task):
                after = jax.tree.map(partial(jnp.where, index < updates), after, agent)
            return after, (stats.return_sum, stats.episode_count, finite)

        return jax.lax.scan(update, agent, first + jnp.arange(CHUNK))

    return jax.vmap(advance)(rates, keys, agents)


def _learn(
    task: EvaluationTask,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Any,
    params: Any,
    state: Any,
    told: dict[str, Any],
) -> tuple[Any, Any]:
    """Make all updates on a rollout; return the parameters and the optimizer's state.

    Each update gets the task's extra arguments and `told`, which is the same for all updates of the
    rollout. Each update has its own noise key and its own `updates_done`.
    """

    def learn_once(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        gradient = update_gradient(task, params, batch, index)
        extras = told | update_extras(task, params, batch, index)
        extras |= loss_extras(task, params, batch, index, gradient)
        extras["noise_key"] = jax.random.fold_in(told["noise_key"], index)
        extras["updates_done"] = told["updates_done"] + index
        updates, state = optimizer.update(gradient, state, params, **extras)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, state)
    if task.updates_per_rollout == 1:
        return learn_once(carry, jnp.int32(0))[0]
    return jax.lax.scan(learn_once, carry, jnp.arange(task.updates_per_rollout))[0]
