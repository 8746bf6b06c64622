"""The command `optim4rl`.

Exit codes: 0: done. 1: the run stopped by itself; it says why, and keeps its results. 2: bad input;
one line names it, and nothing was started. 130 or 143: stopped by SIGINT or SIGTERM; the run prints
the command that continues it.
"""

import errno
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from optim4rl.cli.runtime import configure_jax, missing_device
from optim4rl.cli.signals import StoppedBySignalError, keeps_work
from optim4rl.cli.terminal import require_known

HELP = """\
optim4rl: learned optimizers for reinforcement learning

Optimizers
  optim4rl list WHAT                        tasks, optimizers, weights, recipes,
                                            components, kernels
  optim4rl inspect WEIGHTS                  draw an optimizer's response to
                                            gradients
  optim4rl evaluate WEIGHTS                 compare with tuned classical ones
                                            [--task NAME | --suite NAME]
  optim4rl evaluate FILE.py:FUNCTION        the same for your own optimizer
  optim4rl train --out DIR                  meta-train weights [--recipe NAME]
  optim4rl import open FILE --out WEIGHTS   read OPEN's published weights

Ablation plans
  optim4rl plan show PLAN                   show how a plan is read and mapped
  optim4rl plan propose TEXT --out PLAN     write a plan for a method
                                            [--model NAME]
  optim4rl plan score PLANS --against PLAN  count what other plans find of PLAN
  optim4rl plan lint PLAN                   check a plan, and predict its cost
  optim4rl plan export PLAN --out FILE      write AblationBench's JSON lines
  optim4rl ablate PLAN --out DIR            run it as a study  [--scale NAME]

Results
  optim4rl report DIRS                      compare finished runs, or write a
                                            study's report again
  optim4rl leaderboard TABLES --out PAGE    rank contenders on every suite, from
                                            the runs.parquet of evaluations
  optim4rl replicate EXPERIMENT --out DIR   run the paper's experiments
  optim4rl identity                         test whether an RNN can reproduce
                                            gradients

  optim4rl completion SHELL                 complete commands and options
                                            in bash, zsh or fish

Start with `optim4rl ablate plans/optim4rl.md --out runs/study`, or use a
trained optimizer:

  import optim4rl
  optimizer = optim4rl.load()   # for optax, with the weights recommended for RL

Each command explains itself with --help. Most print JSON with --json.
"""

# Errors of a full or broken disk. They come in the middle of a run and are not the user's fault.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# For each command: its module in `optim4rl.cli`, its options there, and the function to call.
COMMANDS = {
    "train": ("train", "TrainOptions", "run"),
    "evaluate": ("evaluate", "EvaluateOptions", "run"),
    "plan show": ("plan", "ShowOptions", "show"),
    "plan propose": ("plan", "ProposeOptions", "propose_plan"),
    "plan score": ("plan_scores", "ScoreOptions", "score"),
    "plan lint": ("plan", "LintOptions", "lint_plan"),
    "plan export": ("plan_scores", "ExportOptions", "export"),
    "ablate": ("ablate", "AblateOptions", "ablate"),
    "report": ("report", "ReportOptions", "report"),
    "identity": ("ablate", "IdentityOptions", "identity"),
    "leaderboard": ("leaderboard", "LeaderboardOptions", "run"),
    "replicate": ("replicate", "ReplicateOptions", "run"),
    "import": ("importing", "ImportOptions", "run"),
    "inspect": ("inspect", "InspectOptions", "run"),
    "list": ("listing", "ListOptions", "run"),
    "completion": ("completion", "CompletionOptions", "run"),
}
PLAN_COMMANDS = tuple(x.partition(" ")[2] for x in COMMANDS if x.startswith("plan "))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and exit with its code."""
    _require_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        try:
            _dispatch(words)
        finally:
            _flush()
    except ModuleNotFoundError as missing:
        name = str(missing.name).partition(".")[0]
        if debug or not _is_of_lab(name):
            raise
        problem = f"optim4rl {words[0]}: {name} is not installed; pip install 'optim4rl[lab]'"
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        pass  # The reader has closed the pipe.
    except StoppedBySignalError as stopped:
        _stop(f"stopped by {stopped}", words, stopped, stopped.code)
    except KeyboardInterrupt as stopped:
        _stop("stopped", words, stopped, 130)
    except (ValueError, OSError) as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            _stop(f"stopped: {_sentence(error)}", words, error, 1)
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, AssertionError) as error:
        device = missing_device(error)
        if debug or (device is None and type(error).__module__.split(".")[0] != "optim4rl"):
            raise
        print(f"error: {device}" if device else f"stopped: {error}", file=sys.stderr)
        sys.exit(2 if device else 1)


def _require_streams() -> None:
    """Refuse a closed stdout, whose number a file would take; replace the other streams."""
    for number in (0, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115
    if sys.stdout is None:
        print("error: stdout is closed; send it to a file or to /dev/null", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Not every encoding has the lines of tables.
            stream.reconfigure(errors="replace")


def _flush() -> None:
    """Write the rest of the output now: at exit an error could not be reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = error.filename or "stdout"
        raise


def _stop(said: str, words: list[str], error: BaseException, code: int) -> NoReturn:
    """Say why a command stopped and, if work is kept, how to continue; then exit."""
    if keeps_work(error):
        resume = ["--resume"] * (words[0] == "train" and "--resume" not in words)
        command = shlex.join(["optim4rl", *words, *resume])
        said = f"{said}. Finished work is kept; continue with\n  {command}"
    print(said, file=sys.stderr)
    sys.exit(code)


def _sentence(error: Exception) -> str:
    """Return an error's message; of a system error, the file and the reason without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _is_of_lab(package: str) -> bool:
    """Return whether the extra `lab` installs a package."""
    asked = re.compile(rf"{re.escape(package)}\b.*extra == .lab\b", re.IGNORECASE)
    return any(map(asked.match, metadata.requires("optim4rl") or ()))


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words == ["--version"]:
        from optim4rl import __version__

        print(__version__)
        return
    configure_jax()
    command, rest = words[0], words[1:]
    if command == "plan":
        given = " ".join(rest[:1])
        require_known("plan", given, "commands for plans", PLAN_COMMANDS)
        command, rest = f"plan {given}", rest[1:]
    require_known("command", command, "commands", COMMANDS)
    if command == "train":
        _train(rest)
        return
    module, options, run = COMMANDS[command]
    found = importlib.import_module(f"optim4rl.cli.{module}")
    # Commands that the core install can run have a parser without tyro.
    parse = getattr(found, "parse", None)
    program = f"optim4rl {command}"
    chosen = parse(program, rest) if parse else _parse(getattr(found, options), command, rest)
    getattr(found, run)(chosen)


def _parse(options: type[Any], command: str, rest: list[str], default: Any = None) -> Any:
    from optim4rl.cli.options import parse

    return parse(options, f"optim4rl {command}", rest, default)


def _train(rest: list[str]) -> None:
    from optim4rl.cli import processes

    if not {"-h", "--help"} & set(rest):
        from optim4rl.cli.options import parse_known

        # Processes must connect before JAX runs anything, and importing gymnax already does.
        processes.join(parse_known(processes.ProcessOptions, "optim4rl train", rest))
    from optim4rl.cli import train
    from optim4rl.meta.recipes import RECIPES

    default = None
    rest = [part for word in rest for part in _split_recipe(word)]
    if "--recipe" in rest:
        at = rest.index("--recipe")
        name = rest[at + 1] if at + 1 < len(rest) else ""
        require_known("recipe =", name, "recipes", RECIPES)
        del rest[at : at + 2]
        default = train.TrainOptions(Path("runs") / name.replace("/", "-"), RECIPES[name])
    with processes.noticing_losses():
        train.run(_parse(train.TrainOptions, "train", rest, default))


def _split_recipe(word: str) -> list[str]:
    """Split `--recipe=NAME` into two words. In 0.1.0, and so in cards, it is `--preset`."""
    name, equals, value = word.partition("=")
    if name not in ("--recipe", "--preset"):
        return [word]
    return ["--recipe", value] if equals else ["--recipe"]


if __name__ == "__main__":
    main()
