"""`optim4rl plan`: show, propose with the catalogue, score, lint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optim4rl.cli import main as cli
from optim4rl.cli.main import PLAN_COMMANDS, main
from optim4rl.plans.plan import read_plan

PLAN = Path(__file__).parents[2] / "plans" / "optim4rl.md"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty folder to run in, and JAX as the tests have set it up."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(cli, "configure_jax", lambda: None)


def told(capsys, *words):
    """What a command says, as JSON, and its exit code."""
    try:
        main([*words, "--json"])
    except SystemExit as exit:
        return json.loads(capsys.readouterr().out), exit.code
    return json.loads(capsys.readouterr().out), 0


@pytest.mark.parametrize("command", PLAN_COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["plan", command, "--help"])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert f"optim4rl plan {command}" in said
    assert "--json" in said


def test_a_plan_is_proposed_scored_and_linted(capsys):
    main(["plan", "propose", "--of", "optim4rl", "--out", "p.md"])
    assert capsys.readouterr().out.startswith("plan:   p.md (")
    assert [path.name for path in Path().iterdir()] == ["p.md"]
    (score,), code = told(capsys, "plan", "score", "p.md", "--against", str(PLAN))
    assert code == 0
    assert (score["ablations_found"], score["recall"], score["hits"]) == (2, 1.0, 4)
    assert [len(entry["found"]) for entry in score["ablations"]] == [2, 2]
    lint, code = told(capsys, "plan", "lint", "p.md", "--jobs", "2")
    assert (code, lint["findings"]) == (0, [])
    assert [cost["scale"] for cost in lint["costs"]] == ["smoke", "quick", "standard", "paper"]
    # At the paper's scale the reference has one environment for each agent, and full width.
    whole = 1 + len(read_plan("p.md").ablations)
    trained = [cost["trained"] for cost in lint["costs"]]
    assert trained == [whole, whole, whole, whole - 2]


def test_the_catalogue_is_deterministic(capsys):
    for out in ("a.md", "b.md"):
        main(["plan", "propose", "--of", "optim4rl", "--out", out])
    assert Path("a.md").read_bytes() == Path("b.md").read_bytes()


def test_a_text_is_read(capsys):
    Path("abstract.html").write_text("<p>We add <b>pipeline training</b>.</p>")
    values, code = told(capsys, "plan", "propose", "abstract.html", "--out", "sub/p.md")
    assert (code, values["ablations"], values["requests"], values["record"]) == (0, 3, 0, None)
    assert {a.part for a in read_plan("sub/p.md").ablations} == {"pipeline training"}


def test_several_plans_are_compared_in_tables(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")  # so that no cell is folded
    Path("none.md").write_text("- Ablated Part: rain\n- Action: REMOVE\n")
    main(["plan", "score", str(PLAN), "none.md", "--against", str(PLAN)])
    said = capsys.readouterr().out
    for word in ("2 of 2", "0 of 2", "1.00", "0.00", "structure/linear", "Gradient Processing"):
        assert word in said


def test_lint_exits_with_1_where_something_is_wrong(capsys):
    Path("p.md").write_text("- Ablated Part: pipeline training\n- Action: REMOVE\n")
    values, code = told(capsys, "plan", "lint", "p.md")
    assert (code, [f["kind"] for f in values["findings"]]) == (1, ["metric"])
    Path("p.md").write_text("- Ablated Part: rain\n- Action: REMOVE\n")
    values, code = told(capsys, "plan", "lint", "p.md")
    assert (code, values["costs"]) == (1, [])
    with pytest.raises(SystemExit) as exit:
        main(["plan", "lint", "p.md"])
    assert exit.value.code == 1
    assert "can run nothing of this plan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("plan", ["are show, propose, score, lint"]),
        ("plan propose --out p.md", ["method", "--of optim4rl"]),
        ("plan propose x.md --of optim4rl --out p.md", ["method", "--of optim4rl"]),
        ("plan propose x.md --out p.md", ["x.md", "cannot be read"]),
        (
            "plan propose --of optim4rl --experiment x.py:e --out p.md",
            ["of = 'optim4rl', experiment = 'x.py:e': give one"],
        ),
        ("plan propose --of adam --out p.md", ["'adam'", "optim4rl"]),
        ("plan propose --of optim4rl --out p.md --rounds -1", ["rounds = -1"]),
        ("plan score x.md --against y.md", ["y.md", "cannot be read"]),
        ("plan lint x.md", ["x.md", "cannot be read"]),
        (f"plan lint {PLAN} --jobs 0", ["jobs = 0"]),
        (f"plan lint {PLAN} --measured nowhere", ["measured = 'nowhere'"]),
    ],
)
def test_bad_input_gets_one_line_that_names_it(words, named, capsys):
    with pytest.raises(SystemExit) as exit:
        main(words.split())
    said = capsys.readouterr()
    assert (exit.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    for word in named:
        assert word in said.err
    assert list(Path().iterdir()) == []


def test_words_from_a_plan_do_not_style_the_terminal(capsys):
    part = "- Ablated Part: [/red] [link=x]y[/]\\\n- Action: REMOVE\n"
    Path("p.md").write_text(f"# [/b]\n### [/]\n{part}")
    main(["plan", "show", "p.md"])
    assert "[/red] [link=x]y[/]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["show", PLAN], ["show", PLAN, "--json"], ["score", PLAN, "--against", PLAN]]
)
def test_text_is_read_without_jax(words):
    program = (
        "import sys\nfrom optim4rl.cli.main import main\nmain(sys.argv[1:])\n"
        "print([x for x in ('jax', 'optax', 'scipy', 'optim4rl.tasks') if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", *map(str, words)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_show_prints_as_json_is_a_plan(capsys):
    shown, _ = told(capsys, "plan", "show", str(PLAN))
    Path("p.json").write_text(json.dumps(shown))
    assert read_plan("p.json") == read_plan(PLAN)
    assert told(capsys, "plan", "show", "p.json")[0] == shown


@pytest.mark.slow
def test_a_proposed_plan_is_run_as_a_study():
    """From nothing but the install to a report, whatever words name a replacement."""
    program = [sys.executable, "-m", "optim4rl"]

    def run(*words):
        result = subprocess.run([*program, *words], capture_output=True, text=True, timeout=3_000)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("plan", "propose", "--of", "optim4rl", "--out", "p.md")
    plan = Path("p.md").read_text("utf-8")
    Path("p.md").write_text(plan.replace("  - linear\n", "  - linear [/red] update\n"), "utf-8")
    assert "[/red]" in run("ablate", "p.md", "--scale", "smoke", "--out", "d")
    report = Path("d/report.html").read_text("utf-8")
    for ablation in read_plan("p.md").ablations:
        assert ablation.title in report
