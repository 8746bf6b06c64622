"""Known responses: sign-SGD's and Adam's closed forms, averages and gates of known decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim4rl.evaluation.response import (
    CLASSICAL,
    LIFE,
    SIGNAL_TO_NOISE,
    SIZES,
    TYPICAL,
    VANISHES_AT,
    measure,
    respond,
    time_scales,
)
from optim4rl.optimizers import LearnedOptimizer, OptimizerSpec, untrained
from optim4rl.optimizers.structures import L2L


@pytest.fixture(scope="module")
def adam():
    return measure(CLASSICAL["Adam"])


def test_sign_sgd_knows_no_size_and_no_history():
    response = measure(CLASSICAL["sign-SGD"])
    np.testing.assert_array_equal(response.constant, 1.0)
    np.testing.assert_array_equal(response.alternating, 1.0)
    np.testing.assert_array_equal(response.vanishing, np.arange(LIFE) < VANISHES_AT)
    # Of a normal variable with this mean: P(positive) - P(negative), and twice its density at 0.
    drift = math.erf(SIGNAL_TO_NOISE / math.sqrt(2))
    np.testing.assert_allclose(response.effective_step, drift, atol=0.03)
    newest = 2 * math.exp(-(SIGNAL_TO_NOISE**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(response.kernel[:, 0], newest, atol=0.02)
    np.testing.assert_allclose(response.kernel[1:, 1:], 0.0, atol=0.03)
    np.testing.assert_allclose(response.implied_momentum, 0.0, atol=0.12)


def test_adam_under_constant_and_alternating_gradients(adam):
    expected = np.broadcast_to(SIZES / (SIZES + 1e-8), adam.constant.shape)
    np.testing.assert_allclose(adam.constant, expected, rtol=1e-3)
    np.testing.assert_allclose(adam.alternating[-2:], 0.1 / 1.9, rtol=1e-2)


def test_adams_momentum_is_that_of_its_first_moment(adam):
    np.testing.assert_allclose(adam.implied_momentum[1:], 0.9, atol=0.01)
    after = adam.vanishing[VANISHES_AT : VANISHES_AT + 20]
    np.testing.assert_allclose(after[1:] / after[:-1], 0.9, rtol=0.01)


def test_an_averages_kernel_is_its_decay():
    response = measure(optax.ema(0.8, debias=False))
    kernel = TYPICAL * 0.2 * 0.8 ** np.arange(response.kernel.shape[1])
    for window in response.kernel[1:]:
        np.testing.assert_allclose(window, kernel, atol=1e-3 * TYPICAL)
    np.testing.assert_allclose(response.implied_momentum[1:], 0.8, atol=1e-3)
    after = response.vanishing[VANISHES_AT : VANISHES_AT + 20]
    np.testing.assert_allclose(after, TYPICAL * 0.8 ** np.arange(1, 21), rtol=1e-4)


def test_what_a_rule_does_whatever_the_sign_is_its_drift(adam):
    def both(updates, state, params=None):
        return 0.5 * jnp.sign(updates) + 0.25, state

    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), both)
    response = measure(tx)
    np.testing.assert_allclose(response.drift, 0.25, rtol=1e-6)
    expected = 0.5 * math.erf(SIGNAL_TO_NOISE / math.sqrt(2))
    np.testing.assert_allclose(response.effective_step, expected, atol=0.015)
    np.testing.assert_allclose(adam.drift, 0.0, atol=1e-6)


def test_a_rule_without_memory_has_no_momentum_to_speak_of():
    """A step that is the same for every gradient tells nothing of any of them."""
    silent = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (jnp.ones_like(updates), state),
    )
    assert np.isnan(measure(silent).implied_momentum).all()


def test_the_anchored_rule_starts_as_adam(adam):
    response = respond(untrained("anchored", 1e-3, jax.random.key(0)))
    for field in ("constant", "alternating", "vanishing", "noisy", "kernel"):
        np.testing.assert_allclose(
            getattr(response, field), getattr(adam, field), rtol=1e-3, atol=1e-4, err_msg=field
        )


def test_time_constants_of_a_gate_and_of_moments():
    spec = OptimizerSpec(structure=L2L(), hidden_size=1, head_sizes=())
    zeros = {
        "input": jnp.zeros((3, 2)),
        "hidden": jnp.zeros((3, 1)),
        "bias": jnp.asarray([0.0, 2.0, 0.0]),  # of the reset, the update and the new gate
        "bias_new": jnp.zeros(1),
        "head0": jnp.zeros((1, 1)),
        "head0_bias": jnp.zeros(1),
    }
    gate = 1 / (1 + math.exp(-2.0))
    scales = time_scales(LearnedOptimizer(spec, {"network0": zeros}, 1e-3), (1e-3,))
    np.testing.assert_allclose(scales.hidden, [[-1 / math.log(gate)]], rtol=1e-4)
    assert scales.moments.shape == (1, 0)

    scales = time_scales(untrained("anchored", 1e-3, jax.random.key(0)), (1e-3,))
    expected = [[-1 / math.log(beta) for beta in (0.9, 0.98, 0.999)]]
    np.testing.assert_allclose(scales.moments, expected, rtol=1e-2)
    assert np.isfinite(scales.hidden).all()
