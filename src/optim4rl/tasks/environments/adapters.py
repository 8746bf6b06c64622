"""From a name, or a user's own object, to an environment that an agent can be trained on."""

import difflib

import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Discrete

from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.gridworld import GRID_WORLDS, GridWorld

_GYMNAX = "gymnax:"


def environment_names() -> tuple[str, ...]:
    """List the built-in environments; `make_environment` takes any "gymnax:NAME" besides."""
    return ("catch", *GRID_WORLDS)


def make_environment(name: str) -> tuple[Environment, EnvParams]:
    """Build an environment and its default parameters.

    Args:
        name: One of `environment_names()`, or "gymnax:NAME" for a registered gymnax environment
            with discrete actions, such as "gymnax:CartPole-v1".

    Raises:
        ValueError: If the name is unknown, or the gymnax environment is one that
            `check_environment` refuses.
    """
    if name == "catch":
        environment = Catch()
    elif name in GRID_WORLDS:
        environment = GridWorld(GRID_WORLDS[name])
    elif name.removeprefix(_GYMNAX) in gymnax.registered_envs and name.startswith(_GYMNAX):
        environment, _ = gymnax.make(name.removeprefix(_GYMNAX))
    else:
        raise ValueError(_unknown(name))
    return check_environment(environment)


def check_environment(
    environment: Environment, params: EnvParams | None = None
) -> tuple[Environment, EnvParams]:
    """Pass an environment through if an agent can be trained on it.

    Args:
        environment: A gymnax environment.
        params: Its parameters; its default ones if None.

    Returns:
        The environment itself and its parameters.

    Raises:
        ValueError: If its actions are not discrete, or its observation is not one array of floats.
    """
    params = environment.default_params if params is None else params
    actions = environment.action_space(params)
    if not isinstance(actions, Discrete):
        raise ValueError(f"{environment.name}: its actions must be discrete, not {actions!r}")
    observation, _ = jax.eval_shape(environment.reset_env, jax.random.key(0), params)
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{environment.name}: its observation must be one array, "
            f"not {jax.tree.structure(observation)}"
        )
    if not jnp.issubdtype(observation.dtype, jnp.floating):
        raise ValueError(
            f"{environment.name}: its observation must be of floats, not {observation.dtype}"
        )
    return environment, params


def _unknown(name: str) -> str:
    known = environment_names()
    others = [_GYMNAX + other for other in gymnax.registered_envs]
    near = difflib.get_close_matches(name, [*known, *others])
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"unknown environment {name!r}.{hint} "
        f"Known: {', '.join(known)}, and gymnax:NAME for a gymnax environment."
    )
