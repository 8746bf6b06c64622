"""Settings for Stable-Baselines3, so that it uses the weights at their own learning rate."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optim4rl.optimizers.weight_files import DEFAULT_WEIGHTS
from optim4rl.torch.optimizer import Optim4RL
from optim4rl.torch.rule import load_rule


def sb3_settings(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    step_scale: float = 1.0,
    schedule: Callable[[float], float] | None = None,
    policy_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return arguments for Stable-Baselines3's PPO or A2C.

    Use them like this: `PPO("MlpPolicy", env, **sb3_settings())`.

    Before each update, Stable-Baselines3 sets every optimizer's rate to its own `learning_rate`, by
    default a rate that suits Adam. It passes parameters without names.

    Args:
        weights: a shipped name or the path of a weights file.
        step_scale: multiplies every update; tune it like a learning rate.
        schedule: maps the share of training that is left, from 1 to 0, to a share of the weights'
            rate, such as `lambda left: left`; None for the whole rate throughout.
        policy_kwargs: further policy arguments, such as `{"net_arch": [64]}`.

    Returns:
        `policy_kwargs` and `learning_rate`.

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
    """
    rate = load_rule(weights).learning_rate
    options = {"weights": weights, "step_scale": step_scale, "kinds": "sb3"}
    return {
        "policy_kwargs": {
            **(policy_kwargs or {}),
            "optimizer_class": Optim4RL,
            "optimizer_kwargs": options,
        },
        "learning_rate": rate if schedule is None else lambda left: rate * schedule(left),
    }
