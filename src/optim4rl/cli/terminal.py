"""Write for a terminal: find its width, fit tables into it, and put times into words."""

import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

# The width of a pipe, which has none of its own, and the least width.
_PIPE_COLUMNS, _LEAST_COLUMNS = 160, 20
# Only words longer than this are folded in a cell.
_LONGEST_WORD = 40

Row = Sequence[str]


def columns() -> int:
    """Return the width of a line on stdout: COLUMNS, the terminal's width, or a pipe's."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(_LEAST_COLUMNS, int(os.environ["COLUMNS"]))
    if sys.stdout is None or not sys.stdout.isatty():
        return _PIPE_COLUMNS
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)


def duration(seconds: float) -> str:
    """Put seconds into words, as roughly as an estimate."""
    for limit, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit))} {name}"
    return f"{seconds / 86_400:.1f} days"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a clause that names the most similar known word; "" if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def require_known(what: str, given: str, kind: str, known: Collection[str]) -> None:
    """Refuse an unknown word.

    Raises:
        ValueError: the message begins with `what`, and names all known words and the most similar.
    """
    if given not in known:
        near = did_you_mean(given, known)
        raise ValueError(f"{what} {given!r}: known {kind} are {', '.join(known)}{near}")


def print_table(title: str, names: Row, rows: Sequence[Row]) -> None:
    """Print a table on stdout, no wider than the terminal, without breaking words.

    If the terminal is too narrow, or rich is not installed, every row has its own lines.

    Args:
        title: printed above it.
        names: of the columns.
        rows: a cell for each column.
    """
    shown = [[_printable(cell) for cell in row] for row in rows]
    table = _table(_printable(title), list(map(_printable, names)), shown, columns())
    print("\n".join(line.rstrip() for line in table))


def _table(title: str, names: Row, rows: Sequence[Row], width: int) -> Iterator[str]:
    least = [max(map(_longest_word, column)) for column in zip(names, *rows, strict=True)]
    if sum(least) + 3 * len(least) + 1 > width:
        yield from _records(title, names, rows, width)
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:  # The core install has no rich.
        yield from _records(title, names, rows, width)
        return
    # Text, not markup: cells may hold untrusted words.
    table = Table(title=Text(title), title_justify="left")
    widths = _widths(list(zip(names, *rows, strict=True)), least, width)
    for index, name in enumerate(names):
        numbers = index > 0 and all(_is_number(row[index]) for row in rows)
        side: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(Text(name), justify=side, width=widths[index], overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    yield from captured.get().splitlines()


def _widths(columns: Sequence[Row], least: Sequence[int], width: int) -> list[int]:
    """Return column widths that keep words whole, and share the other room by need."""
    room, widths = width - sum(least) - 3 * len(least) - 1, list(least)
    wanted = [max(map(len, cells)) - x for cells, x in zip(columns, least, strict=True)]
    for rank, index in enumerate(sorted(range(len(least)), key=wanted.__getitem__)):
        more = min(wanted[index], room // (len(least) - rank))
        widths[index] += more
        room -= more
    return widths


def _records(title: str, names: Row, rows: Sequence[Row], width: int) -> Iterator[str]:
    """Yield each row as its first cell with the other cells below."""
    yield title
    indent = max(map(len, names[1:]), default=0) + 4
    for row in rows:
        yield ""
        head = row[0] if names[0] in ("", "name") else f"{names[0]} {row[0]}"
        yield from _wrap(head, width, "  ")
        for name, cell in zip(names[1:], row[1:], strict=True):
            if cell:
                yield from _wrap(f"  {name:{indent - 2}}{cell}", width, " " * indent)


def _wrap(text: str, width: int, indent: str) -> list[str]:
    """Return lines of whole words, all but the first one indented."""
    width = max(width, len(indent) + _LEAST_COLUMNS)
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _printable(text: str) -> str:
    """Replace characters that a terminal would obey by spaces."""
    return "".join(x if x.isprintable() else " " for x in text)


def _longest_word(cell: str) -> int:
    return min(max(map(len, cell.split()), default=0), _LONGEST_WORD)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "").replace("-", "").replace(",", "").replace("%", "").isdigit()
