"""Learned optimizers as values and as files; `weight_files` has the format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from optim4rl.files.atomic import write_atomically
from optim4rl.optimizers import advice
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.layout import Kinds
from optim4rl.optimizers.presets import ScalarOrSchedule, learned_spec
from optim4rl.optimizers.rule import (
    MetaParameters,
    OptimizerSpec,
    init_meta_parameters,
    spec_to_dict,
)
from optim4rl.optimizers.transform import learned_optimizer
from optim4rl.optimizers.weight_files import (
    DEFAULT_WEIGHTS,
    WeightsError as WeightsError,
    read_rule,
    shipped_names as shipped_names,
    weights_as_bytes,
)


@dataclass(frozen=True)
class LearnedOptimizer:
    """A rule with its weights: meta-training returns one, and everything else takes one.

    Attributes:
        spec: the rule.
        meta_parameters: its weights.
        learning_rate: the inner learning rate that the weights were trained with.
        card: origin of the weights: task, seeds, settings, results, package versions (JSON values).
    """

    spec: OptimizerSpec
    meta_parameters: MetaParameters
    learning_rate: float
    card: Mapping[str, Any] = field(default_factory=dict)

    def transformation(
        self,
        learning_rate: ScalarOrSchedule | None = None,
        *,
        step_scale: ScalarOrSchedule = 1.0,
        kernel: KernelName | None = "auto",
        kinds: Kinds = None,
        state_dtype: DTypeLike = "float32",
        total_updates: int | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer for optax.

        `step_scale` multiplies every update; tune it like a learning rate. See
        `scale_by_learned_rule` for the other arguments.
        """
        return learned_optimizer(
            self.spec,
            self.meta_parameters,
            self.learning_rate if learning_rate is None else learning_rate,
            step_scale=step_scale,
            kernel=kernel,
            kinds=kinds,
            state_dtype=state_dtype,
            total_updates=total_updates,
        )


def untrained(preset: str, learning_rate: float, key: PRNGKeyArray) -> LearnedOptimizer:
    """Return a preset with fresh weights: the control for every trained optimizer."""
    spec = learned_spec(preset)
    return LearnedOptimizer(spec, init_meta_parameters(spec, key), learning_rate)


def save_weights(path: str | Path, optimizer: LearnedOptimizer) -> None:
    """Write a weights file, atomically."""
    data = weights_as_bytes(
        spec_to_dict(optimizer.spec),
        optimizer.learning_rate,
        optimizer.card,
        {name: np.asarray(x) for name, x in flatten(optimizer.meta_parameters).items()},
    )
    write_atomically(Path(path), data)


def load_weights(weights: str | Path) -> LearnedOptimizer:
    """Read a learned optimizer by shipped name or by path.

    Raises:
        WeightsError: the file is missing, truncated, corrupt, of another format or version, or its
            tensors do not fit its spec or its checksum. A pickle is never opened as one.
    """
    spec, file = read_rule(weights)
    return LearnedOptimizer(spec, unflatten(file.tensors), file.learning_rate, file.card)


def load(
    weights: str | Path = DEFAULT_WEIGHTS,
    learning_rate: ScalarOrSchedule | None = None,
    *,
    step_scale: ScalarOrSchedule = 1.0,
    kernel: KernelName | None = "auto",
    kinds: Kinds = None,
    state_dtype: DTypeLike = "float32",
    total_updates: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Load trained weights as a drop-in optax optimizer.

    Args:
        weights: a shipped name (`optim4rl list weights`) or the path of a weights file. Default:
            the weights that we recommend for RL.
        learning_rate: a float or an optax schedule; None for the rate that the weights were trained
            with. A float more than ten times lower, as rates for Adam are, gives a warning.
        step_scale: multiplies every update; tune it like a learning rate. It may be a schedule,
            too.
        kernel: the implementation of the rule: "auto", "native", "xla", "plain" or "pallas"; None
            is plain JAX (`transform.scale_by_learned_rule`).
        kinds: what each parameter is for, for weights that read it: a tree of "weight", "bias",
            "policy_head" and "value_head", or a function of a leaf's path and the leaf. None:
            inferred from names and shapes (`layout.infer_layout`).
        state_dtype: "bfloat16" keeps the optimizer's state in half the memory of "float32".
        total_updates: length of your run in updates, if you know it. Weights that read how much of
            training is done profit from it; others ignore it.

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
        ValueError: another argument is wrong; the message names it.
    """
    optimizer = load_weights(weights)
    if isinstance(learning_rate, int | float) and isinstance(step_scale, int | float):
        message = advice.of_low_rate(
            "learning_rate",
            learning_rate,
            step_scale,
            optimizer.learning_rate,
            "where it was Adam's, leave it out",
        )
        if message is not None:
            advice.warn(message)
    return optimizer.transformation(
        learning_rate,
        step_scale=step_scale,
        kernel=kernel,
        kinds=kinds,
        state_dtype=state_dtype,
        total_updates=total_updates,
    )


def flatten(meta_parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return meta-parameters by flat names, such as "network0.input"."""
    return {
        f"{network}.{name}": x
        for network, weights in meta_parameters.items()
        for name, x in weights.items()
    }


def unflatten(arrays: Mapping[str, Any]) -> MetaParameters:
    """Return the meta-parameters of arrays from `flatten`."""
    found: MetaParameters = {}
    for flat, x in arrays.items():
        network, _, name = flat.partition(".")
        found.setdefault(network, {})[name] = jnp.asarray(x)
    return found
