"""What a learner makes of a rollout. `a2c.A2C` and `ppo.PPO` are two."""

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
    """A loss, and the inner updates that a rollout serves."""

    @property
    def updates_per_rollout(self) -> int:
        """Inner updates that one rollout serves."""

    def batch(self, rollout: Rollout, key: PRNGKeyArray) -> Any:
        """All that the gradients of the rollout are computed from besides parameters."""

    def gradient(self, params: Any, batch: Any, index: Int[Array, ""] | None) -> Any:
        """The gradient of the rollout's update number `index`; None: of the whole loss."""


def check_discount(gamma: float, lam: float) -> None:
    """Refuse what is no discount factor or no trace decay.

    Raises:
        ValueError: it is not in [0, 1]; the message names the field.
    """
    for field, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ValueError(f"{field} = {value!r}: a number in [0, 1] is needed")


def check_count(field: str, value: object) -> None:
    """Refuse what is no number of things.

    Raises:
        ValueError: it is not a whole number of at least 1; the message names the field.
    """
    if not is_count(value):
        raise ValueError(f"{field} = {value!r}: a whole number of at least 1 is needed")


def is_count(value: object) -> bool:
    """Whether it is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
