"""The truncated meta-gradient: K inner updates forward, then one VJP through the optimizer alone.

The agent's gradient enters the rule as a constant and rollout data are constants everywhere (Lan et
al. 2024, section 2), so the parameters after K updates depend on the meta-parameters through the K
directions only: `theta_K = theta_0 - alpha * sum_k d_k(phi)`. Hence

    dL_meta/dphi = sum_k < -alpha * dL_meta/dtheta_{k+1..K}, dd_k/dphi >,

and no rollout is ever differentiated with respect to the meta-parameters.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PRNGKeyArray

from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState, init_state
from optim4rl.tasks.interface import InnerTask

Validation = Literal["last", "dense"]
VALIDATIONS: tuple[Validation, ...] = ("last", "dense")


class Agents(NamedTuple):
    """M agents of one task, side by side; every array has a leading axis of size M.

    Attributes:
        params: flattened parameters, `[M, n]`.
        rule: the optimizer's state.
        actor: environments and whatever else the task carries on.
    """

    params: Float[Array, "M n"]
    rule: RuleState
    actor: Any


class MetaGradient(NamedTuple):
    """What K inner updates and a validation rollout give.

    Attributes:
        gradient: the meta-gradient, a mean over agents.
        agents: the agents after the K updates.
        stats: the task's stats of all rollouts, the validation's last: `[rollouts, M, ...]`.
    """

    gradient: MetaParameters
    agents: Agents
    stats: Any


def init_agents(spec: OptimizerSpec, task: InnerTask, keys: Key[Array, " M"]) -> Agents:
    """A fresh agent for each key."""

    def init(key: PRNGKeyArray) -> Agents:
        params, _ = ravel_pytree(task.init_params(key))
        return Agents(params, init_state(spec, params.shape), task.init_actor(key))

    return jax.vmap(init)(keys)


def truncated_meta_gradient(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    task: InnerTask,
    agents: Agents,
    keys: Key[Array, " M"],
    *,
    learning_rate: float,
    inner_updates: int,
    validation: Validation,
    kernel: Kernel,
) -> MetaGradient:
    """K inner updates of every agent, a fresh validation rollout, and the meta-gradient of it.

    Args:
        keys: one key for each agent, whose rollouts are drawn from it alone.
        learning_rate: the inner learning rate alpha of the task.
        inner_updates: K.
        validation: "last" is the paper's meta-objective, the loss after all K updates. "dense" is
            the mean of the losses after each rollout's updates; the gradient of every later rollout
            is the validation gradient of the updates before it, so with one update to a rollout it
            costs nothing.
        kernel: the implementation of the rule.

    Raises:
        ValueError: K is no multiple of the inner updates that a rollout of the task serves.
    """
    rollouts, updates = num_rollouts(task, inner_updates), task.updates_per_rollout
    before = agents.rule
    step = jax.vmap(partial(kernel.step, spec), in_axes=(None, 0, 0))

    def update(agents: Agents, gradients: Array) -> Agents:
        directions, rule = step(meta_parameters, gradients, agents.rule)
        return agents._replace(params=agents.params - learning_rate * directions, rule=rule)

    def learn(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, Array | None]:
        """All updates that a rollout serves, and their gradients where `whole` is not the one."""
        if updates == 1:
            return update(agents, whole), None

        def learn_once(agents: Agents, index: Array) -> tuple[Agents, Array]:
            gradients = _gradients(task, agents.params, batch, index)
            return update(agents, gradients), gradients

        return jax.lax.scan(learn_once, agents, jnp.arange(updates))

    def look(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, Array | None]:
        """No update."""
        del batch
        return agents, None if updates == 1 else jnp.zeros((updates, *whole.shape))

    def play_and_learn(agents: Agents, index: Array) -> tuple[Agents, tuple[Any, Array, Any]]:
        batch, actor, stats = _rollouts(task, agents, keys, index)
        agents = agents._replace(actor=actor)
        whole = _gradients(task, agents.params, batch, None)
        # The last rollout is the validation: a gradient like the others, but no update.
        agents, gradients = jax.lax.cond(index < rollouts, learn, look, agents, batch, whole)
        return agents, (gradients, whole, stats)

    agents, (gradients, wholes, stats) = jax.lax.scan(
        play_and_learn, agents, jnp.arange(rollouts + 1)
    )
    gradients = wholes if updates == 1 else gradients
    gradients = gradients[:-1].reshape(inner_updates, *wholes.shape[1:])
    after = jnp.repeat(_validation_gradients(wholes, validation), updates, axis=0)
    replay = jax.vmap(partial(kernel.replay_vjp, spec), in_axes=(None, 1, 0, 1))
    by_agent = replay(meta_parameters, gradients, before, -learning_rate * after)
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), by_agent)
    return MetaGradient(gradient, agents, stats)


def num_rollouts(task: InnerTask, inner_updates: int) -> int:
    """Rollouts that K inner updates take, the validation not counted.

    Raises:
        ValueError: K is no multiple of the inner updates that a rollout serves.
    """
    if inner_updates % task.updates_per_rollout:
        raise ValueError(
            f"inner_updates = {inner_updates!r}: a rollout serves {task.updates_per_rollout} "
            "updates (epochs x minibatches), of which a multiple is needed"
        )
    return inner_updates // task.updates_per_rollout


def _unravel(task: InnerTask) -> Any:
    """From flattened parameters to the task's."""
    shapes = jax.eval_shape(task.init_params, jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))[1]


def _rollouts(
    task: InnerTask, agents: Agents, keys: Key[Array, " M"], index: Array
) -> tuple[Any, Any, Any]:
    """Rollout number `index` of every agent: batches, actors, stats."""
    unravel = _unravel(task)

    def one(params: Array, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        return task.rollout(unravel(params), actor, jax.random.fold_in(key, index))

    return jax.vmap(one)(agents.params, agents.actor, keys)


def _gradients(
    task: InnerTask, params: Float[Array, "M n"], batches: Any, index: Array | None
) -> Float[Array, "M n"]:
    """Flattened gradients of every agent."""
    unravel = _unravel(task)

    def one(params: Array, batch: Any) -> Array:
        return ravel_pytree(task.gradient(unravel(params), batch, index))[0]

    return jax.vmap(one)(params, batches)


def _validation_gradients(
    wholes: Float[Array, "rollouts M n"], validation: Validation
) -> Float[Array, "updated_on M n"]:
    """What a step in parameter space, made with each rollout, does to the meta-objective."""
    after = wholes[1:]
    if validation == "last":
        return jnp.broadcast_to(after[-1:], after.shape)
    return jnp.cumsum(after[::-1], axis=0)[::-1] / after.shape[0]
