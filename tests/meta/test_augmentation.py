"""Task augmentation: the same loss in other variables, at scales drawn for every life."""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_meta_gradient import Quadratic, factor_rule

from optim4rl.meta.augmentation import Augmented, augment
from optim4rl.meta.config import Augmentation
from optim4rl.meta.population import Execution
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, iterate
from optim4rl.tasks import A2CConfig, TaskConfig, make_task

KEYS = jax.random.split(jax.random.key(0), 500)
ALL = Augmentation(rescale_parameters=10.0, rescale_gradients=100.0)


@dataclass(frozen=True)
class Rewarded(Quadratic):
    """A quadratic whose batch is a reward of one."""

    factor: Any = field(default=1.0, compare=False)

    def with_reward_factor(self, factor):
        return dataclasses.replace(self, factor=factor)

    def rollout(self, params, actor, key):
        _, actor, stats = super().rollout(params, actor, key)
        return self.factor * jnp.ones(()), actor, stats


def identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_with_scale_one_everything_is_identical():
    """Parameters, batches, actors, stats and gradients, of Catch."""
    task = make_task(TaskConfig("catch", num_envs=2, width=4, learner=A2CConfig(rollout=5)))

    @partial(jax.jit, static_argnums=0)
    def life(wrapped):
        this: Any = Augmented(task, Augmentation()) if wrapped else task
        params, actor = this.init_params(KEYS[0]), this.init_actor(KEYS[0])
        batch, after, stats = this.rollout(params, actor, KEYS[1])
        return params, actor, batch, after, stats, this.gradient(params, batch)

    params, actor, batch, after, stats, gradient = life(True)
    scales = actor.scales
    identical((params, actor.actor, batch[0], after.actor, stats, gradient), life(False))
    identical((batch[1], after.scales), (scales, scales))
    assert all((s == 1).all() for s in jax.tree.leaves(scales))


def test_nothing_to_rescale_leaves_the_task_itself():
    task = Quadratic()
    assert augment(task, Augmentation()) is task
    assert augment(task, ALL) == Augmented(task, ALL)


@pytest.mark.parametrize("tensors", [True, False])
def test_the_loss_is_the_same_function_in_other_variables(tensors):
    """Of scaled parameters; its gradient is that of autodiff through the scaling."""
    task = Rewarded()
    settings = Augmentation(10.0, 100.0, 5.0, rescale_tensors=tensors)
    augmented = Augmented(task, settings)

    @jax.jit
    def run():
        params, actor = augmented.init_params(KEYS[0]), augmented.init_actor(KEYS[0])
        scales = actor.scales
        batch, after, stats = augmented.rollout(params, actor, KEYS[1])

        def loss(params):
            true = jax.tree.map(jnp.multiply, params, scales.parameters)
            return scales.gradients * task.loss(true)

        found = augmented.gradient(params, batch)
        own = task.init_params(KEYS[0])
        return params, scales, batch, after, stats, found, jax.grad(loss)(params), own

    params, scales, batch, after, stats, found, expected, own = run()
    assert 1 not in np.asarray(ravel_pytree(scales)[0])
    assert (scales.parameters["x"] == scales.parameters["y"]) == (not tensors)
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, found, expected)
    jax.tree.map(close, jax.tree.map(np.multiply, params, scales.parameters), own)
    close(stats["loss"], task.loss(own))
    identical((after.scales, batch[1], batch[0]), (scales, scales, scales.rewards))
    assert after.actor == 1


def test_scales_are_log_uniform_and_the_keys_own():
    """Of 500 lives: within the limits, evenly over the decades, parameters apart from the rest."""
    augmented = Augmented(Rewarded(), Augmentation(10.0, 100.0, 5.0))
    scales = jax.jit(jax.vmap(augmented.scales))(KEYS)
    logs = []
    for found, limit in (
        ((*scales.parameters.values(),), 10.0),
        ((scales.gradients,), 100.0),
        (
            (scales.rewards,),
            5.0,
        ),
    ):
        for factors in found:
            u = np.log(np.asarray(factors, np.float64)) / np.log(limit)
            assert abs(u).max() <= 1 + 1e-6
            # Kolmogorov-Smirnov: the 0.1 % point at 500 draws.
            ranks = np.sort((u + 1) / 2)
            assert abs(ranks - np.arange(500) / 500).max() < 1.95 / np.sqrt(500)
            logs.append(u)
    correlations = np.corrcoef(logs) - np.eye(4)
    assert abs(correlations).max() < 4 / np.sqrt(500)
    identical(scales, jax.jit(jax.vmap(augmented.scales))(KEYS))


def test_every_life_of_an_agent_has_scales_of_its_own():
    """They come with the actor: kept while it lives, drawn anew when it is reset."""
    spec, weights = factor_rule()
    tasks = (MetaTask(Augmented(Quadratic((0.5, 1.0)), ALL), 0.01),)
    config = MetaConfig(agents=2, inner_updates=1, reset_interval=4, shortest_interval=2)

    @jax.jit
    def run():
        start = init(spec, tasks, config, weights, Execution())

        def body(state, _):
            state, _ = iterate(spec, tasks, config, state)
            return state, state.estimators[0].agents.actor.scales.gradients

        return jax.lax.scan(body, start, length=6)[1]

    scales = np.asarray(run())
    # Lives of mixed length: agent 0 is reset every two iterations, agent 1 every four from 2 on.
    lives = np.array([[0, 0, 2, 2, 4, 4], [0, 0, 2, 2, 2, 2]]).T
    np.testing.assert_array_equal(scales, np.take_along_axis(scales, lives, axis=0))
    assert len(np.unique(scales)) == 5


@pytest.mark.parametrize("tensors", [True, False])
def test_first_parameters_are_larger_or_smaller_and_nothing_else(tensors):
    """Each tensor by its own factor, or all by one; the loss is the task's own."""
    task = Quadratic()
    augmented = augment(task, Augmentation(rescale_initial=10.0, rescale_tensors=tensors))

    @jax.jit
    @jax.vmap
    def start(key):
        factors = jax.tree.map(jnp.divide, augmented.init_params(key), task.init_params(key))
        return factors, augmented.init_actor(key).scales

    factors, scales = start(KEYS)
    assert all((s == 1).all() for s in jax.tree.leaves(scales))
    x, y = (np.log10(np.asarray(factors[name], np.float64)) for name in ("x", "y"))
    np.testing.assert_allclose(x - x[:, :1], 0, atol=1e-5)
    if tensors:
        assert abs(np.corrcoef(x[:, 0], y)[0, 1]) < 4 / np.sqrt(500)
    else:
        np.testing.assert_allclose(x[:, 0], y, atol=1e-5)
    assert abs(y).max() <= 1 + 1e-5
    assert abs(np.sort((y + 1) / 2) - np.arange(500) / 500).max() < 1.95 / np.sqrt(500)
    params = task.init_params(KEYS[0])
    batch, _, _ = augmented.rollout(params, augmented.init_actor(KEYS[0]), KEYS[1])
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, augmented.gradient(params, batch), task.gradient(params, None))


@pytest.mark.parametrize("name", ["parameters", "gradients", "rewards", "initial"])
@pytest.mark.parametrize("value", [0.5, 0.0, float("inf"), float("nan")])
def test_what_is_no_scale_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^rescale_{name} = {value!r}: a finite number of at"):
        Augmentation(**{f"rescale_{name}": value})


def test_a_task_without_rewards_is_refused():
    with pytest.raises(ValueError, match=r"^rescale_rewards = 2\.0: .* and Quadratic has none$"):
        augment(Quadratic(), Augmentation(rescale_rewards=2.0))
