"""optim4rl: learned optimizers for reinforcement learning.

    optimizer = optim4rl.load("anchored-catch")     # an optax optimizer

The names below need only the core install; `optim4rl.tasks`, `optim4rl.meta`, `optim4rl.evaluation`
and `optim4rl.study` come with the extra `lab`, `optim4rl.torch` with `torch`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim4rl.optimizers import (
        LearnedOptimizer as LearnedOptimizer,
        OptimizerSpec as OptimizerSpec,
        WeightsError as WeightsError,
        load as load,
        load_weights as load_weights,
        save_weights as save_weights,
        shipped_names as shipped_names,
    )

__version__ = "0.2.0.dev0"

_NAMES = (
    "LearnedOptimizer",
    "OptimizerSpec",
    "WeightsError",
    "load",
    "load_weights",
    "save_weights",
    "shipped_names",
)


def __getattr__(name: str) -> Any:
    # PEP 562: the first of these names imports JAX, so `optim4rl.torch` needs none.
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optim4rl import optimizers

    return getattr(optimizers, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
