"""Distributions over actions: the formulae, round trips, and numbers at the edges."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from optim4rl.tasks.distributions import MIN_SCALE, Categorical, Distribution, TanhNormal

CATEGORICAL = Categorical(4)
NORMAL = TanhNormal(low=(-2.0, 0.0), high=(2.0, 10.0), shape=(2,))
both = pytest.mark.parametrize("distribution", [CATEGORICAL, NORMAL])


@partial(jax.jit, static_argnums=0)
def _everything(distribution: Any, uniforms: Any, outputs: Any) -> Any:
    raw = distribution.sample(uniforms, outputs)
    log_prob = distribution.log_prob(outputs, raw)
    return raw, distribution.squash(raw), log_prob, distribution.entropy(outputs, uniforms)


def everything(distribution: Any, uniforms: Any, outputs: Any) -> Any:
    """Raw actions, actions, log-probabilities, entropies."""
    arrays = (np.asarray(x, np.float32) for x in (uniforms, outputs))
    return jax.tree.map(np.asarray, _everything(distribution, *arrays))


def random_outputs(distribution: Distribution, *batch: int) -> np.ndarray:
    """Parameters of many distributions."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(*batch, distribution.outputs)).astype(np.float32)


def test_actions_follow_the_softmax() -> None:
    """The share of an action is its probability; evenly spaced numbers give it exactly."""
    logits = np.array([2.0, -1.0, 0.5, 0.0])
    uniforms = (np.arange(10_000) + 0.5) / 10_000
    raw, actions, log_prob, entropy = everything(
        CATEGORICAL, uniforms[None], np.broadcast_to(logits, (10_000, 4))
    )
    policy = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_array_equal(raw, actions)
    np.testing.assert_allclose(np.bincount(raw, minlength=4) / 10_000, policy, atol=1.5e-4)
    np.testing.assert_allclose(log_prob, np.log(policy)[raw], rtol=1e-5)
    np.testing.assert_allclose(entropy, scipy.stats.entropy(policy), rtol=1e-5)


def test_squashed_samples_are_quantiles() -> None:
    """The sample of a number is the tanh of the Gaussian's quantile at that number."""
    numbers = np.linspace(0.01, 0.99, 99)
    outputs = np.array([0.3, -1.0, -0.5, 2.0], np.float32)  # two means, two scales
    raw, actions, *_ = everything(
        NORMAL, np.stack([numbers, numbers[::-1]]), np.broadcast_to(outputs, (99, 4))
    )
    scale = np.log1p(np.exp(outputs[2:])) + MIN_SCALE
    quantiles = scipy.stats.norm.ppf(
        np.stack([numbers, numbers[::-1]], axis=-1), outputs[:2], scale
    )
    np.testing.assert_allclose(raw, quantiles, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actions[:, 0], 2.0 * np.tanh(quantiles[:, 0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        actions[:, 1], 5.0 + 5.0 * np.tanh(quantiles[:, 1]), rtol=1e-4, atol=1e-3
    )


def test_squashed_density_and_entropy() -> None:
    """A density over (-1, 1) that integrates to 1, of which the entropy is the mean -log."""
    outputs = np.array([0.3, -0.5], np.float32)
    normal = TanhNormal((-1.0,), (1.0,), (1,))
    scale = math.log1p(math.exp(-0.5)) + MIN_SCALE

    def log_density(action: Any) -> Any:
        return scipy.stats.norm.logpdf(np.arctanh(action), 0.3, scale) - np.log1p(-(action**2))

    grid = np.linspace(-0.999, 0.999, 50)
    found = jax.jit(normal.log_prob)(
        jnp.broadcast_to(jnp.asarray(outputs), (50, 2)),
        jnp.asarray(np.arctanh(grid), jnp.float32)[:, None],
    )
    np.testing.assert_allclose(found, log_density(grid), rtol=1e-4, atol=1e-4)
    total, _ = scipy.integrate.quad(lambda x: np.exp(log_density(x)), -1, 1)
    assert total == pytest.approx(1.0, abs=1e-6)
    expected, _ = scipy.integrate.quad(lambda x: -np.exp(log_density(x)) * log_density(x), -1, 1)
    numbers = (np.arange(2_000) + 0.5) / 2_000
    *_, estimates = everything(normal, numbers[None], np.broadcast_to(outputs, (2_000, 2)))
    assert float(np.mean(estimates)) == pytest.approx(expected, abs=2e-3)


def test_numbers_of_several_dimensions_are_independent() -> None:
    """Log-probabilities and entropies of an action's numbers add up."""
    outputs = random_outputs(NORMAL, 5)
    uniforms = np.random.default_rng(1).uniform(size=(2, 5))
    raw, _, log_prob, entropy = everything(NORMAL, uniforms, outputs)
    alone = TanhNormal((-1.0,), (1.0,), (1,))
    parts = [everything(alone, uniforms[i : i + 1], outputs[:, [i, 2 + i]]) for i in (0, 1)]
    np.testing.assert_allclose(raw, np.concatenate([p[0] for p in parts], 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob, parts[0][2] + parts[1][2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, parts[0][3] + parts[1][3], rtol=1e-5, atol=1e-5)


@both
def test_time_and_environments_are_any_axes(distribution: Any) -> None:
    """A rollout at once is its steps one by one."""
    outputs = random_outputs(distribution, 2, 3)
    uniforms = np.random.default_rng(1).uniform(size=(2, distribution.uniforms, 3))
    together = everything(distribution, uniforms, outputs)
    for step in range(2):
        alone = everything(distribution, uniforms[step], outputs[step])
        jax.tree.map(
            lambda a, b, step=step: np.testing.assert_allclose(a[step], b, rtol=1e-5, atol=1e-6),
            together,
            alone,
        )


@both
def test_the_mean_log_probability_gradient_is_zero(distribution: Any) -> None:
    """The law of the score function, over evenly spaced numbers."""
    count = 40 if distribution is NORMAL else 2_000
    axis = (np.arange(count) + 0.5) / count
    uniforms = np.stack([x.ravel() for x in np.meshgrid(*[axis] * distribution.uniforms)])
    outputs = jnp.asarray(random_outputs(distribution))

    @jax.jit
    def score(uniforms: jax.Array) -> Any:
        many = jnp.broadcast_to(outputs, (uniforms.shape[1], distribution.outputs))
        raw = distribution.sample(uniforms, many)

        def mean_log_prob(outputs: jax.Array) -> jax.Array:
            return jnp.mean(distribution.log_prob(jnp.broadcast_to(outputs, many.shape), raw))

        return jax.grad(mean_log_prob)(outputs)

    np.testing.assert_allclose(score(jnp.asarray(uniforms, jnp.float32)), 0.0, atol=0.06)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2**-24])
@pytest.mark.parametrize("output", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_extremes_are_finite_and_within_bounds(number: float, output: float) -> None:
    """The first and the last of all numbers, and a network whose outputs are large."""
    _, action, log_prob, entropy = everything(NORMAL, [[number]] * 2, [[output] * 4])
    assert np.all(action >= np.array(NORMAL.low))
    assert np.all(action <= np.array(NORMAL.high))
    assert np.isfinite([*log_prob, *entropy]).all()
    logits = [[output, 0.0, -output, 1.0]]
    raw, _, log_prob, entropy = everything(CATEGORICAL, [[number]], logits)
    assert 0 <= raw[0] < 4
    assert np.isfinite([*log_prob, *entropy]).all()


def test_diverged_logits_still_give_an_action() -> None:
    """One that exists; what diverged shows in the parameters."""
    actions = Categorical(3).sample(
        jnp.array([[0.3, 0.7]]), jnp.array([[jnp.nan] * 3, [jnp.inf] * 3])
    )
    assert set(np.asarray(actions).tolist()) <= {0, 1, 2}


def test_actions_have_the_environment_s_shape() -> None:
    """Also if it is not flat."""
    square = TanhNormal((-1.0,) * 4, (1.0,) * 4, (2, 2))
    assert square.squash(jnp.zeros((3, 5, 4), jnp.float32)).shape == (3, 5, 2, 2)


def test_the_greedy_action_is_the_most_probable_one() -> None:
    """Of discrete actions the first of the largest; of continuous ones the median, stretched."""
    logits = jnp.array([[0.0, 2.0, -1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(Categorical(3).mode(logits), [1, 0])
    normal = TanhNormal((-1.0, 0.0), (1.0, 4.0), (2,))
    outputs = jnp.array([[0.3, -0.7, 0.1, 0.2]])
    middle = normal.sample(jnp.full((2, 1), 0.5), outputs)
    np.testing.assert_allclose(normal.mode(outputs), middle, atol=1e-6)
    np.testing.assert_allclose(
        normal.squash(normal.mode(outputs))[0], [np.tanh(0.3), 2.0 + 2.0 * np.tanh(-0.7)], rtol=1e-5
    )
