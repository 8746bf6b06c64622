"""Batches of runs: what goes into one, what its job says, what is read of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neighbours import neighbours
from optim4rl.benchmark import progress
from optim4rl.benchmark.contender import UNTRAINED, Maker
from optim4rl.benchmark.progress import SavedProgress
from optim4rl.benchmark.runs import Batch, job, read_batches, split, train_batch
from optim4rl.evaluation import learning
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.evaluation.learning import BATCH, CHUNK, Classical, train_runs
from optim4rl.files.sealed import write_sealed
from optim4rl.jobs.job import Refusal, Result
from optim4rl.jobs.store import StoreError, get_result, has_result, put_result, result_path
from optim4rl.jobs.worker import answer
from optim4rl.optimizers.weight_files import WeightsError
from optim4rl.tasks import PPOConfig, TaskConfig, default_config, make_task
from pretended import curves

TASK = TaskConfig("catch", num_envs=2, width=4, normalise_rewards=True)
ADAM = Maker("adam")
ONE = Batch(TASK, ADAM, ((0.01, 7), (0.1, 8)), 3, 3)


# Splitting


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=7, unique=True),
    st.lists(st.integers(0, 99), min_size=1, max_size=19, unique=True),
)
def test_batches_are_full_but_for_the_last(rates, seeds):
    batches = split(TASK, ADAM, rates, seeds, 5)
    assert [run for batch in batches for run in batch.runs] == [
        (rate, seed) for rate in rates for seed in seeds
    ]
    assert {len(batch.runs) for batch in batches[:-1]} <= {BATCH}
    assert len(batches) == -(-len(rates) * len(seeds) // BATCH)
    assert all(
        batch == dataclasses.replace(ONE, runs=batch.runs, rollouts=5, schedule=5)
        for batch in batches
    )


@pytest.mark.parametrize(
    "maker", [Maker("adam", decay=True), Maker(weights="a"), Maker(source="a:f")]
)
def test_what_looks_at_the_whole_run_has_a_schedule_longer_than_a_stress_run(maker):
    (short,) = split(TASK, maker, [0.1], [0], 5, schedule=40)
    assert (short.rollouts, short.schedule) == (5, 40)
    (plain,) = split(TASK, ADAM, [0.1], [0], 5, schedule=40)
    assert plain.schedule == 5


def test_raw_rewards_are_the_environments_own():
    config = default_config("brax:ant")
    learner = dataclasses.replace(config.learner, reward_scale=1.0)
    normalised = dataclasses.replace(config, learner=learner, normalise_rewards=True)
    (raw,) = split(normalised, Maker("adam", raw_rewards=True), [0.1], [0], 5)
    assert raw.config == dataclasses.replace(config, normalise_rewards=False)


# Jobs


@pytest.mark.parametrize("batch", [ONE, dataclasses.replace(ONE, maker=Maker(None, "a"))])
def test_whatever_changes_a_run_changes_its_address(batch):
    others = list(neighbours(batch))
    assert len({job(x).address for x in [batch, *others]}) == 1 + len(others)
    changed = {
        field.name
        for field in dataclasses.fields(Batch)
        if any(getattr(x, field.name) != getattr(batch, field.name) for x in others)
    }
    assert changed == {field.name for field in dataclasses.fields(Batch)}
    assert job(dataclasses.replace(batch)).address == job(batch).address


def test_runs_of_one_program_are_known():
    """Whatever their rates, seeds and weights are; another rule or task needs another."""
    learned = dataclasses.replace(ONE, maker=Maker(None, "a"))
    other_weights = dataclasses.replace(ONE, maker=Maker(None, "b"))
    assert job(learned).program == job(other_weights).program != job(ONE).program
    assert job(dataclasses.replace(ONE, runs=((0.5, 1),))).program == job(ONE).program
    wider = dataclasses.replace(ONE, config=dataclasses.replace(TASK, width=5))
    assert job(wider).program != job(ONE).program
    assert job(learned).files == ("weights/a.safetensors",)
    assert job(ONE).files == ()


def test_a_job_says_what_it_is():
    assert job(ONE).what == "catch: adam 0.01, 0.1"
    assert job(dataclasses.replace(ONE, maker=Maker(None, "a"))).what == "catch: learned 0.01, 0.1"
    (still,) = split(TASK, UNTRAINED, [0.0], [3, 4], 3)
    assert job(still).what == "catch: untrained policy"


# Results


def put(folder, batch, of_run=lambda batch, rate, seed: 100 * rate + seed, seconds=1.0):
    found = curves(batch, of_run)
    put_result(folder, job(batch), Result(found.arrays, {"seconds": seconds}))


def test_curves_are_read_by_rate_over_all_batches(tmp_path):
    rates, seeds = (0.1, 0.2, 0.3), range(5)
    batches = split(TASK, ADAM, rates, seeds, 4)
    assert [len(batch.runs) for batch in batches] == [8, 7]
    for batch in batches:
        put(tmp_path, batch, seconds=1.5)
    found = read_batches(tmp_path, batches)
    assert list(found) == list(rates)
    for rate, each in found.items():
        expected = np.repeat(100 * rate + np.arange(5.0)[:, None], 4, axis=1)
        np.testing.assert_allclose(each.returns, expected, rtol=1e-6)
        np.testing.assert_array_equal(each.env_steps, [1, 2, 3, 4])
    result_path(tmp_path, job(batches[1])).unlink()
    with pytest.raises(StoreError, match=job(batches[1]).address):
        read_batches(tmp_path, batches)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, BATCH), st.integers(1, 6), st.data())
def test_curves_come_back_as_they_were(tmp_path_factory, runs, rollouts, data):
    ends = st.lists(st.integers(HEALTHY, rollouts - 1), min_size=runs, max_size=runs)
    diverged_at = np.array(data.draw(ends))
    returns = np.arange(runs * rollouts, dtype=np.float32).reshape(runs, rollouts)
    for run, at in enumerate(diverged_at):
        returns[run, at if at != HEALTHY else rollouts :] = np.nan
    numbers = st.none() | st.just(np.linspace(1.0, 2.0, runs))
    before = Curves(
        returns,
        diverged_at,
        80 * np.arange(1, rollouts + 1),
        greedy=data.draw(numbers),
        seconds=data.draw(numbers),
    )
    batch = dataclasses.replace(ONE, runs=tuple((0.1, i) for i in range(runs)), rollouts=rollouts)
    folder = tmp_path_factory.mktemp("curves")
    arrays = {name: x for name, x in vars(before).items() if x is not None}
    put_result(folder, job(batch), Result(arrays, {}))
    (found,) = read_batches(folder, [batch]).values()
    for field, value in vars(before).items():
        np.testing.assert_array_equal(getattr(found, field), value)


# The work


def test_agents_that_never_update_stay_as_they_are(tmp_path):
    """Without gradients they play as with an optimizer that does not move them."""
    (batch,) = split(TASK, UNTRAINED, [0.0], [3, 4], 3)
    still = train_batch(tmp_path, job(batch).arguments).arrays
    assert (still["diverged_at"] == HEALTHY).all()
    same = train_runs(make_task(TASK), Classical("adam"), None, batch.runs, 3)
    np.testing.assert_array_equal(still["returns"], same.returns)
    assert still["env_steps"][-1] == 3 * 2 * TASK.learner.rollout


def test_a_worker_makes_a_batch(tmp_path):
    (batch,) = split(TASK, UNTRAINED, [0.0], [3, 4], 3)
    asked = job(batch)
    question = asked.question | {"address": asked.address}
    assert answer(tmp_path, question) == {"done": True}
    assert has_result(tmp_path, asked)
    assert get_result(tmp_path, asked).info["seconds"] > 0


def test_a_run_too_short_for_an_episode_is_refused_with_advice(tmp_path):
    """An episode of CartPole never ends in its first four steps."""
    learner = PPOConfig(rollout=4, epochs=1, minibatches=1)
    short = TaskConfig("gymnax:CartPole-v1", num_envs=2, width=4, learner=learner)
    (batch,) = split(short, UNTRAINED, [0.0], [3], 1)
    with pytest.raises(Refusal, match=r"no episode ended in the 1 rollouts.*--stress-rollouts"):
        train_batch(tmp_path, job(batch).arguments)


def test_weights_that_are_not_there_are_named(tmp_path):
    lost = job(dataclasses.replace(ONE, maker=Maker(None, "nowhere")))
    with pytest.raises(WeightsError, match="nowhere"):
        answer(tmp_path, lost.question | {"address": lost.address})


def stopped_after(saves):
    """A way to write sealed files that is stopped before one save more."""
    left = [saves]

    def write(*given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write_sealed(*given)

    return write


@pytest.mark.parametrize("maker", [ADAM, Maker("muon", clip=0.5, decay=True, reset="time")])
def test_a_stopped_batch_goes_on_bit_for_bit(maker, tmp_path, monkeypatch):
    asked = job(dataclasses.replace(ONE, maker=maker, rollouts=3 * CHUNK - 5, schedule=200))
    whole = train_batch(tmp_path / "whole", asked.arguments).arrays
    assert not (tmp_path / "whole").exists(), "a short batch saves nothing"
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SAVES", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(progress, "write_sealed", stopped_after(2))
        with pytest.raises(KeyboardInterrupt):
            train_batch(tmp_path, asked.arguments)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert saved.stem == asked.address
    advance, firsts = learning._advance, []

    class Watched:
        lower = staticmethod(advance.lower)

        def __call__(self, *given):
            firsts.append(given[6])
            return advance(*given)

    monkeypatch.setattr(learning, "_advance", Watched())
    found = train_batch(tmp_path, asked.arguments).arrays
    assert firsts == [2 * CHUNK], "finished chunks are not run again"
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert found.keys() == whole.keys()
    for name in found.keys() - {"seconds"}:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    assert (found["seconds"] > 0).all()


def test_any_arrays_are_progress(tmp_path, monkeypatch):
    """Random keys, half-precision numbers, empty arrays, scalars, NumPy arrays in 64 bits."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SAVES", 0.0)
    tree = {
        "keys": jax.random.split(jax.random.key(3), 2),
        "half": jnp.linspace(0.0, 1.0, 3, dtype=jnp.bfloat16),
        "flags": jnp.array([True, False]),
        "none": jnp.zeros((0, 4)),
        "count": jnp.int32(7),
        "seconds": np.asarray(1.0 / 3.0),
    }
    keeper = SavedProgress(tmp_path / "a.safetensors")
    blank = jax.tree.map(lambda x: np.zeros_like(x) if isinstance(x, np.ndarray) else x[...], tree)
    assert keeper.restore(blank) is blank
    keeper.keep(tree)
    found = keeper.restore(blank)
    for name, x in tree.items():
        assert type(found[name]) is type(x)
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), found, tree))
    keeper.path.write_bytes(keeper.path.read_bytes()[:-1] + b"!")
    assert keeper.restore(blank) is blank, "damaged: the batch starts anew"
    keeper.remove()
    assert not keeper.path.exists()
