"""Optimizers from users' files: made as they say, refused by name, one address for one text."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contender import made_of

from optim4rl import benchmark
from optim4rl.benchmark.contender import ACCOMPANIED, baseline_maker, given_contender
from optim4rl.evaluation.learning import learning_curves
from optim4rl.jobs.store import StoreError
from optim4rl.tasks import A2CConfig, PPOConfig, TaskConfig, make_task

WHOLE = """
import optax

def by_hand(rate, updates):
    schedule = optax.linear_schedule(rate, 0.0, updates)
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))

by_hand_rates = (1e-3, 1e-2)

def plain(rate):
    return optax.adam(rate)

def schedule_free(rate):
    return optax.contrib.schedule_free_adamw(rate, warmup_steps=None)

def reads_the_parameters(rate):
    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda g, p: -rate * (g + 0.1 * p), updates, params), state
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

def momo(rate):
    return optax.contrib.momo_adam(rate)

def reads_all(rate):
    def update(updates, state, params=None, *, value_fn, value, updates_done, **extra):
        ahead = jax.grad(value_fn)(jax.tree.map(lambda p, g: p - rate * g, params, updates))
        scale = -rate / (1.0 + updates_done) * value / value
        return jax.tree.map(lambda g: scale * g, ahead), state
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

def falling(rate, updates):
    schedule = optax.linear_schedule(rate, 0.0, updates)
    def update(g, state, params=None, *, updates_done, **extra):
        step = -jnp.square(schedule(state)) * updates_done
        return jax.tree.map(lambda x: step * x, g), state + 1
    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)

def returning(updates):
    def make(rate):
        return optax.GradientTransformation(lambda params: (), lambda g, s, p=None: updates(g, s))
    return make

gives_none = returning(lambda g, s: (None, s))
gives_one_none = returning(lambda g, s: (g | {"bias": None}, s))
gives_nan = returning(lambda g, s: (g | {"bias": jnp.nan * g["bias"]}, s))
gives_a_list = returning(lambda g, s: (list(g.values()), s))
gives_other_shapes = returning(lambda g, s: (g | {"bias": g["bias"][:2]}, s))
gives_no_state = returning(lambda g, s: g)
def raises_a_value_error(rate): raise ValueError("beta is missing")

import jax
import jax.numpy as jnp
import optax.contrib
number = 3
def no_optimizer(rate): return [rate]
def raises(rate): raise KeyError("beta")
def of_three(rate, updates, more): return optax.adam(rate)
def uses_the_number(rate): return optax.adam(1e-3 if rate > 0 else 1e-4)
broken_rates = [1e-3]
def broken(rate): return optax.adam(rate)
"""


@dataclass(frozen=True)
class Looking:
    """A family from a function of the rate."""

    make: Any

    def __call__(self, parameters, rate):
        del parameters
        return self.make(rate)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(WHOLE)
    return path


def steps(make, updates=5):
    """Parameters after some updates, the rate traced as in the benchmark."""

    @jax.jit
    def run(rate):
        optimizer = make(rate, updates)
        params = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(3)}

        def update(carry, scale):
            params, state = carry
            value_fn = lambda p: scale * sum(jnp.sum(1 - jnp.cos(x)) for x in jax.tree.leaves(p))  # noqa: E731
            value, gradient = jax.value_and_grad(value_fn)(params)
            told = {"value": value, "value_fn": value_fn, "updates_done": 0}
            changes, state = optax.with_extra_args_support(optimizer).update(
                gradient, state, params, **told
            )
            return (optax.apply_updates(params, changes), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(update, start, jnp.linspace(0.1, 3.0, updates))[0][0]

    return jax.device_get(run(jnp.float32(1e-2)))


def test_a_chain_by_hand_is_adam_as_ppo_users_run_it(file, tmp_path):
    contender = given_contender(f"{file}:by_hand", (3e-3,), tmp_path)
    family, _ = baseline_maker("adam_ppo").family(tmp_path, 5)
    wanted = steps(lambda rate, updates: family(None, rate))
    found = steps(lambda rate, updates: made_of(contender, rate, updates, folder=tmp_path))
    np.testing.assert_array_equal(found["w"], wanted["w"])
    assert contender.grid == (1e-3, 1e-2)
    assert (contender.name, contender.role) == ("mine:by_hand", "given")


def test_companions_turn_plain_adam_into_adam_with_companions(file, tmp_path):
    contender = given_contender(f"{file}:plain", (3e-3,), tmp_path).accompanied()
    maker = baseline_maker("adam_ppo")
    family, _ = maker.family(tmp_path, 5)
    found = steps(lambda rate, updates: made_of(contender, rate, updates, folder=tmp_path))
    wanted = steps(lambda rate, updates: family(None, rate))
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=2e-4)  # but for epsilon
    assert contender.name == f"mine:plain{ACCOMPANIED}"
    assert contender.grid == (3e-3,)


@pytest.mark.parametrize(
    ("parts", "own"), [("decay", [0, 1, 2, 3]), ("decay+reset_time", [0, 1, 0, 1])]
)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_falling_rate_falls_around_a_function_that_gets_a_number(
    file, tmp_path, parts, own, rate
):
    """Its own schedule begins anew with a rollout of two updates only where that is asked for."""
    maker = given_contender(f"{file}:falling", (3e-3,), tmp_path).members[0].accompanied(parts)
    family, _ = maker.family(tmp_path, 4, 2)
    optimizer, found = family(None, rate), []
    state = optimizer.init(jnp.ones(1))
    for index in range(4):
        updates, state = optimizer.update(jnp.ones(1), state, jnp.ones(1), updates_done=index)
        found.append(float(updates[0]))
    shares = 1 - np.arange(4) / 4
    expected = -np.square(rate * shares[own]) * np.arange(4) * shares
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["schedule_free", "reads_the_parameters", "momo", "reads_all"])
def test_optimizers_that_read_parameters_get_them(file, tmp_path, name):
    contender = given_contender(f"{file}:{name}", (3e-3,), tmp_path)
    found = steps(lambda rate, updates: made_of(contender, rate, updates, folder=tmp_path))
    assert np.isfinite(found["w"]).all()
    assert (found["w"] != np.arange(1.0, 7.0).reshape(2, 3)).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "mine.py:missing: the file has no such function"),
        ("number", "mine.py:number: the file has no such function"),
        ("no_optimizer", "it returned list; an optax GradientTransformation is needed"),
        ("raises", "mine.py:raises: KeyError: 'beta'"),
        ("of_three", "mine.py:of_three: it takes 3 arguments"),
        ("raises_a_value_error", "mine.py:raises_a_value_error: ValueError: beta is missing"),
        ("uses_the_number", "mine.py:uses_the_number: TracerBoolConversionError"),
        ("gives_none", r"mine.py:gives_none: its update returned None; a tree like the param"),
        ("gives_one_none", r"gives_one_none: its update returned .*None"),
        ("gives_nan", "gives_nan: its update .* is not finite in bias"),
        ("gives_a_list", r"gives_a_list: its update returned .*; a tree like the parameters"),
        ("gives_other_shapes", r"its update has shape \(2,\) for parameters of shape \(3,\)"),
        ("gives_no_state", "gives_no_state: its update returned dict; updates and a state"),
        ("broken", r"mine.py:broken_rates = \[0.001\]: a tuple of numbers is needed"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(file, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        given_contender(f"{file}:{name}", (3e-3,), tmp_path)


def test_a_function_is_a_contender_by_its_file(file, tmp_path):
    """One that no worker can read is refused."""
    spec = importlib.util.spec_from_file_location("mine", file)
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    found = benchmark.function_contender(mine.plain, (1e-3,), tmp_path)
    assert found == benchmark.given_contender(f"{file}:plain", (1e-3,), tmp_path)
    assert benchmark.function_contender(mine.by_hand, (3e-3,), tmp_path).grid == (3e-3,)
    for make in (lambda rate: optax.adam(rate), mine.gives_nan, optax.adam.__call__):
        with pytest.raises(ValueError, match=r"a function at the top of a \.py file is needed"):
            benchmark.function_contender(make, (1e-3,), tmp_path)


def test_optimizers_are_told_the_loss_and_what_is_done():
    """The gradient of what they are told is the gradient that they are given."""
    seen = []

    def look(updates, state, params, *, value, value_fn, grad, updates_done, **extra):
        again = jax.grad(value_fn)(params)
        close = [
            jnp.allclose(x, y, atol=1e-5)
            for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(updates), strict=True)
        ]
        close += [jnp.allclose(value, value_fn(params)), jnp.array(grad is updates)]
        jax.debug.callback(lambda *x: seen.append(x), updates_done, jnp.array(close).all())
        return jax.tree.map(lambda g: -0.01 * g, updates), state

    for learner, each in ((PPOConfig(rollout=4, epochs=1, minibatches=2), 2), (A2CConfig(4), 1)):
        seen.clear()
        task = make_task(TaskConfig("gymnax:CartPole-v1", num_envs=2, width=4, learner=learner))
        family = Looking(
            lambda rate: optax.GradientTransformationExtraArgs(
                lambda params: optax.EmptyState(), look
            )
        )
        learning_curves(task, family, None, rates=[0.1], seeds=[0], updates=2)
        jax.effects_barrier()
        done, agrees = np.array(seen, float).T
        assert agrees.all()
        assert sorted(set(done.astype(int))) == list(range(30 * each))


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    for text, message in (("import nowhere", "ModuleNotFoundError"), ("def f(:", "SyntaxError")):
        path = tmp_path / f"{message}.py"
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{message}.py: {message}"):
            given_contender(f"{path}:f", (3e-3,), tmp_path)
    with pytest.raises(ValueError, match=r"nowhere.py:f: there is no such file"):
        given_contender("nowhere.py:f", (3e-3,), tmp_path)


def test_a_file_is_kept_under_the_address_of_its_text(file, tmp_path):
    first = given_contender(f"{file}:plain", (3e-3,), tmp_path).members[0]
    file.write_text(WHOLE + "# changed\n")
    second = given_contender(f"{file}:plain", (3e-3,), tmp_path).members[0]
    assert first.source != second.source
    assert (tmp_path / str(first.file)).read_text() == WHOLE
    (tmp_path / str(first.file)).write_text("# damaged")
    with pytest.raises(
        StoreError, match=f"{Path(str(first.file)).name}: its content does not match"
    ):
        first.family(tmp_path, 5)
