"""Flax nnx: the optimizer goes into `nnx.Optimizer`.

python examples/jax_flax_nnx.py
"""

import jax
import jax.numpy as jnp
from common import WEIGHTS, steps
from flax import nnx

import optim4rl


class Network(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.hidden(x)))


def train(total_steps: int) -> list[float]:
    """The losses of a regression."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    y = jnp.sum(x, axis=1, keepdims=True)
    model = Network(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, optim4rl.load(WEIGHTS), wrt=nnx.Param)

    @nnx.jit
    def update(model: Network, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(model: Network) -> jax.Array:
            return jnp.mean((model(x) - y) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return [float(update(model, optimizer)) for _ in range(total_steps)]


if __name__ == "__main__":
    losses = train(steps(200))
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.6f}")
