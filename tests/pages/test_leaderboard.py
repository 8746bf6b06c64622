"""The leaderboard: what a benchmark says, from its table alone, and the committed page."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from optim4rl.benchmark import scale
from optim4rl.benchmark.rows import table_rows
from optim4rl.benchmark.suites import PUBLISHED
from optim4rl.benchmark.table import read_runs, write_runs
from optim4rl.cli import main as cli
from optim4rl.evaluation.curves import Curves
from optim4rl.pages.leaderboard import Board, leaderboard_page, load_boards, rank, to_json
from toys import TASKS, run_toys, save_rules

ROOT = Path(__file__).parents[2]
PAGE = Path("docs/results/leaderboard.md")


def test_the_committed_page_is_that_of_all_committed_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text("utf-8")
    (command,) = (line for line in text.splitlines() if line.startswith("    optim4rl leaderboard"))
    *paths, _, out = shlex.split(command)[2:]
    assert out == str(PAGE)
    assert paths == sorted(map(str, Path().glob("docs/results/*/*.parquet")))
    tables = [Path(path) for path in paths]
    assert leaderboard_page(load_boards(tables), tables, PAGE) == text


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two benchmarks on the same tasks and seeds, their results and their tables."""
    weights = save_rules(tmp_path_factory.mktemp("weights"), 1)
    made = []
    for name, groups, baselines in (
        ("first", weights, ("adam", "rmsprop")),
        ("second", (), ("adam", "muon")),
    ):
        folder = tmp_path_factory.mktemp(name)
        results = run_toys(folder, groups, baselines=baselines, controls=False)
        write_runs(table_rows(results.runs), folder / "runs.parquet")
        made.append((results, folder / "runs.parquet"))
    return made


def test_a_board_says_what_the_benchmark_says(tables, monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    results, path = tables[0]
    (board,) = load_boards([path])
    assert board.suite == "grid"
    assert board.tasks == tuple(sorted(TASKS))
    for reading in ("one", "tuned"):
        found = rank(board, reading)
        assert found.reference == "adam"
        assert found.times == {}
        for name, standing in results.standings[reading].items():
            assert found.standings[name].auc.mean.value == pytest.approx(
                standing.auc.mean.value, rel=1e-5
            )
            assert found.standings[name].final.mean.value == pytest.approx(
                standing.final.mean.value, rel=1e-5
            )
        assert found.standings["rule-0"].lead.mean_improvement.value == 1.0


def test_tables_of_one_suite_are_one_board_and_the_first_counts(tables):
    paths = [path for _, path in tables]
    (board,) = load_boards(paths)
    assert board.sources == {
        "rule-0": paths[0],
        "adam": paths[0],
        "rmsprop": paths[0],
        "muon": paths[1],
    }


@pytest.mark.parametrize("ending", ["", " untrained", "+clip0.5+decay"])
def test_weights_have_the_name_of_their_folder_with_what_follows(
    ending, tables, tmp_path, monkeypatch
):
    table = read_runs(tables[0][1])
    paths = [tmp_path / name / "runs.parquet" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        named = table["optimizer"].replace("rule-0", f"weights{ending}")
        table.with_columns(named).write_parquet(path)
    monkeypatch.chdir(tmp_path / "two")
    (board,) = load_boards([paths[0], Path("runs.parquet")])
    assert {f"one{ending}", f"two{ending}"} < set(board.sources)


def test_other_seeds_are_another_board(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    _, path = tables[0]
    table = read_runs(path)
    other = tmp_path / "runs.parquet"
    table.with_columns(table["seed"] + 1).write_parquet(other)
    found = to_json(load_boards([path, other]))
    assert [each["suite"] for each in found] == ["grid", "grid"]
    assert [each["seeds"][0] for each in found] == [1000, 1001]
    assert [each["one"]["reference"] for each in found] == ["adam", "adam"]


def test_boards_are_named_by_what_tells_them_apart(tables, tmp_path):
    """A part of a suite by its tasks, boards with the same tasks by their seeds."""
    _, path = tables[0]
    table = read_runs(path)
    others = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    first, *_, last = sorted(TASKS)
    table.with_columns(table["seed"] + 1).write_parquet(others[0])
    table.filter(task=first).write_parquet(others[1])
    table.filter(task=last).write_parquet(others[2])
    names = [board.name for board in load_boards([path, *others])]
    several = f"grid ({', '.join(sorted(TASKS))}), seeds"
    assert names[0].startswith(f"{several} 1000 to ")
    assert names[1].startswith(f"{several} 1001 to ")
    assert names[2:] == [f"grid ({first})", f"grid ({last})"]
    (alone,) = load_boards([others[1]])
    assert alone.name == f"grid ({first})"


def test_a_table_without_the_untrained_policy_is_refused(tables, tmp_path):
    table = read_runs(tables[0][1])
    path = tmp_path / "runs.parquet"
    table.filter(table["role"] != "untrained").write_parquet(path)
    with pytest.raises(ValueError, match=r"runs.parquet: it has no runs of the untrained policy"):
        load_boards([path])


def made_up(level, seconds, greedy, env_steps=30):
    """Flat curves of three runs."""
    return Curves(
        level + 0.01 * np.arange(3.0)[:, None] + np.zeros((3, 30)),
        np.full(3, -1),
        env_steps // 30 * np.arange(1, 31) + env_steps % 30,
        np.full(3, greedy),
        np.full(3, seconds),
    )


def test_a_published_suite_has_its_score_beside_the_published_one(monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    title, scores = PUBLISHED["discobench"]
    found = {
        "adam_ppo": tuple((made_up(2.0, 10.0, 60.0),) for _ in scores),
        "mine": tuple((made_up(3.0, 25.0, 70.5),) for _ in scores),
    }
    still = tuple(made_up(0.0, 1.0, 1.0, 9_994_240) for _ in scores)
    sources = dict.fromkeys(found, Path("docs/results/x/runs.parquet"))
    board = Board("discobench", tuple(scores), {"one": found, "tuned": found}, still, sources)
    text = leaderboard_page([board], [Path("x/runs.parquet")], PAGE)
    assert "The reference is **adam_ppo**, Adam as PPO users run it." in text
    assert f"| {title} | 69.91 | 17.02 | 61.82 | 180.88 |" in text
    assert "| mine | 70.50 (70.5 to 70.5) |" in text
    row = next(line for line in text.splitlines() if line.startswith("| mine |") and "2.50" in line)
    assert row.endswith("| 25 | 2.50 | 1.000 (1.00 to 1.00) | [runs](x/runs.parquet) |")
    assert "gymnax:Breakout-MinAtar (9,994,240), " in text
    # A shorter run is no match for what was published.
    short = dataclasses.replace(board, untrained=tuple(made_up(0.0, 1.0, 1.0) for _ in scores))
    assert title not in leaderboard_page([short], [Path("x/runs.parquet")], PAGE)


@pytest.mark.parametrize("suite", ["mixed", "grid"])
def test_a_claim_never_takes_bare_adam_for_the_adam_of_ppo_users(suite, monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    found = {"adam": ((made_up(2.0, 1.0, 1.0),),), "mine": ((made_up(3.0, 1.0, 1.0),),)}

    tuned = found

    def claim():
        sources = dict.fromkeys(found, Path("runs.parquet"))
        board = Board(suite, ("catch",), {"one": found, "tuned": tuned}, (still,), sources)
        text = leaderboard_page([board], [Path("runs.parquet")], Path("page.md"))
        return next(line for line in text.splitlines() if line.startswith("> **Claim.**"))

    still = made_up(0.0, 1.0, 1.0)
    bare = {
        "mixed": "On `mixed`, no contender is shown to beat Adam as PPO users run it: the tables "
        "have no runs of `adam_ppo`. Bare `adam` is easier to beat: `mine` beats it more often "
        "than not.",
        "grid": "On `grid`, `mine` beats `adam` more often than not.",
    }
    assert claim() == f"> **Claim.** {bare[suite]}"
    found["adam_ppo"] = ((made_up(3.0, 1.0, 1.0),),)
    nobody = f"> **Claim.** On `{suite}`, no contender beats `adam_ppo` more often than not."
    assert claim() == nobody
    tuned = found | {"mine": ((made_up(4.0, 1.0, 1.0),),)}
    assert claim() == f"{nobody} Tuned for each task, `mine` beats it."


def page_of(names, suite="one", tasks=("catch",), table="runs.parquet"):
    """The board of contenders at levels of 1, 2, ..., and its page."""
    found = {
        name: tuple((made_up(float(level), 1.0, 1.0),) for _ in tasks)
        for level, name in enumerate(names, 1)
    }
    still = tuple(made_up(0.0, 1.0, 1.0) for _ in tasks)
    board = Board(suite, tasks, {"tuned": found}, still, dict.fromkeys(found, Path(table)))
    return board, leaderboard_page([board], [Path(table)], Path("page.md"))


def test_without_the_usual_baselines_the_others_define_the_scale(monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    board, text = page_of(["sign_sgd", "mine", "sign_sgd+clip0.5"], table="a b/runs.parquet")
    assert board.ceilings == ("sign_sgd", "sign_sgd+clip0.5")
    assert board.scales[0].best == ("sign_sgd+clip0.5",)
    assert page_of(["sign_sgd", "adam"])[0].ceilings == ("adam",)
    # Without a reference nothing is compared with it.
    assert "None" not in text
    assert "| contender | AUC, tuned | IQM of AUC, tuned | final return, tuned | table |" in text
    assert "    optim4rl leaderboard 'a b/runs.parquet' --out page.md" in text


def test_a_single_task_has_the_learner_of_its_defaults_and_only_who_ran_is_named(monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    task = "gymnax:CartPole-v1"
    assert "The reference is bare **adam**" in page_of(["adam"], task, (task,))[1]
    assert "The reference is **adam**. " in page_of(["adam"])[1].replace("\n", " ")
    assert (
        "The reference is **rmsprop**, the best of adam and rmsprop here."
        in page_of(["adam", "rmsprop"])[1]
    )


def test_who_was_not_timed_has_no_time_and_takes_nobody_else_s(monkeypatch):
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    old = dataclasses.replace(made_up(3.0, 1.0, 1.0), seconds=None)
    found = {
        "adam": ((made_up(2.0, 10.0, 1.0),),),
        "rmsprop": ((made_up(1.0, 5.0, 1.0),),),
        "old": ((old,),),
    }
    sources = dict.fromkeys(found, Path("runs.parquet"))
    board = Board("one", ("catch",), {"tuned": found}, (made_up(0.0, 1.0, 1.0),), sources)
    times = rank(board, "tuned").times
    assert {name: time.ratio for name, time in times.items()} == {"adam": 1.0, "rmsprop": 0.5}
    text = leaderboard_page([board], [Path("runs.parquet")], Path("page.md"))
    row = next(line for line in text.splitlines() if line.startswith("| old |") and "runs" in line)
    assert row.endswith("| - | - | - | [runs](runs.parquet) |")


def test_the_command_writes_the_page_and_names_what_it_cannot_read(
    tables, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(scale, "RESAMPLES", 200)
    out = tmp_path / "leaderboard.md"
    cli.main(["leaderboard", str(tables[0][1]), "--out", str(out), "--json"])
    assert "## grid" in out.read_text()
    (board,) = json.loads(capsys.readouterr().out)
    assert (board["suite"], board["seeds"]) == ("grid", list(range(1000, 1010)))
    assert list(board["tasks"]) == sorted(TASKS)
    found = board["one"]
    assert found["reference"] == "adam"
    assert found["contenders"]["rule-0"]["improvement"]["value"] == 1.0
    assert found["contenders"]["adam"]["improvement"] is None
    bad = tmp_path / "runs.parquet"
    bad.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["leaderboard", str(bad), "--out", str(out)])
    assert stopped.value.code == 2
