"""The jobs of a study besides evaluation: what they are asked, what they find, what is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neighbours import neighbours
from optim4rl.fields import to_json
from optim4rl.jobs.job import Result
from optim4rl.jobs.store import StoreError, get_result, put_result
from optim4rl.meta import resumable
from optim4rl.meta.trainer import MetaDivergenceError
from optim4rl.optimizers.rule import init_meta_parameters
from optim4rl.optimizers.weights import flatten, load_weights
from optim4rl.study import cells, identity
from optim4rl.study.cells import (
    IDENTITY_SCALES,
    Training,
    identity_job,
    keep_member,
    meta_train,
    run_identity,
    training_job,
)
from optim4rl.study.settings import TrainingSettings
from optim4rl.study.variant import REFERENCE
from pretended import IDENTITY

SMALL = TrainingSettings(
    width=4, agents=2, envs_per_agent=2, iterations=2, inner_updates=2, reset_interval=2
)
LONGER = dataclasses.replace(SMALL, iterations=4)
TRAINING = Training("catch", REFERENCE, SMALL, 64, 3e-3, 1)


def test_every_field_changes_the_address():
    others = list(neighbours(TRAINING))
    fields = sum(len(dataclasses.fields(x)) for x in (TRAINING, REFERENCE, SMALL))
    assert len(others) >= fields - 2  # the two that have fields of their own
    assert len({training_job(x).address for x in [TRAINING, *others]}) == 1 + len(others)
    assert len({identity_job(scale).address for scale in IDENTITY_SCALES}) == len(IDENTITY_SCALES)


def test_meta_trainings_of_one_program_are_known():
    """Whatever their seed and meta-learning rate are."""
    other = dataclasses.replace(TRAINING, meta_seed=5, meta_learning_rate=0.1)
    assert training_job(other).program == training_job(TRAINING).program
    variant = dataclasses.replace(REFERENCE, resets="never")
    other = dataclasses.replace(TRAINING, variant=variant)
    assert training_job(other).program != training_job(TRAINING).program


def test_a_job_says_what_it_is():
    variant = dataclasses.replace(REFERENCE, resets="never")
    untrained = dataclasses.replace(TRAINING, trained=False)
    said = [
        training_job(x).what
        for x in (TRAINING, dataclasses.replace(TRAINING, variant=variant), untrained)
    ]
    assert said == [
        "meta-training: reference, meta-seed 1",
        "meta-training: resets: staggered → never, meta-seed 1",
        "meta-training: untrained, meta-seed 1",
    ]


def test_the_control_has_the_weights_that_training_starts_from(tmp_path):
    asked = training_job(dataclasses.replace(TRAINING, trained=False)).arguments
    found = meta_train(tmp_path, asked).arrays
    state = cells.init(
        TRAINING.spec, cells.training_tasks("catch", TRAINING.settings), TRAINING.config
    )
    fresh = flatten(state.meta_parameters)
    assert found.keys() == {*fresh, "meta_gradient_norm"}
    assert found["meta_gradient_norm"].size == 0
    for name, x in fresh.items():
        np.testing.assert_array_equal(found[name], x)


def test_the_control_is_one_rule_whatever_its_seed(tmp_path):
    """Other weights, whose heads are zero: the same steps."""
    params, found = {"x": jnp.array([0.3, -2.0, 0.0])}, []
    for seed in (0, 1):
        asked = dataclasses.replace(TRAINING, trained=False, meta_seed=seed)
        put_result(tmp_path, training_job(asked), meta_train(tmp_path, to_json(asked)))
        maker = keep_member(tmp_path, asked)
        family, weights = maker.family(tmp_path, 9)
        optimizer = family(weights, jnp.float32(0.1))
        steps, state = optimizer.update(params, optimizer.init(params), params)
        found.append(
            (maker, *(optimizer.update(x, state, params)[0]["x"] for x in (steps, params)))
        )
    assert found[0][0] != found[1][0]
    np.testing.assert_array_equal(found[0][1:], found[1][1:])


def test_a_meta_training_that_diverges_says_so_and_has_no_weights(tmp_path, monkeypatch):
    def train(*arguments, **options):
        error = MetaDivergenceError.__new__(MetaDivergenceError)
        error.args = ("no finite numbers at iteration 3",)
        raise error

    monkeypatch.setattr(resumable, "train", train)
    found = meta_train(tmp_path, training_job(TRAINING).arguments)
    assert found == Result({}, {"failure": "no finite numbers at iteration 3"})


def test_a_meta_training_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    job, saves = training_job(dataclasses.replace(TRAINING, training=LONGER)), []
    whole = meta_train(tmp_path / "whole", job.arguments)

    def cut(*given):
        save(*given)
        saves.append(given)
        if len(saves) == 2:
            raise KeyboardInterrupt

    save = resumable.save_checkpoint
    monkeypatch.setattr(resumable, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(resumable, "save_checkpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        meta_train(tmp_path / "cut", job.arguments)
    resumed = meta_train(tmp_path / "cut", job.arguments)
    assert len(saves) == LONGER.iterations - 1
    assert resumed.arrays.keys() == whole.arrays.keys()
    for name, x in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], x)


# Members


def put(folder, seed):
    """A finished meta-training."""
    training = dataclasses.replace(TRAINING, meta_seed=seed)
    weights = flatten(init_meta_parameters(training.spec, jax.random.key(seed)))
    arrays = {name: np.asarray(x) for name, x in weights.items()}
    norms = {"meta_gradient_norm": np.ones(2, np.float32)}
    put_result(folder, training_job(training), Result({**arrays, **norms}, {}))
    return training


def test_the_weights_of_finished_trainings_are_kept_for_workers(tmp_path):
    for seed in (0, 1):
        training = put(tmp_path, seed)
        maker = keep_member(tmp_path, training)
        learned = load_weights(tmp_path / str(maker.file))
        assert (learned.spec, learned.learning_rate) == (TRAINING.spec, SMALL.learning_rate)
        arrays = get_result(tmp_path, training_job(training)).arrays
        for name, x in flatten(learned.meta_parameters).items():
            np.testing.assert_array_equal(arrays[name], x)
        assert keep_member(tmp_path, training) == maker


def test_an_unfinished_training_has_no_member(tmp_path):
    with pytest.raises(StoreError, match="no such result"):
        keep_member(tmp_path, TRAINING)


# The identity experiment


@pytest.mark.parametrize("scale", IDENTITY_SCALES)
def test_the_identity_experiment_is_that_of_its_scale(scale, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(identity, "identity_experiment", lambda *x: asked.append(x) or IDENTITY)
    found = run_identity(tmp_path, identity_job(scale).arguments)
    assert identity.from_json(found.info["identity"]) == IDENTITY
    ((task, name, config, _),) = asked
    assert (task.config.environment, name) == (cells.IDENTITY_TASKS[scale],) * 2
    assert config == IDENTITY_SCALES[scale]


def test_the_papers_gradients_are_those_of_its_agent_on_512_environments():
    task = cells.identity_task("big_dense_long", IDENTITY_SCALES["paper"])
    assert task.config.num_envs == 512
    steps = IDENTITY_SCALES["paper"].updates * task.env_steps_per_rollout
    assert steps == pytest.approx(3e7, rel=1e-3)
    usual = cells.default_config("catch").num_envs
    assert cells.identity_task("catch", IDENTITY_SCALES["quick"]).config.num_envs == usual


def test_a_stop_of_the_identity_experiment_costs_one_part(tmp_path, monkeypatch):
    numbers = dict.fromkeys(("online", "online_nonzero", "frozen", "frozen_nonzero"), 0.5)
    spread = dict.fromkeys(numbers, (0.4, 0.6))
    row = identity.IdentityRow(
        "raw", "linear", "constant", 3e-3, *numbers.values(), {-3: 0.1}, np.array([0.1]), 2, spread
    )
    made = []

    def experiment(task, name, config, keep):
        def make():
            made.append(name)
            if len(made) == 3:
                raise KeyboardInterrupt
            return Result({}, {"rows": identity.to_json((row,))})

        for network in config.networks:
            keep({"network": network}, make)
        return identity.IdentityResult(name, (row,) * len(config.networks), (), {})

    monkeypatch.setattr(identity, "identity_experiment", experiment)
    asked = identity_job("smoke").arguments
    with pytest.raises(KeyboardInterrupt):
        run_identity(tmp_path, asked)
    found = identity.from_json(run_identity(tmp_path, asked).info["identity"])
    assert len(found.rows) == len(IDENTITY_SCALES["smoke"].networks)
    assert len(made) == len(found.rows) + 1
