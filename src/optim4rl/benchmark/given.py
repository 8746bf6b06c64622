"""An optimizer of a user's own: a function in a Python file that makes it of its learning rate.

`my_file.py:make_optimizer` names a function of the learning rate, and, where it takes a second
argument, of the number of updates in the whole run. It returns an optax transformation, which is
given parameters as any other. Learning rates to tune over can stand beside it as
`make_optimizer_rates = (1e-3, 1e-2)`.
"""

import hashlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

from optim4rl.optimizers.presets import ScalarOrSchedule


@dataclass(frozen=True)
class FromFile:
    """An optimizer that a function in a file makes.

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
        return _make(self.path, self.function, rate, self.updates)


def check_given(path: Path, function: str) -> tuple[float, ...] | None:
    """Make the optimizer once and take one step with it; the learning rates beside it, if any.

    Raises:
        ValueError: the message names the file, the function, and what is wrong.
    """
    named = f"{path}:{function}"
    if not path.is_file():
        raise ValueError(f"{named}: there is no such file")
    try:
        optimizer = _make(path, function, jnp.float32(1e-3), 100)
        params = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        optax.apply_updates(params, updates)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{named}: {type(error).__name__}: {error}") from error
    grid = getattr(_load(path), f"{function}_rates", None)
    if grid is None:
        return None
    if not isinstance(grid, tuple) or not all(isinstance(x, (int, float)) for x in grid):
        raise ValueError(f"{named}_rates = {grid!r}: a tuple of numbers is needed")
    return tuple(float(x) for x in grid)


def source_address(data: bytes) -> str:
    """A hash of a file's contents."""
    return hashlib.sha256(data).hexdigest()[:24]


def _make(path: Path, function: str, rate: Any, updates: int) -> optax.GradientTransformation:
    named = f"{path}:{function}"
    make = getattr(_load(path), function, None)
    if not callable(make):
        raise ValueError(f"{named}: the file has no such function")
    count = len(inspect.signature(make).parameters)
    if count not in (1, 2):
        raise ValueError(
            f"{named}: it takes {count} arguments; the learning rate, and at most the number of "
            "updates, are given"
        )
    made = make(rate) if count == 1 else make(rate, updates)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ValueError(
            f"{named}: it returned {type(made).__name__}; an optax GradientTransformation is needed"
        )
    return optax.with_extra_args_support(made)


@cache
def _load(path: Path) -> Any:
    """The file as a module, run once in a process."""
    spec = importlib.util.spec_from_file_location(f"_given_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return module
