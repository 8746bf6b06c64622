"""Optimizers from users' files: a function in a Python file makes one from its learning rate.

`my_file.py:make_optimizer` names a function of the learning rate. If it takes a second argument, it
gets the number of updates in the whole run. It returns an optax transformation. Its `update` gets
the parameters. If it takes extra arguments, it also gets optax's `value` (the minibatch's loss),
`grad` and `value_fn`, and `updates_done`. The same file can give the learning rates to tune over:
`make_optimizer_rates = (1e-3, 1e-2)`.
"""

import hashlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from optim4rl.evaluation.learning import follow
from optim4rl.optimizers.presets import ScalarOrSchedule


@dataclass(frozen=True)
class FromFile:
    """Make an optimizer with a function in a file; the function always gets a number as its rate.

    Attributes:
        path: the file.
        function: the function's name.
        updates: inner updates of a whole run.
    """

    path: Path
    function: str
    updates: int

    def __call__(self, parameters: Any, rate: ScalarOrSchedule) -> optax.GradientTransformation:
        del parameters
        return follow(partial(_make, self.path, self.function, updates=self.updates), rate)


class GivenError(ValueError):
    """An optimizer from a file cannot be used; the message names file and function."""


def check_given(path: Path, function: str) -> tuple[float, ...] | None:
    """Check the optimizer with two training steps; return the file's learning rates, if any.

    Raises:
        GivenError: the message names the file, the function, and what is wrong.
    """
    named = f"{path}:{function}"
    if not path.is_file():
        raise GivenError(f"{named}: there is no such file")
    params = {"bias": jnp.ones(3), "weight": jnp.linspace(0.5, 1.0, 6).reshape(2, 3)}
    try:
        updates = jax.device_get(_two_steps(path, function, params))
    except GivenError:
        raise
    except Exception as error:
        raise GivenError(f"{named}: {type(error).__name__}: {error}") from error
    if lost := [name for name, x in updates.items() if not np.isfinite(x).all()]:
        raise GivenError(
            f"{named}: its update of a gradient of about 1 at a rate of 1e-3 is not finite in "
            f"{' and '.join(lost)}"
        )
    grid = getattr(_load(path), f"{function}_rates", None)
    if grid is None:
        return None
    if not isinstance(grid, tuple) or not all(isinstance(x, (int, float)) for x in grid):
        raise GivenError(f"{named}_rates = {grid!r}: a tuple of numbers is needed")
    return tuple(float(x) for x in grid)


def _two_steps(path: Path, function: str, params: dict[str, Array]) -> Any:
    """Return two steps' updates on half the sum of squares, compiled with a traced rate."""
    named = f"{path}:{function}"

    def loss(params: Any) -> Array:
        return 0.5 * jnp.square(optax.tree.norm(params))

    def run(rate: Array) -> Any:
        optimizer = _make(path, function, rate, 100)

        def step(carry: Any, done: Array) -> Any:
            params, state = carry
            told = {"value": loss(params), "grad": params, "value_fn": loss}
            answer = optimizer.update(params, state, params, updates_done=done, **told)
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise GivenError(
                    f"{named}: its update returned {type(answer).__name__}; updates and a state "
                    "are needed"
                )
            updates, state = answer
            _require_like(named, updates, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(2))[1]

    return jax.jit(run)(jnp.float32(1e-3))


def _require_like(named: str, updates: Any, params: dict[str, Array]) -> None:
    """Refuse updates whose tree or shapes differ from the parameters'."""
    wanted, found = (str(jax.tree.structure(x)) for x in (params, updates))
    if found != wanted:
        shown = "None" if updates is None else found
        raise GivenError(
            f"{named}: its update returned {shown.removeprefix('PyTreeDef')}; a tree like the "
            "parameters is needed, with an array for each"
        )
    for name, x in params.items():
        if jnp.shape(updates[name]) != x.shape:
            raise GivenError(
                f"{named}: its update has shape {jnp.shape(updates[name])} for parameters of shape "
                f"{x.shape}"
            )


def source_address(data: bytes) -> str:
    """Hash a file's contents."""
    return hashlib.sha256(data).hexdigest()[:24]


def _make(path: Path, function: str, rate: Any, updates: int) -> optax.GradientTransformation:
    named = f"{path}:{function}"
    make = getattr(_load(path), function, None)
    if not callable(make):
        raise GivenError(f"{named}: the file has no such function")
    count = len(inspect.signature(make).parameters)
    if count not in (1, 2):
        raise GivenError(
            f"{named}: it takes {count} arguments; the learning rate, and at most the number of "
            "updates, are given"
        )
    made = make(rate) if count == 1 else make(rate, updates)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise GivenError(
            f"{named}: it returned {type(made).__name__}; an optax GradientTransformation is needed"
        )
    return optax.with_extra_args_support(made)


@cache
def _load(path: Path) -> Any:
    """Import the file as a module, once per process."""
    spec = importlib.util.spec_from_file_location(f"_given_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GivenError(f"{path}: {type(error).__name__}: {error}") from error
    return module
