"""Learning curves: shape, pairing, divergence, and that agents learn."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.evaluation.learning import BATCH, CHUNK, Classical, Learned, learning_curves
from optim4rl.evaluation.returns import final_return
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, init_meta_parameters
from optim4rl.tasks import TaskConfig, make_task


class Stats(NamedTuple):
    """One episode a rollout."""

    return_sum: Any
    episode_count: Any


@dataclass(frozen=True)
class Descent:
    """A quadratic from a random start; an episode's return is minus the loss.

    A quiet one reports 0 whatever the loss.
    """

    noise: float = 0.1
    quiet: bool = False
    env_steps_per_rollout: int = 7
    updates_per_rollout: int = 1

    def init_params(self, key: Any) -> Any:
        """Two to three from the optimum in both coordinates."""
        return {"x": 2.0 + jax.random.uniform(key, (2,))}

    def init_actor(self, key: Any) -> Any:
        """Counts rollouts."""
        return jnp.zeros((), jnp.int32)

    def rollout(self, params: Any, actor: Any, key: Any) -> Any:
        """The noise of its gradients."""
        loss = jnp.zeros(()) if self.quiet else 0.5 * jnp.sum(jnp.square(params["x"]))
        noise = self.noise * jax.random.normal(key, (2,))
        return noise, actor + 1, Stats(-loss, jnp.ones((), jnp.int32))

    def gradient(self, params: Any, batch: Any) -> Any:
        """Noisy."""
        return {"x": params["x"] + batch}


TASK = Descent()
SGD = Classical("sgd")
RULE = dataclasses.replace(LEARNED["anchored"], hidden_size=2, clip=None)


@pytest.fixture(scope="module")
def weights() -> MetaParameters:
    """Of the untrained rule, which is Adam."""
    return jax.jit(lambda: init_meta_parameters(RULE, jax.random.key(0)))()


def test_shapes_and_steps() -> None:
    """One `Curves` for each rate, one row for each seed, one column for each update."""
    curves = learning_curves(TASK, SGD, None, rates=(0.1, 0.2), seeds=(3, 4, 5), updates=12)
    assert len(curves) == 2
    for each in curves:
        assert each.returns.shape == (3, 12)
        np.testing.assert_array_equal(each.diverged_at, [-1, -1, -1])
        np.testing.assert_array_equal(each.env_steps, 7 * np.arange(1, 13))
    assert (curves[0].returns[:, 1:] != curves[1].returns[:, 1:]).all()


def test_a_curve_is_gradient_descent() -> None:
    """Without noise the loss shrinks by (1 - rate)^2 an update, each at its own rate."""
    rates = (0.1, 0.3)
    curves = learning_curves(Descent(noise=0.0), SGD, None, rates=rates, seeds=(0, 1), updates=10)
    for rate, each in zip(rates, curves, strict=True):
        expected = each.returns[:, :1] * (1 - rate) ** (2 * np.arange(10))
        np.testing.assert_allclose(each.returns, expected, rtol=1e-4)


def test_the_same_seed_is_the_same_untrained_agent_whatever_the_optimizer(
    weights: MetaParameters,
) -> None:
    """The first return is that of the seed alone; other seeds start elsewhere."""
    first = [
        each.returns[:, 0]
        for family, parameters in ((SGD, None), (Classical("adam"), None), (Learned(RULE), weights))
        for each in learning_curves(
            TASK, family, parameters, rates=(0.01, 0.1), seeds=(0, 1, 2), updates=2
        )
    ]
    assert len(first) == 6
    for row in first:
        np.testing.assert_array_equal(row, first[0])
    assert len(set(first[0])) == 3


def test_an_untrained_anchored_rule_is_adam(weights: MetaParameters) -> None:
    """The same curves, at each rate."""
    settings: Any = {"rates": (0.03, 0.3), "seeds": (0, 1), "updates": 20}
    adam = learning_curves(TASK, Classical("adam"), None, **settings)
    learned = learning_curves(TASK, Learned(RULE), weights, **settings)
    for a, b in zip(adam, learned, strict=True):
        np.testing.assert_allclose(a.returns, b.returns, rtol=1e-3, atol=1e-5)


def test_batches_and_chunks_do_not_show() -> None:
    """More runs than a batch and more updates than a chunk give what each run gives alone."""
    seeds = tuple(range(BATCH + 1))
    (whole,) = learning_curves(TASK, SGD, None, rates=(0.1,), seeds=seeds, updates=CHUNK + 5)
    for seed in (0, BATCH - 1, BATCH):
        (alone,) = learning_curves(TASK, SGD, None, rates=(0.1,), seeds=(seed,), updates=CHUNK + 5)
        np.testing.assert_allclose(alone.returns[0], whole.returns[seed], rtol=1e-6)
    (shorter,) = learning_curves(TASK, SGD, None, rates=(0.1,), seeds=seeds, updates=4)
    np.testing.assert_array_equal(shorter.returns, whole.returns[:, :4])


def test_same_arguments_same_curves() -> None:
    """Bit for bit."""
    a, b = (
        learning_curves(TASK, SGD, None, rates=(0.1,), seeds=(0, 1), updates=40)[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(a.returns, b.returns)


@pytest.mark.parametrize("quiet", [True, False])
def test_divergence_is_found_where_it_happens(quiet: bool) -> None:
    """At rate 1e10 the parameters are of size 1e(10 t + 10) after update t: infinite at t = 3.

    The loss, which overflows from 1e20 on, is infinite at t = 2; a quiet task does not show it.
    """
    task = Descent(noise=0.0, quiet=quiet)
    good, bad = learning_curves(task, SGD, None, rates=(0.1, 1e10), seeds=(0, 1), updates=8)
    at = 3 if quiet else 2
    np.testing.assert_array_equal(bad.diverged_at, [at, at])
    assert np.isfinite(bad.returns[:, :at]).all()
    assert np.isnan(bad.returns[:, at:]).all()
    assert not good.diverged.any()
    assert np.isfinite(good.returns).all()


def test_a_learned_rule_needs_its_weights() -> None:
    """The message names what is missing."""
    with pytest.raises(ValueError, match="parameters = None: a learned rule needs"):
        learning_curves(TASK, Learned(OptimizerSpec()), None, rates=(0.1,), seeds=(0,), updates=1)


def test_adam_learns_catch() -> None:
    """A golden run: from about -0.6, a random player's return, to almost every ball caught."""
    task = make_task(TaskConfig("catch", num_envs=16, width=32))
    (curves,) = learning_curves(
        task, Classical("adam"), None, rates=(1e-2,), seeds=(0, 1, 2), updates=150
    )
    assert curves.returns.shape == (3, 150)
    np.testing.assert_array_equal(curves.env_steps, 320 * np.arange(1, 151))
    assert curves.returns[:, :3].mean() < -0.2
    assert final_return(curves).mean() > 0.9
