"""The truncated meta-gradient: K inner updates forward, then one VJP through the optimizer alone.

The agent's gradient enters the rule as a constant and rollout data are constants everywhere (Lan et
al. 2024, section 2), so the parameters after K updates depend on the meta-parameters through the K
directions only: `theta_K = theta_0 - alpha * sum_k d_k(phi)`. Hence

    dL_meta/dphi = sum_k < -alpha * dL_meta/dtheta_{k+1..K}, dd_k/dphi >,

and no rollout is ever differentiated with respect to the meta-parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from optim4rl.meta.agents import (
    Agents,
    extras_of,
    gradients_of,
    layout_of,
    met,
    num_rollouts,
    play,
)
from optim4rl.meta.config import Validation
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.optimizers.structures import Extras
from optim4rl.tasks.interface import InnerTask

# The gradients and extras of a rollout's updates.
_Kept = tuple[Array | None, Extras]


class MetaGradient(NamedTuple):
    """Result of K inner updates and a validation rollout.

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
    lives: Int[Array, " M"],
    validation: Validation,
    kernel: Kernel,
) -> MetaGradient:
    """Make K inner updates of every agent, play a validation rollout, and return the meta-gradient.

    Args:
        keys: one key for each agent; its rollouts depend on no other key.
        learning_rate: the inner learning rate alpha of the task.
        inner_updates: K.
        lives: each agent's whole life in rollouts; the rule is told how much of it is done.
        validation: "last" is the paper's meta-objective, the loss after all K updates. "dense" is
            the mean of the losses after each rollout's updates. The gradient of every later rollout
            serves as the validation gradient of the updates before it, so with one update for each
            rollout it costs nothing.
        kernel: the implementation of the rule (`kernels.select.choose`).

    Raises:
        ValueError: K is not a multiple of the inner updates that a rollout of the task serves.
    """
    before, layout = agents.rule, layout_of(task)
    step = jax.vmap(partial(kernel.step, spec, layout=layout), in_axes=(None, 0, 0))

    def update(agents: Agents, gradients: Array, batch: Any, index: Array) -> tuple[Agents, Extras]:
        extras = extras_of(spec, task, agents, keys, batch, index, lives)
        directions, rule = step(meta_parameters, met(gradients, extras), agents.rule)
        params = agents.params - learning_rate * directions
        return agents._replace(params=params, rule=rule), extras

    life = _live(update, task, agents, keys, num_rollouts(task, inner_updates))
    after = _validation_gradients(life.wholes, validation)
    replay = jax.vmap(partial(kernel.replay_vjp, spec, layout=layout), in_axes=(None, 1, 0, 1))
    by_agent = replay(
        meta_parameters,
        met(life.gradients, life.extras),
        before,
        -learning_rate * jnp.repeat(after, task.updates_per_rollout, axis=0),
    )
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), by_agent)
    return MetaGradient(gradient, life.agents, life.stats)


class _Life(NamedTuple):
    """K updates of every agent, and the gradient of one more rollout.

    Attributes:
        agents: the agents afterwards.
        gradients: the gradients that made the updates.
        extras: the structure's inputs beside gradients.
        wholes: every rollout's gradient of the whole loss, including the last rollout's.
        stats: the task's stats of every rollout.
    """

    agents: Agents
    gradients: Float[Array, "K M n"]
    extras: Extras
    wholes: Float[Array, "rollouts M n"]
    stats: Any


def _live(
    update: Callable[[Agents, Array, Any, Array], tuple[Agents, Extras]],
    task: InnerTask,
    agents: Agents,
    keys: Key[Array, " M"],
    rollouts: int,
) -> _Life:
    """Let the agents learn from this many rollouts, and take the gradient of one more.

    Gradients of updates are kept only if they are not the gradient of a whole rollout.
    """
    updates = task.updates_per_rollout

    def learn(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, _Kept]:
        """Make all updates that a rollout serves."""
        if updates == 1:
            agents, extras = update(agents, whole, batch, jnp.int32(0))
            return agents, (None, jax.tree.map(lambda x: x[None], extras))

        def learn_once(agents: Agents, index: Array) -> tuple[Agents, _Kept]:
            gradients = gradients_of(task, agents.params, batch, index)
            agents, extras = update(agents, gradients, batch, index)
            return agents, (gradients, extras)

        return jax.lax.scan(learn_once, agents, jnp.arange(updates))

    def look(agents: Agents, batch: Any, whole: Array) -> tuple[Agents, _Kept]:
        """Make no update."""
        told = jax.eval_shape(update, agents, whole, batch, jnp.int32(0))[1]
        kept = (None if updates == 1 else whole, told)
        return agents, jax.tree.map(lambda x: jnp.zeros((updates, *x.shape), x.dtype), kept)

    def play_and_learn(agents: Agents, index: Array) -> tuple[Agents, tuple[Any, Array, Any]]:
        batch, actor, stats = play(task, agents, keys, index)
        agents = agents._replace(actor=actor)
        whole = gradients_of(task, agents.params, batch)
        # The last rollout is the validation: a gradient like the others, but no update.
        agents, kept = jax.lax.cond(index < rollouts, learn, look, agents, batch, whole)
        return agents, (kept, whole, stats)

    agents, ((gradients, extras), wholes, stats) = jax.lax.scan(
        play_and_learn, agents, jnp.arange(rollouts + 1)
    )
    gradients = wholes[:, None] if updates == 1 else gradients
    gradients, extras = jax.tree.map(
        lambda x: x[:-1].reshape(rollouts * updates, *x.shape[2:]), (gradients, extras)
    )
    return _Life(agents, gradients, extras, wholes, stats)


def _validation_gradients(
    wholes: Float[Array, "rollouts M n"], validation: Validation
) -> Float[Array, "updated_on M n"]:
    """Return the change of the meta-objective for a step in parameter space at each rollout."""
    after = wholes[1:]
    if validation == "last":
        return jnp.broadcast_to(after[-1:], after.shape)
    return jnp.cumsum(after[::-1], axis=0)[::-1] / after.shape[0]
