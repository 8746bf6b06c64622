"""What the page on files says that tables hold, for the tests of those who write them."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "trackers-and-files.md"


def columns(table):
    """The columns of a command's table, or of a file of several commands, in order."""
    return [row[0] for row in _rows(table)]


def types(table):
    """What the page says that each column holds."""
    return dict(_rows(table))


def _rows(table):
    text = PAGE.read_text("utf-8").partition(f"\n`{table}`:\n\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
