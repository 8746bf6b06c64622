"""What the page on files says that tables hold, for the tests of those who write them."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "trackers-and-files.md"


def columns(command):
    """The columns of a command's table, in order."""
    text = PAGE.read_text("utf-8").partition(f"\n`{command}`:\n\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
