"""NaN in a reward, an observation, a gradient, a meta-gradient: found, named, kept to itself."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import Environment, EnvParams

from optim4rl.evaluation.learning import Classical, learning_curves
from optim4rl.meta import trainer
from optim4rl.meta.trainer import MetaConfig, MetaDivergenceError, MetaTask, train
from optim4rl.optimizers.presets import learned_spec
from optim4rl.tasks import A2CConfig, TaskConfig, task_from_environment
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.task import Task

CATCH = Catch()
CONFIG = TaskConfig("poisoned", num_envs=1, width=4, torso="dense", learner=A2CConfig(rollout=9))
SPEC = learned_spec("optim4rl-rlc")


@dataclass(frozen=True)
class Poisoned(Environment):
    """Catch, in which a ball that starts in the first column may be NaN before it lands."""

    kind: str

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=1000)

    num_actions = CATCH.num_actions

    def action_space(self, params=None):
        return CATCH.action_space()

    def observation_space(self, params=None):
        return CATCH.observation_space()

    def reset_env(self, key, params):
        return CATCH.reset_env(key, params)

    def step_env(self, key, state, action, params):
        observation, state, reward, landed, info = CATCH.step_env(key, state, action, params)
        bad = (state.ball_column == 0) & (state.time == 8)
        poison = jnp.where(bad, jnp.nan, 0.0)
        if self.kind == "observation":
            observation = observation + poison
        if self.kind == "reward":
            reward = reward + poison
        return observation, state, reward, landed, info


@dataclass(frozen=True)
class PoisonedGradient(Task):
    """A task, one in ten of whose gradients is NaN."""

    def gradient(self, params, batch):
        gradient = super().gradient(params, batch)
        bad = jnp.sum(batch.uniforms) % 1.0 < 0.1
        return jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), gradient)


def task(kind):
    if kind == "gradient":
        environment = Poisoned("nothing")
        return PoisonedGradient(environment, environment.default_params, CONFIG)
    return task_from_environment(Poisoned(kind), CONFIG)


def curves(kind):
    (found,) = learning_curves(
        task(kind), Classical("sgd"), None, rates=(0.1,), seeds=range(16), updates=4
    )
    return found


@pytest.fixture(scope="module")
def healthy():
    return curves("nothing")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "observation", "gradient"])
def test_a_run_that_breaks_is_named_and_the_others_are_unharmed(kind, healthy, tally):
    row = tally("runs with a NaN", f"NaN in a {kind}, in a batch of runs")
    found = curves(kind)
    broken = found.diverged_at >= 0
    assert 2 <= broken.sum() <= 14
    for run, at in enumerate(found.diverged_at):
        until = at if at >= 0 else found.returns.shape[1]
        # What ended before is reported as it was; the first return fills in for those before it.
        whole = np.isfinite(found.returns[run, :until]).all() or np.isnan(found.returns[run]).all()
        gone = np.isnan(found.returns[run, until:]).all()
        same = at >= 0 or np.array_equal(found.returns[run], healthy.returns[run])
        row.count("correct" if whole and gone and same else "wrong result", run)
    row.check(16)


def meta(estimator, seed):
    return MetaConfig(
        iterations=30,
        agents=2,
        inner_updates=2,
        reset_interval=3,
        estimator=estimator,
        meta_clip="none",
        meta_learning_rate=1e-2,
        seed=seed,
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["truncated", "es", "pes"])
@pytest.mark.parametrize("kind", ["reward", "observation", "gradient"])
def test_meta_training_stops_with_where_and_when(kind, estimator, tally):
    """The rule that is kept is that of the same run with so many iterations."""
    row = tally("runs with a NaN", f"NaN in a {kind}, in meta-training ({estimator})")
    tasks = (MetaTask(task("nothing"), 0.01), MetaTask(task(kind), 0.01))
    for seed in range(3):
        config = meta(estimator, seed)
        rules, norms = [], []

        def report(state, progress, rules=rules, norms=norms):
            rules.append(jax.device_get(state.meta_parameters))
            norms.extend(progress.meta_gradient_norm)

        with pytest.raises(MetaDivergenceError) as error:
            train(SPEC, tasks, config, chunk=1, report=report)
        at = int(error.value.state.iteration)
        clear = f"iteration {at}: task 1 (" in str(error.value)
        good = rules[max(0, at - 1)]
        kept = all(
            np.isfinite(x).all() and (at == 0 or np.array_equal(x, good[network][name]))
            for network, tensors in error.value.state.meta_parameters.items()
            for name, x in tensors.items()
        )
        seen = len(norms) == at + 1 and all(map(math.isfinite, norms[:-1]))
        row.count("clear error" if clear and kept and seen else "wrong result", str(error.value))
    row.check(3)


@pytest.mark.slow
def test_a_meta_gradient_that_breaks_is_named(tally, monkeypatch):
    row = tally("runs with a NaN", "NaN in a meta-gradient")
    real = trainer.make_estimator

    @dataclass(frozen=True)
    class Breaking:
        estimator: Any

        def init(self, *arguments):
            return self.estimator.init(*arguments)

        def estimate(self, meta_parameters, state, key):
            found = self.estimator.estimate(meta_parameters, state, key)
            poison = jnp.where(state.iteration == 3, jnp.nan, 1.0)
            return found._replace(gradient=jax.tree.map(lambda g: poison * g, found.gradient))

    monkeypatch.setattr(trainer, "make_estimator", lambda *x: Breaking(real(*x)))
    # A rate of its own: programs of other tests know nothing of the poison.
    tasks = (MetaTask(task("nothing"), 0.0123),)
    with pytest.raises(MetaDivergenceError) as error:
        train(SPEC, tasks, meta("truncated", 0), chunk=2)
    assert "at iteration 3: task 0 (meta-gradient). The rule before it is kept" in str(error.value)
    assert int(error.value.state.iteration) == 3
    row.count("clear error")
    row.check(1)
