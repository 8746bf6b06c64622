"""Check that an agent can be trained on an environment, before anything is compiled.

The environment's own `reset` and `step` are traced once, with shapes and types alone, as
`episodes.GymnaxVector` calls them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment
from gymnax.environments.spaces import Box, Discrete
from jax.tree_util import keystr

from optim4rl.fields import shown
from optim4rl.tasks.environments.episodes import numpys_rules

_STEP_ENV = ("observation", "state", "reward", "terminated", "info")
_STEP = ("observation", "state", "reward", "terminated", "truncated", "info")
# The fields that gymnax's own `is_truncated` reads, as an AttributeError names them.
_HINTS = {
    "max_steps_in_episode": "; gymnax's is_truncated needs a time limit in the parameters, "
    "max_steps_in_episode; or define is_truncated",
    "time": "; gymnax's is_truncated needs the steps since the reset in the state, time; "
    "or define is_truncated",
}


def check_environment(environment: Any, params: Any = None) -> tuple[Any, Any]:
    """Return an environment if an agent can be trained on it, else raise an error.

    Args:
        environment: A gymnax 1.x environment, or a wrapper with the same methods.
        params: Its parameters; None for its defaults.

    Returns:
        The environment itself and its parameters.

    Raises:
        ValueError: The object is not a gymnax environment; its actions are neither discrete nor
            numbers within finite bounds; JAX cannot trace its `reset` or `step`; its observation is
            not one array of real numbers; its reward, `terminated` or `truncated` is not one real
            number; or a step changes the shapes or types of the state or the observation. The
            message names the fault, the value found, and a right value.
    """
    _check_interface(environment, params)
    params = environment.default_params if params is None else params
    name = _name(environment)
    _check_time_limit(name, params)
    action = _action(name, environment, params)
    key = jax.random.key(0)

    def values(method: str, names: tuple[str, ...], *arguments: Any) -> tuple[Any, ...]:
        what = f"{name}: its {method}"
        return _values(what, names, _traced(what, getattr(environment, method), params, *arguments))

    observation, state = values("reset", ("observation", "state"), key)
    _check_observation(name, observation)
    if getattr(type(environment), "step", None) is Environment.step:
        # Gymnax's own step fails if parts do not fit, and does not name the part.
        seen, after, reward, terminated, _ = values("step_env", _STEP_ENV, key, state, action)
        _check_step(name, (observation, state), (seen, after), reward=reward, terminated=terminated)
    seen, after, reward, *ends, info = values("step", _STEP, key, state, action)
    numbers = dict(zip(("reward", "terminated", "truncated"), (reward, *ends), strict=True))
    _check_step(name, (observation, state), (seen, after), **numbers)
    if not isinstance(info, Mapping) or "final_observation" not in info:
        raise ValueError(
            f"{name}: its step's info must hold 'final_observation', the observation before any "
            f"reset, and holds {sorted(map(str, info)) if isinstance(info, Mapping) else info}"
        )
    _check_same(name, "final_observation", observation, info["final_observation"])
    return environment, params


def _check_interface(environment: Any, params: Any) -> None:
    """Refuse an object that is not a gymnax environment, before calling its methods."""
    needed = ("reset", "step", "action_space")
    lacking = [f"{x}()" for x in needed if not callable(getattr(environment, x, None))]
    if params is None and not hasattr(environment, "default_params"):
        lacking.append("default_params")
    if isinstance(environment, str):
        came = f"{shown(environment)}; names are for make_task(TaskConfig(environment=name))"
    elif isinstance(environment, type):
        came = f"the class {environment.__name__}; an instance is needed"
    elif isinstance(environment, tuple):
        came = (
            "a tuple; give what gymnax.make returns one by one, "
            "task_from_environment(environment, config, env_params)"
        )
    elif lacking:
        came = f"{_type(environment)}, which has no {' and no '.join(lacking)}"
    else:
        return
    raise ValueError(f"environment: a gymnax 1.x Environment is needed, not {came}")


def _name(environment: Any) -> str:
    """Return the environment's name, or the type's: a wrapper would pass on the inner name."""
    own = hasattr(type(environment), "name")
    return str(environment.name) if own else type(environment).__name__


def _type(x: object) -> str:
    """Return a type's name with its module, because several libraries use the same names."""
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _check_time_limit(name: str, params: Any) -> None:
    limit = getattr(params, "max_steps_in_episode", None)
    if isinstance(limit, (int, float, np.number)) and not limit >= 1:
        raise ValueError(f"{name}: max_steps_in_episode = {limit}: at least 1 is needed")


def _action(name: str, environment: Any, params: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and type of an agent's action.

    Raises:
        ValueError: Policies cannot choose from these actions.
    """
    try:
        with jax.ensure_compile_time_eval():
            space = environment.action_space(params)
    except Exception as error:  # Whatever a user's own code may raise.
        raise ValueError(f"{name}: its action_space(params) fails: {_first_line(error)}") from error
    if isinstance(space, Discrete):
        if _is_count(space.n):
            return jax.ShapeDtypeStruct((), jnp.int32)
        right = "a whole number of choices, at least one"
    elif not isinstance(space, Box):
        raise ValueError(
            f"{name}: its action_space must give gymnax's Discrete or Box, not {_type(space)}"
        )
    elif not jnp.issubdtype(space.dtype, jnp.floating):
        right = "to be floats if they have bounds; whole numbers are Discrete"
    elif bounds := _bounds(space):
        low, high = bounds
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite([high - low, high + low]).all()
        if not finite:
            right = "to be discrete or have bounds that are finite in float32"
        elif low.size == 0 or (low > high).any():
            right = "at least one number, low at most high"
        else:
            return jax.ShapeDtypeStruct(low.shape, jnp.float32)
    else:
        right = "bounds that are real numbers, alone or in the actions' shape"
    raise ValueError(f"{name}: its actions need {right}, not {_shown_space(space)}")


def _is_count(number: Any) -> bool:
    try:
        return int(number) == number >= 1
    except (OverflowError, TypeError, ValueError):
        return False


def _bounds(space: Box) -> tuple[Any, Any] | None:
    """Return both bounds in float32, as policies compute with them; None if there are none."""
    try:
        low, high = (
            np.broadcast_to(x, tuple(space.shape)).astype(np.float32, casting="same_kind")
            for x in (space.low, space.high)
        )
    except (TypeError, ValueError):
        return None
    return low, high


def _shown_space(space: Any) -> str:
    try:
        return repr(space)
    except Exception:  # Its repr formats the bounds, which may be anything.
        return f"a {type(space).__name__} with these fields: {vars(space)}"


def _traced(what: str, method: Callable[..., Any], params: Any, *arguments: Any) -> Any:
    """Return a method's results, as shapes and types."""
    try:
        with numpys_rules():
            return jax.eval_shape(lambda *x: method(*x, params), *arguments)
    except Exception as error:  # Whatever a user's own code may raise.
        hint = _HINTS.get(getattr(error, "name", None) or "", "")
        for leaf in jax.tree.leaves(params):
            if not isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic, jax.Array)):
                hint = (
                    f"; its parameters hold a {_type(leaf)}, which is no number; "
                    "a flax.struct.dataclass of numbers is right"
                )
        raise ValueError(f"{what} cannot be traced by JAX: {_first_line(error)}{hint}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _values(what: str, names: tuple[str, ...], returned: Any) -> tuple[Any, ...]:
    """Check that a method returned as many values as in gymnax 1.x."""
    if not isinstance(returned, tuple) or len(returned) != len(names):
        came = f"{len(returned)} values" if isinstance(returned, tuple) else _described(returned)
        raise ValueError(
            f"{what} must return {len(names)} values, {', '.join(names)}, as in gymnax 1.x; "
            f"it returns {came}"
        )
    return returned


def _check_observation(name: str, observation: Any) -> None:
    if not isinstance(observation, jax.ShapeDtypeStruct) or not _is_real(observation):
        raise ValueError(
            f"{name}: its observation must be one array of real numbers, "
            f"not {_described(observation)}"
        )
    if observation.size == 0:
        raise ValueError(
            f"{name}: its observation must hold a number; its shape is {observation.shape}"
        )


def _check_step(name: str, before: tuple[Any, Any], after: tuple[Any, Any], **numbers: Any) -> None:
    """Check that a step keeps the state's form, and that reward and ends are single numbers."""
    for part, old, new in zip(("observation", "state"), before, after, strict=True):
        _check_same(name, part, old, new)
    for part, number in numbers.items():
        # Rewards of shape (1,) are common; gymnax's own step takes only ends of shape ().
        shapes = ((), (1,)) if part == "reward" else ((),)
        one = isinstance(number, jax.ShapeDtypeStruct) and number.shape in shapes
        if not one or not _is_real(number):
            raise ValueError(
                f"{name}: its {part} must be one number, of shape (), not {_described(number)}"
            )


def _check_same(name: str, part: str, before: Any, after: Any) -> None:
    """Check that a step gives the same tree, shapes and types as a reset."""
    structures: list[Any] = [jax.tree.structure(x) for x in (before, after)]
    pairs = [(part, before, after)]
    if structures[0] == structures[1]:
        leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        pairs = [
            (part + keystr(path), old, new)
            for (path, old), new in leaves
            if (old.shape, old.dtype) != (new.shape, new.dtype)
        ]
    for where, old, new in pairs:
        raise ValueError(
            f"{name}: its {where} must be the same after a step as after a reset, "
            f"{_described(old)}, not {_described(new)}"
        )


def _is_real(x: jax.ShapeDtypeStruct) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool)
    return any(jnp.issubdtype(x.dtype, kind) for kind in kinds)


def _described(x: Any) -> str:
    """Describe a traced value: an array as float32[3], a tree by its parts."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return shown(jax.tree.map(lambda leaf: _Text(_described(leaf)), x))


class _Text(str):
    """Text without quotes in a tree's repr."""

    def __repr__(self) -> str:
        return str(self)
