"""Stable-Baselines3's PPO with RL Zoo's settings: Adam as tuned there, ppo-generalist as it is.

pip install 'optim4rl[examples]' 'gymnasium[box2d]'
python examples/torch_sb3_table.py --out runs/sb3 --jobs 2

Every finished run is kept, so stop it and start it again as you like. Leaves runs.parquet, which
`optim4rl.benchmark.table.read_runs` reads, and table.md.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tables import make_table

POINTS = 200  # of a learning curve; final returns are over the last 20, a tenth


def falling(start: float) -> Callable[[float], float]:
    """From a value to zero over training."""
    return lambda left: start * left


# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml: environments, steps,
# whether observations and rewards are normalised; then PPO's arguments. Where RL Zoo gives no rate,
# Stable-Baselines3's own is used, 3e-4.
TASKS: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "CartPole-v1": (
        8,
        100_000,
        False,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": falling(1e-3),
            "clip_range": falling(0.2),
        },
    ),
    "Pendulum-v1": (
        4,
        100_000,
        False,
        {
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    ),
    "Acrobot-v1": (
        16,
        1_000_000,
        True,
        {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4},
    ),
    "LunarLander-v3": (
        16,
        1_000_000,
        False,
        {
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
    ),
}


def run(task: str, optimizer: str, seed: int) -> np.ndarray:
    """Train once; the mean return of the episodes that ended in each share of training."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from optim4rl.torch import sb3_settings

    class Episodes(BaseCallback):
        """The step at which each episode ended, and its return."""

        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[int, float]] = []

        def _on_step(self) -> bool:
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            self.found += [(self.num_timesteps, float(x)) for x in ended]
            return True

    torch.set_num_threads(1)
    envs, steps, normalise, settings = TASKS[task]
    if optimizer != "adam":
        # A rate that falls for Adam falls for ours, from the rate that its weights were made for.
        falls = callable(settings.get("learning_rate"))
        schedule = (lambda left: left) if falls else None
        settings = {**settings, **sb3_settings(optimizer, schedule=schedule)}
    env: Any = make_vec_env(task, n_envs=envs, seed=seed)
    if normalise:
        env = VecNormalize(env, gamma=settings["gamma"])
    callback = Episodes()
    PPO("MlpPolicy", env, **settings, device="cpu", seed=seed).learn(steps, callback)
    at, returns = np.array(callback.found).T
    share = np.minimum((at - 1) * POINTS // steps, POINTS - 1).astype(int)
    sums, counts = (np.bincount(share, w, POINTS) for w in (returns, None))
    curve = np.divide(sums, counts, out=np.full(POINTS, np.nan), where=counts > 0)
    known = np.flatnonzero(counts)  # Where no episode ended, the last known return holds.
    return curve[known[np.maximum(np.searchsorted(known, np.arange(POINTS), "right") - 1, 0)]]


if __name__ == "__main__":
    make_table(__doc__, run, {task: settings[1] for task, settings in TASKS.items()})
