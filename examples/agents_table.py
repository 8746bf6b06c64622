"""PPO of three more libraries at their own settings: Adam as there, ppo-generalist as it is.

pip install 'optim4rl[lab,examples]'
python examples/agents_table.py --out runs/agents --jobs 2

rejax needs an older gymnax (see jax_rejax_ppo.py), so run `--tasks rejax-CartPole-v1` in an
environment of its own first, with the same --out; polars and scipy belong to it, too. Every
finished run is kept, so stop it and start it again as you like.
"""

from functools import partial
from typing import Any

import numpy as np
from tables import make_table

POINTS = 20
STEPS = {
    "rejax-CartPole-v1": 100_000,
    "cleanrl-CartPole-v1": 200_000,
    "cleanrl-Acrobot-v1": 200_000,
    "brax-inverted_pendulum": 2_000_000,
}


def run(task: str, optimizer: str, seed: int) -> np.ndarray:
    """Train once; the mean return of evaluations at equal distances."""
    library, _, environment = task.partition("-")
    learn = {"rejax": run_rejax, "cleanrl": run_cleanrl, "brax": run_brax}[library]
    return learn(environment, optimizer, seed, STEPS[task])


def run_cleanrl(environment: str, optimizer: str, seed: int, steps: int) -> np.ndarray:
    """CleanRL's rate for Adam, 2.5e-4, and its epsilon; both rates fall to 0."""
    import torch
    from torch_cleanrl_ppo import evaluate, train

    from optim4rl.torch import Optim4RL

    torch.set_num_threads(1)
    make = partial(Optim4RL, weights=optimizer)
    if optimizer == "adam":
        make = partial(torch.optim.Adam, lr=2.5e-4, eps=1e-5)
    found: list[float] = []

    def look(done: float, agent: torch.nn.ModuleDict) -> None:
        if int(done * POINTS) > len(found):
            found.append(evaluate(agent, environment, episodes=10))

    train(steps, seed, environment, make, look)
    return np.array(found)


def run_brax(environment: str, optimizer: str, seed: int, steps: int) -> np.ndarray:
    """The settings of brax's own notebook of training."""
    from common import in_place_of_adam
    from jax_brax_ppo import train

    settings = {"num_envs": 2048, "unroll_length": 5, "batch_size": 1024, "num_minibatches": 32}
    more: dict[str, Any] = {"learning_rate": 3e-4, "entropy_cost": 1e-2, "reward_scaling": 10.0}
    stand_in = in_place_of_adam(None if optimizer == "adam" else optimizer, own_rate=True)
    more |= {"num_evals": POINTS + 1, "num_updates_per_batch": 4, "seed": seed}
    return np.array(train(steps, environment, stand_in, **settings, **more)[1:])


def run_rejax(environment: str, optimizer: str, seed: int, steps: int) -> np.ndarray:
    """The settings of rejax's own file for this environment."""
    from common import in_place_of_adam
    from jax_rejax_ppo import train

    settings = {"num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5}
    more: dict[str, Any] = {
        "learning_rate": 7.5e-4,
        "max_grad_norm": 0.5,
        "eval_freq": steps // POINTS,
    }
    stand_in = in_place_of_adam(None if optimizer == "adam" else optimizer, own_rate=True)
    more["agent_kwargs"] = {"activation": "tanh"}
    return np.array(train(steps, environment, seed, stand_in, **settings, **more)[1:])


if __name__ == "__main__":
    make_table(__doc__, run, STEPS)
