"""A benchmark of toys: runs whose curves are known beforehand, made here and now.

Every test that asks what the loop does with runs, or what a page says of them, starts from these.
"""

import dataclasses
import json
from contextlib import contextmanager
from types import MappingProxyType

import jax
import numpy as np
import pytest

from optim4rl.benchmark import loop, scale
from optim4rl.benchmark.runs import Batch
from optim4rl.benchmark.table import write_runs
from optim4rl.cli.evaluate import EvaluateOptions, lay_out, make_suite
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.fields import from_json
from optim4rl.jobs.job import Result
from optim4rl.optimizers.weights import LearnedOptimizer, save_weights, untrained
from pretended import PretendedPool, curves

RATES, SCALES = (0.001, 0.01, 0.1), (0.3, 1.0, 3.0)
TASKS = ("catch", "small_dense_short/free")
ALPHA = 3e-3
# What each optimizer comes to at its best rate, in the task's unit; None is a learned one.
LEVELS = {"adam": 1.0, "rmsprop": 0.9, "sign_sgd": 0.8, "muon": 1.1, None: 1.2}
OPTIONS = EvaluateOptions(
    (),
    suite="grid",
    only=TASKS,
    seeds=10,
    tuning_seeds=2,
    rates=RATES,
    step_scales=SCALES,
    stress_seeds=4,
    rollouts=5,
    num_envs=2,
    extensions=0,
)


def save_rules(folder, count):
    """Weights of several meta-seeds of one recipe, other than those of the untrained control."""
    paths = [folder / f"rule-{seed}.safetensors" for seed in range(count)]
    for seed, path in enumerate(paths, 1):
        save_weights(path, untrained("optim4rl-rlc", ALPHA, jax.random.key(seed)))
    return [str(path) for path in paths]


def unit(batch):
    """What 1 is on the task."""
    return 1.0 if batch.config.environment == "catch" else 10.0


def toy_level(batch, rate, seed):
    """A level of the optimizer, less for a wrong rate, and a little luck."""
    if not rate:
        return 0.01 * np.sin(seed)
    best = 0.01 if batch.maker.optimizer else ALPHA
    level = LEVELS[batch.maker.optimizer] - 0.2 * abs(np.log10(rate / best))
    return level - 0.05 * batch.maker.raw_rewards + 0.01 * np.sin(seed)


def toy_run(batch, level=toy_level):
    """Flat curves, as the arrays of a result."""
    return dict(curves(batch, lambda *run: unit(batch) * level(*run)).arrays)


def batch_of(job):
    """The runs that a job asks for."""
    return from_json(Batch, job.arguments)


@contextmanager
def playing(make_run=toy_run, before=lambda count: None):
    """The loop has its runs made up in this process, and resamples seldom.

    Args:
        make_run: what makes the arrays of a batch.
        before: called with the number of jobs that were done, before each one.
    """

    def answer(folder, job):
        before(len(pool.ran))
        return Result(make_run(batch_of(job)), {})

    pool = PretendedPool(answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "open_pool", pool.open)
        patch.setattr(scale, "RESAMPLES", 200)
        yield pool


def benchmark(folder, groups=(), **changes):
    """A benchmark as the command lays it out."""
    options = dataclasses.replace(OPTIONS, weights=tuple(groups), out=folder, **changes)
    return lay_out(options, make_suite(options), folder)


def run_toys(folder, groups=(), make_run=toy_run, **changes):
    """The results of a benchmark of toys."""
    with playing(make_run):
        return loop.run(benchmark(folder, groups, **changes))


def write_curves(folder, runs, *, task="catch", labels=MappingProxyType({})):
    """The table of a finished command: optimizer -> the reported curves of each meta-seed."""
    rows = []
    for name, members in runs.items():
        for meta_seed, found in enumerate(members):
            areas, finals = area_under_curve(found), final_return(found)
            for run, (area, final) in enumerate(zip(areas, finals, strict=True)):
                row = {"optimizer": name, "role": "learned", "change": "", "task": task}
                row |= labels.get(name, {})
                row |= {"purpose": "tuned", "meta_seed": meta_seed, "setting": 1.0}
                row |= {"step_multiple": 1.0, "seed": run, "auc": area, "final_return": final}
                row |= {"diverged_at": int(found.diverged_at[run])}
                row |= {"env_steps": found.env_steps.tolist()}
                rows.append(row | {"returns": found.returns[run].tolist()})
    write_runs(iter(rows), folder / "runs.parquet")


def write_benchmark(folder, runs, *, task="catch", **changes):
    """The folder of a finished benchmark of one task, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    write_curves(folder, runs, task=task)
    record = {"suite": task, "seeds": 6, "tuning_seeds": 2, "tasks": {task: {}}}
    record |= {"versions": {"jax": "0.10.2"}, "code": "c" * 64} | changes
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def write_training(
    folder, *, rate=0.01, returns=(-0.5, "", 0.5, 0.9), norms=(1, 2, 3, 4), done=True
):
    """The folder of a meta-training on Catch."""
    folder.mkdir(parents=True)
    lines = ["iteration,meta_gradient_norm,return_catch"]
    lines += [f"{i},{norm},{x}" for i, (norm, x) in enumerate(zip(norms, returns, strict=True), 1)]
    (folder / "progress.csv").write_text("\n".join(lines) + "\n")
    settings = {"optimizer": "optim4rl-rlc", "learning_rate": [rate], "meta": {"iterations": 4}}
    (folder / "settings.json").write_text(json.dumps(settings))
    if done:
        fresh = untrained("optim4rl-rlc", rate, jax.random.key(0))
        card = {"training_seconds": 12.5, "versions": {"jax": "0.10.2"}}
        trained = LearnedOptimizer(fresh.spec, fresh.meta_parameters, rate, card)
        save_weights(folder / "weights.safetensors", trained)
    return folder
