"""Environments are looked at: what does not fit is refused by name, what fits runs right."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Box, Dict, Discrete, Tuple
from gymnax.wrappers.purerl import (
    FlattenObservationWrapper,
    GymnaxWrapper,
    LogWrapper,
    StickyActionWrapper,
)

from optim4rl.tasks import Task, TaskConfig, make_task, task_from_environment
from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.checks import check_environment
from optim4rl.tasks.environments.episodes import GymnaxVector
from optim4rl.tasks.environments.physics import Physics, PhysicsVector

CONFIG = TaskConfig("mine", num_envs=2, torso="mlp", policy_layers=(4,), value_layers=(4,))


class State(NamedTuple):
    """A walker."""

    position: Any
    time: Any


class Walk(Environment):
    """Walk left or right; 1 for being right of 0. Tests change one part of it."""

    limit: Any = 6

    @property
    def default_params(self) -> Any:
        """A time limit."""
        return EnvParams(max_steps_in_episode=self.limit)

    def action_space(self, params: Any = None) -> Any:
        """Left and right."""
        return Discrete(2)

    def observe_at(self, position: Any) -> Any:
        """The position."""
        return position[None]

    def state_at(self, position: Any, time: Any) -> Any:
        """The state after a step."""
        return State(position, time)

    def reward(self, right: Any) -> Any:
        """One on the right."""
        return right.astype(jnp.float32)

    def over(self, over: Any) -> Any:
        """An end."""
        return over

    def reset_env(self, key: Any, params: Any) -> Any:
        """Near 0."""
        position = jax.random.uniform(key, (), minval=-1.0, maxval=1.0)
        return self.observe_at(position), State(position, jnp.int32(0))

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        """A step of 0.3."""
        position = state.position + jnp.where(action == 1, 0.3, -0.3)
        state = self.state_at(position, state.time + 1)
        end = self.over(jnp.abs(position) > 1.5)
        return self.observe_at(position), state, self.reward(position > 0), end, {}


def changed(**parts: Any) -> Any:
    """A walk with other methods or fields."""
    return type("Changed", (Walk,), parts)()


class Wrapper(GymnaxWrapper):
    """Gymnax's, with all arguments handed on."""

    def reset(self, *arguments: Any) -> Any:
        """The inner environment's."""
        return self._env.reset(*arguments)

    def step(self, *arguments: Any) -> Any:
        """The inner environment's."""
        return self._env.step(*arguments)


class Flat(Wrapper):
    """A vector of a tree."""

    def flat(self, observation: Any) -> Any:
        """All leaves."""
        return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(observation)])

    def reset(self, *arguments: Any) -> Any:
        """Flattened."""
        observation, state = self._env.reset(*arguments)
        return self.flat(observation), state

    def step(self, *arguments: Any) -> Any:
        """Flattened, also before a reset."""
        observation, *others, info = self._env.step(*arguments)
        final = self.flat(info["final_observation"])
        return self.flat(observation), *others, {**info, "final_observation": final}


class Doubled(Wrapper):
    """Observed twice, except before a reset."""

    def reset(self, *arguments: Any) -> Any:
        """Twice."""
        observation, state = self._env.reset(*arguments)
        return jnp.concatenate([observation] * 2), state

    def step(self, *arguments: Any) -> Any:
        """Twice."""
        observation, *others = self._env.step(*arguments)
        return jnp.concatenate([observation] * 2), *others


class AsDict(Wrapper):
    """A tree of a vector."""

    def reset(self, *arguments: Any) -> Any:
        """In a dictionary."""
        observation, state = self._env.reset(*arguments)
        return {"x": observation}, state


class Old(Wrapper):
    """The interface of gymnax 0.0.x."""

    def step(self, *arguments: Any) -> Any:
        """One end for both."""
        *others, terminated, truncated, info = self._env.step(*arguments)
        return *others, terminated | truncated, info


class Silent(Wrapper):
    """Says nothing of what was seen before a reset."""

    def step(self, *arguments: Any) -> Any:
        """No info."""
        return *self._env.step(*arguments)[:-1], {}


class Listed(Wrapper):
    """A list of values."""

    def step(self, *arguments: Any) -> Any:
        """As a list."""
        return list(self._env.step(*arguments))


class Unseen(Wrapper):
    """An observation alone at the reset."""

    def reset(self, *arguments: Any) -> Any:
        """Without the state."""
        return self._env.reset(*arguments)[0]


STEPS, ENVS = 14, 8


def play(environment: Any) -> Any:
    """What eight copies see and get in fourteen steps of random play."""
    vector = GymnaxVector(*check_environment(environment), ENVS)
    # Operation by operation: these are compiled once for all environments.
    with jax.disable_jit():
        state = vector.reset(jax.random.key(0))
        actions = jax.random.randint(jax.random.key(1), (STEPS, ENVS), 0, 2)
        keys = vector.draw(jax.random.key(2), STEPS, 1)[1]
        steps = []
        for key, action in zip(keys, actions, strict=True):
            before = state
            state, result = vector.step(key, state, action)
            steps.append((before.observation, state.episode_return, result))
    return jax.tree.map(lambda *x: np.stack(x), *steps)


@pytest.fixture(scope="module")
def walked() -> Any:
    """The walk as it should be."""
    played = play(Walk())
    _, returns, result = played
    assert result.terminated.any()
    assert result.truncated.any()
    assert len(np.unique(returns)) > 3
    return played


@struct.dataclass
class Speed:
    """Parameters without a time limit."""

    speed: float = 1.0


FITS = {
    "end float32": changed(over=lambda self, x: x.astype(jnp.float32)),
    "end int32": changed(over=lambda self, x: x.astype(jnp.int32)),
    "reward bool": changed(reward=lambda self, x: x),
    "reward int32 (1,)": changed(reward=lambda self, x: x.astype(jnp.int32)[None]),
    "reward bfloat16": changed(reward=lambda self, x: x.astype(jnp.bfloat16)),
    "limit float": changed(limit=6.0),
    "no limit": changed(default_params=Speed(), is_truncated=lambda self, s, p: s.time >= 6),
    "observation ()": changed(observe_at=lambda self, p: p),
    "LogWrapper": LogWrapper(Walk()),
    "StickyActionWrapper": StickyActionWrapper(Walk()),
    "FlattenObservationWrapper": FlattenObservationWrapper(
        changed(observe_at=lambda self, p: p[None, None])
    ),
    "Dict flattened": Flat(changed(observe_at=lambda self, p: {"a": p[None]})),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits_runs_as_the_plain_environment(name: str, walked: Any) -> None:
    """Bit for bit, whatever types ends and rewards have, and through wrappers."""
    jax.tree.map(
        lambda found, expected: np.testing.assert_array_equal(
            found.reshape(expected.shape), expected
        ),
        play(FITS[name]),
        walked,
    )


def test_a_wrapper_is_asked_and_not_what_it_wraps() -> None:
    """A Dict that a wrapper flattens is the vector, in tasks too."""
    flat = Flat(changed(observe_at=lambda self, p: {"a": p[None], "b": jnp.stack([p, -p])}))
    vector = changed(observe_at=lambda self, p: jnp.stack([p, p, -p]))
    jax.tree.map(np.testing.assert_array_equal, play(flat), play(vector))
    task = task_from_environment(flat, CONFIG)
    assert task.observation_shape == (3,)
    assert task.environment is flat


def test_an_infinite_time_limit_is_none() -> None:
    """Of a world with a limit of its own, and of a game that ends by itself."""
    for environment in (make_task(TaskConfig("small_dense_short")).environment, Catch()):
        params = environment.default_params.replace(max_steps_in_episode=float("inf"))
        check_environment(environment, params)
        assert environment.steps_between_truncations(params) is None


def test_a_body_that_steps_in_its_own_way_does_so() -> None:
    """`PhysicsVector` replays resets of `Physics` alone, and not of its subclasses."""

    class Slower(Physics):
        """A body with a step of its own."""

    simulator = SimpleNamespace(action_size=1, observation_size=1)
    params = EnvParams(max_steps_in_episode=5)
    for kind, vector in ((Physics, PhysicsVector), (Slower, GymnaxVector)):
        task = Task(kind("body", simulator), params, CONFIG)
        assert type(task.vector) is vector


def with_actions(space: Any) -> Any:
    """A walk with other actions."""
    return changed(action_space=lambda self, params=None: space)


def raising(error: Exception) -> Any:
    """A method that fails."""

    def method(self: Any, *arguments: Any) -> Any:
        raise error

    return method


@dataclass
class Plain:
    """Parameters that are no pytree."""

    max_steps_in_episode: int = 6


@dataclass
class Unhashable(Walk):
    """A dataclass that can be changed has no hash."""

    size: int = 1


same = "must be the same after a step as after a reset"
REFUSED = {
    # What is no environment of gymnax.
    "text": ("CartPole-v1", r"Environment is needed, not 'CartPole-v1'; names are for make_task"),
    "class": (Walk, r"not the class Walk; an instance is needed"),
    "pair": ((Walk(), EnvParams()), r"not a tuple; give what gymnax\.make returns one by one"),
    "Gymnasium": (
        gymnasium.make("CartPole-v1"),
        r"not gymnasium\..*TimeLimit, which has no action_space\(\) and no default_params",
    ),
    "wrapped Gymnasium": (LogWrapper(gymnasium.make("CartPole-v1")), r"has no action_space\(\)"),
    "simulator": (SimpleNamespace(reset=len, step=len, action_size=1), r"no action_space\(\)"),
    "nothing": (None, r"not builtins\.NoneType, which has no reset\(\) and no step\(\)"),
    # Actions.
    "no choice": (with_actions(Discrete(0)), r"need a whole number of choices.*not Discrete\(0"),
    "half a choice": (with_actions(Discrete(1.5)), r"whole number of choices.*not Discrete\(1\.5"),
    "low above high": (with_actions(Box(1.0, -1.0, (1,))), r"low at most high, not Box\(low=1\.0"),
    "NaN bound": (with_actions(Box(jnp.nan, 1.0, (1,))), r"finite in float32, not Box\(low=nan"),
    "no bound": (with_actions(Box(-1.0, jnp.inf, (1,))), r"finite in float32, not .*high=inf"),
    "too wide": (with_actions(Box(-3e38, 3e38, (1,))), r"finite in float32, not Box\(low=-3e\+38"),
    "complex bound": (with_actions(Box(-1j, 1j, (1,))), r"bounds that are real numbers"),
    "bounds of None": (with_actions(Box(None, None, (1,))), r"bounds that are real numbers"),
    "three bounds for two": (with_actions(Box(np.zeros(3), np.ones(3), (2,))), r"actions' shape"),
    "shape of no tuple": (with_actions(Box(-1.0, 1.0, 3)), r"actions' shape, not .*shape=3"),
    "no number": (with_actions(Box(-1.0, 1.0, (0,))), r"at least one number"),
    "whole numbers": (with_actions(Box(0, 3, (1,), jnp.int32)), r"to be floats .* not .*int32"),
    "Dict of actions": (with_actions(Dict({"a": Discrete(2)})), r"Discrete or Box, not .*\.Dict"),
    "Tuple of actions": (with_actions(Tuple([Discrete(2)])), r"Discrete or Box, not .*\.Tuple"),
    "Gymnasium's space": (
        with_actions(gymnasium.spaces.Discrete(2)),
        r"gymnax's Discrete or Box, not gymnasium\.spaces",
    ),
    "space fails": (changed(action_space=raising(KeyError("a"))), r"action_space.* KeyError: 'a'"),
    # Parameters.
    "no time limit": (changed(default_params=Speed()), r"'Speed'.*; .* needs a time limit"),
    "no parameters": (changed(default_params=None), r"'NoneType'.*; .* needs a time limit"),
    "a method": (changed(default_params=lambda self: EnvParams()), r"hold a builtins\.method"),
    "no pytree": (changed(default_params=Plain()), r"hold a .*Plain.*flax\.struct\.dataclass"),
    "limit of 0": (changed(limit=0), r"max_steps_in_episode = 0: at least 1 is needed"),
    "limit of NaN": (changed(limit=float("nan")), r"max_steps_in_episode = nan"),
    # Observations.
    "complex": (changed(observe_at=lambda self, p: p[None] + 1j), r"not complex64\[1\]"),
    "Dict": (
        changed(observe_at=lambda self, p: {"a": p}),
        r"real numbers, not \{'a': float32\[\]\}",
    ),
    "pair of numbers": (changed(observe_at=lambda self, p: (p, p)), r"not \(float32\[\], float32"),
    "none": (changed(observe_at=lambda self, p: None), r"one array of real numbers, not None"),
    "key": (changed(observe_at=lambda self, p: jax.random.key(0)), r"not key<fry>\[\]"),
    "empty": (
        changed(observe_at=lambda self, p: jnp.zeros(0)),
        r"hold a number; its shape is \(0,\)",
    ),
    "Dict of a wrapper": (AsDict(Walk()), r"AsDict: .* real numbers, not \{'x': float32\[1\]\}"),
    # Rewards and ends.
    "two rewards": (changed(reward=lambda self, x: jnp.ones(2)), r"reward .* not float32\[2\]"),
    "complex reward": (changed(reward=lambda self, x: x + 1j), r"reward .* not complex64\[\]"),
    "Dict reward": (changed(reward=lambda self, x: {"a": x}), r"reward .* not \{'a': bool\[\]\}"),
    "no reward": (changed(reward=lambda self, x: None), r"reward must be one number, .* not None"),
    "end (1,)": (changed(over=lambda self, x: x[None]), r"terminated .* \(\), not bool\[1\]"),
    "truncation (1,)": (
        changed(is_truncated=lambda self, state, params: jnp.zeros(1, jnp.bool)),
        r"step cannot be traced",
    ),
    # Changes in a step.
    "state's type": (
        changed(state_at=lambda self, p, t: State(p, t.astype(jnp.float32))),
        rf"state\.time {same}, int32\[\], not float32\[\]",
    ),
    "state's shape": (
        changed(state_at=lambda self, p, t: State(p[None], t)),
        rf"state\.position {same}, float32\[\], not float32\[1\]",
    ),
    "state's tree": (changed(state_at=lambda self, p, t: (p, t)), rf"its state {same}, State\("),
    "observation's shape": (
        changed(reset_env=lambda self, key, params: (jnp.ones(2), State(1.0, 0))),
        rf"observation {same}, float32\[2\], not float32\[1\]",
    ),
    "observation's type": (
        changed(reset_env=lambda self, key, params: (jnp.arange(1), State(1.0, 0))),
        rf"observation {same}, int32\[1\], not float32\[1\]",
    ),
    "final observation": (Doubled(Walk()), rf"final_observation {same}, float32\[2\], not .*\[1\]"),
    # Methods.
    "five values": (Old(Walk()), r"step must return 6 values, .* truncated, .* returns 5 values"),
    "a list": (Listed(Walk()), r"step must return 6 values"),
    "reset of one value": (Unseen(Walk()), r"reset must return 2 values.* returns float32\[1\]"),
    "no info": (Silent(Walk()), r"info must hold 'final_observation'.* and holds \[\]"),
    "step fails": (changed(step_env=raising(OSError("full\ndisk"))), r"step_env .* OSError: full$"),
    "condition": (
        changed(reward=lambda self, right: 1.0 if right else 0.0),
        r"step_env cannot be traced by JAX: TracerBoolConversionError",
    ),
    "unhashable": (Unhashable(), r"reset cannot be traced by JAX: ValueError: Non-hashable"),
    "nothing defined": (
        type("Bare", (Environment,), {"action_space": lambda self, params: Discrete(2)})(),
        r"Bare: its reset cannot be traced by JAX: NotImplementedError",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    """Before anything is compiled: what is wrong, what came, what would be right."""
    environment, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        task_from_environment(environment, CONFIG)


def test_all_of_gymnax_fits() -> None:
    """But for the one that downloads its data."""
    for name in set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}:
        make_environment(f"gymnax:{name}")
