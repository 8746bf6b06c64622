"""Learning curves: shape, pairing, divergence, and that agents learn."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim4rl.evaluation.learning import (
    BATCH,
    CHUNK,
    Classical,
    Learned,
    learning_curves,
    train_runs,
)
from optim4rl.evaluation.returns import final_return
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, init_meta_parameters
from optim4rl.tasks import TaskConfig, make_task
from probes import Descent

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
        np.testing.assert_array_equal(alone.returns[0], whole.returns[seed])
    (shorter,) = learning_curves(TASK, SGD, None, rates=(0.1,), seeds=seeds, updates=4)
    np.testing.assert_array_equal(shorter.returns, whole.returns[:, :4])


OTHERS = [(rate, seed) for rate in (3e-3, 0.3) for seed in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("environment", "family"),
    [("catch", Learned(RULE)), ("small_dense_short", Classical("adam"))],
    ids=["learned", "adam"],
)
def test_a_run_gives_the_same_numbers_whatever_is_asked_for_besides(
    environment: str, family: Any, weights: MetaParameters
) -> None:
    """Bit for bit: alone, first or last of a batch, in a second batch, beside a diverging run."""
    task = make_task(TaskConfig(environment, num_envs=2, width=4))
    parameters, run = weights if isinstance(family, Learned) else None, (1e-2, 3)

    def row(runs: list[tuple[float, int]]) -> np.ndarray:
        found = train_runs(task, family, parameters, runs, 40)
        return np.asarray(found.returns[runs.index(run)])

    alone = row([run])
    assert np.unique(alone).size > 3
    around = {
        "first": [run, *OTHERS[1:]],
        "last": [*OTHERS[1:], run],
        "second batch": [*OTHERS, *OTHERS[:2], run],
        "diverging": [(1e30, 1), run],
    }
    for name, runs in around.items():
        np.testing.assert_array_equal(row(runs), alone, err_msg=name)


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


def test_finished_agents_play_greedily_where_the_task_asks_for_it() -> None:
    """Of one run no number depends on the others; a diverged run has none."""
    config = TaskConfig("catch", num_envs=2, width=4, greedy_episodes=3)
    task = make_task(config)
    found = train_runs(task, SGD, None, [(0.1, 1), (1e30, 1), (0.1, 2)], 8)
    assert found.greedy is not None
    assert np.isfinite(found.greedy[[0, 2]]).all()
    assert np.isnan(found.greedy[1])
    assert (np.abs(found.greedy[[0, 2]]) <= 1.0).all()
    alone = train_runs(task, SGD, None, [(0.1, 2)], 8).greedy
    np.testing.assert_array_equal(alone, found.greedy[2:])
    silent = make_task(dataclasses.replace(config, greedy_episodes=0))
    assert train_runs(silent, SGD, None, [(0.1, 1)], 8).greedy is None


@dataclasses.dataclass(frozen=True)
class Finished(Descent):
    """Its greedy return is minus the finished agent's loss."""

    greedy_episodes: int = 1

    def greedy_return(self, params: Any, actor: Any, key: Any) -> Any:
        """Of the parameters that it gets."""
        return -0.5 * jnp.sum(jnp.square(params["x"]))


def test_greedy_episodes_are_those_of_the_last_update_whatever_the_chunk() -> None:
    """After five updates at a rate of 0.1 the loss is 0.9^10 of the first."""
    found = train_runs(Finished(noise=0.0), SGD, None, [(0.1, 0), (0.1, 1)], 5)
    np.testing.assert_allclose(found.greedy, found.returns[:, 0] * 0.9**10, rtol=1e-5)


def test_a_run_s_seconds_are_without_compilation() -> None:
    """Compiling takes most of a short run's time, and is no part of them."""
    task = make_task(TaskConfig("catch", num_envs=3, width=5))
    started = time.perf_counter()
    cold = train_runs(task, SGD, None, [(0.1, 1)], 2 * CHUNK)
    whole = time.perf_counter() - started
    assert cold.seconds is not None
    assert cold.seconds.shape == (1,)
    assert 0 < BATCH * cold.seconds[0] < 0.5 * whole


@dataclasses.dataclass(frozen=True)
class Told:
    """An optimizer whose step is one of the extra arguments, or a draw from the noise's key."""

    name: str

    def __call__(self, parameters: Any, rate: Any) -> Any:
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            told = extra[self.name]
            if self.name == "noise_key":
                told = jax.random.normal(told)
            return jax.tree.map(lambda x: jnp.full_like(x, rate * told), updates), state

        return optax.GradientTransformationExtraArgs(lambda _: (), update)


@dataclasses.dataclass(frozen=True)
class Epochs(Descent):
    """A rollout serves three updates, of which the task tells the share that is done."""

    updates_per_rollout: int = 3

    def minibatch_gradient(self, params: Any, batch: Any, index: Any) -> Any:
        """That of the whole loss."""
        return self.gradient(params, batch)

    def extras(self, params: Any, batch: Any, index: Any) -> Any:
        """From 0 to 1."""
        return {"epoch_proportion": index / 2}


def moves(task: Any, name: str, updates: int, seeds: tuple[int, ...] = (0,)) -> Any:
    """How far the parameters move in each rollout, found from returns: -(x^2 + y^2) / 2."""
    settings: Any = {"rates": (0.0, 0.01), "seeds": seeds, "updates": updates}
    still, moved = learning_curves(task, Told(name), None, **settings)
    start = jax.vmap(lambda k: task.init_params(jax.random.fold_in(k, 0))["x"])(
        jnp.stack([jax.random.key(seed) for seed in seeds])
    )
    x, y = np.asarray(start, np.float64).T
    np.testing.assert_allclose(still.returns[:, -1], -(x**2 + y**2) / 2, rtol=1e-5)
    # (x + s)^2 + (y + s)^2 = -2 return, for the sum s of the steps so far.
    b, c = x + y, (x**2 + y**2)[:, None] + 2.0 * moved.returns
    sums = (-b[:, None] + np.sqrt(b[:, None] ** 2 - 2.0 * c)) / 2.0
    return np.diff(sums, axis=1) / 0.01


def test_optimizers_are_told_how_much_of_training_is_done() -> None:
    """From 0 in the first rollout to 1 in the last, over more rollouts than a chunk has."""
    found = moves(TASK, "training_proportion", CHUNK + 11)
    np.testing.assert_allclose(found[0], np.arange(CHUNK + 10) / (CHUNK + 10), atol=2e-2)


def test_the_first_part_of_a_run_is_told_its_share_of_the_whole() -> None:
    """The first steps of 101 rollouts, at a rate of 1: 0, 0.01 and 0.02."""
    found = train_runs(TASK, Told("training_proportion"), None, [(1.0, 0), (0.0, 0)], 4, 101)
    x, y = np.asarray(TASK.init_params(jax.random.fold_in(jax.random.key(0), 0))["x"], np.float64)
    expected = [-((x + s) ** 2 + (y + s) ** 2) / 2 for s in (0.0, 0.0, 0.01, 0.03)]
    np.testing.assert_allclose(found.returns[0], expected, rtol=1e-5)


def test_optimizers_are_told_what_the_task_tells() -> None:
    """Of each of a rollout's updates: 0, 1/2 and 1."""
    np.testing.assert_allclose(moves(Epochs(), "epoch_proportion", 5), 1.5, atol=2e-2)


def test_noise_is_new_in_every_update_and_for_every_seed() -> None:
    """And that of the seed."""
    found = moves(Epochs(), "noise_key", 40, (0, 1, 2, 0))
    np.testing.assert_array_equal(found[0], found[3])
    assert np.unique(np.round(found[:3], 2)).size > 90
    # Each rollout's three draws are independent: the variance of their sum is 3.
    assert 1.2 < found[:3].std() < 2.3
