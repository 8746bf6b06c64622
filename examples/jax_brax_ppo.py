"""Brax's own PPO, unchanged. It makes its optimizer by `optax.adam`, which we stand in for.

brax 0.14.2 asks JAX for `device_put_replicated`, which JAX 0.10 no longer has: hence the second
stand-in below.

    pip install 'optim4rl[examples]'
    python examples/jax_brax_ppo.py
"""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from brax import envs
from brax.training.agents.ppo import train as ppo
from common import in_place_of_adam, steps


def device_put_replicated(tree: Any, devices: list[jax.Device]) -> Any:
    """A copy of a tree for each device, along a new first axis."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def train(
    total_steps: int,
    environment: str = "inverted_pendulum",
    stand_in: AbstractContextManager[Any] | None = None,
    **options: Any,
) -> list[float]:
    """The mean return of the policy at each evaluation, first before training."""
    settings = {
        "episode_length": 1000,
        "num_envs": 256,
        "unroll_length": 10,
        "batch_size": 64,
        "num_minibatches": 8,
        "num_updates_per_batch": 4,
        "num_eval_envs": 16,
        "num_evals": 2,
        "learning_rate": 1e-3,
        "entropy_cost": 1e-3,
        "discounting": 0.97,
        "reward_scaling": 0.1,
        "normalize_observations": True,
    }
    found: list[float] = []
    older_jax = mock.patch.object(jax, "device_put_replicated", device_put_replicated, create=True)
    with stand_in or in_place_of_adam(), older_jax:
        ppo.train(
            envs.get_environment(environment),
            num_timesteps=total_steps,
            progress_fn=lambda _, metrics: found.append(float(metrics["eval/episode_reward"])),
            **{**settings, **options},
        )
    return found


if __name__ == "__main__":
    print(f"return: {train(steps(300_000))[-1]:.1f}")
