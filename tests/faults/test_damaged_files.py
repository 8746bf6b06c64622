"""Every file that is read, damaged in every way: a clear error or the right result."""

import dataclasses
import functools
import hashlib
import json
import pickle
import random
import signal
import zipfile
from contextlib import contextmanager
from io import BytesIO

import jax
import numpy as np
import pytest
from fault_runs import PLAN

from optim4rl.benchmark.contender import Maker, keep_weights
from optim4rl.benchmark.runs import Batch, job, read_batches
from optim4rl.benchmark.table import write_runs
from optim4rl.cli.progress_log import ProgressLog
from optim4rl.evaluation.curves import Curves
from optim4rl.files.manifest import MANIFEST, write_manifest
from optim4rl.jobs.job import Result
from optim4rl.jobs.store import get_result, put_result, result_path
from optim4rl.meta.checkpoint import (
    load_checkpoint,
    previous_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from optim4rl.meta.recipe import Recipe, build
from optim4rl.meta.trainer import MetaConfig, init
from optim4rl.optimizers.weights import load_weights, save_weights, untrained
from optim4rl.pages.comparison import read_run
from optim4rl.study.cells import Training, training_job
from optim4rl.study.layout import lay_out, load_study, record_study
from optim4rl.study.opening import open_own
from optim4rl.study.settings import QUICK, SMOKE
from optim4rl.study.variant import REFERENCE
from optim4rl.tasks import TaskConfig

MUTATIONS = 220
CONFIG = {"meta": {"seed": 0, "iterations": 5}, "tasks": ["catch"]}


class Hang(BaseException):
    """What takes longer than it may; nothing catches it."""


@contextmanager
def patience(seconds):
    def stop(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def foreign_files():
    """Files of other kinds, among them those that could run code."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps({"state": 1}))
    yield from (b"", b"\0", b"{}", b"[]", b"null", b"\xff" * 64, b"1\n2\n", archive.getvalue())
    for protocol in range(6):
        yield pickle.dumps({"state": [1.0, 2.0]}, protocol)
    # A header that claims to be as long as memory allows, and one that nests without end.
    yield (2**62).to_bytes(8, "little") + b"{}"
    nested = b"[" * 50_000
    yield len(nested).to_bytes(8, "little") + nested


def mutations(data, other, rng, count):
    """Damaged versions of a file: bits, bytes, blocks, lengths; other files in its place."""
    yield from foreign_files()
    yield other
    for _ in range(count):
        damaged = bytearray(data)
        start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(9):
            case 0 | 1:
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                for _ in range(rng.randrange(2, 20)):
                    damaged[rng.randrange(len(data))] = rng.randrange(256)
            case 3:
                del damaged[start:]
            case 4:
                damaged[start:stop] = bytes(stop - start)
            case 5:
                del damaged[start:stop]
            case 6:
                damaged[start:start] = damaged[start:stop]
            case 7:
                damaged[start:stop] = other[start:stop]
            case 8:
                damaged[rng.randrange(min(8, len(data)))] = rng.randrange(256)
        yield bytes(damaged)


def values(tree):
    """Anything as plain values that can be compared."""

    def plain(leaf):
        if isinstance(leaf, Curves | Result):
            return values(dataclasses.asdict(leaf))
        if not hasattr(leaf, "dtype"):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return jax.tree.map(plain, tree, is_leaf=lambda x: isinstance(x, Curves | Result))


def weights(folder, seed):
    path = folder / "weights.safetensors"
    fresh = untrained("optim4rl-rlc", 1e-2, jax.random.key(seed))
    card = {"training_seconds": 1.0, "versions": {}}
    save_weights(path, dataclasses.replace(fresh, card=card))
    return path, lambda: dataclasses.astuple(load_weights(path))


@functools.cache
def start():
    """A state of meta-training."""
    meta = MetaConfig(agents=2, inner_updates=2, reset_interval=2)
    options = Recipe("optim4rl-rlc", width=(4,), envs_per_agent=2, meta=meta)
    return init(*build(options), meta)


def checkpoint(folder, seed):
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, start()._replace(key=jax.random.key(seed)), CONFIG)
    return path, lambda: load_checkpoint(path, start(), CONFIG)


def rotated_checkpoint(folder, seed):
    """The newest of two that hold the same state: whichever is read, it is that."""
    path, _ = checkpoint(folder, seed)
    previous_checkpoint(path).write_bytes(path.read_bytes())
    return path, lambda: resume_checkpoint(path, start(), CONFIG).state


def some_curves(seed):
    returns = np.random.default_rng(seed).normal(size=(2, 30)).astype(np.float32)
    return Curves(returns, np.array([-1, -1]), np.arange(1, 31))


def training(folder, seed):
    asked = training_job(Training("catch", REFERENCE, SMOKE.training, 8, 3e-3, 0))
    put_result(folder, asked, Result({"x": some_curves(seed).returns}, {"seconds": float(seed)}))
    return result_path(folder, asked), lambda: get_result(folder, asked)


def batch(folder, seed):
    asked = Batch(TaskConfig("catch"), Maker("adam"), ((0.1, seed), (0.1, 7)), 30, 30)
    arrays = {name: x for name, x in vars(some_curves(seed)).items() if x is not None}
    put_result(folder, job(asked), Result(arrays, {"seconds": 1.0}))
    return result_path(folder, job(asked)), lambda: read_batches(folder, [asked])


def contender(folder, seed):
    """Weights in the place that their content names, as a worker reads them."""
    address = keep_weights(folder, untrained("optim4rl-rlc", 1e-2, jax.random.key(seed)))

    def read():
        family, parameters = Maker(None, address).family(folder, 1)
        return repr(family), parameters

    return folder / str(Maker(weights=address).file), read


def log(folder, seed):
    path = folder / "progress.csv"
    data = ProgressLog(path, ("catch",)).path.read_bytes() + b"1,0.%d,0.5\n" % seed
    path.write_bytes(data)
    extent = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def read():
        ProgressLog(path, ("catch",), extent)
        return path.read_bytes()

    return path, read


def study(folder, seed, name):
    settings = dataclasses.replace(SMOKE if seed else QUICK, meta_seeds=2 + seed)
    plan = PLAN.replace(b"Synchronous resets", b"Random resets") if seed else PLAN
    record_study(lay_out(plan, open_own("smoke", settings)), folder, f"command {seed}", "now")
    write_manifest(folder)
    return folder / name, lambda: dataclasses.astuple(load_study(folder))


def finished(folder, seed, name):
    """The folder of a finished benchmark, as `report` reads it."""
    curves = some_curves(seed)
    row = {"optimizer": "adam", "role": "baseline", "change": "", "task": "catch"}
    row |= {"purpose": "tuned", "meta_seed": 0, "setting": 0.1, "step_multiple": 1.0}
    write_runs(
        (
            {
                **row,
                "seed": run,
                "auc": float(returns.mean()),
                "final_return": float(returns[-20:].mean()),
                "diverged_at": -1,
                "env_steps": curves.env_steps.tolist(),
                "returns": returns.tolist(),
            }
            for run, returns in enumerate(curves.returns)
        ),
        folder / "runs.parquet",
    )
    record = {"suite": "catch", "seeds": 2, "tuning_seeds": seed, "versions": {}, "code": "c"}
    (folder / "results.json").write_text(json.dumps({**record, "tasks": {"catch": {}}}))
    write_manifest(folder)
    return folder / name, lambda: repr(read_run(folder))


def finished_training(folder, seed, name):
    """The folder of a finished meta-training, as `report` reads it."""
    weights(folder, seed)
    (folder / "settings.json").write_text(json.dumps({"meta": {"iterations": 2}, "seed": seed}))
    rows = "".join(f"{i},0.{seed}5,-0.{i}\n" for i in range(1, 9))
    (folder / "progress.csv").write_text(f"iteration,meta_gradient_norm,return_catch\n{rows}")
    write_manifest(folder)
    return folder / name, lambda: repr(read_run(folder))


KINDS = {
    "weights": weights,
    "checkpoint": checkpoint,
    "newest checkpoint of two": rotated_checkpoint,
    "meta-training of a study": training,
    "batch of runs": batch,
    "weights of a contender": contender,
    "progress.csv": log,
    "study.json": lambda *x: study(*x, "study.json"),
    "plan.md of a study": lambda *x: study(*x, "plan.md"),
    "runs.parquet of a finished run": lambda *x: finished(*x, "runs.parquet"),
    "results.json of a finished run": lambda *x: finished(*x, "results.json"),
    "settings.json of a finished run": lambda *x: finished_training(*x, "settings.json"),
    "progress.csv of a finished run": lambda *x: finished_training(*x, "progress.csv"),
    "SHA256SUMS": lambda *x: study(*x, MANIFEST),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_a_clear_error_or_the_right_result(kind, tally, tmp_path):
    row = tally("files damaged", f"damaged or foreign file: {kind}")
    (tmp_path / "other").mkdir()
    path, read = KINDS[kind](tmp_path, 1)
    other = KINDS[kind](tmp_path / "other", 0)[0].read_bytes()
    data, expected = path.read_bytes(), values(read())
    assert other != data
    for index, damaged in enumerate(mutations(data, other, random.Random(kind), MUTATIONS)):
        if damaged in (data, other):  # Whole files, that of another run among them.
            continue
        path.write_bytes(damaged)
        try:
            with patience(20):
                same = values(read()) == expected
            row.count("correct" if same else "wrong result", (index, damaged[:80]))
        except ValueError as error:
            clear = str(tmp_path) in str(error)
            row.count("clear error" if clear else "traceback", (index, damaged[:80], error))
        except Hang:
            row.count("hang", (index, damaged[:80]))
        except Exception as error:
            row.count("traceback", (index, damaged[:80], repr(error)))
    path.write_bytes(data)
    assert values(read()) == expected
    row.check(MUTATIONS - 20)


def test_every_mutation_is_one():
    """Nothing here is counted that was not damaged."""
    data, other = json.dumps(list(range(50))).encode(), b"x" * 40
    found = list(mutations(data, other, random.Random(0), 300))
    assert sum(x == data for x in found) < 20
    assert len(set(found)) > 200
