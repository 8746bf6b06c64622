"""Task augmentation: the same task at other scales, drawn anew for every life of an agent.

A rule that has met one task at many scales cannot rely on one (Metz et al. 2022, arXiv 2211.09760).
Parameters are rescaled by a change of variables, theta = s * theta': the agent learns theta', and
the loss is the same function of theta. Gradients are multiplied by a factor, as if the loss were;
rewards by another, as far as learning is concerned.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.fields import AT_LEAST_1, check_fields
from optim4rl.tasks.interface import InnerTask, update_gradient

# What an agent's key is folded with for its scales; the task itself folds it with small numbers.
_STREAM = 2**31 - 1


@dataclass(frozen=True)
class Augmentation:
    """How far an agent's task is rescaled: by factors log-uniform in [1/x, x]; 1 is not at all.

    Attributes:
        rescale_parameters: the x of an agent's parameters.
        rescale_gradients: the x of its loss, and so of its gradients and of its share in the
            meta-objective of a truncated meta-gradient.
        rescale_rewards: the x of the rewards that it learns from; reported returns stay.
        rescale_tensors: every tensor of parameters has a factor of its own.
    """

    rescale_parameters: float = 1.0
    rescale_gradients: float = 1.0
    rescale_rewards: float = 1.0
    rescale_tensors: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            rescale_parameters=AT_LEAST_1,
            rescale_gradients=AT_LEAST_1,
            rescale_rewards=AT_LEAST_1,
        )


@runtime_checkable
class RescalesRewards(InnerTask, Protocol):
    """A task whose rewards can be rescaled."""

    def with_reward_factor(self, factor: Float[Array, ""]) -> InnerTask:
        """The task whose agents learn from rewards that are multiplied by this."""


class Scales(NamedTuple):
    """What is drawn for one life.

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
    """The task with its agents' scales drawn at random; itself where nothing is rescaled.

    Raises:
        ValueError: its rewards cannot be rescaled.
    """
    settings = augmentation
    factors = (settings.rescale_parameters, settings.rescale_gradients, settings.rescale_rewards)
    return task if set(factors) == {1.0} else Augmented(task, augmentation)


@dataclass(frozen=True)
class Augmented:
    """A task at random scales; itself a task."""

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
        """Those of the task."""
        return self.task.updates_per_rollout

    @property
    def env_steps_per_rollout(self) -> int:
        """Those of the task."""
        return self.task.env_steps_per_rollout

    def scales(self, key: PRNGKeyArray) -> Scales:
        """The scales of the agent whose key it is."""
        key_parameters, key_gradients, key_rewards = jax.random.split(
            jax.random.fold_in(key, _STREAM), 3
        )
        settings = self.augmentation
        leaves, tree = jax.tree.flatten(jax.eval_shape(self.task.init_params, key))
        shape = (len(leaves),) if settings.rescale_tensors else (1,)
        drawn = _log_uniform(key_parameters, settings.rescale_parameters, shape)
        drawn = jnp.broadcast_to(drawn, (len(leaves),))
        return Scales(
            jax.tree.unflatten(tree, list(drawn)),
            _log_uniform(key_gradients, settings.rescale_gradients),
            _log_uniform(key_rewards, settings.rescale_rewards),
        )

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Those that are the task's own once they are scaled."""
        parameters = self.scales(key).parameters
        return jax.tree.map(jnp.divide, self.task.init_params(key), parameters)

    def init_actor(self, key: PRNGKeyArray) -> AugmentedActor:
        """The task's, with the scales of this life."""
        return AugmentedActor(self.task.init_actor(key), self.scales(key))

    def rollout(
        self, params: Any, actor: AugmentedActor, key: PRNGKeyArray
    ) -> tuple[tuple[Any, Scales], AugmentedActor, Any]:
        """One of the task, with scaled parameters and rewards."""
        inner, scales = actor
        task = self.task
        if self.augmentation.rescale_rewards != 1:
            assert isinstance(task, RescalesRewards)
            task = task.with_reward_factor(scales.rewards)
        batch, inner, stats = task.rollout(_scaled(params, scales), inner, key)
        return (batch, scales), AugmentedActor(inner, scales), stats

    def gradient(self, params: Any, batch: tuple[Any, Scales]) -> Any:
        """By the chain rule, that of the task times the scales."""
        batch, scales = batch
        return _rescaled(self.task.gradient(_scaled(params, scales), batch), scales)

    def minibatch_gradient(
        self, params: Any, batch: tuple[Any, Scales], index: Int[Array, ""]
    ) -> Any:
        """Likewise, of one update."""
        batch, scales = batch
        gradient = update_gradient(self.task, _scaled(params, scales), batch, index)
        return _rescaled(gradient, scales)


def _scaled(params: Any, scales: Scales) -> Any:
    return jax.tree.map(jnp.multiply, params, scales.parameters)


def _rescaled(gradient: Any, scales: Scales) -> Any:
    return jax.tree.map(lambda g, s: scales.gradients * s * g, gradient, scales.parameters)


def _log_uniform(key: PRNGKeyArray, factor: float, shape: tuple[int, ...] = ()) -> Array:
    limit = math.log(factor)
    return jnp.exp(jax.random.uniform(key, shape, minval=-limit, maxval=limit))
