"""Task augmentation: the same task at other scales, drawn anew for every life of an agent.

A rule that meets one task at many scales cannot rely on one scale (Metz et al. 2022, arXiv
2211.09760). A change of variables rescales parameters, theta = s * theta': the agent learns theta',
and the loss is the same function of theta. One factor multiplies the loss, and so the gradients.
Another multiplies the rewards that agents learn from, but not the reported returns. Further factors
make the first parameters larger or smaller; this changes the start and no function.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.meta.config import Augmentation
from optim4rl.tasks.interface import InnerTask, update_extras, update_gradient

# Folded into an agent's key to draw its scales. The task itself folds in small numbers.
_STREAM = 2**31 - 1
# Likewise, for the factors on its first parameters. Tasks fold in 2**31 - 2.
_INITIAL = 2**31 - 3


@runtime_checkable
class RescalesRewards(InnerTask, Protocol):
    """A task whose rewards can be rescaled."""

    def with_reward_factor(self, factor: Float[Array, ""]) -> InnerTask:
        """Return the task with the rewards that agents learn from multiplied by this factor."""


class Scales(NamedTuple):
    """The scales of one life.

    Attributes:
        parameters: a factor for each tensor, in a tree like the parameters.
        gradients: a factor.
        rewards: a factor.
    """

    parameters: Any
    gradients: Float[Array, ""]
    rewards: Float[Array, ""]


class AugmentedActor(NamedTuple):
    """The task's own actor, and the scales of its life."""

    actor: Any
    scales: Scales


def augment(task: InnerTask, augmentation: Augmentation) -> InnerTask:
    """Return the task with random scales for its agents; the task itself if nothing is rescaled.

    Raises:
        ValueError: the task's rewards cannot be rescaled.
    """
    settings = augmentation
    factors = {
        settings.rescale_parameters,
        settings.rescale_gradients,
        settings.rescale_rewards,
        settings.rescale_initial,
    }
    return task if factors == {1.0} else Augmented(task, augmentation)


@dataclass(frozen=True)
class Augmented:
    """A task at random scales, which is a task itself."""

    task: InnerTask
    augmentation: Augmentation

    def __post_init__(self) -> None:
        factor = self.augmentation.rescale_rewards
        if factor != 1 and not isinstance(self.task, RescalesRewards):
            raise ValueError(
                f"rescale_rewards = {factor!r}: a task with with_reward_factor is needed "
                f"(meta.augmentation.RescalesRewards), and {type(self.task).__name__} has none"
            )

    @property
    def updates_per_rollout(self) -> int:
        """Return the task's inner updates for each rollout."""
        return self.task.updates_per_rollout

    @property
    def env_steps_per_rollout(self) -> int:
        """Return the task's environment steps for each rollout."""
        return self.task.env_steps_per_rollout

    def scales(self, key: PRNGKeyArray) -> Scales:
        """Draw the scales of the agent with this key."""
        key_parameters, key_gradients, key_rewards = jax.random.split(
            jax.random.fold_in(key, _STREAM), 3
        )
        settings = self.augmentation
        return Scales(
            self._of_tensors(key, key_parameters, settings.rescale_parameters),
            _log_uniform(key_gradients, settings.rescale_gradients),
            _log_uniform(key_rewards, settings.rescale_rewards),
        )

    def _of_tensors(self, key: PRNGKeyArray, key_draw: PRNGKeyArray, factor: float) -> Any:
        """Draw a factor for each tensor, or one for all, in a tree like the parameters."""
        leaves, tree = jax.tree.flatten(jax.eval_shape(self.task.init_params, key))
        shape = (len(leaves),) if self.augmentation.rescale_tensors else (1,)
        drawn = _log_uniform(key_draw, factor, shape)
        return jax.tree.unflatten(tree, list(jnp.broadcast_to(drawn, (len(leaves),))))

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Return the task's parameters, larger or smaller by chance, divided by the scales."""
        key_initial = jax.random.fold_in(key, _INITIAL)
        initial = self._of_tensors(key, key_initial, self.augmentation.rescale_initial)
        params = jax.tree.map(jnp.multiply, self.task.init_params(key), initial)
        return jax.tree.map(jnp.divide, params, self.scales(key).parameters)

    def init_actor(self, key: PRNGKeyArray) -> AugmentedActor:
        """Return the task's actor, with the scales of this life."""
        return AugmentedActor(self.task.init_actor(key), self.scales(key))

    def rollout(
        self, params: Any, actor: AugmentedActor, key: PRNGKeyArray
    ) -> tuple[tuple[Any, Scales], AugmentedActor, Any]:
        """Play a rollout of the task with scaled parameters and rewards."""
        inner, scales = actor
        task = self.task
        if self.augmentation.rescale_rewards != 1:
            assert isinstance(task, RescalesRewards)
            task = task.with_reward_factor(scales.rewards)
        batch, inner, stats = task.rollout(_scaled(params, scales), inner, key)
        return (batch, scales), AugmentedActor(inner, scales), stats

    def gradient(self, params: Any, batch: tuple[Any, Scales]) -> Any:
        """Return the task's gradient times the scales, by the chain rule."""
        batch, scales = batch
        return _rescaled(self.task.gradient(_scaled(params, scales), batch), scales)

    def minibatch_gradient(
        self, params: Any, batch: tuple[Any, Scales], index: Int[Array, ""]
    ) -> Any:
        """Return one update's gradient times the scales."""
        batch, scales = batch
        gradient = update_gradient(self.task, _scaled(params, scales), batch, index)
        return _rescaled(gradient, scales)

    def extras(
        self, params: Any, batch: tuple[Any, Scales], index: Int[Array, ""]
    ) -> dict[str, Any]:
        """Return what the task tells optimizers about an update."""
        batch, scales = batch
        return update_extras(self.task, _scaled(params, scales), batch, index)


def _scaled(params: Any, scales: Scales) -> Any:
    return jax.tree.map(jnp.multiply, params, scales.parameters)


def _rescaled(gradient: Any, scales: Scales) -> Any:
    return jax.tree.map(lambda g, s: scales.gradients * s * g, gradient, scales.parameters)


def _log_uniform(key: PRNGKeyArray, factor: float, shape: tuple[int, ...] = ()) -> Array:
    limit = math.log(factor)
    return jnp.exp(jax.random.uniform(key, shape, minval=-limit, maxval=limit))
