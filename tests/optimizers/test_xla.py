"""Streaming over blocks and steps tensor by tensor, and their replays against autodiff."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rule import EVERY_SPEC, SPECS, every_spec_slowly, extras_of, random_weights

from optim4rl.optimizers import LEARNED, RuleState, init_state, step
from optim4rl.optimizers.inputs import tensor_rows
from optim4rl.optimizers.kernels import plain
from optim4rl.optimizers.kernels.interface import Met
from optim4rl.optimizers.kernels.normalise import raw
from optim4rl.optimizers.kernels.xla import replay_vjp, stream_step, unroll
from optim4rl.optimizers.layout import Tensor, pieces
from optim4rl.optimizers.tensors import Kind

N = 13
PLAIN_FILE = Path(__file__).parents[2] / "bench" / "plain.py"


def layout_of(n):
    """Coordinates of three kinds, as many as there are, and an empty tensor."""
    sizes: dict[Kind, int] = {
        "weight": n // 2,
        "bias": 0,
        "policy_head": n - n // 2 - n // 3,
        "value_head": n // 3,
    }
    return tuple(Tensor((size,), kind, 0.5) for kind, size in sizes.items())


def step_by_tensor(spec, weights, gradient, state):
    """The rule's own step, one tensor after the other."""
    results, extras = [], extras_of(spec, gradient.shape)
    if spec.clip_norm is not None:  # All of this layout is one group.
        gradient = gradient * jnp.minimum(1.0, spec.clip_norm / jnp.linalg.norm(gradient))
    for tensor, where in pieces(layout_of(gradient.size), gradient.size):
        carries, moments = jax.tree.map(lambda x, where=where: x[..., where], state[:2])
        part = RuleState(carries, moments, state.age)
        rows = tensor_rows(spec.inputs, tensor)
        told = jax.tree.map(lambda x, where=where: x[where], extras)
        direction, after = step(spec, weights, gradient[where], part, rows, told)
        results.append((direction, after[:2]))
    whole = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *results)
    direction, (carries, moments) = whole
    if spec.zero_mean:
        direction = direction - direction.mean()
    return direction, RuleState(carries, moments, state.age + 1)


def unroll_by_tensor(spec, weights, gradients, state):
    directions = []
    for gradient in gradients:
        direction, state = step_by_tensor(spec, weights, gradient, state)
        directions.append(direction)
    return jnp.stack(directions), state


def flat_step(spec, weights, gradient, state):
    """In blocks of 8 coordinates, or in plain JAX where whole tensors are read."""
    options = {"layout": layout_of(gradient.size)}
    if not spec.structure.tensorwise:
        return stream_step(spec, weights, gradient, state, block=8, **options)
    met = Met(gradient, extras_of(spec, gradient.shape))
    return plain.step(raw(spec), weights, met, state, **options)


def flat_replay(spec, weights, gradients, state, cotangents):
    """In blocks of 5 coordinates, or in plain JAX."""
    options = {"layout": layout_of(N)}
    if not spec.structure.tensorwise:
        return replay_vjp(spec, weights, gradients, state, cotangents, block=5, **options)
    extras = jax.tree.map(lambda x: jnp.tile(x, (len(gradients), 1)), extras_of(spec, (N,)))
    met = Met(gradients, extras)
    return plain.replay_vjp(raw(spec), weights, met, state, cotangents, **options)


def warm_state(spec, weights, n):
    gradients = jax.random.normal(jax.random.key(9), (2, n))
    start = init_state(spec, (n,))
    return jax.jit(lambda: unroll_by_tensor(spec, weights, gradients, start)[1])()


@pytest.mark.parametrize("n", [1, 9, 30])
@pytest.mark.parametrize("name", LEARNED)
def test_streaming_and_flattening_change_nothing(name, n):
    spec = LEARNED[name]
    weights = random_weights(spec)
    state = warm_state(spec, weights, n)
    gradient = jax.random.normal(jax.random.key(0), (n,))
    blocks, whole = jax.jit(
        lambda: (
            flat_step(spec, weights, gradient, state),
            step_by_tensor(spec, weights, gradient, state),
        )
    )()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, blocks)


@pytest.mark.parametrize("name", every_spec_slowly())
def test_the_replay_is_the_gradient_of_the_unrolled_steps(name):
    spec, K = {**EVERY_SPEC, **SPECS}[name], 3
    weights = random_weights(spec)
    state = warm_state(spec, weights, N)
    gradients, cotangents = jax.random.normal(jax.random.key(1), (2, K, N))

    @jax.jit
    def both(weights):
        def total(weights):
            directions, _ = unroll_by_tensor(spec, weights, gradients, state)
            return jnp.sum(directions * cotangents)

        found = flat_replay(spec, weights, gradients, state, cotangents)
        return found, jax.grad(total)(weights)

    found, expected = both(weights)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), found, expected
    )


def test_the_replay_of_a_factor_has_a_closed_form():
    """L2L with zero heads: d = exp(o) g, so the gradient of the head's bias is sum(c * g)."""
    import dataclasses

    from optim4rl.optimizers import init_meta_parameters

    spec = dataclasses.replace(LEARNED["l2lgd2"], zero_head=True, clip=None)
    weights = init_meta_parameters(spec, jax.random.key(0))
    gradients, cotangents = jax.random.normal(jax.random.key(1), (2, 4, 100))
    found = replay_vjp(spec, weights, gradients, init_state(spec, (100,)), cotangents, block=32)
    np.testing.assert_allclose(
        found["network0"]["head2_bias"], [jnp.sum(gradients * cotangents)], rtol=1e-5
    )


def test_replay_memory_does_not_grow_with_the_parameters():
    spec = LEARNED["optim4rl"]
    weights = random_weights(spec)

    def temporary_bytes(n):
        gradients = jax.ShapeDtypeStruct((4, n), jnp.float32)
        state = jax.eval_shape(lambda: init_state(spec, (n,)))
        compiled = (
            jax.jit(lambda w, g, s: replay_vjp(spec, w, g, s, g))
            .lower(weights, gradients, state)
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(400_000) < temporary_bytes(40_000) + 100_000


@pytest.mark.parametrize("name", ["optim4rl", "optim4rl-rlc"])
def test_the_baseline_of_the_benchmark_is_the_same_rule(name):
    module = importlib.util.spec_from_file_location("plain", PLAIN_FILE)
    baseline = importlib.util.module_from_spec(module)
    module.loader.exec_module(baseline)
    spec, n = LEARNED[name], 11
    weights = random_weights(spec)
    state = warm_state(spec, weights, n)
    gradients, cotangents = jax.random.normal(jax.random.key(1), (2, 4, n))
    hidden = tuple(h.T for (h,) in state.carries)
    found = jax.jit(
        lambda: (
            baseline.unroll(spec, weights, gradients, hidden)[0],
            baseline.replay_vjp(spec, weights, gradients, hidden, cotangents),
        )
    )()
    expected = jax.jit(
        lambda: (
            unroll(spec, weights, gradients, state)[0],
            replay_vjp(spec, weights, gradients, state, cotangents),
        )
    )()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max())
        ),
        found,
        expected,
    )
