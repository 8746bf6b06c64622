"""Contenders: values from which workers make an optimizer, and weights under their content."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim4rl.benchmark.contender import (
    BASELINES,
    UNTRAINED,
    Contender,
    Maker,
    baseline,
    baseline_maker,
    keep_weights,
    load_groups,
    split_parts,
)
from optim4rl.jobs.store import StoreError
from optim4rl.optimizers.rule import init_meta_parameters
from optim4rl.optimizers.weight_files import WeightsError
from optim4rl.optimizers.weights import load_weights, save_weights, untrained

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
GRADIENTS = {"w": jnp.array([3.0, -4.0]), "b": jnp.array([0.1])}


def made_of(contender, rate, updates, *, folder=Path(), meta_seed=0, of_rollout=1):
    """The optimizer of a member at a rate, as a worker makes it."""
    family, parameters = contender.members[meta_seed].family(folder, updates, of_rollout)
    return family(parameters, rate)


def steps(optimizer, count=4):
    """The updates of a few steps with the same gradients."""
    state, found = optimizer.init(PARAMS), []
    for _ in range(count):
        updates, state = optimizer.update(GRADIENTS, state, PARAMS)
        found.append(np.concatenate([updates["w"], updates["b"]]))
    return np.array(found)


@pytest.fixture(scope="module")
def rules():
    """Two fresh rules of one recipe."""
    return [untrained("optim4rl-rlc", 3e-3, jax.random.key(seed)) for seed in (1, 2)]


# How an optimizer is made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": None}, r"\(None, None, None\): exactly one is needed"),
        ({"optimizer": "adam", "weights": "a"}, r"\('adam', 'a', None\): exactly one is needed"),
        ({"optimizer": "adam", "clip": 0.0}, r"^clip = 0.0: a positive"),
        ({"optimizer": "adam", "epsilon": -1.0}, r"^epsilon = -1.0"),
        ({"weights": "a", "epsilon": 1e-5}, "^epsilon = 1e-05: this is for classical optimizers"),
        ({"source": "a:f", "epsilon": 1e-5}, "^epsilon = 1e-05: this is for classical optimizers"),
    ],
)
def test_what_no_optimizer_can_be_made_of_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Maker(**fields)


def test_adam_as_ppo_users_run_it():
    """Clipped to a norm of 0.5, epsilon 1e-5, and a rate that falls to zero over the run."""
    made = made_of(baseline("adam_ppo", (0.1, 0.2)), 0.1, updates=4)
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    usual = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    np.testing.assert_allclose(steps(made, 5), steps(usual, 5), rtol=1e-6)
    assert np.abs(steps(made, 5)[4]).max() < 1e-6 < np.abs(steps(made, 5)[3]).min()


def test_companions_are_parts_that_combine():
    """In any order; those with a name are the same."""
    assert baseline_maker("adam+decay+eps1e-5+clip0.5") == baseline_maker("adam_ppo")
    assert baseline_maker("adam_ppo+reset_time") == baseline_maker("adam_rel")
    assert baseline_maker("adam_rel+reset_moments").reset == "moments"
    assert baseline_maker("muon_ppo+clip1") == Maker("muon", clip=1.0, decay=True)
    assert split_parts("a+b.safetensors+clip0.5+decay") == ("a+b.safetensors", "clip0.5+decay")
    assert split_parts("adam_decay") == ("adam_decay", "")


def by_hand(rates, every, moments):
    """Adam-Rel's own formula: moments are kept, and their correction begins anew."""
    m, v, found = 0.0, 0.0, []
    for index, (gradient, rate) in enumerate(zip(TWO_ROLLOUTS, rates, strict=True)):
        if moments and index % every == 0:
            m = v = 0.0
        t = index % every + 1
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        found.append(-rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return found


TWO_ROLLOUTS = (1.0, -0.5, 2.0, 0.3, -1.0, 0.7)


@pytest.mark.parametrize("what", ["time", "moments"])
def test_adam_rel_counts_its_time_from_each_rollout(what):
    """The rate falls on all the while."""
    contender = baseline(f"adam+decay+reset_{what}", (0.1, 0.2))
    made = made_of(contender, 0.1, updates=6, of_rollout=3)
    params = jnp.zeros(1)
    state, found = made.init(params), []
    for gradient in TWO_ROLLOUTS:
        updates, state = made.update(jnp.full(1, gradient), state, params)
        found.append(float(updates[0]))
    rates = 0.1 * (1 - np.arange(6) / 6)
    np.testing.assert_allclose(found, by_hand(rates, 3, what == "moments"), rtol=1e-4)


def test_plain_baselines_are_optaxs_own():
    for name, usual in (("adam", optax.adam), ("sgd", optax.sgd), ("rmsprop", optax.rmsprop)):
        contender = baseline(name, (0.1, 0.2))
        assert (contender.role, contender.grid, contender.unit) == ("baseline", (0.1, 0.2), 1.0)
        np.testing.assert_allclose(steps(made_of(contender, 0.2, 9)), steps(usual(0.2)), rtol=1e-5)
    assert not steps(made_of(Contender("", "baseline", (UNTRAINED,), (1.0,)), 0.0, 9)).any()


def test_every_baseline_can_be_made():
    for name in BASELINES:
        found = steps(made_of(baseline(name, (0.1,)), 0.1, updates=9), 2)
        assert np.isfinite(found).all()
        assert found.any(), name


def test_a_learned_optimizer_is_that_of_its_weights(rules, tmp_path):
    members = tuple(Maker(None, keep_weights(tmp_path, rule)) for rule in rules)
    contender = Contender("rule", "learned", members, (1.0, 2.0), 3e-3)
    for meta_seed, rule in enumerate(rules):
        made = made_of(contender, 6e-3, 9, folder=tmp_path, meta_seed=meta_seed)
        np.testing.assert_allclose(steps(made), steps(rule.transformation(6e-3)), rtol=1e-5)


@pytest.mark.parametrize(("decay", "left"), [(False, 0.5), (True, 0.5)])
def test_steps_fall_once_whether_the_rule_or_its_rate_falls(tmp_path, decay, left):
    """`modulated` falls by itself; on `discobench` every optimizer's rate falls, too."""
    rule = untrained("modulated", 0.1, jax.random.key(0))
    contender = Contender("rule", "learned", (Maker(None, keep_weights(tmp_path, rule)),), (1.0,))
    if decay:
        contender = contender.accompanied("decay")
    made = made_of(contender, 0.1, updates=4, folder=tmp_path)
    state, sizes = made.init(PARAMS), []
    for share in (0.0, 0.25, 0.5):  # the last is the third of four updates
        told = {"training_proportion": jnp.float32(share)}
        updates, state = made.update(GRADIENTS, state, PARAMS, **told)
        sizes.append(float(jnp.linalg.norm(updates["w"])))
    assert sizes[2] / sizes[0] == pytest.approx(left, rel=1e-3)


# Weights


def test_weights_are_kept_under_their_content(rules, tmp_path):
    one, two = rules
    assert keep_weights(tmp_path, one) != keep_weights(tmp_path, two)
    relabelled = dataclasses.replace(one, card={"name": "another"})
    assert keep_weights(tmp_path, relabelled) == keep_weights(tmp_path, one)
    other_rule = dataclasses.replace(one, spec=dataclasses.replace(one.spec, clip=0.125))
    assert keep_weights(tmp_path, other_rule) != keep_weights(tmp_path, one)
    assert len(list((tmp_path / "weights").iterdir())) == 3


def test_other_weights_than_the_name_says_are_refused(rules, tmp_path):
    """And none are missed: the message names the file."""
    addresses = [keep_weights(tmp_path, rule) for rule in rules]
    first, second = (tmp_path / str(Maker(weights=address).file) for address in addresses)
    second.replace(first)
    with pytest.raises(StoreError, match=f"{first.name}: its content does not match its name"):
        Maker(None, addresses[0]).family(tmp_path, 9)
    with pytest.raises(WeightsError, match=second.name):
        Maker(None, addresses[1]).family(tmp_path, 9)


def test_a_control_is_the_rule_with_the_fresh_weights_of_its_seed(rules, tmp_path):
    """One for each member, or a single one where heads start at zero, which is the same for all."""
    paths = []
    for seed, rule in enumerate(rules):
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        trained = jax.tree.map(lambda x: x + 1.0, rule.meta_parameters)
        save_weights(
            paths[-1], dataclasses.replace(rule, meta_parameters=trained, card={"seed": seed})
        )
    group = ",".join(paths)
    assert not rules[0].spec.zero_head
    found = load_groups([group])
    assert list(found) == [group, f"{group} untrained"]
    for seed, control in enumerate(found[f"{group} untrained"]):
        fresh = init_meta_parameters(control.spec, jax.random.key(seed))
        jax.tree.map(np.testing.assert_array_equal, control.meta_parameters, fresh)
    zero = dataclasses.replace(rules[0].spec, zero_head=True)
    for path in paths:
        save_weights(path, dataclasses.replace(load_weights(path), spec=zero))
    assert [len(x) for x in load_groups([group]).values()] == [2, 1]
