"""`optim4rl list`: what there is."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from optim4rl.cli.runtime import print_table

What = Literal["tasks", "optimizers", "components", "weights", "presets", "kernels"]


@dataclass(frozen=True)
class ListOptions:
    """List what there is.

    Attributes:
        what: tasks, optimizers, components (of an ablation study), weights, presets of train, or
            kernels (the implementation that runs each optimizer here, and the agents' convolution
            on grid worlds, and why).
        json: print it as JSON.
    """

    what: Annotated[What, tyro.conf.Positional]
    json: bool = False


def run(options: ListOptions) -> None:
    """The command."""
    rows = {
        "tasks": _tasks,
        "optimizers": _optimizers,
        "components": _components,
        "weights": _weights,
        "presets": _presets,
        "kernels": _kernels,
    }[options.what]()
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    columns = list(rows[0]) if rows else ["none"]
    print_table(options.what, columns, [[str(value) for value in row.values()] for row in rows])


def _tasks() -> list[dict[str, Any]]:
    from optim4rl.tasks import default_config
    from optim4rl.tasks.environments.adapters import environment_names, package_names

    rows = []
    for name in (*environment_names(), *package_names()):
        config = default_config(name)
        sizes = f"width {config.width}"
        if config.torso == "mlp":
            sizes = f"policy {config.policy_layers}, value {config.value_layers}"
        learner = type(config.learner).__name__.removesuffix("Config")
        rows.append({"task": name, "network": f"{config.torso}, {sizes}", "learner": learner})
    return rows


def _optimizers() -> list[dict[str, Any]]:
    from optim4rl.optimizers.presets import CLASSICAL, LEARNED

    learned = [
        {
            "optimizer": name,
            "kind": "learned",
            "processing": spec.processing.name,
            "structure": spec.structure.name,
            "state": _state_cost(spec.state_floats),
        }
        for name, spec in LEARNED.items()
    ]
    floats = {"adam": 2, "rmsprop": 1, "sgd": 0, "sign_sgd": 0, "muon": 1}
    classical = [
        {
            "optimizer": name,
            "kind": "classical (optax)",
            "processing": "",
            "structure": "",
            "state": _state_cost(floats[name]),
        }
        for name in CLASSICAL
    ]
    return [*learned, *classical]


def _state_cost(floats: int) -> str:
    return f"{floats} floats, {4 * floats} bytes a parameter"


def _components() -> list[dict[str, Any]]:
    from optim4rl.study.components import COMPONENTS, METRICS

    choices = [
        {"component": component.key, "choice": choice.value, "meaning": choice.description}
        for component in COMPONENTS
        for choice in component.choices
    ]
    metrics = [
        {"component": "(metric)", "choice": metric.key, "meaning": metric.description}
        for metric in METRICS
    ]
    return [*choices, *metrics]


def _weights() -> list[dict[str, Any]]:
    from optim4rl.optimizers.weights import load_weights, shipped_names

    rows = []
    for name in shipped_names():
        weights = load_weights(name)
        rows.append(
            {
                "weights": name,
                "trained on": ", ".join(weights.card.get("tasks", [])),
                "learning rate": weights.learning_rate,
                "state": _state_cost(weights.spec.state_floats),
                "results": weights.card.get("results", {}).get("summary", ""),
            }
        )
    return rows


def _presets() -> list[dict[str, Any]]:
    from optim4rl.cli.recipes import PRESETS

    return [
        {
            "preset": name,
            "optimizer": preset["optimizer"],
            "tasks": ", ".join(preset.get("tasks", ["catch"])),
        }
        for name, preset in PRESETS.items()
    ]


def _kernels() -> list[dict[str, Any]]:
    from optim4rl.optimizers.kernels.select import AUTOMATIC, choose
    from optim4rl.optimizers.presets import LEARNED

    rows = []
    for name, spec in LEARNED.items():
        used = choose(spec)
        faster = AUTOMATIC[: AUTOMATIC.index(used)]
        reasons = [f"not {kernel.name}: {kernel.refusal(spec)}" for kernel in faster]
        why = "; ".join([used.status(), *reversed(reasons)])
        rows.append({"what": name, "kernel": used.name, "why": why})
    return [*rows, _convolution()]


def _convolution() -> dict[str, Any]:
    """The agents' convolution over few ones, which is no optimizer's."""
    from optim4rl.tasks.kernels import native

    reason = native.LIBRARY.refusal()
    why = native.LIBRARY.status() if reason is None else f"not native: {reason}"
    used = "native" if reason is None else "xla"
    return {"what": "convolution on grid worlds", "kernel": used, "why": why}
