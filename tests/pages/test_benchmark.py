"""A benchmark's page: verdicts by one rule, honest words, tables that agree, all files."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from documented import columns, types
from optim4rl.benchmark import loop, table as benchmark_table
from optim4rl.benchmark.contender import weights_address
from optim4rl.benchmark.protocol import EVALUATION_SEED, STRESS_SEED, TUNING_SEED
from optim4rl.benchmark.table import read_runs
from optim4rl.cli.progress_log import task_labels
from optim4rl.evaluation.claims import holm
from optim4rl.optimizers.weights import load_weights
from optim4rl.pages import plots
from optim4rl.pages.benchmark import (
    claims,
    lead_claims,
    raw_table,
    stability_table,
    summary_table,
    to_json,
    to_markdown,
    write_report,
)
from optim4rl.pages.comparison import read_run
from optim4rl.pages.words import p_value
from toys import (
    LEVELS,
    TASKS,
    batch_of,
    benchmark,
    playing,
    run_toys,
    save_rules,
    toy_level,
    toy_run,
)

TYPES = {
    "text": pl.String,
    "int": pl.Int64,
    "float": pl.Float64,
    "list of int": pl.List(pl.Int64),
    "list of float": pl.List(pl.Float32),
}
RECORD = {"command": "optim4rl evaluate", "versions": {"jax": "0"}, "code": "c" * 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_rules(tmp_path_factory.mktemp("weights"), 3)


def noisy(lead, weights, spread=0.05):
    """A rule that is ahead of Adam by so much; every member has luck of its own in every run."""
    members = [weights_address(load_weights(path)) for path in weights]

    def level(batch, rate, seed):
        if batch.maker.optimizer:
            return toy_level(batch, rate, seed)
        address = batch.maker.weights
        member = members.index(address) if address in members else len(members)
        luck = np.random.default_rng((seed, member)).standard_normal()
        return toy_level(batch, rate, seed) - 0.2 + lead + spread * luck

    return lambda batch: toy_run(batch, level)


@pytest.fixture(scope="module")
def recipe(weights, tmp_path_factory):
    """Three meta-seeds of a recipe that is level with Adam, but for luck, in both readings."""
    folder = tmp_path_factory.mktemp("recipe")
    return run_toys(folder, [",".join(weights)], noisy(0.0, weights), baselines=("adam",))


@pytest.fixture(scope="module")
def written(weights, tmp_path_factory):
    """The folder of a benchmark of one rule, its results and what was run."""
    folder = tmp_path_factory.mktemp("written")
    with playing() as pool:
        results = loop.run(benchmark(folder, weights[:1]))
        write_report(results, "optim4rl evaluate --suite grid")
    return folder, results, [batch_of(job) for job in pool.ran]


# What is claimed


def verdict_of(found):
    """The rule: an interval that excludes 0, and a corrected p of at most 5 %."""
    interval = found["difference"]
    excludes = interval["low"] > 0 or interval["high"] < 0
    return "clear" if excludes and found["p_corrected"] <= 0.05 else "not clear"


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        (0.3, "clearly above adam"),
        (-0.3, "clearly below adam"),
        (0.0, "no clear difference from adam"),
    ],
)
def test_a_difference_is_claimed_by_interval_and_corrected_test(lead, said, weights, tmp_path):
    baselines = ("adam", "muon")
    results = run_toys(tmp_path, [",".join(weights)], noisy(lead, weights), baselines=baselines)
    found = to_json(results)["comparisons"]
    assert [(x["contender"], x["other"], x["reading"], x["score"]) for x in found] == [
        ("rule-0 +2", other, reading, "auc")
        for reading in ("tuned", "one")
        for other in (*baselines, "rule-0 +2 untrained")
    ]
    assert [x["p_corrected"] for x in found] == holm([x["p"] for x in found])
    assert [x["verdict"] for x in found] == [verdict_of(x) for x in found]
    (sentence,) = (x for x in claims(results) if "tuned for each task: " + said in x)
    first = found[0]
    assert first["difference"]["value"] == pytest.approx(lead, abs=0.05)
    for number in (first["difference"]["value"], first["improvement"]["value"]):
        assert f"{number:.3f} (" in sentence
    assert f"corrected p {p_value(first['p_corrected'])}" in sentence


def test_a_test_alone_claims_nothing_once_it_is_corrected(weights, tmp_path):
    """Some p is below 5 % by itself and its interval excludes 0, but not for four comparisons."""
    results = run_toys(tmp_path, [",".join(weights)], noisy(0.05, weights), baselines=("adam",))
    found = [x for x in to_json(results)["comparisons"] if x["p"] <= 0.05 < x["p_corrected"]]
    assert found
    for each in found:
        assert each["difference"]["low"] > 0
        assert each["verdict"] == "not clear"


def test_no_clear_difference_comes_with_what_these_seeds_can_find(recipe):
    found = to_json(recipe)["comparisons"]
    said = [x for x in claims(recipe) if "no clear difference" in x]
    assert len(said) == len(found) == 4
    for each, sentence in zip(found, said, strict=True):
        assert 0 < each["smallest_effect"] < 0.5
        assert sentence.endswith(
            f"these seeds find a difference of {each['smallest_effect']:.2g} four times in five."
        )
    assert any("Holm's correction for all 4 comparisons" in x for x in claims(recipe))


def test_where_a_run_diverged_the_ranks_decide_and_no_size_is_told(weights, tmp_path):
    def diverging(batch):
        arrays = noisy(0.0, weights)(batch)
        rule = batch.maker.weights is not None
        lost = [rule and seed == EVALUATION_SEED + 3 for _, seed in batch.runs]
        arrays["returns"][lost, 2:], arrays["diverged_at"][lost] = np.nan, 2
        return arrays

    results = run_toys(tmp_path, weights[:1], diverging, controls=False)
    standing = results.standings["tuned"]["rule-0"]
    assert (standing.diverged, standing.runs) == (2, 20)  # One on each task.
    text = to_markdown(results, RECORD)
    assert "a run diverged, so ranks decide" in text
    assert "not known, because a run diverged" in text
    assert "normalised AUC diverged on average" in text
    assert "2 of 20 runs diverged" in text
    document = to_json(results)
    json.dumps(document, allow_nan=False)
    assert document["optimizers"]["rule-0"]["tuned"]["auc"]["mean"]["value"] is None
    assert {x["smallest_effect"] for x in document["comparisons"]} == {None}
    header, rows = summary_table(results, "tuned")
    assert rows[-1][0] == "rule-0"  # Diverged ones last.
    assert rows[-1][header.index("normalised AUC")] == "diverged"
    assert rows[-1][header.index("diverged")] == "2 of 20"
    header, rows = raw_table(results, "tuned", 0)
    (rule,) = (dict(zip(header, row, strict=True)) for row in rows if row[0] == "rule-0")
    assert (rule["mean"], rule["worst run"]) == ("diverged", "diverged")


def test_a_recipe_with_three_meta_seeds_has_a_claim(recipe):
    said = claims(recipe)
    assert not any("nothing can be claimed" in sentence for sentence in said)
    assert any("covers the truth about 90 %" in sentence for sentence in said)


def test_fewer_meta_seeds_say_nothing_about_the_recipe(weights, tmp_path):
    results = run_toys(tmp_path, [",".join(weights[:2])], baselines=("adam",))
    expected = (
        "**rule-0 +1**: nothing can be claimed about the recipe: a claim needs 3 meta-seeds, and"
    )
    assert claims(results)[0].startswith(expected)
    assert to_markdown(results, RECORD).splitlines()[2].startswith(f"- {expected}")


def test_what_is_learned_is_said_where_the_control_was_run(weights, tmp_path):
    """The toys of a rule do not ask for its weights: nothing is learned."""
    results = run_toys(tmp_path, [",".join(weights)], baselines=("adam",))
    (said,) = (x for x in claims(results) if "tuned for each task: no clear difference from" in x)
    assert "no clear difference from rule-0 +2 untrained (difference in the IQM" in said
    assert "0.000 (" in said
    tuned = to_json(results)["optimizers"]["rule-0 +2"]["tuned"]
    assert tuned["minus_untrained"]["mean"]["value"] == pytest.approx(0.0)
    assert tuned["improvement_over_untrained"]["mean"]["value"] == pytest.approx(0.5)
    alone = run_toys(tmp_path, weights, controls=False, baselines=("adam",))
    assert not any("untrained (" in x for x in claims(alone))
    assert alone.standings["tuned"]["adam"].learned is None


def test_where_the_rule_stands_against_the_best_baseline_is_said(written):
    (said,) = (x for x in claims(written[1]) if "tuned for each task: normalised AUC" in x)
    assert "1.200 (" in said
    assert "below 1 on no task, and above 1 on catch, small_dense_short/free" in said
    assert "1 is the best of adam, rmsprop, adam_raw_rewards on each task" in said


def test_without_a_baseline_nothing_is_compared_with_one(weights, tmp_path):
    results = run_toys(tmp_path, weights[:1], baselines=())
    header, rows = summary_table(results, "tuned")
    assert header[4:] == ["normalised final return", "diverged"]
    assert {len(row) for row in rows} == {len(header)}
    assert "By AUC, no baseline clearly beats" in "".join(claims(results))


def test_the_page_names_every_grid_and_the_score_that_chose(tmp_path):
    path = tmp_path / "mine.py"
    text = "import optax\ndef {0}(rate):\n    return optax.adam(rate)\n{0}_rates = ({1},)\n"
    path.write_text(text.format("fixed", "0.01") + text.format("other", "0.01, 0.03"))
    asked = benchmark(tmp_path, [f"{path}:fixed", f"{path}:other"], baselines=("adam",), seeds=2)
    asked = dataclasses.replace(asked, suite=dataclasses.replace(asked.suite, score="final_return"))
    with playing():
        text = to_markdown(loop.run(asked), RECORD)
    assert (
        "Every optimizer with several values is tuned with 2 seeds on every task (1 learning rate: "
        "0.01; 2 learning rates: 0.01, 0.03; 3 learning rates: 0.001, 0.01, 0.1)"
    ) in text
    assert "has the best mean normalised final return on the tuning seeds." in text


def test_an_untrained_rule_is_drawn_as_a_control_whatever_follows():
    names = ("x", "x untrained", "x+decay", "x untrained+decay", "x untrained, step tuned")
    looks = {name: line for (name, _), (line, _) in plots._with_looks(dict.fromkeys(names), ())}
    assert [line["ls"] for line in looks.values()] == ["-", "--", "-", "--", "--"]
    assert looks["x untrained+decay"]["color"] == looks["x+decay"]["color"]


def test_many_optimizers_look_different():
    names = [f"x{index}" for index in range(20)]
    looks = [line for _, (line, _) in plots._with_looks(dict.fromkeys(names), ())]
    assert len({(line["color"], line["ls"]) for line in looks}) == 20


@pytest.mark.parametrize("count", [1, 4, 9, 30])
def test_a_legend_is_as_wide_as_its_figure(count):
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for index in range(count):
        axes.plot([0, 1], label=f"a rule of some length {index}, step tuned")
    plots._legend(axes)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert figure.bbox.containsx(legend.get_window_extent().x0)
    assert figure.bbox.containsx(legend.get_window_extent().x1)
    assert axes.get_window_extent().height > 0.5 * 4.0 * figure.dpi  # room for the curves is left


def test_the_page_says_how_settings_were_chosen(written, tmp_path):
    text = to_markdown(written[1], RECORD)
    assert "tuned with 2 seeds on every task (3 step scales: 0.3, 1, 3; 3 learning rates" in text
    assert "reported on 10 seeds that chose no setting" in text
    assert "## All tasks, one setting for all tasks" in text
    fixed = {"rates": (0.1,), "step_scales": (1.0,), "seeds": 1, "baselines": ("adam",)}
    results = run_toys(tmp_path, only=("catch",), **fixed)
    text = to_markdown(results, RECORD)
    assert "Nothing is tuned (1 learning rate: 0.1). Every optimizer is reported on 1 seed." in text
    assert "One seed shows no spread" in text
    assert "## catch, tuned for each task" in text
    assert "edge of its grid" not in text


def test_a_setting_at_the_edge_of_its_grid_is_said(tmp_path):
    def rising(batch, rate, seed):
        return rate * 10

    results = run_toys(tmp_path, make_run=lambda batch: toy_run(batch, rising), baselines=("adam",))
    (said,) = (x for x in claims(results) if "edge of its grid" in x)
    assert said.endswith("adam (catch, small_dense_short/free, one setting).")
    assert "| adam |" in to_markdown(results, RECORD)
    assert "0.1*" in to_markdown(results, RECORD)


def test_a_task_that_no_baseline_learns_is_named_and_left_out(weights, tmp_path):
    def hopeless(batch, rate, seed):
        learns = batch.config.environment != "catch" or not batch.maker.optimizer
        return toy_level(batch, rate, seed) * learns

    make_run = lambda batch: toy_run(batch, hopeless)  # noqa: E731
    results = run_toys(tmp_path, weights[:1], make_run, baselines=("adam",))
    said = "By AUC, none of adam clearly beats the untrained policy on catch."
    assert any(said in x for x in claims(results))
    write_report(results, "command")
    assert json.loads((tmp_path / "results.json").read_text())["comparisons"]
    # With no scale at all nothing is compared, and all files are there.
    alone = run_toys(tmp_path, weights[:1], make_run, baselines=("adam",), only=("catch",))
    assert lead_claims(alone) == []
    write_report(alone, "command")
    assert json.loads((tmp_path / "results.json").read_text())["comparisons"] == []
    assert "no task has a scale" in (tmp_path / "profile.svg").read_text()


def test_whether_one_task_carries_a_lead_is_shown(written):
    """Every contender's comparison with the reference, without each task."""
    folder, results, _ = written
    found = json.loads((folder / "results.json").read_text())["by_choice_of_tasks"]
    assert list(found) == ["tuned", "one"]
    rule = found["tuned"]["rule-0"]
    assert list(rule["without"]) == list(TASKS)
    assert rule["improvement"]["value"] == 1.0
    assert rule["difference"]["value"] == pytest.approx(0.2, abs=0.02)
    text = to_markdown(results, RECORD)
    title = "## Probability of beating adam, by choice of tasks, tuned for each task"
    lines = text[text.index(title) :].splitlines()
    assert lines[2].endswith("| without catch | without small_dense_short/free |")
    assert lines[4].startswith("| rule-0 | 1.000 (1.00 to 1.00) | 1.000 |")


# Tables and files


def test_rows_come_best_first(written):
    _, rows = summary_table(written[1], "tuned")
    names = [row[0] for row in rows if row[0] in LEVELS]
    assert names == ["muon", "adam", "rmsprop", "sign_sgd"]


def test_a_task_has_its_returns_as_they_are(written):
    """Mean, worst run and share of diverged runs, in the task's own unit."""
    header, rows = raw_table(written[1], "tuned", TASKS.index("small_dense_short/free"))
    (adam,) = (dict(zip(header, row, strict=True)) for row in rows if row[0] == "adam")
    luck = np.sin(np.arange(EVALUATION_SEED, EVALUATION_SEED + 10))
    assert float(adam["mean"]) == pytest.approx(10 + 0.1 * luck.mean(), abs=5e-3)
    assert float(adam["worst run"]) == pytest.approx(10 + 0.1 * luck.min(), abs=5e-3)
    assert adam["diverged"] == "0%"
    header, rows = stability_table(written[1], 0)
    assert [row[0] for row in rows] == [x.name for x in written[1].benchmark.contenders]
    # Flat curves neither fall nor spread in time.
    assert {row[1] for row in rows} == {"0.000"}


def test_all_files_are_written_and_agree(written):
    folder, results, _ = written
    document = json.loads((folder / "results.json").read_text())
    json.dumps(document, allow_nan=False)
    assert document["command"] == "optim4rl evaluate --suite grid"
    assert document["versions"]["jax"]
    assert document["claims"] == claims(results)
    assert document["optimizers"]["adam"]["tuned"]["auc"]["mean"]["value"] == pytest.approx(1.0)
    assert document["optimizers"]["rule-0"]["settings"][0]["one"] == 1.0
    run = read_run(folder)
    assert run.kind == "benchmark"
    assert run.numbers["adam on catch: AUC"].value == pytest.approx(1.0, abs=0.02)
    assert run.numbers["adam on small_dense_short/free: AUC"].value == pytest.approx(10.0, abs=0.2)
    text = (folder / "results.md").read_text()
    assert "    optim4rl evaluate --suite grid" in text
    for name in ("curves.svg", "profile.svg"):
        assert f"]({name})" in text
        assert "rule-0 untrained" in (folder / name).read_text()
    for task in TASKS:
        assert task in (folder / "curves.svg").read_text()
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_every_run_is_a_row_and_every_row_a_run(written):
    folder, results, ran = written
    table = read_runs(folder / "runs.parquet")
    assert table.columns == columns("runs.parquet")
    assert table.schema == pl.read_parquet(folder / "runs.parquet").schema
    assert table.schema == {name: TYPES[words] for name, words in types("runs.parquet").items()}
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", str(benchmark_table.__doc__), re.MULTILINE)
    assert dict(rows[1:]) == types("runs.parquet")
    first = {"tuning": TUNING_SEED, "tuned": EVALUATION_SEED, "stress": STRESS_SEED}
    for purpose, seed in first.items():
        seeds = table.filter(purpose=purpose)["seed"].unique().to_list()
        assert sorted(seeds) == list(range(seed, seed + len(seeds)))
    rows = table.filter(optimizer="rule-0", task="catch", purpose="tuned")
    assert rows["seed"].to_list() == list(range(EVALUATION_SEED, EVALUATION_SEED + 10))
    assert rows["auc"].mean() == pytest.approx(
        results.standings["tuned"]["rule-0"].auc.mean.value, abs=0.02
    )
    assert table.filter(purpose="stress")["task"].unique().to_list() == ["catch"]
    # Settings are values of the grids, to the last bit.
    for contender in results.benchmark.contenders:
        own = table.filter(optimizer=contender.name, purpose="tuning")
        assert sorted(own["setting"].unique()) == list(contender.grid)
    # What both readings show stands in the table for each; adam and adam_decay share stress runs.
    made = sum(len(batch.runs) for batch in ran if any(rate for rate, _ in batch.runs))
    counted = table.filter((pl.col("purpose") != "one") & (pl.col("role") != "untrained")).height
    assert counted >= made


def test_greedy_returns_choose_the_setting_and_are_in_all_files(tmp_path):
    """Greedy returns want a rate of 0.1 where AUC wants 0.01; one run of Muon diverged."""

    def greedy(batch):
        arrays = toy_run(batch)
        muon = batch.maker.optimizer == "muon"
        lost = np.array([muon and seed == EVALUATION_SEED + 3 for _, seed in batch.runs])
        arrays["returns"][lost, 2:], arrays["diverged_at"][lost] = np.nan, 2
        rates = np.array([rate for rate, _ in batch.runs])
        return arrays | {"greedy": np.where(lost, np.nan, 100 * rates)}

    games = {"suite": "discobench", "only": ("gymnax:Breakout-MinAtar",)}
    results = run_toys(tmp_path, (), greedy, baselines=("adam_ppo", "muon_ppo"), **games)
    (choice,) = results.runs.choices["adam_ppo"]
    assert choice.each[0].rate == 0.1
    header, rows = raw_table(results, "tuned", 0)
    assert {row[0]: row[header.index("greedy return, mean")] for row in rows} == {
        "adam_ppo": "10.000 (10.00 to 10.00)",
        "muon_ppo": "diverged",
    }
    write_report(results, "command")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    found = json.loads(text)["optimizers"]
    raw = {name: x["raw"]["gymnax:Breakout-MinAtar"]["greedy_mean"] for name, x in found.items()}
    assert raw["adam_ppo"] == {"value": 10.0, "low": 10.0, "high": 10.0}
    assert raw["muon_ppo"]["value"] is None
    table = read_runs(tmp_path / "runs.parquet").filter(optimizer="adam_ppo", purpose="tuned")
    assert table["greedy_return"].to_list() == [10.0] * 10


def test_a_suites_own_score_is_what_is_claimed(weights, tmp_path):
    """The rule is ahead of Adam in training and behind it in greedy episodes."""

    def behind_at_the_end(batch):
        """1 is Adam's greedy return, 0.5 the rule's, and 0 that of agents that never update."""
        level = 1.0 if batch.maker.optimizer else 0.5
        luck = [0.05 * np.random.default_rng(seed).standard_normal() for _, seed in batch.runs]
        learns = np.array([rate > 0 for rate, _ in batch.runs])
        return noisy(0.3, weights)(batch) | {"greedy": level * learns + np.array(luck)}

    games = {"suite": "discobench", "only": ("gymnax:Breakout-MinAtar",)}
    results = run_toys(
        tmp_path, [",".join(weights)], behind_at_the_end, baselines=("adam_ppo",), **games
    )
    assert results.standings["tuned"]["rule-0 +2"].lead.difference.iqm.low > 0
    against_adam, against_control = to_json(results)["comparisons"]
    assert against_adam["score"] == "greedy_return"
    assert against_adam["difference"]["value"] == pytest.approx(-0.5, abs=0.05)
    assert against_adam["verdict"] == "clear"
    assert against_control["verdict"] == "not clear"
    (said,) = (x for x in claims(results) if "clearly below adam_ppo" in x)
    assert "difference in the IQM of normalised greedy return" in said


def test_what_somebody_calls_a_file_breaks_no_table(weights, tmp_path):
    name = tmp_path / "a|b.safetensors"
    name.write_bytes(Path(weights[0]).read_bytes())
    results = run_toys(tmp_path / "out", [str(name)], baselines=("adam",), only=("catch",))
    text = to_markdown(results, RECORD)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    for lines in (table.splitlines() for table in tables):
        assert len({line.count("|") for line in lines}) == 1


def test_a_training_on_many_tasks_has_a_curve_for_each_environment(tmp_path):
    """The mean over its tasks; an iteration that draws none of them leaves a gap."""
    labels = task_labels(["catch"] * 5 + ["gymnax:CartPole-v1"] * 5)
    returns = {label: np.full(3, np.nan) for label in labels}
    returns["catch"][0], returns["catch (5)"][0], returns["catch (2)"][2] = 1.0, 3.0, 5.0
    means = plots._of_environments(returns)
    np.testing.assert_array_equal(means.pop("catch"), [2.0, np.nan, 5.0])
    np.testing.assert_array_equal(means.pop("gymnax:CartPole-v1"), [np.nan] * 3)
    assert not means
    rows = zip(*([f"{x:g}" if x == x else "" for x in y] for y in returns.values()), strict=True)
    lines = [",".join(["iteration", "meta_gradient_norm", *(f"return_{x}" for x in labels)])]
    lines += [",".join([str(i + 1), "1", *row]) for i, row in enumerate(rows)]
    (tmp_path / "progress.csv").write_text("\n".join(lines) + "\n")
    plots.plot_training(tmp_path / "progress.csv", tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert picture.count(">catch<") == picture.count(">gymnax:CartPole-v1<") == 1
    assert "(2)" not in picture
