"""What meta-training and evaluation ask of a task. `tasks.task.Task` is one; tests bring others."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import PRNGKeyArray


@runtime_checkable
class InnerTask(Protocol):
    """An agent to start, and the gradient of a fresh rollout of it.

    The gradient is that of the whole agent loss; it serves the inner update and, taken on a fresh
    rollout, the meta-objective. `stats` is a pytree of numbers to report.

    `init_params` and `init_actor` are given the SAME key, the agent's, because the two parts of an
    agent must agree, for example on its width. Each folds the key for the draws of its own.
    """

    def init_params(self, key: PRNGKeyArray) -> Any:
        """Fresh agent parameters, a pytree of float32 arrays."""

    def init_actor(self, key: PRNGKeyArray) -> Any:
        """Fresh environments and whatever else a rollout carries on, a pytree."""

    def gradient(self, params: Any, actor: Any, key: PRNGKeyArray) -> tuple[Any, Any, Any]:
        """One rollout: (gradient like `params`, the actor after it, stats)."""


@runtime_checkable
class EvaluationTask(InnerTask, Protocol):
    """A task whose stats hold `return_sum` and `episode_count` of the episodes that ended."""

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps that one gradient takes."""
