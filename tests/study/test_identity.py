"""The identity experiment: the metric, the recording, the training and what is reported of it."""

import dataclasses
import json
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from optim4rl.optimizers.networks import apply_network, init_carry
from optim4rl.study import identity, recording
from optim4rl.study.identity import (
    NETWORKS,
    PAPER,
    QUICK,
    SMOKE,
    GaussianClusters,
    Histogram,
    IdentityConfig,
    IdentityResult,
    IdentityRow,
    histogram,
    identity_experiment,
    record_gradients,
    run_identity,
    split_coordinates,
    supervised_gradients,
    within_tenth,
)

CONFIG = IdentityConfig(
    updates=100,
    every=1,
    max_coordinates=40,
    passes=20,
    seeds=2,
    learning_rates=(1e-2, 3e-3),
    window=2,
    networks=(("raw", "linear"), ("sign_log", "sign_exp")),
)
FIELDS = ("online", "online_nonzero", "frozen", "frozen_nonzero")


class NoisyQuadratic:
    """A task whose gradient is `params - noise`; the actor counts."""

    updates_per_rollout = 1
    env_steps_per_rollout = 1

    def init_params(self, key):
        return {"a": jax.random.normal(key, (9, 4)), "b": jnp.zeros(4)}

    def init_actor(self, key):
        return jnp.float32(0.0)

    def rollout(self, params, actor, key):
        noise = jax.random.normal(key, (4,))
        return (actor, noise), actor + 1.0, jnp.sum(noise)

    def gradient(self, params, batch):
        count, noise = batch
        return {"a": params["a"] + count, "b": params["b"] - noise}


def scaled_gradients(time=100, coordinates=40):
    """Of order one, and half of them exactly zero."""
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(time, coordinates)) * (rng.random((time, coordinates)) < 0.5)
    return gradients.astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return {(row.input, row.schedule): row for row in run_identity(scaled_gradients(), CONFIG)}


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        (11.0, 10.0, True),
        (9.0, 10.0, True),
        (11.001, 10.0, False),
        (8.999, 10.0, False),
        (-11.0, -10.0, True),
        (-9.0, -10.0, True),
        (10.0, -10.0, False),
        (0.0, 10.0, False),
        (0.0, 0.0, True),
        (-0.0, 0.0, True),
        (1e-30, 0.0, False),
        (1.05e-20, 1e-20, True),
        (1.2e-20, 1e-20, False),
        (math.nan, 0.0, False),
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
    ],
)
def test_a_prediction_is_right_within_a_tenth(prediction, target, right):
    assert bool(within_tenth(jnp.float32(prediction), jnp.float32(target))) is right


@given(st.floats(2.0**-100, 2.0**100, width=32), st.floats(-3, 3, width=32), st.booleans())
def test_a_right_prediction_has_the_sign_and_nearly_the_size(target, ratio, negative):
    target = np.float32(-target if negative else target)
    prediction = np.float32(target * np.float32(ratio))
    exact = float(prediction) / float(target)
    if abs(abs(exact - 1.0) - 0.1) > 1e-6:  # rounding decides nearer to the bound
        assert bool(within_tenth(jnp.asarray(prediction), jnp.asarray(target))) == (
            0.9 < exact < 1.1
        )


def test_a_linear_network_learns_the_identity_on_well_scaled_data(rows):
    row = rows["raw", "annealed"]
    assert row.frozen_nonzero > 0.75
    assert row.frozen_nonzero > 4 * row.by_decade[-3]
    assert row.by_decade[0] > 0.9
    assert row.curve[-10:].mean() > row.curve[:10].mean() + 0.1


def test_a_signed_output_gets_zeros_for_nothing_and_a_linear_one_never(rows):
    gradients = scaled_gradients()
    train, _, held_out = split_coordinates(40, CONFIG)
    zeros = {
        "online": np.mean(gradients[:, train] == 0),
        "frozen": np.mean(gradients[:, held_out] == 0),
    }
    for schedule in identity.SCHEDULES:
        for share, zero in zeros.items():
            for name, hits_on_zero in (("raw", 0.0), ("sign_log", zero)):
                row = rows[name, schedule]
                nonzero = getattr(row, f"{share}_nonzero")
                expected = hits_on_zero + (1 - zero) * nonzero
                np.testing.assert_allclose(getattr(row, share), expected, atol=1e-6)


def test_rows_describe_their_seeds_and_decades(rows):
    _, _, held_out = split_coordinates(40, CONFIG)
    targets = scaled_gradients()[:, held_out]
    decades, counts = np.unique(
        np.floor(np.log10(np.abs(targets[targets != 0]))), return_counts=True
    )
    assert set(rows) == {(name, s) for name in ("raw", "sign_log") for s in identity.SCHEDULES}
    for row in rows.values():
        assert row.seeds == 2
        assert row.learning_rate in CONFIG.learning_rates
        assert len(row.curve) == 200
        assert set(row.spread) == set(FIELDS)
        for name, (low, high) in row.spread.items():
            np.testing.assert_allclose((low + high) / 2, getattr(row, name), rtol=1e-6)
        assert list(row.by_decade) == decades.tolist()
        mean = np.dot(list(row.by_decade.values()), counts) / counts.sum()
        np.testing.assert_allclose(mean, row.frozen_nonzero, rtol=1e-6)


def test_online_accuracy_is_of_the_last_pass_and_the_curve_of_all():
    hits = np.array([[[0, 1], [2, 4]], [[0, 1], [2, 2]]])  # two seeds, passes and windows
    fit = identity._Fit(
        np.zeros(hits.shape, np.float32),
        hits,
        hits // 2,
        np.ones((2, 4, 1), bool),
        np.ones(2, bool),
    )
    train = np.array([[1, 0], [1, 1], [1, 0], [1, 1]], np.float32)  # windows of four targets
    data = identity._Data(train, train[:, :1], train[:, :1])
    row = identity._row(("raw", "linear"), "constant", 1e-3, fit, data)
    assert (row.online, row.spread["online"]) == (5 / 8, (4 / 8, 6 / 8))
    assert row.spread["online_nonzero"] == (2 / 6, 3 / 6)
    assert row.online_nonzero == pytest.approx(2.5 / 6)
    np.testing.assert_array_equal(row.curve, [0.0, 0.25, 0.5, 0.75])


def test_the_experiment_repeats_bit_for_bit(rows):
    for row in run_identity(scaled_gradients(), CONFIG):
        before = rows[row.input, row.schedule]
        np.testing.assert_array_equal(row.curve, before.curve)
        for field in dataclasses.fields(row):
            if field.name != "curve":
                assert getattr(row, field.name) == getattr(before, field.name)


def test_state_is_carried_over_windows_and_passes_start_afresh():
    """At learning rate zero the windows' losses are those of one forward pass over all of time."""
    config = dataclasses.replace(CONFIG, learning_rates=(0.0, 0.0))
    gradients = scaled_gradients()
    train, tuning, held_out = split_coordinates(40, config)
    data = identity._Data(gradients[:, train], gradients[:, tuning], gradients[:, held_out])
    losses = identity._fit_network("raw", "linear", data, config).losses
    by_seed = identity._init_weights("raw", config)
    for seed in range(config.seeds):
        weights = {name: weight[seed] for name, weight in by_seed.items()}

        def step(carry, gradient, weights=weights):
            features = jnp.stack([gradient, jnp.zeros_like(gradient)])
            output, carry = apply_network(weights, "lstm", features, carry)
            return carry, jnp.mean(jnp.square(output[0] - gradient))

        carry = init_carry("lstm", config.hidden_size, (len(train),))
        _, errors = jax.lax.scan(step, carry, jnp.asarray(data.train))
        expected = np.reshape(errors, (-1, config.window)).mean(axis=1)
        for schedule in range(2):
            for one_pass in losses[schedule, 0, seed]:
                np.testing.assert_allclose(one_pass, expected, rtol=1e-5)


def fabricated_fit(frozen, finite=(True, True)):
    """Two learning rates and two seeds, alike in both schedules; four tuning, four held-out."""
    frozen = np.broadcast_to(np.asarray(frozen, bool)[None, :, None, None], (2, 2, 2, 3, 8))
    online = np.zeros((2, 2, 2, 1, 1), np.int64)
    online[:, 1] = 6  # the second rate is ahead while training
    losses = np.zeros(online.shape, np.float32)
    return identity._Fit(
        losses, online, online, frozen, np.broadcast_to(np.asarray(finite), (2, 2, 2))
    )


@pytest.fixture
def fabricated_data():
    ones = np.ones((3, 4), np.float32)
    return identity._Data(ones[:, :2], ones, ones)


def test_the_learning_rate_is_chosen_on_the_tuning_share_alone(monkeypatch, fabricated_data):
    better_on_tuning = [1, 1, 1, 0, 1, 0, 0, 0]
    better_elsewhere = [1, 1, 0, 0, 1, 1, 1, 1]
    fit = fabricated_fit([better_on_tuning, better_elsewhere])
    monkeypatch.setattr(identity, "_fit_network", lambda *args: fit)
    for row in identity._network_rows(("raw", "linear"), fabricated_data, CONFIG):
        assert row.learning_rate == CONFIG.learning_rates[0]
        assert row.frozen == row.frozen_nonzero == row.by_decade[0] == 0.25
        assert row.online == 0.0


def test_zeros_have_no_say_in_the_choice(monkeypatch, fabricated_data):
    fabricated_data.tuning[:, 1:] = 0.0
    fit = fabricated_fit([[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]])
    monkeypatch.setattr(identity, "_fit_network", lambda *args: fit)
    rows = identity._network_rows(("raw", "linear"), fabricated_data, CONFIG)
    assert [row.learning_rate for row in rows] == [CONFIG.learning_rates[0]] * 2


def test_a_diverged_run_is_not_a_number_and_never_preferred(monkeypatch, fabricated_data):
    right, wrong = [1] * 8, [0] * 8
    one_seed_diverged = np.array([[True, False], [True, True]])
    fit = fabricated_fit([right, [1, 0, 0, 0] * 2], one_seed_diverged)
    monkeypatch.setattr(identity, "_fit_network", lambda *args: fit)
    for row in identity._network_rows(("raw", "linear"), fabricated_data, CONFIG):
        assert (row.learning_rate, row.frozen) == (CONFIG.learning_rates[1], 0.25)
    fit = fabricated_fit([right, wrong], np.zeros((2, 2), bool))
    for row in identity._network_rows(("raw", "linear"), fabricated_data, CONFIG):
        assert all(math.isnan(getattr(row, field)) for field in FIELDS)
        assert all(math.isnan(bound) for bounds in row.spread.values() for bound in bounds)
        assert math.isnan(row.by_decade[0])


def test_rates_are_constant_or_annealed_to_zero():
    constant, annealed = identity._rates(CONFIG, windows=50)
    np.testing.assert_array_equal(
        constant,
        np.array([1e-2, 3e-3], np.float32)[:, None, None] * np.ones((1, 20, 50), np.float32),
    )
    flat = annealed.reshape(2, -1)
    np.testing.assert_allclose(flat[:, 0], [1e-2, 3e-3])
    np.testing.assert_allclose(flat[:, 500], [5e-3, 1.5e-3], rtol=1e-6)
    assert (np.diff(flat) < 0).all()
    assert (flat[:, -1] < 1e-4 * flat[:, 0]).all()


@pytest.mark.parametrize("output", [-50.0, -3.0, -0.5, 0.0, 1e-4, 2.0, 50.0])
def test_symexp_inverts_the_symmetric_log_and_has_a_slope_everywhere(output):
    value, slope = jax.value_and_grad(lambda o: identity._symexp(o, o))(jnp.float32(output))
    bounded = np.clip(output, -40, 40)
    c = 1e-3
    np.testing.assert_allclose(value, c * np.sign(bounded) * np.expm1(abs(bounded)), rtol=1e-5)
    if abs(output) < 40:
        np.testing.assert_allclose(slope, c * np.exp(abs(output)), rtol=1e-5)


def test_shares_are_disjoint_and_random():
    shares = split_coordinates(100, CONFIG)
    assert [len(share) for share in shares] == [20, 10, 10]
    assert len(np.unique(np.concatenate(shares))) == 40
    everything = split_coordinates(12, CONFIG)
    np.testing.assert_array_equal(np.sort(np.concatenate(everything)), np.arange(12))
    other = split_coordinates(100, dataclasses.replace(CONFIG, seed=1))
    assert not np.array_equal(shares[0], other[0])


def test_recording_equals_a_loop_by_hand():
    task, transformation = NoisyQuadratic(), optax.rmsprop(1e-1)
    key_agent, key_updates = jax.random.split(jax.random.key(5))
    params, actor = task.init_params(key_agent), task.init_actor(key_agent)
    state, expected = transformation.init(params), []
    for key in jax.random.split(key_updates, 6):
        batch, actor, _ = task.rollout(params, actor, key)
        gradient = task.gradient(params, batch)
        expected.append(np.concatenate([np.ravel(gradient["a"]), gradient["b"]])[::3])
        steps, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, steps)
    recorded = record_gradients(task, transformation, 6, jax.random.key(5), every=3)
    assert recorded.shape == (6, 14)
    np.testing.assert_allclose(recorded, expected, rtol=1e-5, atol=1e-7)


def test_another_seed_is_recorded_by_the_same_program():
    task, programs, record = NoisyQuadratic(), [], cast(Any, recording._record)
    for seed in range(2):
        optimizer = recording.rmsprop(1e-1)
        record_gradients(task, optimizer, 7, jax.random.key(seed), every=3)
        programs.append(record._cache_size())
    assert programs[0] == programs[1]


def test_networks_share_no_key_with_the_recorded_agents(monkeypatch):
    keys = []

    def recorded(task, transformation, updates, key, every):
        keys.append(key)
        return np.zeros((1, 1), np.float32)

    def drawn(key, *sizes, **settings):
        keys.append(key)
        return {"input": jnp.zeros((1, 1))}

    monkeypatch.setattr(recording, "record_gradients", recorded)
    monkeypatch.setattr(identity, "init_network", drawn)
    recording.record_both(NoisyQuadratic(), 1e-3, 7, 3, CONFIG.seed)
    identity._init_weights("raw", CONFIG)
    assert len({str(jax.random.key_data(key)) for key in keys}) == 2 + CONFIG.seeds


def test_supervised_gradients_come_from_a_network_of_the_size_asked_for_that_learns():
    gradients = supervised_gradients(3000, optax.rmsprop(3e-3), 5, jax.random.key(0), every=1)
    assert gradients.shape[0] == 5
    assert abs(gradients.shape[1] - 3000) < 75  # a unit of the hidden layer is 75 parameters
    clusters = GaussianClusters(width=16)
    params, means = clusters.init_params(jax.random.key(0)), clusters.init_actor(jax.random.key(0))

    @jax.jit
    def learn(params, means, key):
        batch, means, loss = clusters.rollout(params, means, key)
        return clusters.gradient(params, batch), means, loss

    losses = []
    for step in range(40):
        gradient, means, loss = learn(params, means, jax.random.key(step))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_histogram_counts():
    gradients = np.array([[0.0, 0.0, 0.0, 3e-3], [-3e-3, 2e-1, 1e-20, 1e3]])
    result = histogram("hand", gradients)
    centres = (result.edges[1:] + result.edges[:-1]) / 2
    filled = {round(c, 3): share for c, share in zip(centres, result.share, strict=True) if share}
    # log10(3e-3) = -2.52 and log10(0.2) = -0.70; what lies beyond is in the bins at the ends.
    assert filled == {-2.625: 0.4, -0.625: 0.2, -11.875: 0.2, 0.875: 0.2}
    assert result.zeros == 3 / 8
    assert (result.label, result.edges[0], result.edges[-1]) == ("hand", -12.0, 1.0)


def test_histogram_decades_and_all_zeros():
    assert histogram("", np.logspace(-6, -2, 101)).decades == pytest.approx(4 * 0.98)
    empty = histogram("", np.zeros((2, 3)))
    assert (empty.zeros, empty.share.sum()) == (1.0, 0.0)
    assert math.isnan(empty.decades)


def test_the_whole_experiment_on_any_task():
    config = dataclasses.replace(CONFIG, networks=NETWORKS[-2:])
    result = identity_experiment(NoisyQuadratic(), "quadratic", config)
    assert result.task == "quadratic, RMSProp 0.003"
    assert [(row.input, row.output) for row in result.rows] == [
        ("symlog", "sign_exp"),
        ("symlog", "sign_exp"),
        ("symlog", "symexp"),
        ("symlog", "symexp"),
    ]
    assert [h.label for h in result.histograms] == ["quadratic", "supervised learning"]
    assert result.settings["recorded_coordinates"] == 40
    assert result.settings["passes"] == 20


def test_each_recording_is_an_experiment_of_its_own():
    config = dataclasses.replace(CONFIG, networks=NETWORKS[-1:], recordings=2)
    both = identity_experiment(NoisyQuadratic(), "quadratic", config)
    assert [row.recording for row in both.rows] == [0, 0, 1, 1]
    for number in (0, 1):
        own = dataclasses.replace(config, recordings=1, seed=config.seed + number)
        alone = identity_experiment(NoisyQuadratic(), "quadratic", own)
        found = [row for row in both.rows if row.recording == number]
        for x, y in zip(found, alone.rows, strict=True):
            expected = dataclasses.replace(y, recording=number)
            np.testing.assert_equal(dataclasses.asdict(x), dataclasses.asdict(expected))
    assert both.rows[0].curve.tolist() != both.rows[2].curve.tolist()


def test_what_is_kept_is_not_made_again():
    kept, made = {}, []

    def keep(question, make):
        address = json.dumps(question, sort_keys=True)
        if address not in kept:
            made.append(question)
            kept[address] = make()
        return kept[address]

    config = dataclasses.replace(CONFIG, networks=NETWORKS[-2:], recordings=2)
    results = [identity_experiment(NoisyQuadratic(), "quadratic", config, keep) for _ in range(2)]
    np.testing.assert_equal(*(identity.to_json(x) for x in results))
    assert len(made) == 2 * (1 + 2)


def test_means_over_recordings_by_hand():
    def row(recording, value, rate, decades):
        spread = dict.fromkeys(identity.ACCURACIES, (value - 0.1, value + 0.1))
        return IdentityRow(
            "raw",
            "linear",
            "annealed",
            rate,
            *[value] * 4,
            by_decade=decades,
            curve=np.array([0.0, value]),
            seeds=2,
            spread=spread,
            recording=recording,
        )

    rows = (row(0, 0.25, 1e-3, {-3: 0.5, -2: 1.0}), row(1, 0.75, 3e-3, {-3: 0.0}))
    (mean,) = identity.over_recordings(rows)
    assert [getattr(mean, name) for name in identity.ACCURACIES] == [0.5] * 4
    assert math.isnan(mean.learning_rate)
    assert mean.by_decade == {-3: 0.25, -2: 1.0}
    assert mean.curve.tolist() == [0.0, 0.5]
    assert mean.spread["frozen"] == (0.15, 0.85)
    (alone,) = identity.over_recordings(rows[:1])
    np.testing.assert_equal(dataclasses.asdict(alone), dataclasses.asdict(rows[0]))


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (np.full((100, 8), np.nan, np.float32), "800 of 800 are not finite"),
        (np.ones((100, 3), np.float32), "3 coordinates"),
        (np.ones((1, 8), np.float32), "1 updates"),
        (np.ones((0, 8), np.float32), "at least one gradient is needed"),
    ],
)
def test_gradients_that_cannot_serve_are_refused(gradients, message):
    with pytest.raises(ValueError, match=message):
        run_identity(gradients, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passes": 0}, "passes = 0"),
        ({"seeds": True}, "seeds = True"),
        ({"max_coordinates": 3}, "max_coordinates = 3"),
        ({"learning_rates": ()}, r"learning_rates = \(\): at least one"),
        ({"learning_rates": (math.nan,)}, "nan"),
        ({"networks": (("cubed", "linear"),)}, "unknown input 'cubed'"),
        ({"networks": (("raw", "cubed"),)}, "unknown output 'cubed'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, **change)


def test_a_result_is_read_from_json_as_it_was():
    accuracies = ("online", "online_nonzero", "frozen", "frozen_nonzero")
    row = IdentityRow(
        "raw",
        "linear",
        "annealed",
        1e-3,
        **dict.fromkeys(accuracies, math.nan),
        by_decade={-7: 0.25, -6: math.nan},
        curve=np.array([0.0, np.nan, 0.5]),
        seeds=2,
        spread=dict.fromkeys(accuracies, (0.1, math.nan)),
    )
    shares = Histogram("agent", np.array([-3.0, -2.0, -1.0]), np.array([0.25, 0.75]), 0.5, 1.9)
    result = IdentityResult("catch", (row,), (shares,), {"updates": 20, "rates": [1e-3]})
    found = identity.from_json(json.loads(json.dumps(identity.to_json(result))))
    np.testing.assert_equal(dataclasses.asdict(found), dataclasses.asdict(result))
    assert isinstance(found.rows[0].spread["frozen"], tuple)
    (alone,) = identity.rows_from_json(json.loads(json.dumps(identity.to_json((row,)))))
    np.testing.assert_equal(dataclasses.asdict(alone), dataclasses.asdict(row))


def test_presets_compare_the_whole_grid():
    factors = {(i, o) for i in ("raw", "sign_log") for o in ("linear", "sign_exp")}
    for preset in (SMOKE, QUICK, PAPER):
        assert factors | {("symlog", "sign_exp"), ("symlog", "symexp")} == set(preset.networks)
    assert PAPER.learning_rates == (3e-3, 1e-3, 3e-4, 1e-4)
    assert (PAPER.every, PAPER.window, PAPER.hidden_size, PAPER.head_sizes) == (100, 5, 8, (16, 16))
