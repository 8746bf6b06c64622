"""Default networks and learners for each environment."""

import dataclasses

from optim4rl.tasks.config import PPOConfig, TaskConfig

# Separate networks with two layers, the usual choice for observations of a few numbers.
_SMALL = TaskConfig(
    torso="mlp",
    policy_layers=(64, 64),
    value_layers=(64, 64),
    activation="tanh",
    learner=PPOConfig(),
)

# With Adam at 5e-3, Breakout passes a return of 18 in two million steps.
_MINATAR = TaskConfig(width=128, maps="rows", learner=PPOConfig(rollout=128, minibatches=8))

# For small environments with continuous actions, whose rewards may have any scale.
_CONTINUOUS = dataclasses.replace(
    _SMALL,
    learner=PPOConfig(gamma=0.95),
    normalise_rewards=True,
    normalise_observations=True,
)
_CONTINUOUS_NAMES = ("Pendulum-v1", "MountainCarContinuous-v0", "Reacher-misc")
# A swimmer that drifts far away makes the variance of positions very large. Normalised positions
# near the goal would then all look the same.
_SWIMMER = dataclasses.replace(_CONTINUOUS, normalise_observations=False)

# Brax's PPO as the paper runs it on Ant (Lan et al. 2024, appendix).
_PHYSICS = TaskConfig(
    num_envs=2048,
    torso="mlp",
    learner=PPOConfig(rollout=5, epochs=4, minibatches=32, gamma=0.97, clip=0.3, reward_scale=10.0),
    normalise_observations=True,
)

# Enough for the double pendulum; with the paper's settings it takes many times as long.
_DOUBLE_PENDULUM = dataclasses.replace(
    _CONTINUOUS, num_envs=256, learner=PPOConfig(minibatches=8, entropy_weight=0.0)
)

# MuJoCo Playground's settings for its control suite (Zakka et al. 2025, arXiv 2502.08844).
_CONTROL_SUITE = dataclasses.replace(
    _PHYSICS,
    learner=PPOConfig(
        rollout=30, epochs=16, minibatches=32, gamma=0.995, clip=0.3, reward_scale=10.0
    ),
)


def default_config(environment: str) -> TaskConfig:
    """Return a task config with settings that are known to work.

    - Catch and the grid worlds: the paper's A2C. The dense layer has 256 units in Catch and 32 in
      the worlds; big worlds have a convolution before it.
    - MinAtar: PPO, on a dense layer of 128 units. With `torso="conv"` a convolution comes before
      it, which takes ten times as long on a CPU.
    - Brax: PPO with the paper's settings, rewards scaled by 10 (Humanoid: 0.1, ten steps, entropy
      0.001). InvertedDoublePendulum has smaller settings, which solve it in 1.5 million steps.
    - Playground's control suite: PPO with Playground's own settings.
    - Other gymnax environments: PPO, two layers of 64 units each for policy and value. Pendulum,
      MountainCarContinuous and Reacher have normalised observations and rewards, Swimmer has
      normalised rewards.

    For A2C instead of PPO, `dataclasses.replace(config, learner=A2CConfig())`.
    """
    family, _, name = environment.partition(":")
    if family == "playground":
        config = _CONTROL_SUITE
    elif family == "brax":
        config = _PHYSICS
        if name.startswith("humanoid"):
            learner = dataclasses.replace(
                config.learner, rollout=10, reward_scale=0.1, entropy_weight=1e-3
            )
            config = dataclasses.replace(config, learner=learner)
        elif name.startswith("inverted_double_pendulum"):
            config = _DOUBLE_PENDULUM
    elif name.endswith("-MinAtar"):
        config = _MINATAR
    elif name == "Swimmer-misc":
        config = _SWIMMER
    elif family == "gymnax":
        config = _CONTINUOUS if name in _CONTINUOUS_NAMES else _SMALL
    elif environment == "catch":
        config = TaskConfig()
    else:
        config = TaskConfig(torso="conv" if environment.startswith("big_") else "dense", width=32)
    return dataclasses.replace(config, environment=environment)
