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
        stats: the task's stats of all rollouts, leading axes `[K + 1, M]`.
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
            the mean of the losses after each of the K updates; the gradient of every later inner
            rollout is the validation gradient of the updates before it, so it costs nothing.
        kernel: the implementation of the rule.
    """
    before = agents.rule
    step = jax.vmap(partial(kernel.step, spec), in_axes=(None, 0, 0))

    def update(agents: Agents, gradients: Array) -> Agents:
        directions, rule = step(meta_parameters, gradients, agents.rule)
        return agents._replace(params=agents.params - learning_rate * directions, rule=rule)

    def rollout(agents: Agents, k: Array) -> tuple[Agents, tuple[Array, Any]]:
        gradients, actor, stats = _task_gradients(task, agents, keys, k)
        agents = agents._replace(actor=actor)
        # The last rollout is the validation: a gradient like the others, but no update.
        agents = jax.lax.cond(
            k < inner_updates, update, lambda agents, _: agents, agents, gradients
        )
        return agents, (gradients, stats)

    agents, (gradients, stats) = jax.lax.scan(rollout, agents, jnp.arange(inner_updates + 1))
    cotangents = -learning_rate * _validation_gradients(gradients, validation)
    replay = jax.vmap(partial(kernel.replay_vjp, spec), in_axes=(None, 1, 0, 1))
    by_agent = replay(meta_parameters, gradients[:-1], before, cotangents)
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), by_agent)
    return MetaGradient(gradient, agents, stats)


def _task_gradients(
    task: InnerTask, agents: Agents, keys: Key[Array, " M"], k: Array
) -> tuple[Float[Array, "M n"], Any, Any]:
    """Rollout k of every agent: flattened gradients, actors, stats."""
    _, unravel = ravel_pytree(
        jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(task.init_params, jax.random.key(0)),
        )
    )

    def one(params: Array, actor: Any, key: PRNGKeyArray) -> tuple[Array, Any, Any]:
        gradient, actor, stats = task.gradient(unravel(params), actor, jax.random.fold_in(key, k))
        return ravel_pytree(gradient)[0], actor, stats

    return jax.vmap(one)(agents.params, agents.actor, keys)


def _validation_gradients(
    gradients: Float[Array, "rollouts M n"], validation: Validation
) -> Float[Array, "K M n"]:
    """What each of the K steps in parameter space does to the meta-objective."""
    after = gradients[1:]
    if validation == "last":
        return jnp.broadcast_to(after[-1:], after.shape)
    return jnp.cumsum(after[::-1], axis=0)[::-1] / after.shape[0]
