"""`optim4rl evaluate`: one row for each optimizer, honest where it diverged."""

import json
import os
import shlex
import signal

import jax
import numpy as np
import polars as pl
import pytest

from optim4rl.benchmark.protocol import Evaluation
from optim4rl.benchmark.tuning import Tuning
from optim4rl.cli import evaluate as evaluate_command, main as cli
from optim4rl.cli.evaluate import EvaluateOptions, contenders, summarise
from optim4rl.cli.main import main
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.optimizers.weights import save_weights, untrained
from optim4rl.study.cells import code_hash

TINY = shlex.split(
    "--width 8 --num-envs 4 --updates 12 --seeds 2 --tuning-seeds 1 "
    "--classical-rates 0.001 0.01 --step-scales 1 --stress-scales 2 --stress-seeds 2 "
    "--stress-updates 6 --baselines adam --json"
)


@pytest.fixture(autouse=True)
def _jax_as_it_is(monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


def weights(path, *, seed=0, preset="optim4rl-rlc", rate=3e-3):
    save_weights(path, untrained(preset, rate, jax.random.key(seed)))
    return str(path)


def evaluation(level, *, runs=4, diverged=0):
    """Runs that stay at a level, the first few of which diverged half-way."""
    returns = np.full((runs, 40), level) + 0.001 * np.arange(runs)[:, None]
    diverged_at = np.full(runs, HEALTHY)
    returns[:diverged, 20:], diverged_at[:diverged] = np.nan, 20
    curves = Curves(returns, diverged_at, np.arange(1, 41))
    return Evaluation(Tuning(0.01, (0.001, 0.01), (0.1, 0.2)), curves, {2.0: curves})


def learner(level, **options):
    """Runs that start at -1 and reach the level at once."""
    found = evaluation(level, **options)
    returns = found.curves.returns.copy()
    returns[:, 0] = -1.0
    curves = Curves(returns, found.curves.diverged_at, found.curves.env_steps)
    return Evaluation(found.tuning, curves, {2.0: curves})


# The command


def test_learned_untrained_and_classical_optimizers_have_rows(tmp_path, capsys):
    name = weights(tmp_path / "w.safetensors", seed=3)
    main(["evaluate", name, *TINY, "--out", str(tmp_path / "out")])
    rows = {row["optimizer"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {name, f"{name} untrained", "adam"}
    for row in rows.values():
        assert (row["meta_seeds"], row["seeds"]) == (1, 2)
        low, high = row["auc"][1:]
        assert -1 <= low <= row["auc"][0] <= high <= 1
        assert row["failure_rate"] == 0
        assert row["stuck_rates"].keys() == {"2"}
    assert rows["adam"]["rate_at_edge"]  # A grid of two has nothing but edges.
    assert rows["adam"]["improvement_over"] is None
    assert rows[name]["improvement_over"] == "adam"
    assert rows[name]["rates"] == [3e-3]
    assert not rows[name]["rate_at_edge"]
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {row["optimizer"]: row for row in written} == rows
    table = pl.read_parquet(tmp_path / "out" / "runs.parquet")
    assert set(table["optimizer"]) == set(rows)


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *TINY, "--out", str(tmp_path / "file")])
    assert exit.value.code == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


# Contenders


def test_a_group_of_weights_is_one_optimizer_with_an_untrained_control(tmp_path):
    paths = [weights(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    group = ",".join(paths)
    options = EvaluateOptions((group, paths[0]), baselines=("adam",))
    found = {x.name: x for x in contenders(options)}
    assert list(found) == [group, f"{group} untrained", paths[0], f"{paths[0]} untrained", "adam"]
    assert len(found[group].parameters) == len(found[f"{group} untrained"].parameters) == 2
    assert found[group].rates == tuple(3e-3 * x for x in options.settings.step_scales)
    assert found["adam"].rates == options.settings.classical_rates


@pytest.mark.parametrize("other", [{"preset": "anchored"}, {"rate": 1e-2}])
def test_weights_of_two_recipes_are_no_group(other, tmp_path):
    one = weights(tmp_path / "one.safetensors")
    two = weights(tmp_path / "two.safetensors", **other)
    with pytest.raises(ValueError, match="must share their spec"):
        contenders(EvaluateOptions((f"{one},{two}",)))


# The table


def test_rows_come_best_first_and_diverged_ones_last():
    results = {
        "diverged": [evaluation(9.0, diverged=4)],
        "worse": [evaluation(-0.5)],
        "zero": [evaluation(0.0, runs=1)],
        "adam": [learner(0.5)],
    }
    rows = summarise(results, ("adam",))
    assert [row["optimizer"] for row in rows] == ["adam", "zero", "worse", "diverged"]
    assert rows[1]["auc"][0] == 0.0
    assert rows[-1]["auc"][0] is None
    assert rows[-1]["auc_worst"] is None
    assert rows[-1]["failure_rate"] == 1
    json.dumps(rows, allow_nan=False)


def test_a_better_optimizer_is_seen_to_be_better():
    results = {"ours": [learner(0.9), learner(0.8)], "adam": [learner(0.5)]}
    ours, adam = summarise(results, ("adam",))
    assert (ours["optimizer"], ours["meta_seeds"], ours["seeds"]) == ("ours", 2, 4)
    assert ours["probability_of_improvement"][0] == 1
    assert ours["final"][0] == pytest.approx(0.8515)
    assert ours["auc_worst"] == pytest.approx((0.8 * 39 - 1) / 40)
    assert ours["stuck_rates"] == adam["stuck_rates"] == {"2": 0.0}


def test_a_run_that_diverged_counts_as_failed_and_as_stuck():
    results = {"ours": [learner(0.9, diverged=1)], "adam": [learner(0.5)]}
    rows = {row["optimizer"]: row for row in summarise(results, ("adam",))}
    assert rows["ours"]["failure_rate"] == 0.25
    assert rows["ours"]["stuck_rates"] == {"2": 0.25}
    assert rows["ours"]["auc_worst"] is None


@pytest.mark.parametrize(
    ("results", "baselines"),
    [
        ({"ours": [learner(0.9)]}, ()),
        ({"ours": [learner(0.9)], "adam": [learner(-2.0)]}, ("adam",)),
        ({"ours": [learner(0.9)], "adam": [learner(0.5, diverged=4)]}, ("adam",)),
    ],
    ids=["no baseline", "a baseline that unlearns", "a baseline that diverges"],
)
def test_nothing_is_called_stuck_where_no_baseline_learns(results, baselines):
    rows = summarise(results, baselines)
    assert [row["stuck_rates"] for row in rows] == [{"2": None}] * len(rows)
    json.dumps(rows, allow_nan=False)


# Stopping and going on


def table(out):
    return (out / "evaluation.json").read_bytes(), (out / "runs.parquet").read_bytes()


def test_a_signal_stops_after_an_evaluation_and_the_command_goes_on(tmp_path, monkeypatch, capsys):
    """What was evaluated is not evaluated again, and the table is that of an undisturbed run."""
    words = ["evaluate", *TINY, "--baselines", "adam", "sgd"]
    main([*words, "--out", str(tmp_path / "whole")])
    real, made = vars(evaluate_command)["evaluate"], []

    def evaluate(task, family, *rest):
        made.append(family.name)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(task, family, *rest)

    monkeypatch.setattr(evaluate_command, "evaluate", evaluate)
    with pytest.raises(SystemExit) as exit:
        main([*words, "--out", str(tmp_path / "stopped")])
    assert exit.value.code == 143
    said = capsys.readouterr().err
    command = shlex.join(["optim4rl", *words, "--out", str(tmp_path / "stopped")])
    assert f"stopped by SIGTERM. What is finished is kept; go on with\n  {command}\n" in said

    def note(task, family, *rest):
        made.append(family.name)
        return real(task, family, *rest)

    monkeypatch.setattr(evaluate_command, "evaluate", note)
    main([*words, "--out", str(tmp_path / "stopped")])
    assert made == ["adam", "sgd"]
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")
    settings = json.loads((tmp_path / "whole" / "settings.json").read_text())
    assert settings["code"] == code_hash()
    sums = (tmp_path / "whole" / "SHA256SUMS").read_text()
    names = {line.split()[1] for line in sums.splitlines()}
    assert names == {"curves.svg", "evaluation.json", "runs.parquet", "settings.json"}
