"""The interface of inner learners. `a2c.A2C` and `ppo.PPO` implement it."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


class Rollout(NamedTuple):
    """T steps in E environments as N = T x E samples: step by step, environments within.

    Attributes:
        observation: the agent's observations, in the form that its network reads.
        outputs: the policy's outputs.
        value: the critic's value of the observation.
        cache: the network's cache from the forward passes, for a backward pass.
        action: the raw action that was sampled (see `distributions`).
        uniforms: the numbers that it was sampled with.
        target: the TD(lambda) target of the value.
        live: mask of the agent's units (see `backprop.BatchNetwork`).
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
        """Return the number of inner updates that one rollout serves."""

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> Any:
        """Return everything that the rollout's gradients depend on, besides the parameters."""

    def loss(self, params: Any, batch: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        """Return the loss of the rollout's update number `index`, at any parameters."""

    def gradient(self, params: Any, batch: Any) -> Any:
        """Return the gradient of the whole loss, at the parameters that played the rollout."""

    def minibatch_gradient(self, params: Any, batch: Any, index: Int[Array, ""]) -> Any:
        """Return the gradient of the rollout's update number `index`."""

    def extras(self, params: Any, batch: Any, index: Int[Array, ""]) -> dict[str, Any]:
        """Return optax's extra arguments for update number `index`.

        They are `dormancy` (`BatchNetwork.dormancy`) and `epoch_proportion`, 0 in a rollout's first
        epoch and 1 in its last.
        """
