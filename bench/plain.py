"""The baseline of `make bench`: the rule as one writes it first, and plain autodiff through it.

Features last (`[n, features]`), weights multiplied from the right, all coordinates at once, the K
steps unrolled, `jax.vjp` for the meta-gradient. It shares no arithmetic with the package and takes
the package's meta-parameters. Versions A and B of Optim4RL (presets `optim4rl`, `optim4rl-rlc`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optim4rl.optimizers.networks import Weights
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec

# One hidden state [n, hidden] per network.
Hidden = tuple[Array, Array]


def init_hidden(spec: OptimizerSpec, n: int) -> Hidden:
    """The hidden states of coordinates that have seen no gradient."""
    zeros = jnp.zeros((n, spec.hidden_size), jnp.float32)
    return zeros, zeros


def step(
    spec: OptimizerSpec, weights: MetaParameters, g: Float[Array, " n"], hidden: Hidden
) -> tuple[Float[Array, " n"], Hidden]:
    """One step of Version A (signed) or B: the direction and the new hidden states."""
    assert spec.clip is not None
    g = jnp.clip(g, -spec.clip, spec.clip)
    signed, epsilon = spec.structure.signed, spec.structure.epsilon  # type: ignore[attr-defined]
    if signed:
        log = jnp.log(jnp.abs(g) + epsilon)
        first, second = jnp.stack([jnp.sign(g), log], axis=-1), 2.0 * log[:, None]
    else:
        first, second = g[:, None], jnp.square(g)[:, None]
    outputs1, h1 = _network(weights["network0"], first, hidden[0])
    outputs2, h2 = _network(weights["network1"], second, hidden[1])
    m = jnp.sign(g) * jnp.exp(jnp.clip(outputs1[:, -1], -40.0, 40.0))
    if signed:
        sign = jnp.tanh(outputs1[:, 0] + 1.0)
        m = m * (sign + jax.lax.stop_gradient(jnp.where(sign >= 0, 1.0, -1.0) - sign))
    v = jnp.exp(jnp.clip(outputs2[:, 0], -40.0, 40.0)) + epsilon
    return m / jnp.sqrt(v), (h1, h2)


def unroll(
    spec: OptimizerSpec, weights: MetaParameters, gradients: Float[Array, "K n"], hidden: Hidden
) -> tuple[Float[Array, "K n"], Hidden]:
    """The directions of K steps over recorded gradients, and the hidden states after them."""
    directions = []
    for g in gradients:
        direction, hidden = step(spec, weights, g, hidden)
        directions.append(direction)
    return jnp.stack(directions), hidden


def replay_vjp(
    spec: OptimizerSpec,
    weights: MetaParameters,
    gradients: Float[Array, "K n"],
    hidden: Hidden,
    cotangents: Float[Array, "K n"],
) -> MetaParameters:
    """The meta-gradient of `sum(cotangents * directions)` by `jax.vjp`, all coordinates at once."""
    _, pullback = jax.vjp(lambda w: unroll(spec, w, gradients, hidden)[0], weights)
    return pullback(cotangents)[0]


def _network(w: Weights, x: Array, h: Array) -> tuple[Array, Array]:
    """A GRU cell and its MLP head, on `[n, features]`."""
    gates = x @ w["input"].T + w["bias"][None]
    recurrent = h @ w["hidden"].T
    reset_x, update_x, new_x = jnp.split(gates, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(recurrent, 3, axis=-1)
    reset = jax.nn.sigmoid(reset_x + reset_h)
    update = jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + reset * (new_h + w["bias_new"][None]))
    h = y = (1.0 - update) * new + update * h
    layers = sum(name.startswith("head") and not name.endswith("bias") for name in w)
    for layer in range(layers):
        y = y @ w[f"head{layer}"].T + w[f"head{layer}_bias"][None]
        y = jax.nn.relu(y) if layer + 1 < layers else y
    return y, h
