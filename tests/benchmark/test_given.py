"""Optimizers from users' files: made as they say, refused by name, one address for one text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim4rl.benchmark.contender import ACCOMPANIED, BASELINES, given_contender
from optim4rl.jobs.store import StoreError

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

import jax
import optax.contrib
number = 3
def no_optimizer(rate): return [rate]
def raises(rate): raise KeyError("beta")
def of_three(rate, updates, more): return optax.adam(rate)
def uses_the_number(rate): return optax.adam(1e-3 if rate > 0 else 1e-4)
broken_rates = [1e-3]
def broken(rate): return optax.adam(rate)
"""


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
            gradient = jax.tree.map(lambda p: scale * jnp.sin(p), params)
            changes, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, changes), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(update, start, jnp.linspace(0.1, 3.0, updates))[0][0]

    return jax.device_get(run(jnp.float32(1e-2)))


def test_a_chain_by_hand_is_adam_as_ppo_users_run_it(file, tmp_path):
    contender = given_contender(f"{file}:by_hand", (3e-3,), tmp_path)
    family, _ = BASELINES["adam_ppo"].family(tmp_path, 5)
    wanted = steps(lambda rate, updates: family(None, rate))
    found = steps(lambda rate, updates: contender.make(rate, updates, folder=tmp_path))
    np.testing.assert_array_equal(found["w"], wanted["w"])
    assert contender.grid == (1e-3, 1e-2)
    assert (contender.name, contender.role) == ("mine:by_hand", "given")


def test_companions_turn_plain_adam_into_adam_with_companions(file, tmp_path):
    contender = given_contender(f"{file}:plain", (3e-3,), tmp_path).accompanied()
    maker = dict(BASELINES)["adam_ppo"]
    family, _ = maker.family(tmp_path, 5)
    found = steps(lambda rate, updates: contender.make(rate, updates, folder=tmp_path))
    wanted = steps(lambda rate, updates: family(None, rate))
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=2e-4)  # but for epsilon
    assert contender.name == f"mine:plain{ACCOMPANIED}"
    assert contender.grid == (3e-3,)


@pytest.mark.parametrize("name", ["schedule_free", "reads_the_parameters"])
def test_optimizers_that_read_parameters_get_them(file, tmp_path, name):
    contender = given_contender(f"{file}:{name}", (3e-3,), tmp_path)
    found = steps(lambda rate, updates: contender.make(rate, updates, folder=tmp_path))
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
        ("broken", r"mine.py:broken_rates = \[0.001\]: a tuple of numbers is needed"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(file, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        given_contender(f"{file}:{name}", (3e-3,), tmp_path)


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
    with pytest.raises(StoreError, match=f"{Path(str(first.file)).name}: another file than"):
        first.family(tmp_path, 5)
