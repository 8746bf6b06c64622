"""The register of claims: comparisons written down before they are run.

The register is a TOML file in a repository, whose history shows when each claim was written. Claims
are in the order in which they were written:

    [my-claim]
    registered = 2026-11-30
    tasks = ["gymnax:Acrobot-v1", "brax:hopper"]
    first_seed = 3000
    seeds = 8
    contenders = ["my_file:make", "adam_ppo"]
    compared_with = ["adam_ppo"]

`suite`, `tuning_seeds`, `score`, `grids` and `note` are optional. On each task a seed serves one
claim: a later claim cannot use it again.
"""

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path

from optim4rl.benchmark.loop import Benchmark
from optim4rl.fields import COUNT, COUNT_OR_ZERO, check_fields, check_values
from optim4rl.files.reading import read_text

# The rule with fresh weights, in `compared_with`.
CONTROL = "untrained control"


@dataclass(frozen=True)
class Registered:
    """Hold a claim as it is written in the register.

    Attributes:
        registered: date of writing, as YYYY-MM-DD.
        tasks: names of the tasks.
        first_seed: the first reported seed.
        seeds: number of reported seeds.
        contenders: the contenders, in words.
        compared_with: names of the contenders that the claim compares with, or `CONTROL`.
        suite: the suite of the tasks.
        tuning_seeds: number of tuning seeds; None: any number.
        score: the score that is compared, in words.
        grids: the grids that are tuned over, in words.
        note: anything else that a reader should know.
    """

    registered: str
    tasks: tuple[str, ...]
    first_seed: int
    seeds: int
    contenders: tuple[str, ...]
    compared_with: tuple[str, ...]
    suite: str = ""
    tuning_seeds: int | None = None
    score: str = ""
    grids: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        check_fields(self, first_seed=COUNT_OR_ZERO, seeds=COUNT, tuning_seeds=COUNT)

    @property
    def used(self) -> set[tuple[str, int]]:
        """Return every pair of a task and a reported seed."""
        reported = range(self.first_seed, self.first_seed + self.seeds)
        return {(task, seed) for task in self.tasks for seed in reported}


def read_register(path: Path) -> dict[str, Registered]:
    """Read all claims of a register by name, the earliest first.

    Raises:
        ValueError: the file is not a register; the message names it and the claim.
        OSError: the file cannot be read.
    """
    try:
        entries = tomllib.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: not a register of claims ({error})") from error
    found = {}
    for name, entry in entries.items():
        try:
            found[name] = _registered(entry)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: claim {name!r} cannot be read ({error})") from error
    return found


def _registered(entry: dict[str, object]) -> Registered:
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    date = values.get("registered")
    if type(date) is not datetime.date:
        raise ValueError(f"registered = {date!r}: a date is needed")
    values["registered"] = date.isoformat()
    check_values(Registered, values)
    return Registered(**values)  # type: ignore[arg-type]  # checked


def require_claim(path: Path, name: str, b: Benchmark) -> str:
    """Refuse a benchmark that differs from its claim or reuses seeds; return the claim in words.

    Args:
        path: the register.
        name: name of the claim.
        b: the benchmark that is about to run.

    Raises:
        ValueError: the message says what differs, or which claim used which seed before.
        OSError: the register cannot be read.
    """
    claims = read_register(path)
    if name not in claims:
        known = ", ".join(claims) or "none yet"
        raise ValueError(f"claim = {name!r}: claims of {path} are {known}")
    claim, protocol = claims[name], b.protocol
    tasks = tuple(task.name for task in b.suite.tasks)
    if set(tasks) != set(claim.tasks):
        raise ValueError(
            f"claim = {name!r}: it registered {', '.join(claim.tasks)}, but the run has "
            f"{', '.join(tasks)}"
        )
    if (protocol.first_seed, protocol.seeds) != (claim.first_seed, claim.seeds):
        raise ValueError(
            f"claim = {name!r}: it has {claim.seeds} seeds from {claim.first_seed}, and the run "
            f"{protocol.seeds} from {protocol.first_seed}; give --seeds {claim.seeds} "
            f"--first-seed {claim.first_seed}"
        )
    if claim.tuning_seeds not in (None, protocol.tuning_seeds):
        raise ValueError(
            f"claim = {name!r}: it has {claim.tuning_seeds} tuning seeds, and the run "
            f"{protocol.tuning_seeds}; give --tuning-seeds {claim.tuning_seeds}"
        )
    names = {x.name for x in b.contenders}
    known_names = names | ({CONTROL} if any(x.role == "control" for x in b.contenders) else set())
    if missing := [x for x in claim.compared_with if x not in known_names]:
        raise ValueError(
            f"claim = {name!r}: it compares with {', '.join(missing)}, and the run has "
            f"{', '.join(sorted(names))}; add them with --baselines, or leave out --no-controls"
        )
    for other, earlier in claims.items():
        if other == name:
            break
        if again := sorted(claim.used & earlier.used):
            task, seed = again[0]
            raise ValueError(
                f"claim = {name!r}: seed {seed} of {task} was used by the claim {other!r} of "
                f"{earlier.registered}; register unused seeds"
            )
    return (
        f"Claim `{name}`, registered on {claim.registered}: {', '.join(claim.contenders)}; "
        f"compared with {', '.join(claim.compared_with)}."
    )
