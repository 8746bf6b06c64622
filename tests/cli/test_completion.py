"""Completion, as bash does it; what is completed is what the commands take."""

import subprocess

import pytest

from optim4rl.cli import main as cli
from optim4rl.cli.completion import SHELLS
from optim4rl.cli.main import main


@pytest.fixture(scope="module")
def scripts():
    """The script of each shell."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "configure_jax", lambda: None)
        for shell in SHELLS:
            said = []
            patch.setattr("builtins.print", lambda text, said=said, **_: said.append(text))
            main(["completion", shell])
            found[shell] = "".join(said)
    return found


COMPLETE = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _optim4rl; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ev"], ["evaluate"]),
        (["plan", "s"], ["show", "score"]),
        (["plan", "show", "--j"], ["--json"]),
        (["train", "--rec"], ["--recipe"]),
        (["train", "--inner"], ["--inner-updates"]),
        (["train", "--recipe", "zoo/ppo"], ["zoo/ppo-generalist"]),
        (["train", "--out", "x", "--optimizer", "anch"], ["anchored"]),
        (["evaluate", "anchored"], ["anchored-catch"]),
        (["evaluate", "x", "--stress-se"], ["--stress-seeds"]),
        (["evaluate", "x", "--task", "cat"], ["catch"]),
        (["ablate", "x", "--scale", "st"], ["standard"]),
        (["list", "w"], ["weights"]),
        (["completion", "b"], ["bash"]),
        (["ablate", "p.md", "--out", "x"], [""]),  # A file: bash's own completion.
    ],
)
def test_bash_completes_commands_options_and_values(words, found, scripts):
    program = scripts["bash"] + COMPLETE
    done = subprocess.run(
        ["bash", "-c", program, "bash", "optim4rl", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == found


def test_every_shell_knows_every_command(scripts):
    for script in scripts.values():
        for command in cli.COMMANDS:
            assert command.rpartition(" ")[2] in script
    assert scripts["zsh"].endswith(scripts["bash"])
    assert scripts["fish"].count("complete -c optim4rl") > 100
    plans = " ".join(cli.PLAN_COMMANDS)
    assert f"and not __fish_seen_subcommand_from {plans}' -x" in scripts["fish"]
