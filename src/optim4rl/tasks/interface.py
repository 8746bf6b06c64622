"""The interface of tasks for meta-training and evaluation. `tasks.task.Task` implements it."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, PRNGKeyArray


@runtime_checkable
class InnerTask(Protocol):
    """A task that starts an agent, plays rollouts, and takes the gradient of the agent's loss.

    `init_params` and `init_actor` get the SAME key, the agent's, because the two parts of an agent
    must agree, for example on its width. Each folds the key before it draws.

    Programs are compiled for a task, so it can be hashed and does not change.
    """

    def __hash__(self) -> int: ...

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Return fresh agent parameters, a pytree of float32 arrays."""

    def init_actor(self, key: PRNGKeyArray) -> Any:
        """Return a pytree of fresh environments and all other state that rollouts carry on."""

    @property
    def updates_per_rollout(self) -> int:
        """Return the inner updates for each rollout: 1 with A2C, epochs x minibatches with PPO.

        If there are more than 1, the task is a `MinibatchTask`.
        """

    @property
    def env_steps_per_rollout(self) -> int:
        """Return the environment steps of one rollout."""

    def rollout(self, params: Any, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        """Play one rollout, and return (batch, next actor, stats).

        The batch is a pytree of everything that the rollout's gradients depend on, besides the
        parameters. `stats` is a pytree of numbers to report.
        """

    def gradient(self, params: Any, batch: Any) -> Any:
        """Return the gradient, like `params`, of the whole loss on a rollout of these parameters.

        It is the gradient of the meta-objective. If a rollout serves one update, it is also the
        gradient of that update.
        """


@runtime_checkable
class MinibatchTask(InnerTask, Protocol):
    """A task whose rollouts serve several inner updates."""

    def minibatch_gradient(self, params: Any, batch: Any, index: Int[Array, ""]) -> Any:
        """Return the gradient, like `params`, of the rollout's inner update number `index`."""


def update_gradient(task: InnerTask, params: Any, batch: Any, index: Int[Array, ""]) -> Any:
    """Return the gradient of a rollout's inner update number `index`.

    Raises:
        ValueError: a rollout serves several updates, and the task has no gradient for each.
    """
    if task.updates_per_rollout == 1:
        return task.gradient(params, batch)
    if not isinstance(task, MinibatchTask):
        raise ValueError(
            f"updates_per_rollout = {task.updates_per_rollout}: a task with minibatch_gradient is "
            f"needed (tasks.interface.MinibatchTask), and {type(task).__name__} has none"
        )
    return task.minibatch_gradient(params, batch, index)


@runtime_checkable
class TellingTask(InnerTask, Protocol):
    """A task that tells optimizers more about an update than its gradient."""

    def extras(self, params: Any, batch: Any, index: Int[Array, ""]) -> dict[str, Any]:
        """Return optax's extra arguments for the rollout's inner update number `index`.

        Only some optimizers read them. If none does, they are not computed.
        """


def update_extras(
    task: InnerTask, params: Any, batch: Any, index: Int[Array, ""]
) -> dict[str, Any]:
    """Return a task's extra arguments for inner update number `index`; {} if it has none."""
    return task.extras(params, batch, index) if isinstance(task, TellingTask) else {}


@runtime_checkable
class LossTask(InnerTask, Protocol):
    """A task that tells its loss, for optimizers that read it."""

    def loss(self, params: Any, batch: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return the loss of the rollout's inner update number `index`, at any parameters."""


def loss_extras(
    task: InnerTask, params: Any, batch: Any, index: Int[Array, ""], gradient: Any
) -> dict[str, Any]:
    """Return optax's `value`, `grad` and `value_fn`; {} if the task does not tell its loss.

    If no optimizer reads them, they are not computed: compilers leave them out.
    """
    if not isinstance(task, LossTask):
        return {}

    def value_fn(params: Any) -> Float[Array, ""]:
        return task.loss(params, batch, index)

    return {"value": value_fn(params), "grad": gradient, "value_fn": value_fn}


@runtime_checkable
class Returns(Protocol):
    """Stats about the episodes that ended in a rollout."""

    @property
    def return_sum(self) -> Float[Array, ""]:
        """Return the sum of these episodes' undiscounted returns."""

    @property
    def episode_count(self) -> Int[Array, ""]:
        """Return how many episodes ended."""


@runtime_checkable
class EvaluationTask(InnerTask, Protocol):
    """A task whose stats hold returns."""

    def rollout(self, params: Any, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Returns]:
        """Play one rollout, and return (batch, next actor, stats)."""


@runtime_checkable
class GreedyTask(EvaluationTask, Protocol):
    """A task whose finished agents can play with deterministic actions."""

    @property
    def greedy_episodes(self) -> int:
        """Return the number of episodes that a finished agent plays; 0: none."""

    def greedy_return(self, params: Any, actor: Any, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the mean return of these episodes."""
