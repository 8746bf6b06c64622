"""What meta-training and evaluation ask of a task. `tasks.task.Task` is one; tests bring others."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Int, PRNGKeyArray


@runtime_checkable
class InnerTask(Protocol):
    """An agent to start, its rollouts, and the gradients of the agent's loss on them.

    A rollout serves `updates_per_rollout` inner updates, each with a gradient of its own; the
    gradient of the whole loss on a fresh rollout is that of the meta-objective.

    `init_params` and `init_actor` are given the SAME key, the agent's, because the two parts of an
    agent must agree, for example on its width. Each folds the key for the draws of its own.
    """

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Fresh agent parameters, a pytree of float32 arrays."""

    def init_actor(self, key: PRNGKeyArray) -> Any:
        """Fresh environments and whatever else a rollout carries on, a pytree."""

    @property
    def updates_per_rollout(self) -> int:
        """Inner updates that one rollout serves: 1 with A2C, epochs x minibatches with PPO."""

    def rollout(self, params: Any, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        """One rollout: (batch, the actor after it, stats).

        The batch, a pytree, is all that the gradients of the rollout are computed from besides
        parameters; `stats` is a pytree of numbers to report.
        """

    def gradient(self, params: Any, batch: Any, index: Int[Array, ""] | None) -> Any:
        """The gradient, like `params`, of the rollout's inner update number `index`.

        None: the gradient of the whole loss on the whole rollout, made with these parameters.
        """


@runtime_checkable
class EvaluationTask(InnerTask, Protocol):
    """A task whose stats hold `return_sum` and `episode_count` of the episodes that ended."""

    @property
    def env_steps_per_rollout(self) -> int:
        """Environment steps that one rollout takes."""
