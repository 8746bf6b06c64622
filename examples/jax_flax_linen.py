"""Flax linen: the optimizer is a TrainState's `tx`.

python examples/jax_flax_linen.py
"""

import jax
import jax.numpy as jnp
import optax
from common import WEIGHTS, steps
from flax import linen as nn
from flax.training.train_state import TrainState

import optim4rl


class Network(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))


def train(total_steps: int) -> list[float]:
    """The losses of a regression."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    y = jnp.sum(x, axis=1, keepdims=True)
    network = Network()
    state = TrainState.create(
        apply_fn=network.apply,
        params=network.init(jax.random.key(1), x)["params"],
        tx=optim4rl.load(WEIGHTS),
    )

    @jax.jit
    def update(state: TrainState) -> tuple[TrainState, jax.Array]:
        def loss(params: optax.Params) -> jax.Array:
            return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    losses = []
    for _ in range(total_steps):
        state, value = update(state)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = train(steps(200))
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.6f}")
