"""The command where the core install is all there is."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import optim4rl
from optim4rl.cli import main as cli
from optim4rl.cli.main import HELP
from optim4rl.meta.recipes import RECIPES
from optim4rl.optimizers.presets import optimizer_names

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
    "project"
]
COMMANDS = (
    "train",
    "evaluate",
    "plan show",
    "plan lint",
    "ablate",
    "report",
    "identity",
    "import",
    "inspect",
)
LISTS = ("kernels",)
# Runs command lines where packages are missing, and tells what each printed and exited with.
PROGRAM = """
import contextlib, io, json, sys

missing, *lines = json.loads(sys.argv[1])

class Finder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
from optim4rl.cli.main import main

told = {}
for line in lines:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line.split())
        except SystemExit as exit:
            code = exit.code
    told[line] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(told))
"""


def packages(requirements: list[str]) -> set[str]:
    """The packages that are asked for."""
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[int, str, str]]:
    """All commands, where no extra is installed."""
    extras = {name for x in PROJECT["optional-dependencies"].values() for name in packages(x)}
    core = packages(PROJECT["dependencies"]) | packages(metadata.requires("jax") or [])
    missing = sorted(extras - core)
    assert {"tyro", "rich", "polars", "torch"} <= set(missing)
    lists = [
        f"list {what}"
        for what in (*LISTS, "weights", "weights --json", "optimizers", "recipes", "tasks")
    ]
    helps = [f"{command} --help" for command in COMMANDS]
    others = ["--help", "--version", "list", "list --help", "burn"]
    lines = [missing, *COMMANDS, *helps, *lists, *others]
    command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {line: tuple(told) for line, told in json.loads(result.stdout).items()}


def test_what_the_core_can_do(told: dict[str, tuple[int, str, str]]) -> None:
    assert told["--help"] == (0, HELP, "")
    assert told["--version"] == (0, f"{optim4rl.__version__}\n", "")
    code, out, err = told["list --help"]
    assert (code, err) == (0, "")
    assert "weights" in out


def names(listed: str) -> list[str]:
    """Without rich every row has lines of its own, the first of which is its name."""
    return [line for line in listed.splitlines()[1:] if line and not line.startswith(" ")]


def test_weights_are_listed(told: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = told["list weights"]
    assert (code, err) == (0, "")
    assert names(out) == list(optim4rl.shipped_names())
    assert len(re.findall(r"^  state +\d+ floats, ", out, re.M)) == len(names(out))
    code, out, err = told["list weights --json"]
    assert tuple(row["name"] for row in json.loads(out)) == optim4rl.shipped_names()


def test_optimizers_are_listed(told: dict[str, tuple[int, str, str]]) -> None:
    code, out, _ = told["list optimizers"]
    assert code == 0
    assert names(out) == list(optimizer_names())
    code, out, _ = told["list recipes"]
    assert (code, names(out)) == (0, list(RECIPES))
    code, out, _ = told["list tasks"]
    assert code == 0
    assert {"catch", "gymnax:CartPole-v1"} <= set(names(out))


@pytest.mark.parametrize(
    "line", [*COMMANDS, *(f"{x} --help" for x in COMMANDS), *(f"list {x}" for x in LISTS)]
)
def test_what_it_cannot_is_one_sentence(line: str, told: dict[str, tuple[int, str, str]]) -> None:
    """With the package that is missing, and the command that installs it."""
    code, out, err = told[line]
    assert (code, out) == (2, "")
    command = line.split()[0]
    assert re.fullmatch(
        rf"error: optim4rl {command}: \w+ is not installed; pip install 'optim4rl\[lab\]'\n", err
    )


def test_words_that_are_wrong_are_still_told(told: dict[str, tuple[int, str, str]]) -> None:
    for line, said in {"list": "required: WHAT", "burn": "'burn': known commands"}.items():
        code, out, err = told[line]
        assert (code, out) == (2, "")
        assert said in err


def raising(name: str) -> Callable[[list[str]], None]:
    """A command that imports a package which is not there."""

    def dispatch(words: list[str]) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return dispatch


@pytest.mark.parametrize("module", ["polars", "rich.console"])
def test_one_package_of_the_extra_is_missing(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(cli, "_dispatch", raising(module))
    with pytest.raises(SystemExit) as exit:
        cli.main(["report", "x"])
    assert exit.value.code == 2
    package = module.split(".")[0]
    said = f"error: optim4rl report: {package} is not installed; pip install 'optim4rl[lab]'\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ModuleNotFoundError):
        cli.main(["report", "x", "--debug"])


@pytest.mark.parametrize("module", ["optim4rl.nothing", "chex", "polar"])
def test_what_the_extra_does_not_bring_is_a_fault_and_shown(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(cli, "_dispatch", raising(module))
    with pytest.raises(ModuleNotFoundError, match=module):
        cli.main(["report", "x"])
