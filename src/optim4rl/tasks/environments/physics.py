"""Simulated bodies: Brax, and MuJoCo Playground's control suite, as gymnax environments.

Both simulators share an interface: `reset(key)` and `step(state, action)` return a state with
`obs`, `reward` and `done`. A reset costs at least as much as a step. So agents learn from them
through `PhysicsVector`, which computes no unused reset.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Box
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from optim4rl.tasks.environments.episodes import (
    StepResult,
    VectorState,
    numpys_rules,
    running_returns,
)
from optim4rl.tasks.environments.sparse import time_limit

# Brax's simulators; the first is the default here.
BRAX_BACKENDS = ("spring", "generalized", "positional", "mjx")

# Steps after which an episode is cut, in Brax's and Playground's own training.
EPISODE_LENGTH = 1000


class PhysicsState(NamedTuple):
    """The simulator's state, and the steps since the reset."""

    simulator: Any
    time: Int[Array, "*env"]


@dataclass(frozen=True)
class Physics(Environment[PhysicsState, EnvParams]):  # type: ignore[misc]  # gymnax is untyped
    """A simulated body as a gymnax environment; its actions are in [-1, 1].

    Attributes:
        label: its name, such as "brax:ant/spring".
        simulator: a Brax `Env` or a Playground `MjxEnv`.
    """

    label: str
    simulator: Any

    @property
    def name(self) -> str:
        """Return the name that users write."""
        return self.label

    @property
    def default_params(self) -> EnvParams:
        """Return a time limit of a thousand steps."""
        return EnvParams(max_steps_in_episode=EPISODE_LENGTH)

    def action_space(self, params: EnvParams | None = None) -> Box:
        """Return the actions: one number for each actuator."""
        return Box(-1.0, 1.0, (self.simulator.action_size,), jnp.float32)

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Return the observations: positions and velocities."""
        return Box(-jnp.inf, jnp.inf, (self.simulator.observation_size,), jnp.float32)

    def reset_env(
        self, key: PRNGKeyArray, params: EnvParams
    ) -> tuple[Float[Array, "size"], PhysicsState]:
        """Start with the body at rest, plus the simulator's own noise."""
        with _permissive():
            state = self.simulator.reset(key)
        return state.obs, PhysicsState(state, jnp.int32(0))

    def step_env(
        self,
        key: PRNGKeyArray,
        state: PhysicsState,
        action: Float[Array, "actuators"],
        params: EnvParams,
    ) -> tuple[
        Float[Array, "size"], PhysicsState, Float[Array, ""], Bool[Array, ""], dict[str, Any]
    ]:
        """Simulate one step, which is deterministic."""
        with _permissive():
            after = self.simulator.step(state.simulator, action)
        following = PhysicsState(after, state.time + 1)
        reward = jnp.asarray(after.reward, jnp.float32)
        return after.obs, following, reward, after.done > 0.5, {}


class Replayed(NamedTuple):
    """Episodes that start from a stored state: the current states and the first states."""

    state: PhysicsState
    first: PhysicsState
    first_observation: Float[Array, "env size"]


@dataclass(frozen=True)
class PhysicsVector:
    """Simulated bodies; each starts all its episodes from its own first state.

    A reset is then a copy, as in Brax's own training.
    """

    environment: Physics
    params: EnvParams
    num_envs: int

    @property
    def steps_between_truncations(self) -> int | None:
        """Return the time limit."""
        return time_limit(self.params)

    def reset(self, key: PRNGKeyArray) -> VectorState:
        """Start an episode in each environment."""
        keys = jax.random.split(key, self.num_envs)
        observation, state = jax.vmap(self.environment.reset_env, (0, None))(keys, self.params)
        episodes = Replayed(state, state, observation)
        return VectorState(episodes, observation, jnp.zeros(self.num_envs, jnp.float32))

    def draw(
        self, key: PRNGKeyArray, steps: int, numbers: int
    ) -> tuple[Float[Array, "steps numbers env"], None]:
        """Draw only the actions' numbers: simulators take no random numbers."""
        return jax.random.uniform(key, (steps, numbers, self.num_envs)), None

    def step(
        self, chance: None, state: VectorState, actions: Float[Array, "env actuators"]
    ) -> tuple[VectorState, StepResult]:
        """Step every body; where an episode ended, go back to its first state."""
        episodes: Replayed = state.environment
        key = jax.random.key(0)  # Gymnax needs a key; nothing is drawn from it.
        observation, after, reward, terminated, _ = jax.vmap(
            self.environment.step_env, (None, 0, 0, None)
        )(key, episodes.state, actions, self.params)
        truncated = self.environment.is_truncated(after, self.params)
        done = terminated | truncated
        following, seen = jax.tree.map(
            lambda first, now: jnp.where(done.reshape(-1, *[1] * (now.ndim - 1)), first, now),
            (episodes.first, episodes.first_observation),
            (after, observation),
        )
        episode_return, ended_return = running_returns(state, reward, done)
        result = StepResult(reward, terminated, truncated, observation, ended_return)
        return VectorState(episodes._replace(state=following), seen, episode_return), result


@contextlib.contextmanager
def _permissive() -> Iterator[None]:
    """Let simulators mix types and ranks and use deprecated names, silently."""
    with numpys_rules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache
def make_brax(name: str) -> Physics:
    """Return a body of Brax: "ant", or "ant/generalized" to choose Brax's simulator.

    The spring simulator is the default here; Brax's own default is the generalized one. Thousands
    of steps per second, 64 environments on two CPU cores:

    | | spring | generalized | positional | mjx |
    |---|---|---|---|---|
    | inverted_double_pendulum | 75 | 27 | 29 | 50 |
    | hopper | 78 | 6.8 | 9.5 | 6.0 |
    | ant | 7.5 | 2.2 | 0.8 | |

    Raises:
        ValueError: if Brax is not installed, or has no such simulator.
    """
    body, _, backend = name.partition("/")
    backend = backend or BRAX_BACKENDS[0]
    if backend not in BRAX_BACKENDS:
        raise ValueError(
            f"brax:{name}: the simulator must be one of {', '.join(BRAX_BACKENDS)}, not {backend!r}"
        )
    with _importing(f"brax:{name}", "brax"):
        from brax import envs

        return Physics(f"brax:{name}", envs.get_environment(body, backend=backend))


@lru_cache
def make_playground(name: str) -> Physics:
    """Return a task of MuJoCo Playground's control suite, simulated by MJX in JAX.

    Raises:
        ValueError: if Playground is not installed.
    """
    with _importing(f"playground:{name}", "playground"):
        from mujoco_playground import dm_control_suite

        simulator = dm_control_suite.load(name, config_overrides={"impl": "jax"})
        return Physics(f"playground:{name}", simulator)


@contextlib.contextmanager
def _importing(name: str, extra: str) -> Iterator[None]:
    """Import an optional package quietly.

    At every import Brax warns that it is not maintained, and MJX lists missing packages. MuJoCo
    writes a file into the working folder if a body's description is out of date.
    """
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.ExitStack() as after,
        ):
            warnings.simplefilter("ignore")
            import mujoco

            after.callback(mujoco.set_mju_user_warning, mujoco.get_mju_user_warning())
            mujoco.set_mju_user_warning(lambda text: None)
            yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name}: {error.name} is not installed; pip install 'optim4rl[{extra}]'"
        ) from error
