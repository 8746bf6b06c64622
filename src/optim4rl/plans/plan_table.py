"""Reads plans as a Markdown table: rows are ablations, and words of the header name columns."""

import re
from collections.abc import Sequence
from typing import Final

from optim4rl.plans.ablation import Ablation, is_nothing, make_ablation, plain, refuse, split
from optim4rl.plans.plan_fields import EXTRAS, FIELDS, field_name, require_one_field
from optim4rl.plans.plan_text import words

_PIPE: Final = re.compile(r"(?<!\\)\|")
_RULE: Final = re.compile(r":?-+:?")
_BREAK: Final = re.compile(r"<br\s{0,4}/?>", re.IGNORECASE)
_PIPE_ENTITY: Final = re.compile(r"&(?:#124|#x7c|vert|verbar);", re.IGNORECASE)
_TITLES: Final = words("ablation experiment id name no number study title") | {"", "#"}


def join_cells(text: str) -> str:
    """Return the text with each table cell on one line: a line break in a cell becomes ';'.

    Do this before HTML becomes Markdown, which would break the row.
    """
    if "|" not in text:
        return text
    return "\n".join(
        _BREAK.sub("; ", _PIPE_ENTITY.sub(r"\\|", line)) if "|" in line else line
        for line in text.split("\n")
    )


def is_table_header(line: str) -> bool:
    """Return whether a line is the header of a plan's table: its cells name two fields or more."""
    return len({*_columns(line)} & {*FIELDS}) > 1


def cut_tables(lines: Sequence[str]) -> tuple[list[str], tuple[Ablation, ...]]:
    """Cut a plan's tables out of its lines.

    Other tables stay where they are.

    Returns:
      The other lines, and the ablations of all rows in their order.

    Raises:
      PlanError: a table has no line of dashes below its header, no column for the part, two for
        one field, or a row that was not understood.
    """
    rest: list[str] = []
    ablations: list[Ablation] = []
    columns: list[str] = []  # of the last table
    rows = iter([*lines, ""])
    for line in rows:
        if is_table_header(line):
            columns = _columns(line)
            _check_columns(line, columns, next(rows, ""))
            for row in rows:
                if "|" not in row:
                    rest.append(row)
                    break
                ablations += _row(row, columns, _cells(line))
        elif columns and len(_cells(line)) == len(columns):
            refuse(line, "the row is outside its table; move it below the table's last row")
        else:
            rest.append(line)
    return rest, tuple(ablations)


def _cells(line: str) -> list[str]:
    body = line.strip().lstrip("> ").removeprefix("|").rstrip()
    if body.endswith("|") and not body.endswith("\\|"):
        body = body[:-1]
    return [cell.replace("\\|", "|").strip() for cell in _PIPE.split(body)]


def _columns(line: str) -> list[str]:
    """Return each column's field, "title", or "" for an unknown word; empty if not a table."""
    if "|" not in line:
        return []
    return [_column(plain(cell)) for cell in _cells(line)]


def _column(cell: str) -> str:
    if cell.lower().strip(" .") in _TITLES:
        return "title"
    return (field_name(cell) or "") if len(cell) <= 40 and ":" not in cell else ""


def _check_columns(header: str, columns: list[str], below: str) -> None:
    rule = _cells(below)
    if not all(map(_RULE.fullmatch, rule)) or len(rule) != len(columns):
        refuse(header, "a table needs one line of dashes below its header, with as many columns")
    if "part" not in columns and "title" not in columns:
        refuse(header, "the table has no column 'Ablated part'")
    for name in (*FIELDS, *EXTRAS):
        if columns.count(name) > 1:
            refuse(header, f"two columns of the table hold the field {name!r}")


def _row(line: str, columns: list[str], header: list[str]) -> list[Ablation]:
    cells = _cells(line)
    if len(cells) != len(columns):
        refuse(line, f"the row has {len(cells)} cells, but its table has {len(columns)} columns")
    if not any(cells):
        return []
    found = dict.fromkeys((*FIELDS, *EXTRAS), "")
    titles, unread = [], []
    for name, cell, word in zip(columns, cells, header, strict=True):
        if name in found:
            require_one_field(cell, name)
            found[name] = "" if is_nothing(cell) else plain(cell)
        elif name == "title" and not cell.strip("#.() ").isdigit():
            titles.append(plain(cell))
        elif name == "" and not is_nothing(cell):
            unread.append(f"{word}: {cell}")
    title = " ".join(titles)
    if not found["part"] and not title:
        refuse(line, "the row names no part")
    replacements, metrics = split(found["replacements"]), split(found["metrics"])
    return [make_ablation(title, found, replacements, metrics, unread=unread)]
