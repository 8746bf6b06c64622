"""Stable-Baselines3's PPO with RL Zoo's settings: Adam as tuned there, ppo-generalist as it is.

pip install 'optim4rl[examples]' box2d
python examples/torch_sb3_table.py --out runs/sb3 --jobs 2

Every finished run is kept, so stop it and start it again as you like. Leaves runs.parquet, which
`optim4rl.benchmark.table.read_runs` reads, and table.md.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = range(1_000, 1_005)
OPTIMIZERS = ("adam", "ppo-generalist")
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


def keep(job: tuple[Path, str, str, int]) -> str:
    """Run, and keep the curve, unless it is there."""
    path, task, optimizer, seed = job
    if not path.exists():
        curve = run(task, optimizer, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, curve)
        part.rename(path)
    return f"{task}, {optimizer}, seed {seed}"


def write(out: Path, curves: dict[tuple[str, str], np.ndarray]) -> None:
    """Write runs.parquet and table.md."""
    from optim4rl.benchmark.table import write_runs
    from optim4rl.evaluation.curves import Curves
    from optim4rl.evaluation.returns import area_under_curve, compare, final_return

    rows = []
    lines = [
        "| task | optimizer | AUC, mean of seeds | final return | AUC against Adam (95 %) |",
        "|---|---|---|---|---|",
    ]
    for (task, optimizer), returns in curves.items():
        steps = TASKS[task][1] * np.arange(1, POINTS + 1) // POINTS
        found = Curves(returns, np.full(len(returns), -1), steps)
        areas, finals = area_under_curve(found), final_return(found)
        lead = "-"
        if optimizer != "adam":
            adam = Curves(curves[task, "adam"], np.full(len(returns), -1), steps)
            both = (x[None, None] for x in (areas, area_under_curve(adam)))
            x = compare(*both, optimizer, "adam").difference
            lead = f"{x.value:+.1f} ({x.low:+.1f} to {x.high:+.1f})"
        lines.append(
            f"| {task} | {optimizer} | {areas.mean():.1f} | {finals.mean():.1f} | {lead} |"
        )
        for seed, area, final, curve in zip(SEEDS, areas, finals, returns, strict=True):
            rows.append(
                {
                    "optimizer": optimizer,
                    "role": "baseline" if optimizer == "adam" else "learned",
                    "change": "",
                    "task": task,
                    "purpose": "one",
                    "meta_seed": 0,
                    "setting": 1.0,
                    "step_multiple": 1.0,
                    "seed": seed,
                    "auc": float(area),
                    "final_return": float(final),
                    "diverged_at": -1,
                    "env_steps": steps.tolist(),
                    "returns": curve.tolist(),
                }
            )
    write_runs(iter(rows), out / "runs.parquet")
    (out / "table.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """The whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    jobs = [
        (options.out / "curves" / f"{task}-{optimizer}-{seed}.npy", task, optimizer, seed)
        for task in options.tasks
        for seed in SEEDS
        for optimizer in OPTIMIZERS
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for done, what in enumerate(pool.imap(keep, jobs), 1):
            print(f"{done}/{len(jobs)} {what}", flush=True)
    curves = {
        (task, optimizer): np.stack(
            [
                np.load(path)
                for path, of_task, of_optimizer, _ in jobs
                if (of_task, of_optimizer) == (task, optimizer)
            ]
        )
        for task in options.tasks
        for optimizer in OPTIMIZERS
    }
    write(options.out, curves)
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
