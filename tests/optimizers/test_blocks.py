"""A network in blocks of coordinates: the same outputs, carries and derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.optimizers import LEARNED, init_meta_parameters
from optim4rl.optimizers.networks import (
    BLOCK,
    apply_in_blocks,
    apply_network,
    init_carry,
    init_network,
)
from optim4rl.optimizers.transform import scale_by_learned_rule


@pytest.mark.parametrize("cell", ["gru", "lstm", "none"])
@pytest.mark.parametrize("shape", [(2 * BLOCK + 301,), (7, 3 * BLOCK // 7 + 1)])
def test_blocks_change_nothing(cell, shape):
    keys = jax.random.split(jax.random.key(0), 4)
    weights = init_network(keys[0], cell, 5, 4, (6,), 2, zero_head=False, head_norm=True)
    inputs = jax.random.normal(keys[1], (5, *shape))
    blank = init_carry(cell, 4, shape)
    carry = jax.tree.map(lambda x: jax.random.normal(keys[2], x.shape), blank)

    def run(apply, weights, inputs, carry):
        found = apply(weights, cell, inputs, carry)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(found)), found

    both = [
        jax.jit(jax.value_and_grad(lambda *x, apply=apply: run(apply, *x), (0, 1, 2), has_aux=True))
        for apply in (apply_network, apply_in_blocks)
    ]
    expected, found = (f(weights, inputs, carry) for f in both)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected
    )


def test_a_tensor_that_fits_is_done_at_once():
    """And an empty one."""
    weights = init_network(jax.random.key(0), "none", 2, 4, (), 1, zero_head=False)
    for n in (0, 1, BLOCK):
        text = str(
            jax.make_jaxpr(lambda x: apply_in_blocks(weights, "none", x, ()))(jnp.ones((2, n)))
        )
        assert "scan" not in text
    assert "scan" in str(
        jax.make_jaxpr(lambda x: apply_in_blocks(weights, "none", x, ()))(jnp.ones((2, BLOCK + 1)))
    )


@pytest.mark.parametrize("preset", ["open", "star"])
def test_agents_one_after_the_other_step_as_side_by_side(preset):
    """The same steps, states and meta-gradients, for tensors of several blocks and of one."""
    # Without the mean subtracted: an output's bias would have a derivative of 0, up to rounding.
    spec = dataclasses.replace(LEARNED[preset], zero_mean=False)
    weights = init_meta_parameters(spec, jax.random.key(0))
    weights = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), weights
    )
    shapes = {"torso": {"kernel": (3, 30, 40), "bias": (3, 40)}}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)

    def run(kernel, weights):
        rule = scale_by_learned_rule(spec, weights, kernel=kernel)

        def live(gradient, params):
            first, state = rule.update(gradient, rule.init(params), params)
            second, state = rule.update(jax.tree.map(jnp.sin, gradient), state, params)
            return (first, second), state

        found = jax.vmap(live)(gradients, params)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(found[0])), found

    by_kernel = [
        jax.jit(jax.value_and_grad(lambda w, kernel=kernel: run(kernel, w), has_aux=True))(weights)
        for kernel in (None, "plain")
    ]
    ((_, expected), slopes), ((_, found), blocked) = by_kernel
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=5e-5), found, expected
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.max(abs(y))) + 1e-6),
        blocked,
        slopes,
    )
