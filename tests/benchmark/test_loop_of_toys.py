"""The loop on toys: read as they were made, settings from tuning seeds, nothing run twice."""

import dataclasses
import json

import numpy as np
import pytest

from optim4rl.benchmark import loop
from optim4rl.benchmark.protocol import EVALUATION_SEED, STRESS_SEED, TUNING_SEED
from optim4rl.benchmark.rows import table_rows
from optim4rl.pages.benchmark import to_json, to_markdown
from optim4rl.pages.claims import claims, tuning_budget
from toys import RATES, batch_of, benchmark, playing, run_toys, save_rules, toy_level, toy_run

RECORD = {"command": "optim4rl evaluate", "versions": {"jax": "0"}, "code": "c" * 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_rules(tmp_path_factory.mktemp("weights"), 3)


@pytest.fixture(scope="module")
def played(weights, tmp_path_factory):
    """The results of a benchmark of one rule, and the batches that were run for them."""
    with playing() as pool:
        results = loop.run(benchmark(tmp_path_factory.mktemp("loop"), weights[:1]))
    return results, [batch_of(job) for job in pool.ran]


def test_toys_are_read_as_they_were_made(weights, tmp_path):
    """Known levels: 1 is Adam, the rule is at 1.2, RMSProp at 0.9, Muon at 1.1."""
    results = run_toys(tmp_path, [",".join(weights)])
    expected = {
        "rule-0 +2": 1.2,
        "rule-0 +2 untrained": 1.2,
        "adam": 1.0,
        "rmsprop": 0.9,
        "sign_sgd": 0.8,
        "muon": 1.1,
        "adam_decay": 1.0,
        "adam_raw_rewards": 0.95,
    }
    choices = results.runs.choices
    assert set(choices) == set(expected)
    for reading in ("tuned", "one"):
        for name, value in expected.items():
            standing = results.standings[reading][name]
            for score in (standing.auc, standing.final):
                assert score.mean.value == pytest.approx(value), name
                assert score.mean.low <= score.mean.value + 1e-9
            assert standing.diverged == 0
            assert standing.members == pytest.approx([value] * len(choices[name]))
    assert results.auc_scale.best == ("adam", "adam")
    for name, found in choices.items():
        best = 1.0 if name.startswith("rule") else 0.01
        assert [x.rate for c in found for x in (*c.each, c.one)] == [best] * 3 * len(found)


def test_two_contenders_of_one_name_are_refused(tmp_path):
    found = benchmark(tmp_path, baselines=("adam", "rmsprop"))
    twice = (*found.contenders, found.contenders[0])
    with pytest.raises(ValueError, match=r"contenders = \['adam', 'rmsprop', 'adam'\]: each name"):
        dataclasses.replace(found, contenders=twice)


def test_every_seed_has_one_use_and_no_run_is_made_twice(played):
    runs = [
        (batch.config, batch.maker, *run, batch.rollouts, batch.schedule)
        for batch in played[1]
        for run in batch.runs
    ]
    assert len(set(runs)) == len(runs)
    used = {
        first: {run[3] for run in runs if first <= run[3] < first + 1_000}
        for first in (TUNING_SEED, EVALUATION_SEED, STRESS_SEED)
    }
    assert [len(seeds) for seeds in used.values()] == [2, 10, 4]
    assert sum(len(seeds) for seeds in used.values()) == len({run[3] for run in runs})
    # As many tuning runs for each optimizer on each task.
    counts = {}
    for config, maker, rate, seed, *_ in runs:
        if seed in used[TUNING_SEED] and rate:
            key = (config.environment, maker)
            counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) == {len(RATES) * 2}
    assert len(counts) == 2 * 8


def test_a_stopped_run_goes_on_and_comes_to_the_same(played, weights, tmp_path):
    whole, made = played
    parts = []

    def stop_after(limit):
        def stop(count):
            if count >= limit:
                raise KeyboardInterrupt

        return stop

    for limit in (7, len(made) - 11):
        with playing(before=stop_after(limit)) as pool, pytest.raises(KeyboardInterrupt):
            loop.run(benchmark(tmp_path, weights[:1]))
        parts += pool.ran
    with playing() as pool:
        results = loop.run(benchmark(tmp_path, weights[:1]))
    parts += pool.ran
    assert sorted(map(str, map(batch_of, parts))) == sorted(map(str, made))
    assert json.dumps(to_json(results)) == json.dumps(to_json(whole))
    assert to_markdown(results, RECORD) == to_markdown(whole, RECORD)


def test_one_setting_is_chosen_by_the_mean_over_tasks(tmp_path):
    """Adam wants 0.1 on one task and 0.001 on the other: 0.01 is best for both."""

    def conflict(batch, rate, seed):
        best = 0.1 if batch.config.environment == "catch" else 0.001
        return 1.0 - 0.3 * np.log10(rate / best) ** 2 if rate else -1.0

    results = run_toys(
        tmp_path, make_run=lambda batch: toy_run(batch, conflict), baselines=("adam",)
    )
    (choice,) = results.runs.choices["adam"]
    assert [x.rate for x in choice.each] == [0.1, 0.001]
    assert all(x.at_edge for x in choice.each)
    assert choice.one.rate == 0.01
    assert not choice.one.at_edge
    assert results.standings["tuned"]["adam"].auc.mean.value == pytest.approx(1.0)
    assert results.standings["one"]["adam"].auc.mean.value == pytest.approx(0.85)


def falling(best):
    """A level that falls by 0.3 for each decade squared from the best rate of each task."""
    return lambda batch, rate, seed: (
        1.0 - 0.3 * np.log10(rate / best[batch.config.environment]) ** 2 if rate else -1.0
    )


def test_a_grid_is_extended_until_the_best_is_inside(tmp_path):
    """Optimizers want 1 on one task and 0.01 on the other; their grid ends at 0.1."""
    level = falling({"catch": 1.0, "small_dense_short/free": 0.01})
    setting = {"baselines": ("adam", "rmsprop"), "extensions": 4}
    with playing(lambda batch: toy_run(batch, level)) as pool:
        results = loop.run(benchmark(tmp_path, **setting))
    (choice,) = results.runs.choices["adam"]
    assert [x.rate for x in choice.each] == [1.0, 0.01]
    assert choice.each[0].rates == (*RATES, 0.3, 1.0, 3.0)
    assert not any(x.at_edge for x in (*choice.each, choice.one))
    # The table has every run, and the page what they cost.
    tried = [len(x.rates) for x in choice.each]
    assert tuning_budget(results) == {"adam": 2 * sum(tried), "rmsprop": 2 * sum(tried)}
    rows = [x for x in table_rows(results.runs) if x["optimizer"] == "adam"]
    tuning = [x for x in rows if x["purpose"] == "tuning"]
    assert len(tuning) == 2 * sum(tried)
    assert {x["setting"] for x in tuning if x["task"] == "catch"} == {*RATES, 0.3, 1.0, 3.0}
    text = to_markdown(results, RECORD)
    assert "next half decade is tried, too, up to 4 times on each side" in text
    assert f"| adam | {2 * sum(tried)} | {min(tried)} to {max(tried)} | 0.001 to 3 |" in text
    assert "edge of its grid" not in text
    # When it goes on, nothing is made twice.
    with playing() as again:
        loop.run(benchmark(tmp_path, **setting))
    made = [batch_of(job) for job in pool.ran]
    assert len(set(made)) == len(made)
    assert again.ran == []


def test_a_grid_is_extended_up_to_its_limit_and_the_edge_is_named(tmp_path):
    """The one setting asks for more as well, on every task."""
    level = falling({"catch": 1e-6, "small_dense_short/free": 1e-6})
    results = run_toys(
        tmp_path, make_run=lambda batch: toy_run(batch, level), baselines=("adam",), extensions=2
    )
    (choice,) = results.runs.choices["adam"]
    assert {x.rates for x in (*choice.each, choice.one)} == {(0.0001, 0.0003, *RATES)}
    assert "one setting" in next(x for x in claims(results) if "at an edge of its grid" in x)


def test_where_nothing_is_learned_nothing_is_extended(tmp_path):
    level = lambda *_: 0.5  # noqa: E731
    results = run_toys(
        tmp_path, make_run=lambda batch: toy_run(batch, level), baselines=("adam",), extensions=4
    )
    assert results.runs.choices["adam"][0].each[0].rates == RATES


def test_a_setting_at_which_a_run_diverges_is_chosen_last(tmp_path):
    def diverging(batch):
        arrays = toy_run(batch)
        lost = [rate == 0.01 and seed == TUNING_SEED for rate, seed in batch.runs]
        arrays["returns"][lost] = np.nan
        arrays["diverged_at"][lost] = 0
        return arrays

    results = run_toys(tmp_path, make_run=diverging, baselines=("adam",))
    (choice,) = results.runs.choices["adam"]
    assert 0.01 not in [x.rate for x in (*choice.each, choice.one)]
    assert {score for x in choice.each for score in x.scores if score == -np.inf}


def test_a_task_that_no_baseline_learns_has_no_scale(weights, tmp_path):
    def hopeless(batch, rate, seed):
        learns = batch.config.environment != "catch" or not batch.maker.optimizer
        return toy_level(batch, rate, seed) * learns

    results = run_toys(
        tmp_path, weights[:1], lambda batch: toy_run(batch, hopeless), controls=False
    )
    assert results.auc_scale.resolved.tolist() == [False, True]
    standing = results.standings["tuned"]["rule-0"]
    assert standing.auc.tasks[0] is None
    assert standing.auc.mean.value == pytest.approx(1.2)
    assert results.stuck["rule-0"]["catch"] == dict.fromkeys((1.0, 2.0, 4.0))


@pytest.mark.parametrize(
    "adam",
    [None, lambda seed: -1.0 - 0.01 * seed % 0.1, lambda seed: np.nan],
    ids=["no baseline", "a baseline that unlearns", "a baseline that diverges"],
)
def test_nothing_is_called_stuck_where_no_baseline_learns(adam, weights, tmp_path):
    def run(batch):
        def level(batch, rate, seed):
            if batch.maker.optimizer == "adam":
                return adam(seed)
            return toy_level(batch, rate, seed)

        arrays = toy_run(batch, level)
        arrays["diverged_at"][np.isnan(arrays["returns"][:, 0])] = 0
        return arrays

    results = run_toys(
        tmp_path,
        weights[:1],
        run,
        controls=False,
        baselines=() if adam is None else ("adam",),
        only=("catch",),
    )
    for tasks in results.stuck.values():
        assert tasks == {"catch": dict.fromkeys((1.0, 2.0, 4.0))}
    json.dumps(to_json(results), allow_nan=False)


def test_stuck_runs_are_counted_at_multiples_of_the_tuned_setting(played):
    """At four times its rate Adam's toy ends at 0.88 of the way, which is stuck."""
    stuck = played[0].stuck
    assert list(stuck["adam"]) == ["catch"]
    assert [rate.value for rate in stuck["adam"]["catch"].values()] == [0.0, 0.0, 1.0]
    assert [rate.value for rate in stuck["rule-0"]["catch"].values()] == [0.0] * 3


def test_a_run_that_diverges_counts_as_failed_and_as_stuck(weights, tmp_path):
    def diverging(batch):
        arrays = toy_run(batch)
        lost = [
            batch.maker.weights is not None and seed in (EVALUATION_SEED + 1, STRESS_SEED + 1)
            for _, seed in batch.runs
        ]
        arrays["returns"][lost, 2:] = np.nan
        arrays["diverged_at"][lost] = 2
        return arrays

    results = run_toys(tmp_path, weights[:1], diverging, controls=False, only=("catch",))
    standing = results.standings["tuned"]["rule-0"]
    assert (standing.diverged, standing.runs) == (1, 10)
    assert np.isnan(standing.auc.mean.value)
    assert [rate.value for rate in results.stuck["rule-0"]["catch"].values()] == [0.25] * 3
