"""Running statistics against NumPy on everything seen."""

import jax.numpy as jnp
import numpy as np

from optim4rl.tasks.normalisation import (
    OBSERVATION_LIMIT,
    REWARD_LIMIT,
    init_moments,
    init_returns,
    normalise,
    scale_rewards,
    update_moments,
)


def test_moments_are_those_of_all_batches_together() -> None:
    """Whatever the sizes of the batches; far from zero, too."""
    batches = [
        np.random.default_rng(size).normal(100.0, 3.0, (size, 2)).astype(np.float32)
        for size in (1, 7, 20)
    ]
    moments = init_moments((2,))
    for batch in batches:
        moments = update_moments(moments, jnp.asarray(batch))
    every = np.concatenate(batches)
    assert moments.seen == 28
    np.testing.assert_allclose(moments.mean, every.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, every.var(axis=0), rtol=1e-3)


def test_rewards_are_divided_by_the_deviation_of_all_discounted_sums() -> None:
    """Sums start anew with each episode and go on over rollouts; a scale of rewards drops out."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 6, 3)).astype(np.float32)
    done = rng.random((2, 6, 3)) < 0.3
    for scale in (1.0, 1000.0):
        returns, total, sums = init_returns(3), np.zeros(3), []
        for reward, ends in zip(rewards, done, strict=True):
            returns, scaled = scale_rewards(
                returns, jnp.asarray(scale * reward), jnp.asarray(ends), 0.9
            )
            for r, d in zip(scale * reward, ends, strict=True):
                total = 0.9 * total + r
                sums.append(total)
                total = np.where(d, 0.0, total)
            np.testing.assert_allclose(scaled, scale * reward / np.std(sums), rtol=1e-4)
        np.testing.assert_allclose(returns.discounted, total, rtol=1e-4)


def test_no_reward_so_far_is_no_division_by_zero() -> None:
    """Nor is the first one of a sparse task out of all proportion."""
    reward = jnp.zeros((50, 64), jnp.float32)
    done = jnp.zeros((50, 64), bool)
    returns, scaled = scale_rewards(init_returns(64), reward, done, 0.99)
    np.testing.assert_array_equal(scaled, 0.0)
    _, scaled = scale_rewards(returns, reward.at[-1, 0].set(1e-6), done, 0.99)
    assert scaled[-1, 0] <= REWARD_LIMIT


def test_what_is_normalised_has_mean_0_and_variance_1() -> None:
    """Over any leading axes; what never changed is 0, what is far away is held."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 2)) * [3.0, 0.0] + [100.0, 7.0]).astype(np.float32)
    moments = update_moments(init_moments((2,)), jnp.asarray(x))
    found = np.asarray(normalise(moments, jnp.asarray(x).reshape(50, 10, 2)))
    np.testing.assert_allclose(found.reshape(-1, 2).mean(axis=0), 0.0, atol=1e-2)
    np.testing.assert_allclose(found.reshape(-1, 2).std(axis=0), [1.0, 0.0], atol=1e-3)
    far = normalise(moments, jnp.array([1e6, -1e6]))
    np.testing.assert_array_equal(far, [OBSERVATION_LIMIT, -OBSERVATION_LIMIT])


def test_nothing_seen_changes_nothing() -> None:
    """Within the limit."""
    x = jnp.array([[0.5, -2.0], [9.0, 1000.0]])
    found = normalise(init_moments((2,)), x)
    np.testing.assert_array_equal(found, [[0.5, -2.0], [9.0, OBSERVATION_LIMIT]])
