"""What was tried and how it ended: the rows of the table that `make faults` makes."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# What may happen, and what must not.
GOOD = ("correct", "clear error")
BAD = ("lost result", "wrong result", "traceback", "hang")
# What is counted, in the table's order.
KINDS = (
    "commands killed",
    "workers killed",
    "files damaged",
    "plans fuzzed",
    "hostile texts",
    "hostile files",
    "chat endpoints",
    "odd environments",
    "commands whose folder is full, read-only or taken",
    "runs with a NaN",
    "runs with a clock going backwards",
    "minutes soaked",
)


@dataclass
class Tally:
    """One row: what was tried, and how often it ended how."""

    kind: str
    fault: str
    started: float = field(default_factory=time.monotonic)
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, object]] = field(default_factory=list)

    def count(self, outcome: str, what: object = None, times: int = 1) -> None:
        """Count an outcome; `what` says which try it was, for the message if it is a bad one."""
        assert outcome in (*GOOD, *BAD)
        self.outcomes[outcome] += times
        if outcome in BAD:
            self.examples.append((outcome, what))

    def check(self, at_least: int) -> None:
        """Fail if anything ended badly, or too little was tried."""
        assert not self.examples, self.examples[:5]
        assert self.outcomes.total() >= at_least

    def values(self) -> dict[str, str | int]:
        """The row as JSON values."""
        from optim4rl.jobs.provenance import code_hash

        assert self.kind in KINDS
        return {
            "kind": self.kind,
            "fault": self.fault,
            "tried": self.outcomes.total(),
            **{name: self.outcomes[name] for name in (*GOOD, *BAD)},
            "seconds": round(time.monotonic() - self.started),
            "code": code_hash("optim4rl.cli.main")[:8],
        }


def write_table(path: Path, found: list[dict]) -> None:
    """Put rows into the table, in the place of older ones of the same fault."""
    data = path.with_suffix(".json")
    rows = {row["fault"]: row for row in json.loads(data.read_text())} if data.exists() else {}
    rows |= {row["fault"]: row for row in found}
    ordered = sorted(rows.values(), key=lambda row: (KINDS.index(row["kind"]), row["fault"]))
    data.write_text(json.dumps(ordered, indent=1) + "\n")
    path.write_text(page(ordered))


def page(rows: list[dict]) -> str:
    """Return the rows as Markdown: first the sums of each kind, then one by one."""
    counts = ("tried", *GOOD, *BAD)
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        sums.setdefault(row["kind"], Counter()).update({name: row[name] for name in counts})
    lines = [
        "# Faults",
        "",
        f"> **Claim.** {claim(sums)}",
        ">",
        "> **Evidence.** Every fault below, tried for real. `make faults` tries them again and",
        "> writes this page. [What the words mean](../reliability.md#what-has-been-tried).",
        ">",
        "> **What it does not show.** A power failure, a network file system, a second machine.",
        "",
        "## The table",
        "",
        *markdown(("kind", *counts), [{"kind": kind, **sums[kind]} for kind in sums]),
        "",
        "## One by one",
        "",
        "With the seconds that each took, and the hash of the code that was tried:",
        "",
        *markdown(("fault", *counts, "seconds", "code"), rows),
        "",
    ]
    return "\n".join(lines)


def claim(sums: dict[str, Counter[str]]) -> str:
    """Say in a sentence what went wrong."""
    total = sum(sums.values(), Counter())
    wrong = [f"{total[name]:,} ended with: {name}" for name in BAD if total[name]]
    minutes = sums.get("minutes soaked", Counter())["tried"]
    tried = f"Of {total['tried'] - minutes:,} faults and {minutes:,} minutes of soak"
    if wrong:
        return f"{tried} {'; '.join(wrong)}."
    return f"{tried} none ended with a {', a '.join(BAD[:-1])} or a {BAD[-1]}."


def markdown(columns: tuple[str, ...], rows: list[dict]) -> list[str]:
    """Return a table's lines: the first column is text, the others numbers."""

    def text(value: str | int) -> str:
        return value if isinstance(value, str) else f"{value:,}"

    lines = [[*columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[text(row[name]) for name in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]
