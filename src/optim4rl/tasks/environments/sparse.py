"""An optional interface beside gymnax's: with it, agents learn faster."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Discrete
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@runtime_checkable
class SparseEnvironment(Protocol):
    """An environment that takes uniform numbers; its observations are few ones among zeros.

    The numbers of a whole rollout are drawn at once. Networks look up the ones instead of
    multiplying by zeros. The gymnax methods must give the same results: `step_env` and `reset_env`
    are `step_from` and `reset_from` of fresh uniforms (see `SparseGame`), and `get_obs` draws
    `ones`. All methods are for ONE environment; vmap over many.

    Attributes:
        step_uniforms: how many numbers a step takes.
        reset_uniforms: how many numbers a reset takes.
    """

    @property
    def step_uniforms(self) -> int: ...
    @property
    def reset_uniforms(self) -> int: ...

    def reset_from(self, uniforms: Float[Array, "reset_uniforms"]) -> Any:
        """Return the first state of an episode."""

    def step_from(
        self, uniforms: Float[Array, "step_uniforms"], state: Any, action: Int[Array, ""]
    ) -> tuple[Any, Float[Array, ""], Bool[Array, ""]]:
        """Step without a reset; return (next state, reward, whether the episode ended)."""

    def is_truncated(self, state: Any, params: EnvParams) -> Bool[Array, "..."]:
        """Return whether the time limit is reached (gymnax's method), elementwise over states."""

    def ones(self, state: Any) -> Int[Array, "ones"]:
        """Return the places of the flattened observation's ones; its size stands for "nowhere"."""

    def steps_between_truncations(self, params: EnvParams) -> int | None:
        """Return the least number of steps between two truncations; None if there are none."""


class SparseGame(Environment[Any, EnvParams]):  # type: ignore[misc]  # gymnax is untyped
    """The gymnax methods of a `SparseEnvironment` with discrete actions."""

    def action_space(self, params: EnvParams | None = None) -> Discrete:
        """Return the actions."""
        return Discrete(self.num_actions)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Float[Array, "..."], Any]:
        """Reset from fresh uniform numbers."""
        state = self.reset_from(uniforms(key, (self.reset_uniforms,)))
        return self.get_obs(state), state

    def step_env(
        self, key: PRNGKeyArray, state: Any, action: Int[Array, ""] | int, params: EnvParams
    ) -> tuple[Float[Array, "..."], Any, Float[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Step from fresh uniform numbers."""
        numbers = uniforms(key, (self.step_uniforms,))
        state, reward, ended = self.step_from(numbers, state, jnp.asarray(action, jnp.int32))
        return self.get_obs(state), state, reward, ended, {}


def is_sparse(environment: object) -> bool:
    """Return whether the environment's own class offers the interface.

    A subclass may change gymnax's methods and inherit the sparse methods. So it must define `ones`
    again.
    """
    return isinstance(environment, SparseEnvironment) and "ones" in vars(type(environment))


def time_limit(params: EnvParams) -> int | None:
    """Return the steps after which an episode is cut; None if it is never cut."""
    limit = params.max_steps_in_episode
    return None if math.isinf(limit) else int(limit)


def uniforms(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Draw from [0, 1) with 32 random bits, so that u / p keeps float precision for small p.

    `jax.random.uniform` has 23 bits.
    """
    bits = jax.random.bits(key, shape, jnp.uint32)
    return jnp.minimum(bits.astype(jnp.float32) * 2.0**-32, 1.0 - 2.0**-24)
