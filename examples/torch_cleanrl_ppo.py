"""PPO in PyTorch on Gymnasium's CartPole, in CleanRL's manner: one file from loop to loss.

The only change against PPO with Adam is the line that makes the optimizer.

    pip install 'optim4rl[examples]'
    python examples/torch_cleanrl_ppo.py
"""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from common import steps
from torch import nn
from torch.distributions import Categorical

from optim4rl.torch import Optim4RL

ENVS, LENGTH, EPOCHS, MINIBATCHES = 8, 128, 4, 4
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


def mlp(inputs: int, outputs: int, scale: float) -> nn.Sequential:
    """Two hidden layers of 64, orthogonal."""
    layers = [
        nn.Linear(inputs, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, outputs),
    ]
    for layer, gain in zip(layers[::2], (2**0.5, 2**0.5, scale), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


@torch.no_grad()
def rollout(envs, agent, observation):
    """Play LENGTH steps in each environment; a reset's own step is masked out."""
    names = ("observation", "action", "log_prob", "value", "reward", "ended", "valid")
    data = {name: [] for name in names}
    valid = torch.ones(ENVS)
    for _ in range(LENGTH):
        policy = Categorical(logits=agent["actor"](observation))
        action = policy.sample()
        value = agent["critic"](observation).squeeze(-1)
        following, reward, terminated, truncated, _ = envs.step(action.numpy())
        following = torch.as_tensor(following, dtype=torch.float32)
        # A time limit is no end: what would have followed counts.
        bootstrap = agent["critic"](following).squeeze(-1) * torch.as_tensor(truncated)
        row = (
            observation,
            action,
            policy.log_prob(action),
            value,
            torch.as_tensor(reward, dtype=torch.float32) + GAMMA * bootstrap,
            torch.as_tensor(terminated | truncated).float(),
            valid,
        )
        for name, x in zip(names, row, strict=True):
            data[name].append(x)
        observation = following
        valid = 1.0 - data["ended"][-1]
    return {name: torch.stack(x) for name, x in data.items()}, observation


@torch.no_grad()
def advantages(data, last_value):
    """Generalised advantage estimation."""
    found, advantage, following = [], torch.zeros(ENVS), last_value
    for t in reversed(range(LENGTH)):
        going = 1.0 - data["ended"][t]
        delta = data["reward"][t] + GAMMA * going * following - data["value"][t]
        advantage = delta + GAMMA * LAMBDA * going * advantage
        found.append(advantage)
        following = data["value"][t]
    return torch.stack(found[::-1])


def ppo_loss(agent, batch):
    """Clipped surrogate, squared value error and entropy."""
    policy = Categorical(logits=agent["actor"](batch["observation"]))
    ratio = (policy.log_prob(batch["action"]) - batch["log_prob"]).exp()
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
    value_loss = (agent["critic"](batch["observation"]).squeeze(-1) - batch["target"]).square()
    return -surrogate + 0.5 * VALUE * value_loss.mean() - ENTROPY * policy.entropy().mean()


def train(
    total_steps: int,
    seed: int = 0,
    environment: str = "CartPole-v1",
    make_optimizer: Callable[..., torch.optim.Optimizer] = Optim4RL,
    look: Callable[[float, nn.ModuleDict], None] = lambda done, agent: None,
) -> nn.ModuleDict:
    """An agent after that many environment steps; `look` sees it, and the share done, meanwhile."""
    torch.manual_seed(seed)
    envs = gym.make_vec(environment, num_envs=ENVS, vectorization_mode="sync")
    inputs, actions = envs.single_observation_space.shape[0], envs.single_action_space.n
    agent = nn.ModuleDict({"actor": mlp(inputs, actions, 0.01), "critic": mlp(inputs, 1, 1.0)})
    optimizer = make_optimizer(agent.named_parameters())
    observation = torch.as_tensor(envs.reset(seed=seed)[0])
    iterations = max(1, total_steps // (ENVS * LENGTH))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * (1 - iteration / iterations)
        data, observation = rollout(envs, agent, observation)
        with torch.no_grad():
            last_value = agent["critic"](observation).squeeze(-1)
        data["advantage"] = advantages(data, last_value)
        data["target"] = data["advantage"] + data["value"]
        played = data["valid"].flatten().bool()
        flat = {name: x.flatten(0, 1)[played] for name, x in data.items()}
        for _ in range(EPOCHS):
            for index in torch.randperm(len(flat["action"])).chunk(MINIBATCHES):
                optimizer.zero_grad()
                ppo_loss(agent, {name: x[index] for name, x in flat.items()}).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
                optimizer.step()
        look((iteration + 1) / iterations, agent)
    envs.close()
    return agent


@torch.no_grad()
def evaluate(agent: nn.ModuleDict, environment: str = "CartPole-v1", episodes: int = 20) -> float:
    """The mean return of the greedy policy."""
    env = gym.make(environment)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 + episode)
        total, over = 0.0, False
        while not over:
            logits = agent["actor"](torch.as_tensor(observation))
            observation, reward, terminated, truncated, _ = env.step(int(logits.argmax()))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


if __name__ == "__main__":
    print(f"return: {evaluate(train(steps(150_000))):.1f}")
