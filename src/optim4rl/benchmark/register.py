"""The register of claims: what is compared on which tasks and seeds, written before it is run.

A TOML file in a repository, whose history shows what was written when. Claims stand in the order in
which they were written:

    [my-claim]
    registered = 2026-11-30
    tasks = ["gymnax:Acrobot-v1", "brax:hopper"]
    first_seed = 3000
    seeds = 8
    contenders = ["my_file:make", "adam_ppo"]
    compared_with = ["adam_ppo"]

`suite`, `tuning_seeds`, `score`, `grids` and `note` may say more. A seed serves one claim on a
task: what comes earlier in the file has used it up.
"""

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path

from optim4rl.benchmark.loop import Benchmark
from optim4rl.fields import COUNT, COUNT_OR_ZERO, check_fields, check_values


@dataclass(frozen=True)
class Registered:
    """A claim that is to be judged.

    Attributes:
        registered: when it was written down, as YYYY-MM-DD.
        tasks: their names.
        first_seed: the first of the reported seeds.
        seeds: how many follow, it included.
        contenders: what is compared, in words.
        compared_with: those of them that the claim is about, in words.
        suite: where the tasks are from.
        tuning_seeds: how many choose settings; None leaves it open.
        score: what is compared, in words.
        grids: what is tuned over, in words.
        note: what a reader should know besides.
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
        """The tasks with each of the seeds."""
        reported = range(self.first_seed, self.first_seed + self.seeds)
        return {(task, seed) for task in self.tasks for seed in reported}


def read_register(path: Path) -> dict[str, Registered]:
    """All claims of a register by name, the earliest first.

    Raises:
        ValueError: the file is no register; the message names it and the claim.
        OSError: it cannot be read.
    """
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
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
    """Refuse a benchmark that is not the one registered, or uses seeds again; the claim in words.

    Args:
        path: the register.
        name: the claim.
        b: what is about to be run.

    Raises:
        ValueError: one sentence says what differs, or who used which seed before.
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
            f"claim = {name!r}: its tasks are {', '.join(claim.tasks)}, and those of the run "
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
    for other, earlier in claims.items():
        if other == name:
            break
        if again := sorted(claim.used & earlier.used):
            task, seed = again[0]
            raise ValueError(
                f"claim = {name!r}: seed {seed} of {task} was used by the claim {other!r} of "
                f"{earlier.registered}; register seeds that none has used"
            )
    return (
        f"Claim `{name}`, registered on {claim.registered}: {', '.join(claim.contenders)}; "
        f"compared with {', '.join(claim.compared_with)}."
    )
