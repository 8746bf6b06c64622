"""A long meta-training: a stop costs the last minutes, and changes no number."""

import dataclasses

import jax
import numpy as np
import pytest
from test_trainer import assert_identical

from optim4rl.meta import resumable
from optim4rl.meta.checkpoint import has_checkpoint
from optim4rl.meta.resumable import train_resumably
from optim4rl.meta.trainer import MetaConfig, MetaDivergenceError, MetaTask, train
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.tasks import A2CConfig, TaskConfig, make_task

CATCH = TaskConfig("catch", num_envs=2, width=4, learner=A2CConfig(rollout=5))
SPEC, TASKS = OptimizerSpec(hidden_size=2, head_sizes=()), (MetaTask(make_task(CATCH), 0.01),)
META = MetaConfig(iterations=5, agents=2, inner_updates=2, reset_interval=2)
SETTINGS = {"meta": dataclasses.asdict(META)}


def test_a_training_that_was_cut_off_goes_on_with_all_that_it_knew(tmp_path, monkeypatch):
    # In chunks of the same length: the same program, whatever kernel runs.
    state, progress = train(SPEC, TASKS, META, chunk=1)
    path, saves, states = tmp_path / "x.safetensors", [], []

    def cut(*given):
        save(*given)
        saves.append(given)
        if len(saves) == 2:
            raise KeyboardInterrupt

    def watched(path, like, *given):
        # A second state beside the one that is read may not fit into memory.
        states.extend(isinstance(x, jax.Array) for x in jax.tree.leaves(like))
        return resume(path, like, *given)

    save, resume = resumable.save_checkpoint, resumable.resume_checkpoint
    monkeypatch.setattr(resumable, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(resumable, "save_checkpoint", cut)
    monkeypatch.setattr(resumable, "resume_checkpoint", watched)
    with pytest.raises(KeyboardInterrupt):
        train_resumably(SPEC, TASKS, META, path, SETTINGS)
    weights, norms = train_resumably(SPEC, TASKS, META, path, SETTINGS)
    assert len(saves) == 4  # after every iteration but the last, none of them twice
    assert states
    assert not any(states)
    assert_identical(weights, state.meta_parameters)
    np.testing.assert_array_equal(norms, progress.meta_gradient_norm)
    assert list(tmp_path.iterdir()) == []


def test_a_short_training_saves_nothing(tmp_path):
    _, norms = train_resumably(SPEC, TASKS, META, tmp_path / "none" / "x.safetensors", SETTINGS)
    assert norms.shape == (META.iterations,)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "SECONDS_BETWEEN_SAVES", 0.0)
    path = tmp_path / "x.safetensors"
    wild = dataclasses.replace(TASKS[0], learning_rate=3e38)
    with pytest.raises(MetaDivergenceError, match="ran out of finite numbers"):
        train_resumably(SPEC, (wild,), META, path, SETTINGS)
    assert not has_checkpoint(path)
