"""The suite's command: settings from tuning seeds, nothing run twice, honest words, all files."""

import dataclasses
import json
import shlex
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from optim4rl.benchmark.pieces import is_done, piece_from_dict, put_curves
from optim4rl.cli.suite import SuiteOptions, lay_out

from documented import columns
from optim4rl.benchmark import runs as suite_runs, scale as statistics
from optim4rl.benchmark.protocol import EVALUATION_SEED, STRESS_SEED, TUNING_SEED
from optim4rl.benchmark.runs import run_benchmark
from optim4rl.cli import main as cli
from optim4rl.cli.main import main
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.optimizers.weights import save_weights, untrained
from optim4rl.pages.benchmark import claims, summary_table, to_json, to_markdown, write_report
from optim4rl.pages.comparison import read_run

RATES, SCALES = (0.001, 0.01, 0.1), (0.3, 1.0, 3.0)
TASKS = ("catch", "small_dense_short/free")
ALPHA = 3e-3
RECORD = {"command": "optim4rl evaluate", "versions": {"jax": "0"}, "code": "c" * 64}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Three meta-seeds of one recipe."""
    paths = [tmp_path_factory.mktemp("weights") / f"rule-{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths, 1):  # Other than those of the untrained control.
        save_weights(path, untrained("optim4rl-rlc", ALPHA, jax.random.key(seed)))
    return [str(path) for path in paths]


def toy_area(piece, rate, seed):
    """The AUC of a toy run: a level of the optimizer, less for a wrong rate, in the task's unit."""
    if not rate:
        level = 0.0
    else:
        levels = {"adam": 1.0, "rmsprop": 0.9, "sign_sgd": 0.8, "muon": 1.1, None: 1.2}
        catch = piece.config.environment == "catch"
        best = {True: 0.01, False: 0.01} if piece.method.optimizer else {True: ALPHA, False: ALPHA}
        level = levels[piece.method.optimizer] - 0.2 * abs(np.log10(rate / best[catch]))
        level -= 0.05 * piece.method.raw_rewards
    unit = 1.0 if piece.config.environment == "catch" else 10.0
    return unit * (level + 0.01 * np.sin(seed))


def toy_run(piece):
    """Flat curves."""
    time = piece.rollouts
    return [
        Curves(
            np.array([[toy_area(piece, rate, seed)] * time for seed in piece.seeds]),
            np.full(len(piece.seeds), HEALTHY),
            np.arange(1, time + 1),
        )
        for rate in piece.rates
    ]


class ToyPool:
    """Runs toys, here and now; remembers what it ran and can be stopped."""

    ran: tuple[object, ...] = ()
    stop_after = 10**9
    run_piece = staticmethod(toy_run)

    def __init__(self, module, folder, workers):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, jobs, on_job):
        for job in jobs:
            piece = piece_from_dict(job.question["piece"])
            assert not is_done(self.folder, piece)
            if len(ToyPool.ran) >= ToyPool.stop_after:
                raise KeyboardInterrupt
            ToyPool.ran += (piece,)
            put_curves(self.folder, piece, ToyPool.run_piece(piece))
        on_job(len(jobs), "")


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(suite_runs, "open_pool", ToyPool)
    for name, value in (("ran", ()), ("stop_after", 10**9), ("run_piece", staticmethod(toy_run))):
        monkeypatch.setattr(ToyPool, name, value)
    return ToyPool


def options(folder, groups, **changes):
    chosen = SuiteOptions(
        tuple(groups),
        "grid",
        folder,
        only=TASKS,
        seeds=10,
        tuning_seeds=2,
        rates=RATES,
        step_scales=SCALES,
        stress_seeds=4,
        rollouts=5,
        num_envs=2,
    )
    return dataclasses.replace(chosen, **changes)


# Running


def test_toys_are_read_as_they_were_made(toys, weights, tmp_path):
    """Known levels: 1 is Adam, the rule is at 1.2, RMSProp at 0.9, Muon at 1.1."""
    benchmark = lay_out(options(tmp_path, [",".join(weights)]))
    results = run_benchmark(benchmark)
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
    assert set(results.choices) == set(expected)
    for reading in ("tuned", "one"):
        for name, value in expected.items():
            standing = results.standings[reading][name]
            for score in (standing.auc, standing.final):
                assert score.mean.value == pytest.approx(value), name
                assert score.mean.low <= score.mean.value + 1e-9
            assert standing.diverged == 0
            assert standing.members == pytest.approx([value] * len(results.choices[name]))
    assert results.auc_scale.best == ("adam", "adam")
    for name, choices in results.choices.items():
        best = 1.0 if name.startswith("rule") else 0.01
        assert [x.rate for c in choices for x in (*c.each, c.one)] == [best] * 3 * len(choices)


def test_every_seed_has_one_use_and_no_run_is_made_twice(toys, weights, tmp_path):
    run_benchmark(lay_out(options(tmp_path, weights[:1])))
    runs = [
        (piece.config, piece.method, rate, seed, piece.rollouts, piece.schedule)
        for piece in toys.ran
        for rate in piece.rates
        for seed in piece.seeds
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
    for config, method, rate, seed, *_ in runs:
        if seed in used[TUNING_SEED] and rate:
            key = (config.environment, method)
            counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) == {len(RATES) * 2}
    assert len(counts) == 2 * 8


def test_a_stopped_run_goes_on_and_comes_to_the_same(toys, weights, tmp_path):
    whole = run_benchmark(lay_out(options(tmp_path / "whole", weights[:1])))
    in_all, toys.ran = len(toys.ran), ()
    for stop in (7, in_all - 4):
        toys.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(lay_out(options(tmp_path / "parts", weights[:1])))
    toys.stop_after = in_all
    parts = run_benchmark(lay_out(options(tmp_path / "parts", weights[:1])))
    assert len(toys.ran) == in_all
    assert json.dumps(to_json(parts)) == json.dumps(to_json(whole))
    assert to_markdown(parts, RECORD) == to_markdown(whole, RECORD)


def test_progress_ends_at_its_total(toys, weights, tmp_path):
    seen = []
    benchmark = lay_out(options(tmp_path, weights[:1]))
    run_benchmark(benchmark, update=lambda done, total, what: seen.append((done, total)))
    assert seen[-1] == (len(toys.ran), len(toys.ran))
    assert seen[0][1] >= len(toys.ran)


def test_one_setting_is_chosen_by_the_mean_over_tasks(toys, weights, tmp_path):
    """Adam wants 0.1 on one task and 0.001 on the other: 0.01 is best for both."""

    def conflict(piece):
        catch = piece.config.environment == "catch"
        return [
            Curves(
                np.full((len(piece.seeds), 5), 1.0 - 0.3 * gap**2 if rate else -1.0),
                np.full(len(piece.seeds), HEALTHY),
                np.arange(1, 6),
            )
            for rate in piece.rates
            for gap in [np.log10((rate or 1.0) / (0.1 if catch else 0.001))]
        ]

    toys.run_piece = staticmethod(conflict)
    benchmark = lay_out(options(tmp_path, (), baselines=("adam",)))
    results = run_benchmark(benchmark)
    (choice,) = results.choices["adam"]
    assert [x.rate for x in choice.each] == [0.1, 0.001]
    assert all(x.at_edge for x in choice.each)
    assert choice.one.rate == 0.01
    assert not choice.one.at_edge
    assert results.standings["tuned"]["adam"].auc.mean.value == pytest.approx(1.0)
    assert results.standings["one"]["adam"].auc.mean.value == pytest.approx(0.85)
    text = " ".join(claims(results))
    assert "edge of its grid" in text
    assert "adam (catch, small_dense_short/free)" in text


# Words


def test_a_recipe_with_three_meta_seeds_can_be_claimed_to_be_better(toys, weights, tmp_path):
    results = run_benchmark(lay_out(options(tmp_path, [",".join(weights)])))
    said = claims(results)
    assert "tuned for each task: mean normalised AUC 1.200" in said[0]
    assert "above 1; significantly below 1 on no task" in said[0]
    assert "0 of 60 runs diverged" in said[0]
    assert "with probability 1.000 (1.00 to 1.00), above 0.5" in said[1]
    assert not any("nothing can be claimed" in sentence for sentence in said)


def test_what_is_learned_is_said_where_the_control_was_run(toys, weights, tmp_path):
    """The toys of a rule do not ask for its weights: nothing is learned."""
    results = run_benchmark(lay_out(options(tmp_path, [",".join(weights)])))
    (said, _) = (x for x in claims(results) if "itself untrained" in x)
    assert "a run of it beats one of itself untrained (tuned for each task) with" in said
    assert "not to be told from 0.5; the difference in mean normalised AUC is" in said
    assert said.endswith("(-0.00 to 0.00), not to be told from 0.")
    tuned = to_json(results)["optimizers"]["rule-0 +2"]["tuned"]
    assert tuned["minus_untrained"]["mean"][0] == pytest.approx(0.0)
    assert tuned["improvement_over_untrained"]["mean"][0] == pytest.approx(0.5)
    alone = run_benchmark(lay_out(options(tmp_path, weights, controls=False)))
    assert not any("itself untrained" in x for x in claims(alone))
    assert alone.standings["tuned"]["adam"].learned is None


def test_fewer_meta_seeds_say_nothing_about_the_recipe(toys, weights, tmp_path):
    results = run_benchmark(lay_out(options(tmp_path, [",".join(weights[:2])])))
    assert "nothing can be claimed about the recipe, since 2 of the 3" in claims(results)[0]
    assert to_markdown(results, RECORD).splitlines()[2].startswith("- **rule-0 +1**: nothing can")


def test_divergence_is_said_and_is_no_number(toys, weights, tmp_path):
    def diverging(piece):
        found = toy_run(piece)
        if piece.method.optimizer or piece.seeds[0] < EVALUATION_SEED or piece.seeds[0] >= 2_000:
            return found
        for curves in found:
            curves.returns[0, 2:], curves.diverged_at[0] = np.nan, 2
        return found

    toys.run_piece = staticmethod(diverging)
    results = run_benchmark(lay_out(options(tmp_path, weights[:1], controls=False)))
    standing = results.standings["tuned"]["rule-0"]
    assert (standing.diverged, standing.runs) == (4, 20)  # The first run of each piece.
    assert np.isnan(standing.auc.mean.value)
    text = to_markdown(results, RECORD)
    assert "mean normalised AUC diverged, below 1" in text
    assert "4 of 20 runs diverged" in text
    document = to_json(results)["optimizers"]["rule-0"]["tuned"]
    assert document["auc"]["mean"][0] is None
    json.dumps(document, allow_nan=False)
    header, rows = summary_table(results, "tuned")
    assert rows[-1][0] == "rule-0"
    assert rows[-1][header.index("normalised AUC")] == "diverged"


def test_a_task_that_no_baseline_learns_is_named_and_left_out(toys, weights, tmp_path):
    def hopeless(piece):
        found = toy_run(piece)
        if piece.config.environment == "catch" and piece.method.optimizer:
            return [dataclasses.replace(x, returns=0.0 * x.returns) for x in found]
        return found

    toys.run_piece = staticmethod(hopeless)
    results = run_benchmark(lay_out(options(tmp_path, weights[:1])))
    assert any("untrained policy by AUC on catch" in x for x in claims(results))
    standing = results.standings["tuned"]["rule-0"]
    assert standing.auc.tasks[0] is None
    assert standing.auc.mean.value == pytest.approx(1.2)
    assert results.stuck["rule-0"]["catch"] == dict.fromkeys((1.0, 2.0, 4.0))
    write_report(results, "command")


def test_stuck_runs_are_counted_at_multiples_of_the_tuned_setting(toys, weights, tmp_path):
    """At four times its rate Adam's toy ends at 0.88 of the way, which is stuck."""
    results = run_benchmark(lay_out(options(tmp_path, weights[:1])))
    rates = results.stuck["adam"]
    assert list(rates) == ["catch"]
    assert [rate.value for rate in rates["catch"].values()] == [0.0, 0.0, 1.0]
    assert [rate.value for rate in results.stuck["rule-0"]["catch"].values()] == [0.0] * 3


# Files


def test_all_files_are_written_and_agree(toys, weights, tmp_path):
    results = run_benchmark(lay_out(options(tmp_path, weights[:1])))
    write_report(results, "optim4rl evaluate --suite grid")
    document = json.loads((tmp_path / "results.json").read_text())
    json.dumps(document, allow_nan=False)
    assert document["command"] == "optim4rl evaluate --suite grid"
    assert document["versions"]["jax"]
    assert document["optimizers"]["adam"]["tuned"]["auc"]["mean"][0] == pytest.approx(1.0)
    assert document["optimizers"]["rule-0"]["settings"][0]["one"] == 1.0
    table = pl.read_parquet(tmp_path / "runs.parquet")
    assert table.columns == columns("evaluate --suite")
    run = read_run(tmp_path)
    assert run.kind == "suite"
    assert run.numbers["adam on catch: AUC"].value == pytest.approx(1.0, abs=0.02)
    assert run.numbers["adam on small_dense_short/free: AUC"].value == pytest.approx(10.0, abs=0.2)
    rows = table.filter(optimizer="rule-0", task="catch", purpose="tuned")
    assert rows["seed"].to_list() == list(range(EVALUATION_SEED, EVALUATION_SEED + 10))
    assert rows["auc"].mean() == pytest.approx(
        results.standings["tuned"]["rule-0"].auc.mean.value, abs=0.02
    )
    assert table.filter(purpose="stress")["task"].unique().to_list() == ["catch"]
    text = (tmp_path / "results.md").read_text()
    assert "    optim4rl evaluate --suite grid" in text
    for name in ("curves.svg", "profile.svg"):
        assert f"]({name})" in text
        picture = (tmp_path / name).read_text()
        assert "rule-0 untrained" in picture
    for task in TASKS:
        assert task in (tmp_path / "curves.svg").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle")]


# The command


def test_the_command_runs_evaluates_and_goes_on(weights, tmp_path, capsys):
    """With real workers and agents; the second time there is nothing to run."""
    command = shlex.split(
        f"evaluate {weights[0]} --suite=grid --out {tmp_path} --only catch --seeds 2 "
        "--tuning-seeds 2 --rates 0.01 --step-scales 1 --baselines adam --no-controls "
        "--stress-scales 1 --stress-seeds 2 --rollouts 3 --num-envs 2 --jobs 1 --json"
    )
    main(command)
    first = json.loads(capsys.readouterr().out)
    assert first["optimizers"].keys() == {"rule-0", "adam"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces").iterdir()}
    assert len(times) == 2 + 3 * 2
    main(command)
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces").iterdir()} == times


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--suite nothing", "suites are grid"),
        ("--suite grid --only ctach", "Did you mean 'catch'"),
        ("--suite grid --rates 0.1 0.2", "the same budget"),
        ("--suite grid --seeds 0", "seeds = 0"),
        ("--suite grid --baselines rmsprop", "adam is needed"),
        ("--suite grid --stress-scales 2 1", "stress_scales"),
    ],
)
def test_bad_input_is_named_and_nothing_is_started(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *shlex.split(words), "--out", str(tmp_path / "out")])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_short_unless_that_is_ambiguous(weights, tmp_path):
    copy = tmp_path / "rule-0.safetensors"
    save_weights(copy, untrained("optim4rl-rlc", ALPHA, jax.random.key(9)))
    groups = (weights[0], str(copy))
    entries = lay_out(options(tmp_path, groups, controls=False)).entries
    assert [entry.name for entry in entries if entry.role == "learned"] == list(groups)


def test_the_same_weights_twice_are_no_two_meta_seeds(weights, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(weights[0]).read_bytes())
    with pytest.raises(ValueError, match="the same weights twice"):
        lay_out(options(tmp_path / "out", [f"{weights[0]},{copy}"]))


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(weights, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "--suite", "grid", "--out", str(tmp_path / "file")])
    assert exit.value.code == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
