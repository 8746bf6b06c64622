"""From a name, or a user's own object, to an environment that an agent can be trained on."""

import difflib

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Box, Discrete

from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.gridworld import GRID_WORLDS, GridWorld
from optim4rl.tasks.environments.physics import (
    BRAX,
    PLAYGROUND,
    make_brax,
    make_playground,
)


def environment_names() -> tuple[str, ...]:
    """List the built-in environments; `make_environment` takes names of other packages besides."""
    return ("catch", *GRID_WORLDS)


def package_names() -> tuple[str, ...]:
    """List the environments of other packages, such as "gymnax:CartPole-v1" and "brax:ant"."""
    packages = {"gymnax": gymnax.registered_envs, "brax": BRAX, "playground": PLAYGROUND}
    return tuple(f"{package}:{name}" for package, names in packages.items() for name in names)


def make_environment(name: str) -> tuple[Environment, EnvParams]:
    """Build an environment and its default parameters.

    Args:
        name: One of `environment_names()` or `package_names()`. The bodies of Brax can name their
            simulator, as in "brax:ant/generalized" (see `physics.make_brax`).

    Raises:
        ValueError: If the name is unknown, its package is not installed, or the environment is one
            that `check_environment` refuses.
    """
    package, _, rest = name.partition(":")
    if name == "catch":
        environment = Catch()
    elif name in GRID_WORLDS:
        environment = GridWorld(GRID_WORLDS[name])
    elif package == "gymnax" and rest in gymnax.registered_envs:
        environment, _ = gymnax.make(rest)
    elif package == "brax" and rest.partition("/")[0] in BRAX:
        environment = make_brax(rest)
    elif package == "playground" and rest in PLAYGROUND:
        environment = make_playground(rest)
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
        ValueError: If its actions are neither discrete nor numbers within bounds, or its
            observation is not one array of numbers.
    """
    params = environment.default_params if params is None else params
    actions = environment.action_space(params)
    if not (isinstance(actions, Discrete) or _is_bounded(actions)):
        raise ValueError(
            f"{environment.name}: its actions must be discrete or have bounds, not {actions!r}"
        )
    observation, _ = jax.eval_shape(environment.reset_env, jax.random.key(0), params)
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{environment.name}: its observation must be one array, "
            f"not {jax.tree.structure(observation)}"
        )
    if not (jnp.issubdtype(observation.dtype, jnp.number) or observation.dtype == jnp.bool):
        raise ValueError(
            f"{environment.name}: its observation must be of numbers, not {observation.dtype}"
        )
    return environment, params


def _is_bounded(actions: object) -> bool:
    return isinstance(actions, Box) and bool(
        np.isfinite(actions.low).all() and np.isfinite(actions.high).all()
    )


def _unknown(name: str) -> str:
    known = environment_names()
    near = difflib.get_close_matches(name, [*known, *package_names()])
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"unknown environment {name!r}.{hint} "
        f"Known: {', '.join(known)}, gymnax:NAME for a gymnax environment, "
        f"brax:NAME for {', '.join(BRAX)}, "
        "and playground:NAME for a task of MuJoCo Playground's control suite."
    )
