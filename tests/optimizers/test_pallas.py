"""The GPU kernels in Pallas' interpreter against the XLA kernel, and their lowering to Triton."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rule import EVERY_SPEC, random_weights

from optim4rl.optimizers import LEARNED, init_state
from optim4rl.optimizers.kernels import pallas, xla
from optim4rl.optimizers.layout import Tensor

SPECS = {
    **{name: spec for name, spec in LEARNED.items() if not spec.structure.tensorwise},
    "lstm": EVERY_SPEC["adaptive/raw_and_square/lstm"],
}


def slowly(*quick):
    """Every spec; the interpreter and the compilers take their time, so some are marked slow."""
    marks = {name: () if name in quick else pytest.mark.slow for name in SPECS}
    return [pytest.param(name, marks=marks[name]) for name in SPECS]


def problem(spec, shape, steps):
    """Weights, gradients `[*agents, K, n]`, a state that has seen gradients, and cotangents."""
    weights = random_weights(spec)
    *agents, n = shape
    warm, gradients, cotangents = jax.random.normal(jax.random.key(1), (3, *agents, steps, n))
    start = init_state(spec, (n,))

    def warm_up(gradients):
        def body(state, gradient):
            return xla.stream_step(spec, weights, gradient, state, layout=layout_of(n))[1], None

        return jax.lax.scan(body, start, gradients)[0]

    for _ in agents:
        warm_up = jax.vmap(warm_up)
    return weights, gradients, jax.jit(warm_up)(warm), cotangents


def layout_of(n):
    return (Tensor((n - n // 3,), "weight", 0.0), Tensor((n // 3,), "value_head", 1.0))


def assert_close(found, expected):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected) if x.size)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), found, expected
    )


@pytest.mark.parametrize(
    ("name", "n"),
    [("optim4rl-rlc", 1), ("anchored", 300)],
)
def test_a_step_is_the_rules_step(name, n):
    spec = SPECS[name]
    weights, gradients, state, _ = problem(spec, (n,), 1)
    options = {"layout": layout_of(n)}
    step = jax.jit(partial(pallas.step, spec, interpret=True, **options))
    expected = jax.jit(partial(xla.stream_step, spec, **options))(weights, gradients[0], state)
    assert_close(step(weights, gradients[0], state), expected)


@pytest.mark.parametrize("name", slowly("optim4rl-rlc", "anchored"))
def test_the_replay_is_the_oracles(name, monkeypatch):
    spec, n, steps = SPECS[name], 150, 4
    # Two programs for three blocks: one takes two of them, the other one and an empty one.
    monkeypatch.setattr(pallas, "MAX_PROGRAMS", 2)
    arguments = problem(spec, (n,), steps)
    options = {"layout": layout_of(n)}
    found = jax.jit(partial(pallas.replay_vjp, spec, interpret=True, **options))(*arguments)
    assert_close(found, jax.jit(partial(xla.replay_vjp, spec, **options))(*arguments))


def test_agents_of_different_ages_are_one_batch():
    spec, layout = LEARNED["generalist"], layout_of(70)
    weights, gradients, state, cotangents = problem(spec, (3, 70), 2)
    state = state._replace(age=jnp.array([2, 5, 90], jnp.int32))

    def both(kernel_step, kernel_replay):
        step = jax.vmap(partial(kernel_step, spec, layout=layout), in_axes=(None, 0, 0))
        replay = jax.vmap(partial(kernel_replay, spec, layout=layout), in_axes=(None, 0, 0, 0))
        return jax.jit(
            lambda: (
                step(weights, gradients[:, 0], state),
                replay(weights, gradients, state, cotangents),
            )
        )()

    interpreted = (partial(f, interpret=True) for f in (pallas.step, pallas.replay_vjp))
    found, expected = both(*interpreted), both(xla.KERNEL.step, xla.KERNEL.replay_vjp)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", slowly("optim4rl"))
def test_every_primitive_has_a_lowering_to_triton(name):
    spec = SPECS[name]
    arguments = problem(spec, (2, 100), 4)
    axes = (None, 0, 0, 0)
    layout = layout_of(100)
    step = jax.jit(jax.vmap(partial(pallas.step, spec, layout=layout), in_axes=axes[:3]))
    replay = jax.jit(jax.vmap(partial(pallas.replay_vjp, spec, layout=layout), in_axes=axes))
    weights, gradients, state, _ = arguments
    for traced in (step.trace(weights, gradients[:, 0], state), replay.trace(*arguments)):
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert "triton" in text


def test_what_it_does_not_run_is_refused_with_the_reason():
    assert pallas.KERNEL.refusal(LEARNED["celo2"]) == "cell = 'none': it runs only gru, lstm"
    with_cell = dataclasses.replace(LEARNED["celo2"], cell="gru")
    assert pallas.KERNEL.refusal(with_cell).startswith("structure = 'celo2'")


def test_without_a_gpu_it_says_so():
    assert "cpu" in str(pallas.KERNEL.refusal(LEARNED["optim4rl"]))
