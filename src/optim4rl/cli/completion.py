"""`optim4rl completion`: print a script that completes commands, options and their values."""

import argparse
import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class CompletionOptions:
    """Options of `completion`.

    Attributes:
        shell: a name in `SHELLS`.
    """

    shell: str


def parse(program: str, words: list[str]) -> CompletionOptions:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        program,
        description="Print a script that lets a shell complete commands and options.",
        epilog="For bash: optim4rl completion bash > "
        "~/.local/share/bash-completion/completions/optim4rl",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    return CompletionOptions(**vars(parser.parse_args(words)))


def run(options: CompletionOptions) -> None:
    """Run the command."""
    print({"fish": _fish, "zsh": _zsh, "bash": _bash}[options.shell](_words()), end="")


def _words() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return each command's options with their known values; "" stands for plain arguments."""
    from optim4rl.cli.listing import LISTS
    from optim4rl.cli.main import COMMANDS, PLAN_COMMANDS
    from optim4rl.meta.recipes import RECIPES
    from optim4rl.optimizers.presets import LEARNED
    from optim4rl.optimizers.weight_files import shipped_names
    from optim4rl.tasks.environments.names import environment_names

    found: dict[str, dict[str, tuple[str, ...]]] = {}
    tasks = environment_names()  # None has a colon, which would end the word in bash.
    for command, (module, name, _) in COMMANDS.items():
        options = getattr(importlib.import_module(f"optim4rl.cli.{module}"), name)
        own: dict[str, tuple[str, ...]] = {}
        for option, known in _options(options):
            own[option] = own.get(option, ()) + known
        for option in ("--task", "--tasks"):
            own |= {option: tasks} if option in own else {}
        found[command] = {**own, "--help": ()}
    found["train"] |= {"--recipe": tuple(RECIPES), "--optimizer": tuple(LEARNED)}
    found["list"] = {"": tuple(LISTS), "--json": (), "--help": ()}
    found["completion"] = {"": SHELLS, "--help": ()}
    for command in ("evaluate", "inspect"):
        found[command][""] = shipped_names()
    found["plan"] = {"": PLAN_COMMANDS}
    alone = dict.fromkeys(x.partition(" ")[0] for x in found)
    return {"": {"": (*alone, "--help", "--version")}, **found}


def _options(options: type[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the options of a dataclass and its parts, each with the values to choose from."""
    declared_types = typing.get_type_hints(options, include_extras=True)
    for name in (field.name for field in dataclasses.fields(options)):
        declared = declared_types[name]
        kinds = list(_leaves(declared))
        parts = [x for x in kinds if isinstance(x, type) and dataclasses.is_dataclass(x)]
        choices = [x for k in kinds if typing.get_origin(k) is typing.Literal for x in k.__args__]
        option = name.replace("_", "-")
        if parts:
            yield from _options(parts[0])
        elif "Positional" in str(declared):
            yield "", tuple(map(str, choices))
        else:
            yield f"--{option}", tuple(map(str, choices))
            if bool in kinds:
                yield f"--no-{option}", ()


def _leaves(declared: Any) -> Iterator[Any]:
    """Yield the types inside a declared type."""
    parts = typing.get_args(declared)
    if typing.get_origin(declared) is typing.Literal or not parts:
        yield declared
    elif typing.get_origin(declared) is typing.Annotated:
        yield from _leaves(parts[0])
    else:
        for part in parts:
            yield from _leaves(part)


_BASH = """\
_optim4rl() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} known=
  local command=${COMP_WORDS[1]}
  [[ $command == plan && $COMP_CWORD -gt 2 ]] && command="plan ${COMP_WORDS[2]}"
  [[ $COMP_CWORD -eq 1 ]] && command= before=
  [[ $before == --* ]] || before=
  if [[ $word == -* ]]; then
    case "$command" in
OPTIONS    esac
  else
    case "$command $before" in
CASES    esac
  fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}
complete -o bashdefault -o default -F _optim4rl optim4rl
"""


def _bash(words: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    values = [
        f'      "{command} {option}") known="{" ".join(known)}";;\n'
        for command, options in words.items()
        for option, known in options.items()
        if known
    ]
    options = [
        f'      "{command}") known="{" ".join(filter(None, options))}";;\n'
        for command, options in words.items()
    ]
    return _BASH.replace("CASES", "".join(values)).replace("OPTIONS", "".join(options))


def _zsh(words: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash(words)}"


def _fish(words: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    lines = []
    plans = " ".join(words["plan"][""])
    for command, options in words.items():
        first, _, second = command.partition(" ")
        when = f"__fish_seen_subcommand_from {first}" if first else "__fish_use_subcommand"
        if second:
            when += f"; and __fish_seen_subcommand_from {second}"
        if command == "plan":
            when += f"; and not __fish_seen_subcommand_from {plans}"
        for option, known in options.items():
            line = f"complete -c optim4rl -n '{when}'"
            line += f" -l {option[2:]}" if option else ""
            lines.append(line + (f" -x -a '{' '.join(known)}'" if known else ""))
    return "\n".join(lines) + "\n"
