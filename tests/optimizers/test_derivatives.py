"""Derivatives through updates: whatever kernel runs the rule, those of plain JAX."""

import jax
import jax.numpy as jnp
import optax
import pytest
from test_transform import assert_same, learned, optimizer

from optim4rl.optimizers import learned_optimizer, load
from optim4rl.optimizers.kernels.select import KERNELS

DATA = jax.random.normal(jax.random.key(0), (8, 3))
START = {"policy": jnp.array([0.3, -0.2, 0.0]), "w": jnp.array([[0.1, 0.5, -0.4]])}
RULES = ("optim4rl-catch", "ppo-generalist", "scaled-generalist", "linear")
CASES = [
    (name, kernel.name)
    for name in RULES
    for kernel in KERNELS
    if kernel.refusal(learned(name).spec) is None
]


def loss(params):
    return jnp.mean((DATA @ (params["policy"] + params["w"][0]) - 1.0) ** 2)


def after_updates(params, tx):
    """The loss after two updates, all of which can be differentiated."""
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return loss(params)


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_gradients_through_updates_are_those_of_plain_jax(name, kernel):
    """By the start (MAML), by the rate (hypergradients) and by the weights of the rule."""
    rule = learned(name)

    def outer(start, rate, weights, kernel):
        return after_updates(start, learned_optimizer(rule.spec, weights, rate, kernel=kernel))

    @jax.jit
    def gradients():
        given = (START, 0.1, rule.meta_parameters)
        return [jax.grad(outer, (0, 1, 2))(*given, k) for k in (kernel, None)]

    found, expected = gradients()
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(expected[:2]))
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert_same(found, expected, rtol=1e-4, atol=1e-5 * size)


def test_a_derivative_of_a_derivative_goes_through_a_kernel():
    """The Hessian of the loss after an update, times a vector."""

    def slope(kernel):
        tx = optimizer("ppo-generalist", kernel=kernel)
        inner = lambda p: loss(optax.apply_updates(p, tx.update(jax.grad(loss)(p), tx.init(p))[0]))  # noqa: E731
        return jax.grad(lambda p: jnp.sum(jax.grad(inner)(p)["policy"]))(START)

    assert_same(*jax.jit(lambda: (slope("xla"), slope(None)))(), rtol=1e-3, atol=1e-4)


def test_load_takes_a_kernel():
    plain, auto = (load("optim4rl-catch", kernel=kernel) for kernel in (None, "auto"))
    program = str(jax.make_jaxpr(lambda g: plain.update(g, plain.init(g)))(START))
    assert "custom_vjp_call" in str(jax.make_jaxpr(lambda g: auto.update(g, auto.init(g)))(START))
    assert "ffi_call" not in program
    with pytest.raises(ValueError, match=r"^kernel = 'pallas': "):
        load("ppo-generalist", kernel="pallas")
