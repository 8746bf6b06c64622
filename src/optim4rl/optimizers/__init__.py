"""Learned optimizers: the rule, its replay and meta-gradient, its optax form and its files."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim4rl.optimizers.layout import (
        KINDS as KINDS,
        Kind as Kind,
        Layout as Layout,
        infer_layout as infer_layout,
    )
    from optim4rl.optimizers.presets import (
        CLASSICAL as CLASSICAL,
        LEARNED as LEARNED,
        classical as classical,
        learned_spec as learned_spec,
        optimizer_names as optimizer_names,
    )
    from optim4rl.optimizers.rule import (
        OptimizerSpec as OptimizerSpec,
        RuleState as RuleState,
        init_meta_parameters as init_meta_parameters,
        init_state as init_state,
        step as step,
    )
    from optim4rl.optimizers.transform import (
        learned_optimizer as learned_optimizer,
        scale_by_learned_rule as scale_by_learned_rule,
    )
    from optim4rl.optimizers.weights import (
        LearnedOptimizer as LearnedOptimizer,
        WeightsError as WeightsError,
        load as load,
        load_weights as load_weights,
        save_weights as save_weights,
        shipped_names as shipped_names,
        untrained as untrained,
    )

_NAMES = {
    "layout": "KINDS Kind Layout infer_layout",
    "presets": "CLASSICAL LEARNED classical learned_spec optimizer_names",
    "rule": "OptimizerSpec RuleState init_meta_parameters init_state step",
    "transform": "learned_optimizer scale_by_learned_rule",
    "weights": (
        "LearnedOptimizer WeightsError load load_weights save_weights shipped_names untrained"
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # PEP 562: a name is imported when it is first asked for. The modules that need no JAX
    # (`tensors`, `weight_files`) do not import it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
