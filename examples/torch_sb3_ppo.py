"""Stable-Baselines3's PPO on CartPole, unchanged: `sb3_settings` puts the optimizer in.

pip install 'optim4rl[examples]'
python examples/torch_sb3_ppo.py
"""

import torch
from common import steps
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from optim4rl.torch import sb3_settings


def train(total_steps: int, seed: int = 0) -> PPO:
    """A model with the settings that RL Zoo tunes for this task, but for the learning rate."""
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        clip_range=lambda left: 0.2 * left,
        **sb3_settings(schedule=lambda left: left),
        device="cpu",
        seed=seed,
    )
    return model.learn(total_steps)


def evaluate(model: PPO, episodes: int = 20) -> float:
    """The mean return of the greedy policy."""
    return evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), n_eval_episodes=episodes)[0]


if __name__ == "__main__":
    # Networks as small as these gain nothing by a second thread.
    torch.set_num_threads(1)
    print(f"return: {evaluate(train(steps(100_000))):.1f}")
