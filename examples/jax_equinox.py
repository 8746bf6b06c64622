"""Equinox: the optimizer updates the arrays of a module.

python examples/jax_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common import WEIGHTS, steps

import optim4rl


def train(total_steps: int) -> list[float]:
    """The losses of a regression."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    y = jnp.sum(x, axis=1, keepdims=True)
    model = eqx.nn.MLP(3, 1, width_size=16, depth=1, activation=jnp.tanh, key=jax.random.key(1))
    optimizer = optim4rl.load(WEIGHTS)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def update(
        model: eqx.Module, state: optax.OptState
    ) -> tuple[eqx.Module, optax.OptState, jax.Array]:
        def loss(model: eqx.Module) -> jax.Array:
            return jnp.mean((jax.vmap(model)(x) - y) ** 2)

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        params = eqx.filter(model, eqx.is_array)
        updates, state = optimizer.update(gradient, state, params)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(total_steps):
        model, state, value = update(model, state)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = train(steps(200))
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.6f}")
