"""Tasks: environments, agent networks and inner learners."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim4rl.tasks.config import (
        A2CConfig as A2CConfig,
        MapOrder as MapOrder,
        PPOConfig as PPOConfig,
        TaskConfig as TaskConfig,
    )
    from optim4rl.tasks.defaults import default_config as default_config
    from optim4rl.tasks.task import (
        Task as Task,
        make_task as make_task,
        task_from_environment as task_from_environment,
    )

_NAMES = {
    "config": "A2CConfig MapOrder PPOConfig TaskConfig",
    "defaults": "default_config",
    "task": "Task make_task task_from_environment",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # PEP 562: import a name when it is first used; settings and names need no JAX.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
