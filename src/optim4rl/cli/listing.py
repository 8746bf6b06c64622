"""`optim4rl list`: list tasks, optimizers, weights and more.

It needs only the standard library, so the core install can list its weights and optimizers.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

from optim4rl.cli.terminal import print_table, require_known


@dataclass(frozen=True)
class ListOptions:
    """Options of `list`.

    Attributes:
        what: a name in `LISTS`.
        json: print it as JSON: a list of objects, each with its "name".
    """

    what: str
    json: bool = False


def parse(program: str, words: list[str]) -> ListOptions:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        program, description="List tasks, optimizers, weights and more.", allow_abbrev=False
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="tasks, optimizers, components (of an ablation study), weights, recipes of train, or "
        "kernels (the implementation that runs each optimizer here, and the agents' convolution on "
        "grid worlds, and why)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = ListOptions(**vars(parser.parse_args(words)))
    require_known("what =", options.what, "lists", LISTS)
    return options


def run(options: ListOptions) -> None:
    """Run the command."""
    rows = LISTS[options.what]()
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    columns = [key.replace("_", " ") for key in rows[0]]
    print_table(options.what, columns, [[str(value) for value in row.values()] for row in rows])


def _tasks() -> list[dict[str, Any]]:
    from optim4rl.tasks import default_config
    from optim4rl.tasks.environments.names import environment_names, package_names

    rows = []
    for name in (*environment_names(), *package_names()):
        config = default_config(name)
        sizes = f"width {config.width}"
        if config.torso == "mlp":
            sizes = f"policy {config.policy_layers}, value {config.value_layers}"
        learner = type(config.learner).__name__.removesuffix("Config")
        rows.append({"name": name, "network": f"{config.torso}, {sizes}", "learner": learner})
    return rows


def _optimizers() -> list[dict[str, Any]]:
    from optim4rl.optimizers.presets import CLASSICAL, LEARNED

    learned = [
        {
            "name": name,
            "kind": "learned",
            "processing": spec.processing.name,
            "structure": spec.structure.name,
            "state": _state_cost(spec.state_floats),
        }
        for name, spec in LEARNED.items()
    ]
    classical = [
        {
            "name": name,
            "kind": "classical (optax)",
            "processing": "",
            "structure": "",
            "state": _state_cost(optimizer.state_floats),
        }
        for name, optimizer in CLASSICAL.items()
    ]
    return [*learned, *classical]


def _state_cost(floats: int) -> str:
    return f"{floats} floats, {4 * floats} bytes a parameter"


def _components() -> list[dict[str, Any]]:
    from optim4rl.plans.optim4rl import COMPONENTS, METRICS

    choices = [
        {"component": component.key, "name": choice.value, "meaning": choice.description}
        for component in COMPONENTS
        for choice in component.choices
    ]
    metrics = [
        {"component": "(metric)", "name": metric.key, "meaning": metric.description}
        for metric in METRICS
    ]
    return [*choices, *metrics]


def _weights() -> list[dict[str, Any]]:
    from optim4rl.optimizers.spec import spec_from_dict
    from optim4rl.optimizers.weight_files import read_weights, shipped_names

    rows = []
    for name in shipped_names():
        file = read_weights(name)
        rows.append(
            {
                "name": name,
                "trained_on": ", ".join(file.card.get("tasks", [])),
                "learning_rate": file.learning_rate,
                "state": _state_cost(spec_from_dict(file.spec).state_floats),
                "results": file.card.get("results", {}).get("summary", ""),
            }
        )
    return rows


def _recipes() -> list[dict[str, Any]]:
    from optim4rl.meta.recipes import RECIPES

    return [
        {"name": name, "optimizer": recipe.optimizer, "tasks": ", ".join(recipe.tasks)}
        for name, recipe in RECIPES.items()
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
        rows.append({"name": name, "kernel": used.name, "why": why})
    return [*rows, _convolution()]


def _convolution() -> dict[str, Any]:
    """Describe the kernel of the agents' convolution, which belongs to no optimizer."""
    from optim4rl.tasks.kernels import native

    reason = native.LIBRARY.refusal()
    why = native.LIBRARY.status() if reason is None else f"not native: {reason}"
    used = "native" if reason is None else "xla"
    return {"name": "convolution on grid worlds", "kernel": used, "why": why}


LISTS = {
    "tasks": _tasks,
    "optimizers": _optimizers,
    "components": _components,
    "weights": _weights,
    "recipes": _recipes,
    "kernels": _kernels,
}
