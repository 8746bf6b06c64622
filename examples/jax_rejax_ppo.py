"""rejax's PPO on CartPole, unchanged. It makes its optimizer by `optax.adam`; we stand in for it.

rejax 0.1.3 reads five results of an environment's step, and gymnax 1.0 gives six: it needs an older
gymnax than the rest of this project. These go together, with JAX 0.10.2:

    pip install optim4rl rejax==0.1.3 'gymnax<1'
    python examples/jax_rejax_ppo.py
"""

import jax
from common import in_place_of_adam, steps
from rejax import PPO


def train(total_steps: int) -> float:
    """The mean return over the last evaluation's episodes."""
    with in_place_of_adam():
        algorithm = PPO.create(
            env="CartPole-v1",
            total_timesteps=total_steps,
            eval_freq=total_steps,
            num_envs=8,
            num_steps=128,
            num_epochs=4,
            num_minibatches=4,
            learning_rate=1e-3,
            max_grad_norm=10.0,
        )
        _, (_, returns) = jax.jit(algorithm.train)(jax.random.key(0))
    return float(returns[-1].mean())


if __name__ == "__main__":
    print(f"return: {train(steps(150_000)):.1f}")
