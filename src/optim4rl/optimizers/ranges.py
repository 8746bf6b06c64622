"""The ranges of a rule's settings, for every framework; nothing here needs JAX."""

from collections.abc import Mapping
from typing import Any

from optim4rl.fields import COUNT, DECAY, POSITIVE, check_values

# Ranges of the rule's own settings, and of its processing's and structure's.
RANGES = {
    "hidden_size": COUNT,
    "head_sizes": COUNT,
    "clip": POSITIVE,
    "clip_norm": POSITIVE,
    "step_scale": POSITIVE,
    "epsilon": POSITIVE,
    "beta1": DECAY,
    "beta2": DECAY,
    "beta_slow": DECAY,
    "c": POSITIVE,
    "p": POSITIVE,
    "rollouts": COUNT,
    "epochs": COUNT,
    "minibatches": COUNT,
}


def check_choice(field: str, cls: type[Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings of a processing or a structure that have the wrong type or range.

    Raises:
        ValueError: the message names the setting as `structure.beta1`, and what would be right.
    """
    try:
        check_values(cls, settings, **RANGES)
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from error
