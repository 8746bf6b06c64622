"""Rules that read what a parameter is for, on our own agents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optim4rl.meta.agents import NOISE, init_agents
from optim4rl.meta.meta_gradient import truncated_meta_gradient
from optim4rl.optimizers import LEARNED, infer_layout, rule, scale_by_learned_rule
from optim4rl.optimizers.kernels.select import choose
from optim4rl.tasks.networks import make_mlps, make_network

ALPHA = 0.01
LIFE = 4  # rollouts
WEIGHTS = {"dense": (2, 3), "policy": (3, 2), "value": (3, 1)}


class Quadratic:
    """Half the squared distance of a small agent's parameters to their own target."""

    def __init__(self, updates_per_rollout):
        self.updates_per_rollout = updates_per_rollout
        self.env_steps_per_rollout = 1

    def init_params(self, key):
        keys = jax.random.split(key, len(WEIGHTS))
        return {
            name: {"kernel": jax.random.normal(k, shape), "bias": jnp.zeros(shape[1])}
            for k, (name, shape) in zip(keys, WEIGHTS.items(), strict=True)
        }

    def init_actor(self, key):
        return jnp.zeros(())

    def rollout(self, params, actor, key):
        targets = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size * 1.0)), params)
        batch = jax.tree.map(lambda x, like: x.reshape(like.shape), targets, params)
        return batch, actor, actor

    def gradient(self, params, batch):
        return jax.tree.map(jnp.subtract, params, batch)

    def minibatch_gradient(self, params, batch, index):
        return self.gradient(params, batch)


@pytest.mark.parametrize("torso", ["dense", "conv"])
def test_the_inferred_kinds_of_our_agents_are_those_of_their_networks(torso):
    make = partial(make_network, torso, (3, 4, 5), 6, width=7)
    network = jax.eval_shape(lambda: make(key=jax.random.key(0)))
    layout = infer_layout(network)
    torso_kinds = ["weight", "bias"] * (2 if torso == "conv" else 1)
    heads = ["policy_head"] * 2 + ["value_head"] * 2
    assert [tensor.kind for tensor in layout] == torso_kinds + heads
    assert [tensor.depth for tensor in layout][-6:] == pytest.approx(
        [0.5 if torso == "conv" else 0.0] * 2 + [1.0] * 4
    )


def test_the_inferred_kinds_of_separate_networks_are_theirs():
    make = partial(make_mlps, 5, 3, (8, 8), (8,))
    networks = jax.eval_shape(lambda: make(key=jax.random.key(0)))
    layout = infer_layout(networks)
    policy, value = (["weight", "bias"] * n for n in (2, 1))
    heads = (["policy_head"] * 2, ["value_head"] * 2)
    assert [tensor.kind for tensor in layout] == [*policy, *heads[0], *value, *heads[1]]
    assert [tensor.actor for tensor in layout] == [True] * 6 + [False] * 4


@pytest.mark.parametrize(
    ("preset", "kernel", "updates"),
    [
        ("generalist", "auto", 2),
        ("star", "auto", 1),
        ("modulated", "auto", 1),
        ("optim4rl-rlc", "plain", 1),
        # Each of these takes as long to compile.
        pytest.param("generalist", "xla", 1, marks=pytest.mark.slow),
        pytest.param("celo2", "auto", 1, marks=pytest.mark.slow),
        pytest.param("open", "auto", 2, marks=pytest.mark.slow),
    ],
)
def test_the_meta_gradient_is_that_of_the_optax_form(preset, kernel, updates):
    """Through updates of the tree, each tensor by itself; what is read is a constant."""
    spec, task, K, num_agents = LEARNED[preset], Quadratic(updates), 2, 2
    weights, unravel = ravel_pytree(rule.init_meta_parameters(spec, jax.random.key(0)))
    weights = unravel(weights + 0.1 * jax.random.normal(jax.random.key(1), weights.shape))
    shapes = task.init_params(jax.random.key(0))
    _, unravel = ravel_pytree(shapes)
    target, _, _ = task.rollout(shapes, 0.0, None)
    keys = jax.random.split(jax.random.key(3), num_agents)

    def objective(weights, params, key):
        tx = scale_by_learned_rule(spec, weights, kernel=None)
        params = unravel(params)
        state = tx.init(params)
        for age in range(K):
            now = jax.lax.stop_gradient(params)
            noise_key = jax.random.fold_in(jax.random.fold_in(key, NOISE), age)
            done = jnp.float32(age // updates / (LIFE - 1))
            direction, state = tx.update(
                task.gradient(now, target),
                state,
                now,
                noise_key=noise_key,
                training_proportion=done,
            )
            params = jax.tree.map(lambda p, d: p - ALPHA * d, params, direction)
        error = ravel_pytree(jax.tree.map(jnp.subtract, params, target))[0]
        return 0.5 * jnp.sum(jnp.square(error))

    @jax.jit
    def both():
        agents = init_agents(spec, task, jax.random.split(jax.random.key(2), num_agents))
        found = truncated_meta_gradient(
            spec,
            weights,
            task,
            agents,
            keys,
            learning_rate=ALPHA,
            inner_updates=K,
            lives=jnp.full(num_agents, LIFE),
            validation="last",
            kernel=choose(spec, kernel),
        )
        expected = jax.vmap(jax.grad(objective), (None, 0, 0))(weights, agents.params, keys)
        return found.gradient, jax.tree.map(lambda x: jnp.mean(x, axis=0), expected)

    found, expected = (np.asarray(ravel_pytree(x)[0]) for x in both())
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
