"""The command `optim4rl`.

Exit codes: 0 done; 1 a run that stopped on its own account (it says why, and keeps what it has); 2
bad input, one line that names it and nothing started; 130 or 143 stopped by SIGINT or SIGTERM, with
the command to go on.
"""

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from optim4rl.cli.runtime import configure_jax
from optim4rl.cli.signals import StoppedBySignalError

HELP = """\
optim4rl: learned optimizers for reinforcement learning

  optim4rl train --out DIR           meta-train an optimizer        [--recipe NAME]
  optim4rl evaluate WEIGHTS          compare it with tuned classical optimizers
  optim4rl evaluate FILE.py:FUNCTION       the same for an optimizer of your own
  optim4rl evaluate WEIGHTS --suite NAME --out DIR    on all tasks of a benchmark
  optim4rl plan show PLAN            what an ablation plan asks for, and what it maps to
  optim4rl plan propose TEXT --out PLAN     a plan for a method     [--model NAME]
  optim4rl plan score PLANS --against PLAN  how much of a plan others find
  optim4rl plan lint PLAN            what is wrong with a plan, and what it would cost to run
  optim4rl ablate PLAN --out DIR     run the plan as a study        [--scale quick|standard|paper]
  optim4rl report DIRS               finished runs side by side, or a study's report again
  optim4rl replicate EXPERIMENT --out DIR    an experiment of the paper at its own scale
  optim4rl identity                  can an RNN reproduce the gradients it is shown?
  optim4rl import open FILE.npy --out WEIGHTS   read the published weights of another optimizer
  optim4rl inspect WEIGHTS           draw what it makes of gradients  [--out PAGE]
  optim4rl list WHAT                 tasks, optimizers, components, weights, recipes, kernels

Start with `optim4rl ablate plans/optim4rl.md --out runs/study`, or use a trained optimizer:

  import optim4rl
  optimizer = optim4rl.load()   # an optax optimizer, with the weights recommended for RL

Each command explains itself with --help.
"""

# What says that a disk is full or broken, in the middle of a run and through no fault of its user.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
PLAN_COMMANDS = ("show", "propose", "score", "lint")


class UsageError(ValueError):
    """A command line that cannot be understood."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words == ["--version"]:
        from optim4rl import __version__

        print(__version__)
        return
    configure_jax()
    try:
        _dispatch(words)
    except ModuleNotFoundError as missing:
        name = str(missing.name).partition(".")[0]
        if debug or not _is_of_lab(name):
            raise
        problem = f"optim4rl {words[0]}: {name} is not installed; pip install 'optim4rl[lab]'"
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedBySignalError as stopped:
        print(f"stopped by {stopped}. {_go_on(words)}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print(f"stopped. {_go_on(words)}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            print(f"stopped: {error}. {_go_on(words)}", file=sys.stderr)
            sys.exit(1)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if debug or type(error).__module__.split(".")[0] != "optim4rl":
            raise
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)


def _is_of_lab(package: str) -> bool:
    """Whether a package is one that the extra `lab` brings."""
    asked = re.compile(rf"{re.escape(package)}\b.*extra == .lab\b", re.IGNORECASE)
    return any(map(asked.match, metadata.requires("optim4rl") or ()))


def _go_on(words: list[str]) -> str:
    resume = ["--resume"] * (words[0] == "train" and "--resume" not in words)
    command = shlex.join(["optim4rl", *words, *resume])
    return f"What is finished is kept; go on with\n  {command}"


def _dispatch(words: list[str]) -> None:
    command, rest = words[0], words[1:]
    if command == "plan":
        if rest[:1] not in [[word] for word in PLAN_COMMANDS]:
            known = ", ".join(f"`{word}`" for word in PLAN_COMMANDS)
            raise UsageError(f"plan {' '.join(rest[:1])}: with plans one can {known}")
        command, rest = f"plan {rest[0]}", rest[1:]
    commands: dict[str, Callable[[str, list[str]], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        **{f"plan {word}": _plan for word in PLAN_COMMANDS},
        "ablate": _ablate,
        "report": _ablate,
        "identity": _ablate,
        "replicate": _replicate,
        "import": _import,
        "inspect": _inspect,
        "list": _list,
    }
    if command not in commands:
        raise UsageError(f"command {command!r}: known commands are {', '.join(commands)}")
    commands[command](command, rest)


def _parse(options: type[Any], command: str, rest: list[str], default: Any = None) -> Any:
    import tyro

    chosen = {} if default is None else {"default": default}
    # Options of parts have names of their own: --iterations, not --recipe.meta.iterations.
    flat = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(options, prog=f"optim4rl {command}", args=rest, config=flat, **chosen)


def _parse_known(options: type[Any], command: str, rest: list[str]) -> Any:
    """Those options, whatever else there is."""
    import tyro

    return tyro.cli(options, prog=f"optim4rl {command}", args=rest, return_unknown_args=True)[0]


def _train(command: str, rest: list[str]) -> None:
    from pathlib import Path

    from optim4rl.cli import processes

    if not {"-h", "--help"} & set(rest):
        # Processes must have met before anything of JAX runs; importing gymnax is enough for that.
        processes.join(_parse_known(processes.ProcessOptions, command, rest))
    from optim4rl.cli import train
    from optim4rl.meta.recipes import RECIPES

    default = None
    rest = [part for word in rest for part in _split_recipe(word)]
    if "--recipe" in rest:
        at = rest.index("--recipe")
        name = rest[at + 1] if at + 1 < len(rest) else ""
        if name not in RECIPES:
            raise UsageError(f"recipe = {name!r}: known recipes are {', '.join(RECIPES)}")
        del rest[at : at + 2]
        default = train.TrainOptions(Path("runs") / name.replace("/", "-"), RECIPES[name])
    with processes.noticing_losses():
        train.run(_parse(train.TrainOptions, command, rest, default))


def _split_recipe(word: str) -> list[str]:
    """`--recipe=NAME` as two words. In 0.1.0, and so in cards, the option is `--preset`."""
    name, equals, value = word.partition("=")
    if name not in ("--recipe", "--preset"):
        return [word]
    return ["--recipe", value] if equals else ["--recipe"]


def _evaluate(command: str, rest: list[str]) -> None:
    from optim4rl.cli import evaluate

    evaluate.run(_parse(evaluate.EvaluateOptions, command, rest))


def _ablate(command: str, rest: list[str]) -> None:
    from optim4rl.cli import ablate

    options, run = {
        "ablate": (ablate.AblateOptions, ablate.ablate),
        "report": (ablate.ReportOptions, ablate.report),
        "identity": (ablate.IdentityOptions, ablate.identity),
    }[command]
    run(_parse(options, command, rest))  # type: ignore[operator]


def _replicate(command: str, rest: list[str]) -> None:
    from optim4rl.cli import replicate

    replicate.run(_parse(replicate.ReplicateOptions, command, rest))


def _plan(command: str, rest: list[str]) -> None:
    from optim4rl.cli import plan

    options, run = {
        "plan show": (plan.ShowOptions, plan.show),
        "plan propose": (plan.ProposeOptions, plan.propose_plan),
        "plan score": (plan.ScoreOptions, plan.score),
        "plan lint": (plan.LintOptions, plan.lint_plan),
    }[command]
    run(_parse(options, command, rest))  # type: ignore[operator]


def _import(command: str, rest: list[str]) -> None:
    from optim4rl.cli import importing

    importing.run(_parse(importing.ImportOptions, command, rest))


def _inspect(command: str, rest: list[str]) -> None:
    from optim4rl.cli import inspect

    inspect.run(_parse(inspect.InspectOptions, command, rest))


def _list(command: str, rest: list[str]) -> None:
    from optim4rl.cli import listing

    listing.run(listing.parse(f"optim4rl {command}", rest))


if __name__ == "__main__":
    main()
