"""Agents of one task, side by side: how they start, their rollouts and their gradients."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from optim4rl.optimizers.inputs import flat_extras
from optim4rl.optimizers.kernels.interface import Met
from optim4rl.optimizers.layout import Layout, infer_layout
from optim4rl.optimizers.rule import OptimizerSpec, RuleState, init_state
from optim4rl.optimizers.structures import NO_EXTRAS, Extras
from optim4rl.tasks.interface import InnerTask, update_extras, update_gradient

# Folded into an agent's key for the noise of its updates. Rollouts fold in small numbers.
NOISE = 2**31 - 1


class Agents(NamedTuple):
    """M agents of one task, side by side; every array has a leading axis of size M.

    Attributes:
        params: flattened parameters, `[M, n]`.
        rule: the optimizer's state.
        actor: environments and whatever else the task carries from rollout to rollout.
    """

    params: Float[Array, "M n"]
    rule: RuleState
    actor: Any


def init_agents(spec: OptimizerSpec, task: InnerTask, keys: Key[Array, " M"]) -> Agents:
    """Return a fresh agent for each key."""

    def init(key: PRNGKeyArray) -> Agents:
        params, _ = ravel_pytree(task.init_params(key))
        return Agents(params, init_state(spec, params.shape), task.init_actor(key))

    return jax.vmap(init)(keys)


def num_rollouts(task: InnerTask, inner_updates: int) -> int:
    """Return how many rollouts K inner updates take, without the validation.

    Raises:
        ValueError: K is not a multiple of the inner updates that a rollout serves.
    """
    if inner_updates % task.updates_per_rollout:
        raise ValueError(
            f"inner_updates = {inner_updates!r}: a rollout serves {task.updates_per_rollout} "
            "updates (epochs x minibatches); give a multiple of it"
        )
    return inner_updates // task.updates_per_rollout


@lru_cache(maxsize=64)
def _parameters(task: InnerTask) -> tuple[Layout, Callable[[Float[Array, " n"]], Any]]:
    """Return the layout of the task's parameters, and a function that unflattens them."""
    shapes = jax.eval_shape(task.init_params, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with jax.ensure_compile_time_eval():
        return infer_layout(shapes), ravel_pytree(zeros)[1]


def layout_of(task: InnerTask) -> Layout:
    """Return the layout of the task's parameters."""
    return _parameters(task)[0]


@lru_cache(maxsize=64)
def stats_shapes(task: InnerTask) -> Any:
    """Return shapes and types of what a rollout of one agent reports."""

    def stats(key: PRNGKeyArray) -> Any:
        return task.rollout(task.init_params(key), task.init_actor(key), key)[2]

    return jax.eval_shape(stats, jax.random.key(0))


def play(
    task: InnerTask, agents: Agents, keys: Key[Array, " M"], index: Array
) -> tuple[Any, Any, Any]:
    """Play rollout number `index` of every agent; return batches, actors and stats."""
    _, unravel = _parameters(task)

    def one(params: Array, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        return task.rollout(unravel(params), actor, jax.random.fold_in(key, index))

    return jax.vmap(one)(agents.params, agents.actor, keys)


def gradients_of(
    task: InnerTask, params: Float[Array, "M n"], batches: Any, index: Array | None = None
) -> Float[Array, "M n"]:
    """Return every agent's flattened gradients: of update number `index`, or of the whole loss."""
    _, unravel = _parameters(task)

    def one(params: Array, batch: Any) -> Array:
        if index is None:
            return ravel_pytree(task.gradient(unravel(params), batch))[0]
        return ravel_pytree(update_gradient(task, unravel(params), batch, index))[0]

    return jax.vmap(one)(params, batches)


def extras_of(
    spec: OptimizerSpec,
    task: InnerTask,
    agents: Agents,
    keys: Key[Array, " M"],
    batches: Any,
    index: Int[Array, ""],
    lives: Int[Array, " M"],
) -> Extras:
    """Return every agent's extras: the inputs that the structure reads beside gradients.

    Among them are the share of its life that is done, `lives` rollouts in all, and the share of the
    rollout's epochs at inner update number `index`.
    """
    reads = spec.structure.reads
    if not reads:
        return NO_EXTRAS
    layout, unravel = _parameters(task)

    def one(params: Array, age: Array, key: PRNGKeyArray, batch: Any, life: Array) -> Extras:
        key = jax.random.fold_in(jax.random.fold_in(key, NOISE), age)
        done = age // task.updates_per_rollout / jnp.maximum(life - 1, 1)
        told = update_extras(task, unravel(params), batch, index)
        return flat_extras(reads, layout, params, key)._replace(
            training_proportion=jnp.minimum(done, 1.0),
            epoch_proportion=told.get("epoch_proportion"),
        )

    return jax.vmap(one)(agents.params, agents.rule.age, keys, batches, lives)


def met(gradients: Array, extras: Extras) -> Array | Met:
    """Return a kernel's input: the gradients alone if the structure reads nothing else."""
    return gradients if not jax.tree.leaves(extras) else Met(gradients, extras)
