"""rejax's PPO on CartPole, unchanged. It makes its optimizer by `optax.adam`; we stand in for it.

rejax 0.1.3 reads five results of an environment's step, and gymnax 1.0 gives six: it needs an older
gymnax than the rest of this project. These go together, with JAX 0.10.2:

    pip install optim4rl rejax==0.1.3 'gymnax<1'
    python examples/jax_rejax_ppo.py
"""

from contextlib import AbstractContextManager
from typing import Any

import jax
from common import in_place_of_adam, steps
from rejax import PPO


def train(
    total_steps: int,
    environment: str = "CartPole-v1",
    seed: int = 0,
    stand_in: AbstractContextManager[Any] | None = None,
    **options: Any,
) -> list[float]:
    """The mean return of each evaluation's episodes, first before training."""
    settings = {
        "eval_freq": total_steps,
        "num_envs": 8,
        "num_steps": 128,
        "num_epochs": 4,
        "num_minibatches": 4,
        "learning_rate": 1e-3,
        "max_grad_norm": 10.0,
    }
    with stand_in or in_place_of_adam():
        algorithm = PPO.create(
            env=environment, total_timesteps=total_steps, **{**settings, **options}
        )
        _, (_, returns) = jax.jit(algorithm.train)(jax.random.key(seed))
    return [float(x.mean()) for x in returns]


if __name__ == "__main__":
    print(f"return: {train(steps(150_000))[-1]:.1f}")
