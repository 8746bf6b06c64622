"""The interface of inner learners. `a2c.A2C` and `ppo.PPO` implement it."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


class Rollout(NamedTuple):
    """T steps in E environments as N = T x E samples: step by step, environments within.

    Attributes:
        observation: what the agent saw, as its network reads batches.
        outputs: the policy's outputs.
        value: the critic's value of the observation.
        cache: what the network's forward passes left for a backward pass.
        action: the raw action that was sampled (see `distributions`).
        uniforms: the numbers that it was sampled with.
        target: the TD(lambda) target of the value.
        live: which units the agent has (see `backprop.BatchNetwork`).
    """

    observation: Num[Array, "..."]
    outputs: Float[Array, "N outputs"]
    value: Float[Array, "N"]
    cache: Any
    action: Num[Array, "N ..."]
    uniforms: Float[Array, "numbers N"]
    target: Float[Array, "N"]
    live: Float[Array, "width"] | None


@runtime_checkable
class Learner(Protocol):
    """A loss, and the inner updates that each rollout serves."""

    @property
    def updates_per_rollout(self) -> int:
        """Inner updates that one rollout serves."""

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> Any:
        """Everything that the rollout's gradients depend on, besides the parameters."""

    def loss(self, params: Any, batch: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        """The loss of the rollout's update number `index`, at any parameters."""

    def gradient(self, params: Any, batch: Any) -> Any:
        """The gradient of the whole loss, by the parameters that the rollout was made with."""

    def minibatch_gradient(self, params: Any, batch: Any, index: Int[Array, ""]) -> Any:
        """The gradient of the rollout's update number `index`."""

    def extras(self, params: Any, batch: Any, index: Int[Array, ""]) -> dict[str, Any]:
        """What an optimizer may read of update number `index` beside its gradient.

        `dormancy` (`BatchNetwork.dormancy`) and `epoch_proportion`, 0 in a rollout's first epoch
        and 1 in its last.
        """
