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
from jaxtyping import Array, Float, Key

from optim4rl.meta.agents import Agents, extras_of, gradients_of, num_rollouts, param_shapes, play
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.layout import infer_layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.structures import Extras
from optim4rl.tasks.interface import InnerTask

Validation = Literal["last", "dense"]
VALIDATIONS: tuple[Validation, ...] = ("last", "dense")

# The gradients that updates were made with, where they are not those of whole rollouts, and what
# the structure read beside them.
_Met = tuple[Array | None, Extras]


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
    layout = infer_layout(param_shapes(task))
    step = jax.vmap(partial(kernel.step, spec, layout=layout), in_axes=(None, 0, 0, 0))

    def update(agents: Agents, gradients: Array) -> tuple[Agents, Extras]:
        extras = extras_of(spec, layout, agents, keys)
        directions, rule = step(meta_parameters, gradients, agents.rule, extras)
        params = agents.params - learning_rate * directions
        return agents._replace(params=params, rule=rule), extras

    def learn(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, _Met]:
        """All updates that a rollout serves, and their gradients where `whole` is not the one."""
        if updates == 1:
            agents, extras = update(agents, whole)
            return agents, (None, jax.tree.map(lambda x: x[None], extras))

        def learn_once(agents: Agents, index: Array) -> tuple[Agents, _Met]:
            gradients = gradients_of(task, agents.params, batch, index)
            agents, extras = update(agents, gradients)
            return agents, (gradients, extras)

        return jax.lax.scan(learn_once, agents, jnp.arange(updates))

    def look(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, _Met]:
        """No update."""
        del batch
        met = (None if updates == 1 else whole, extras_of(spec, layout, agents, keys))
        return agents, jax.tree.map(lambda x: jnp.zeros((updates, *x.shape)), met)

    def play_and_learn(agents: Agents, index: Array) -> tuple[Agents, tuple[Any, Array, Any]]:
        batch, actor, stats = play(task, agents, keys, index)
        agents = agents._replace(actor=actor)
        whole = gradients_of(task, agents.params, batch, None)
        # The last rollout is the validation: a gradient like the others, but no update.
        agents, met = jax.lax.cond(index < rollouts, learn, look, agents, batch, whole)
        return agents, (met, whole, stats)

    agents, ((gradients, extras), wholes, stats) = jax.lax.scan(
        play_and_learn, agents, jnp.arange(rollouts + 1)
    )
    gradients = wholes[:, None] if updates == 1 else gradients
    gradients, extras = jax.tree.map(
        lambda x: x[:-1].reshape(inner_updates, *wholes.shape[1:]), (gradients, extras)
    )
    after = jnp.repeat(_validation_gradients(wholes, validation), updates, axis=0)
    replay = jax.vmap(partial(kernel.replay_vjp, spec, layout=layout), in_axes=(None, 1, 0, 1, 1))
    by_agent = replay(meta_parameters, gradients, before, -learning_rate * after, extras)
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), by_agent)
    return MetaGradient(gradient, agents, stats)


def _validation_gradients(
    wholes: Float[Array, "rollouts M n"], validation: Validation
) -> Float[Array, "updated_on M n"]:
    """What a step in parameter space, made with each rollout, does to the meta-objective."""
    after = wholes[1:]
    if validation == "last":
        return jnp.broadcast_to(after[-1:], after.shape)
    return jnp.cumsum(after[::-1], axis=0)[::-1] / after.shape[0]
