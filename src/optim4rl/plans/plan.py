"""Reads ablation plans in the forms in which planners publish them.

A plan is a file of Markdown or HTML with a title, a reasoning trace in prose, and ablations; or it
is data. Its ablations have one of these forms:

- labelled fields below headings (`plan_fields`),
- a table (`plan_table`),
- JSON: lines, a list, or an object with a list `ablations` (`plan_json`).

A plan is read whole, or it is refused with the text that was not understood.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from optim4rl.files.reading import read_file, why
from optim4rl.plans.ablation import (
    Ablation,
    Action,
    Plan,
    PlanError,
    lower_words,
    read_action,
    refuse,
)
from optim4rl.plans.plan_fields import Line, caption, fields_of, parse_line, read_fields
from optim4rl.plans.plan_json import cut_json
from optim4rl.plans.plan_table import cut_tables, is_table_header, join_cells
from optim4rl.plans.plan_text import clean_text, decode_text, to_markdown, words

__all__ = ["MAX_BYTES", "Ablation", "Action", "Plan", "PlanError", "parse_plan", "read_plan"]

MAX_BYTES: Final = 1_000_000  # 250 times a published plan; seconds to read at worst


def read_plan(path: str | Path) -> Plan:
    """Read the plan file at `path`.

    Raises:
      PlanError: `read_plan_bytes` or `parse_plan` refuses it.
    """
    data = read_plan_bytes(path)
    try:
        return parse_plan(data)
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}: {error}") from None


def read_plan_bytes(path: str | Path) -> bytes:
    """Read the bytes of the plan file at `path`.

    Raises:
      PlanError: it is not a regular file, cannot be read, or is longer than `MAX_BYTES`.
    """
    try:
        return read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise PlanError(f"plan {str(path)!r} cannot be read: {why(error)}") from error


def parse_plan(text: str | bytes) -> Plan:
    """Read a plan from its text, or from bytes in any encoding.

    The time is linear in the input's length.

    Raises:
      PlanError: the text is empty, is longer than `MAX_BYTES`, holds no ablation, mixes two forms,
        or has a field that was not understood.
    """
    if len(text) > MAX_BYTES:
        raise PlanError(f"it is longer than {MAX_BYTES:,} bytes, the limit")
    cleaned = clean_text(decode_text(text) if isinstance(text, bytes) else text)
    prose, data = cut_json(cleaned)
    lines = to_markdown(join_cells(prose)).splitlines()
    if data is not None:
        return _beside_prose(data, lines)
    if not any(line.strip() for line in lines):
        raise PlanError("it is empty; expected a title, a reasoning trace and an ablation plan")
    title, reasoning, plan_lines, late = _sections(lines)
    ablations = _ablations(plan_lines)
    _require_no_ablation(late if ablations else [])
    ablations = ablations or _ablations(lines)
    if not ablations:
        raise PlanError(
            "it holds no ablation; expected lines such as 'Ablated Part: …', "
            "'Action: REPLACE', 'Replacement: …', 'Metrics: …'"
        )
    return Plan(title, reasoning, ablations)


def _ablations(lines: Sequence[str]) -> tuple[Ablation, ...]:
    """Return the ablations of a table or of labelled fields.

    Raises:
      PlanError: there are both, or a text was not understood.
    """
    rest, rows = cut_tables(lines)
    records = read_fields(rest)
    if rows and records:
        refuse(records[0].name, "the plan has a table and labelled fields; use one form")
    return rows or records


def _beside_prose(data: Plan, lines: list[str]) -> Plan:
    """Return the plan in JSON; the text around it gives the title and reasoning that it lacks."""
    if others := _ablations(lines):
        refuse(others[0].name, "the plan has JSON and fields or a table; use one form")
    prose = [line for line in lines if not line.startswith("```")]
    title, reasoning, below, _ = _sections(prose)
    return Plan(data.title or title, data.reasoning or reasoning or _prose(below), data.ablations)


# --- Lines to sections ----------------------------------------------------------------------------

_LONGEST: Final = 60  # characters; no heading of a section is longer
_PLAN_WORDS: Final = words(
    "ablation ablations study studies plan plans proposed suggested experiment experiments "
    "additional new final the our"
)
_REASONING_WORDS: Final = words(
    "reasoning trace traces thinking thought thoughts process chain of the model planner step by "
    "steps"
)


def _section(raw: str) -> Literal["plan", "reasoning"] | None:
    """Return which of a file's two sections a line opens, marked as a heading or not."""
    if len(raw) > 4 * _LONGEST or (line := parse_line(raw)) is None:
        return None
    title = caption(line)
    if len(title) > _LONGEST or title[-1:].isdigit():  # "Ablation study 2" is an ablation's title
        return None
    found = lower_words(title)
    if found <= _PLAN_WORDS and (
        found & {"plan", "plans", "ablations"} or ("ablation" in found and len(found) > 1)
    ):
        return "plan"
    if found <= _REASONING_WORDS and found & {"reasoning", "thinking", "thought", "thoughts"}:
        return "reasoning"
    return None


def _opens_ablation(raw: str, line: Line) -> bool:
    return is_table_header(raw) or any(
        name == "part" or (name == "action" and read_action(value) is not None)
        for name, value in fields_of(line)
    )


def _first_ablation(lines: Sequence[str]) -> int | None:
    """Return where the first ablation begins: at its heading, or at the first of its fields."""
    parsed = [parse_line(raw) for raw in lines]
    opening = (i for i, line in enumerate(parsed) if line and _opens_ablation(lines[i], line))
    start = next(opening, None)
    for i in range((start or 0) - 1, -1, -1):
        line = parsed[i]
        if line is None:
            continue
        if _section(lines[i]) or not (line.is_heading or line.marker or fields_of(line)):
            break
        start = i
        if line.is_heading:
            break
    return start


def _sections(lines: Sequence[str]) -> tuple[str, str, list[str], list[str]]:
    """Split a file into its title, its reasoning trace, and the lines of its plan.

    The lines of a reasoning trace behind the plan come once more at the end.
    """
    marks = [_section(raw) for raw in lines]
    start = None if "plan" in marks else _first_ablation(lines)
    sections: dict[str, list[str]] = {"preamble": [], "reasoning": [], "plan": []}
    late: list[str] = []
    current: str = "preamble"
    for i, (raw, mark) in enumerate(zip(lines, marks, strict=True)):
        if mark:
            current = mark
            continue
        if i == start:
            current = "plan"
        sections[current].append(raw)
        if current == "reasoning" and sections["plan"]:
            late.append(raw)
    preamble = sections["preamble"]
    _require_no_ablation(preamble if sections["plan"] else [])
    title, prose = "", preamble
    for i, raw in enumerate(preamble):
        if (line := parse_line(raw)) and line.is_heading:
            title, prose = caption(line), preamble[i + 1 :]
            break
    return title, _prose(sections["reasoning"] or prose), sections["plan"], late


def _require_no_ablation(outside: Sequence[str]) -> None:
    """Refuse ablations outside the plan's section, because they would not be read."""
    try:
        ablations = _ablations(outside)
    except PlanError:  # prose, which may say anything
        return
    for ablation in ablations:
        if ablation.part and ablation.action:
            refuse(
                ablation.part,
                "this ablation stands outside the section 'Ablation plan'; move it there",
            )


def _prose(lines: Iterable[str]) -> str:
    """Join lines into paragraphs, with one blank line between them."""
    paragraphs: list[list[str]] = [[]]
    for raw in lines:
        if raw.strip():
            paragraphs[-1].append(raw.rstrip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs).strip()
