"""The examples run: a taste of each by default, to its usual return in the slow tests."""

import importlib
import math
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
SOLVED = 475  # CartPole-v1's own threshold


@pytest.fixture
def example(monkeypatch):
    """Import an example by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.mark.parametrize("name", ["jax_flax_linen", "jax_flax_nnx", "jax_equinox"])
def test_a_regression_is_learned(name, example):
    losses = example(name).train(60)
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("torch_cleanrl_ppo", 1024),
        ("torch_sb3_ppo", 512),
        pytest.param("jax_purejaxrl_ppo", 2048, marks=pytest.mark.slow),
    ],
)
def test_a_taste_of_ppo(name, steps):
    assert 8 <= run(name, steps=steps) <= 500


def test_a_table_has_every_run_once(example, tmp_path):
    """What is kept is not run again; a task with a single complete seed is left out."""
    from optim4rl.benchmark.table import read_runs

    tables, made = example("tables"), []

    def run(task, optimizer, seed):
        made.append((task, optimizer, seed))
        return np.linspace(0, 100 if optimizer == "adam" else 200, 200)

    jobs = [
        (tables.path_of(tmp_path, "CartPole-v1", x, seed), run, "CartPole-v1", x, seed)
        for seed in tables.SEEDS
        for x in tables.OPTIMIZERS
    ]
    assert [tables.keep(job) for job in jobs] == [tables.keep(job) for job in jobs]
    assert made == [job[2:] for job in jobs]
    for optimizer in tables.OPTIMIZERS:
        tables.keep((tables.path_of(tmp_path, "a", optimizer, 1000), run, "a", optimizer, 1000))
    tables.write(tmp_path, {"CartPole-v1": 1000, "a": 10})
    table = read_runs(tmp_path / "runs.parquet")
    assert set(table["task"]) == {"CartPole-v1"}
    assert table.filter(optimizer="adam")["auc"].to_list() == pytest.approx([50.0] * 5)
    assert table["env_steps"][0].to_list() == list(range(5, 1001, 5))
    row = "| CartPole-v1 | ppo-generalist | 5 | 100.0 | 190.5 | +50.0 (+50.0 to +50.0) |"
    assert row in (tmp_path / "table.md").read_text()
    assert "CartPole-v1" in (tmp_path / "curves.svg").read_text()


def test_the_page_of_agents_has_the_tables_of_its_runs(example):
    from optim4rl.benchmark.table import read_runs

    folder = ROOT / "docs" / "studies"
    page = (folder / "agents.md").read_text()
    files = sorted((folder / "agents").glob("*-runs.parquet"))
    assert files
    for path in files:
        assert example("tables").markdown(read_runs(path)) in page


def test_a_run_of_stable_baselines_gives_a_curve(example, monkeypatch):
    module = example("torch_sb3_table")
    envs, _, normalise, settings = module.TASKS["CartPole-v1"]
    monkeypatch.setitem(module.TASKS, "CartPole-v1", (envs, 512, normalise, settings))
    for optimizer in example("tables").OPTIMIZERS:
        curve = module.run("CartPole-v1", optimizer, 0)
        assert curve.shape == (module.POINTS,)
        assert np.all((curve >= 8) & (curve <= 64))


def test_a_run_in_the_manner_of_cleanrl_gives_a_curve(example, monkeypatch):
    module = example("agents_table")
    monkeypatch.setitem(module.STEPS, "cleanrl-CartPole-v1", 20 * 1024)
    monkeypatch.setattr("torch_cleanrl_ppo.EPOCHS", 1)
    for optimizer in example("tables").OPTIMIZERS:
        curve = module.run("cleanrl-CartPole-v1", optimizer, 0)
        assert curve.shape == (module.POINTS,)
        assert np.all((curve >= 8) & (curve <= 500))


@pytest.mark.slow
def test_a_run_of_brax_gives_a_curve(example, monkeypatch):
    module = example("agents_table")
    monkeypatch.setitem(module.STEPS, "brax-inverted_pendulum", 400_000)
    monkeypatch.setattr(module, "POINTS", 2)
    adam, ours = (module.run("brax-inverted_pendulum", x, 0) for x in example("tables").OPTIMIZERS)
    assert adam.shape == ours.shape == (2,)
    assert (adam != ours).all()


def test_every_example_says_how_to_run_it():
    files = sorted(EXAMPLES.glob("*_*.py"))
    assert len(files) == 11
    for path in files:
        assert f"python examples/{path.name}" in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch_cleanrl_ppo", "torch_sb3_ppo", "jax_purejaxrl_ppo"])
def test_ppo_solves_cart_pole(name):
    assert run(name) >= SOLVED


@pytest.mark.slow
def test_the_ppo_of_brax_learns_to_balance_a_pendulum():
    """It falls after some ten steps at first."""
    assert run("jax_brax_ppo") > 50


@pytest.mark.slow
def test_the_ppo_of_rejax_solves_cart_pole_beside_an_older_gymnax(tmp_path):
    """In an environment of its own, with the versions that the example names."""
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    packages = ["rejax==0.1.3", "gymnax<1", "jax==0.10.2", "jaxtyping", "safetensors", "-q"]
    subprocess.run([python, "-m", "pip", "install", *packages], check=True)
    assert run("jax_rejax_ppo", python) >= 400


def run(name, python=sys.executable, steps=None):
    """The return that an example prints."""
    options = [] if steps is None else ["--steps", str(steps)]
    result = subprocess.run(
        [python, EXAMPLES / f"{name}.py", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "XLA_FLAGS": ""},
    )
    assert result.returncode == 0, result.stderr
    value = float(result.stdout.rpartition("return: ")[2])
    assert math.isfinite(value)
    return value


def test_the_signal_of_meta_training_is_what_repeats(example):
    """Equal rules give equal returns; correlations leave diverged pairs out."""
    from dataclasses import replace

    import jax

    from optim4rl.meta.recipe import Recipe, build
    from optim4rl.meta.trainer import MetaConfig
    from optim4rl.optimizers.rule import init_meta_parameters

    signal = example("meta_signal")
    recipe = Recipe(
        tasks=("catch",),
        populations=(2,),
        width=(4,),
        envs_per_agent=8,
        meta=MetaConfig(inner_updates=4, reset_interval=2),
    )
    spec, (task,) = build(recipe)
    weights = init_meta_parameters(spec, jax.random.key(0))
    found, seconds = signal.measure_differences(spec, task, recipe, weights, (0.0, 1.0), 3)
    assert found.shape == (2, 2, 3)
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()
    assert seconds > 0
    shorter = replace(recipe, meta=replace(recipe.meta, reset_interval=1))
    again, _ = signal.measure_differences(spec, task, shorter, weights, (1.0,), 3)
    assert (again[0] != found[1]).any()
    first = np.array([1.0, -2.0, 3.0, np.nan, 0.5])
    assert signal.correlation(np.array([first, 3 * first + 1])) == pytest.approx(1)
    assert signal.correlation(np.array([first, -first])) == pytest.approx(-1)
    assert math.isnan(signal.correlation(found[0]))
