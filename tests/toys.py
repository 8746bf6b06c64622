"""A benchmark of toys: runs whose curves are known beforehand, made here and now.

Every test that asks what the loop does with runs, or what a page says of them, starts from these.
"""

import dataclasses
import json
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from optim4rl.benchmark import loop, scale
from optim4rl.benchmark.runs import Batch
from optim4rl.benchmark.table import write_runs
from optim4rl.cli.evaluate import EvaluateOptions, lay_out, make_suite
from optim4rl.evaluation.curves import HEALTHY
from optim4rl.evaluation.returns import area_under_curve, final_return
from optim4rl.fields import from_json
from optim4rl.jobs.job import Result
from optim4rl.jobs.store import has_result, put_result
from optim4rl.optimizers.weights import save_weights, untrained

RATES, SCALES = (0.001, 0.01, 0.1), (0.3, 1.0, 3.0)
TASKS = ("catch", "small_dense_short")
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
    """Flat curves."""
    levels = [unit(batch) * level(batch, rate, seed) for rate, seed in batch.runs]
    return {
        "returns": np.tile(np.array(levels)[:, None], batch.rollouts),
        "diverged_at": np.full(len(levels), HEALTHY),
        "env_steps": np.arange(1, batch.rollouts + 1),
    }


class ToyPool:
    """Makes toy runs in this process.

    Attributes:
        ran: the batches that were run, in order.
        make_run: what makes the arrays of a batch.
        before: called with the number of batches that were run, before each one.
    """

    def __init__(self, make_run=toy_run):
        self.ran, self.make_run, self.before = [], make_run, lambda count: None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, jobs, on_job=lambda done, what: None):
        for done, job in enumerate(jobs, 1):
            assert not has_result(self.folder, job)
            self.before(len(self.ran))
            batch = from_json(Batch, job.arguments)
            self.ran.append(batch)
            put_result(self.folder, job, Result(self.make_run(batch), {"seconds": 1.0}))
            on_job(done, job.what)

    @contextmanager
    def playing(self):
        """The loop has its runs made here, and resamples seldom."""

        def open_pool(folder, workers):
            self.folder = folder
            return self

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "open_pool", open_pool)
            patch.setattr(scale, "RESAMPLES", 200)
            yield self


def benchmark(folder, groups=(), **changes):
    """A benchmark as the command lays it out."""
    options = dataclasses.replace(OPTIONS, weights=tuple(groups), out=folder, **changes)
    return lay_out(options, make_suite(options), folder)


def run_toys(folder, groups=(), make_run=toy_run, **changes):
    """The results of a benchmark of toys."""
    with ToyPool(make_run).playing():
        return loop.run(benchmark(folder, groups, **changes))


def write_curves(folder, runs, *, task="catch", labels=None):
    """The table of a finished command: optimizer -> the reported curves of each meta-seed."""
    rows = []
    for name, members in runs.items():
        for meta_seed, curves in enumerate(members):
            areas, finals = area_under_curve(curves), final_return(curves)
            for run, (area, final) in enumerate(zip(areas, finals, strict=True)):
                row = {"optimizer": name, "role": "learned", "change": "", "task": task}
                row |= (labels or {}).get(name, {})
                row |= {"purpose": "tuned", "meta_seed": meta_seed, "setting": 1.0}
                row |= {"step_multiple": 1.0, "seed": run, "auc": area, "final_return": final}
                row |= {"diverged_at": int(curves.diverged_at[run])}
                row |= {"env_steps": curves.env_steps.tolist()}
                rows.append(row | {"returns": curves.returns[run].tolist()})
    write_runs(iter(rows), folder / "runs.parquet")


def write_benchmark(folder, runs, *, task="catch", **changes):
    """The folder of a finished benchmark of one task, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    write_curves(folder, runs, task=task)
    record = {"suite": task, "seeds": 6, "tuning_seeds": 2, "tasks": {task: {}}}
    record |= {"versions": {"jax": "0.10.2"}, "code": "c" * 64} | changes
    (folder / "results.json").write_text(json.dumps(record))
    return folder
