"""What the fault tests count, and the table that `make faults` makes of it.

A test asks the fixture `tally` for a row, counts outcomes, and fails if one is bad. With
`--faults-table FILE` the rows go into a table; rows of tests that were not run stay as they were.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optim4rl.study.cells import code_hash

# What may happen, and what must not.
GOOD = ("correct", "clear error")
BAD = ("lost result", "wrong result", "traceback", "hang")


@dataclass
class Tally:
    """One row: what was tried, and how often it ended how."""

    fault: str
    started: float = field(default_factory=time.monotonic)
    outcomes: Counter = field(default_factory=Counter)
    examples: list = field(default_factory=list)

    def count(self, outcome, what=None, times=1):
        """Count an outcome; `what` says which try it was, for the message if it is a bad one."""
        assert outcome in (*GOOD, *BAD)
        self.outcomes[outcome] += times
        if outcome in BAD:
            self.examples.append((outcome, what))

    def check(self, at_least):
        """Fail if anything ended badly, or too little was tried."""
        assert not self.examples, self.examples[:5]
        assert self.outcomes.total() >= at_least

    def values(self):
        return {
            "fault": self.fault,
            "tried": self.outcomes.total(),
            **{name: self.outcomes[name] for name in (*GOOD, *BAD)},
            "seconds": round(time.monotonic() - self.started),
            "code": code_hash()[:8],
        }


def pytest_addoption(parser):
    parser.addoption("--faults-table", metavar="FILE", help="write the counts of fault tests there")


_ROWS = []


@pytest.fixture
def tally(request):
    """Makes a row of the table, which is written when the test ends: others may be stopped."""
    rows = []

    def start(fault):
        rows.append(Tally(fault))
        return rows[-1]

    yield start
    found = [row.values() for row in rows]
    _ROWS.extend(found)
    path = request.config.getoption("faults_table", None)
    if path is not None:
        write_table(Path(path), found)


def pytest_terminal_summary(terminalreporter):
    for row in _ROWS:
        shown = ", ".join(f"{row[name]} {name}" for name in (*GOOD, *BAD))
        terminalreporter.write_line(f"{row['fault']}: {row['tried']} tried: {shown}")


def write_table(path, found):
    """Put rows into the table, in the place of older ones of the same name."""
    data = path.with_suffix(".json")
    rows = {row["fault"]: row for row in json.loads(data.read_text())} if data.exists() else {}
    rows |= {row["fault"]: row for row in found}
    data.write_text(json.dumps(sorted(rows.values(), key=lambda x: x["fault"]), indent=1) + "\n")
    path.write_text(table(list(rows.values())))


def table(rows):
    """The rows as Markdown."""
    columns = ("fault", "tried", *GOOD, *BAD, "seconds", "code")
    rows = sorted(rows, key=lambda row: row["fault"])
    total = {name: sum(row[name] for row in rows) for name in ("tried", *GOOD, *BAD, "seconds")}
    lines = [
        "# Faults",
        "",
        "Made by `make faults`; what each row does is in [tests/faults](../../tests/faults).",
        "",
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 2)}---|",
    ]
    for row in [*rows, {"fault": "**all**", **total, "code": ""}]:
        lines.append(f"| {' | '.join(str(row[name]) for name in columns)} |")
    lines += [
        "",
        '"Correct" is the result of an undisturbed run, bit for bit; a "clear error" names the',
        "file or the value. `code` is the hash of the code that was tried.",
        "",
    ]
    return "\n".join(lines)
