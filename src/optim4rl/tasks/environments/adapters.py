"""Environments by name."""

import difflib

import gymnax
from gymnax.environments.environment import Environment, EnvParams

from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.checks import check_environment
from optim4rl.tasks.environments.gridworld import GridWorld
from optim4rl.tasks.environments.names import (
    BRAX,
    PLAYGROUND,
    environment_names as environment_names,
    package_names as package_names,
)
from optim4rl.tasks.environments.physics import make_brax, make_playground
from optim4rl.tasks.environments.worlds import GRID_WORLDS


def make_environment(name: str) -> tuple[Environment, EnvParams]:
    """Build an environment and its default parameters.

    Args:
        name: One of `environment_names()` or `package_names()`. The bodies of Brax can name their
            simulator, as in "brax:ant/generalized" (see `physics.make_brax`).

    Raises:
        ValueError: If the name is unknown, its package is not installed, or `check_environment`
            refuses the environment.
    """
    package, _, rest = name.partition(":")
    if name == "catch":
        environment = Catch()
    elif name in GRID_WORLDS:
        environment = GridWorld(GRID_WORLDS[name])
    elif package == "gymnax" and rest in gymnax.registered_envs:
        environment, _ = check_environment(*gymnax.make(rest))
    elif package == "brax" and rest.partition("/")[0] in BRAX:
        environment = make_brax(rest)
    elif package == "playground" and rest in PLAYGROUND:
        environment = make_playground(rest)
    else:
        raise ValueError(_unknown(name))
    return environment, environment.default_params


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
