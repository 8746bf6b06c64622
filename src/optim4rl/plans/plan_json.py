"""Reads plans as JSON: one object on each line, a list of objects, or one object with a list.

An ablation is an object. Its keys are the labels of other forms: `ablated_part`, `action`,
`replacement`, `metrics`, and `name` or `title`. `plan show --json` and chat models write this form.
The JSON may be the whole file, or stand in other text, in a fenced block or not.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from optim4rl.plans.ablation import (
    Ablation,
    Plan,
    PlanError,
    is_nothing,
    make_ablation,
    shortened,
    split,
)
from optim4rl.plans.plan_fields import EXTRAS, FIELDS, field_name, require_one_field

# JSON begins a line: an object, or a list of objects.
_START: Final = re.compile(r'^[ \t>]*+(?=\{\s*+["}]|\[\s*+\{)', re.MULTILINE)
_KEY: Final = re.compile(r'"([A-Za-z][A-Za-z _-]{0,40})"\s{0,8}:')
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LISTS: Final = ("ablations", "ablation_plan")
_TITLES: Final = ("title", "name")
_REASONING: Final = ("reasoning", "reasoning_trace")


def cut_json(text: str) -> tuple[str, Plan | None]:
    """Cut a plan's JSON out of a text.

    Other JSON stays where it is.

    Returns:
      The other text, and the plan; None if there is no JSON of a plan.

    Raises:
      PlanError: a plan's JSON is not valid, or was not understood.
    """
    claims = [m.start() for m in _KEY.finditer(text) if _claims_plan(m[1])]
    pieces: list[str] = []
    values: list[object] = []
    position = 0
    while start := _START.search(text, position):
        begin = start.end()
        is_whole = position == 0 and not text[:begin].strip()
        try:
            value, end = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            if is_whole or (claims and claims[-1] >= begin):
                raise _broken(text, begin, error) from None
            break  # no plan follows: no later key is a plan's
        claimed = is_whole or bisect_left(claims, end) > bisect_left(claims, begin)
        if claimed:
            _require_end_of_line(text, end)
            values.append(value)
        pieces.append(text[position : begin if claimed else end])
        position = end
    pieces.append(text[position:])
    return "".join(pieces), _plan(values) if values else None


def _claims_plan(key: str) -> bool:
    return key in _LISTS or _field(key, weak=False) in FIELDS


def _field(key: str, *, weak: bool = True) -> str | None:
    return field_name(_CAMEL.sub(" ", key), weak=weak)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is in one object twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not valid JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def _broken(text: str, begin: int, error: Exception) -> PlanError:
    if isinstance(error, json.JSONDecodeError):
        return PlanError(f"line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})")
    return PlanError(f"line {text.count(chr(10), 0, begin) + 1}: not valid JSON ({error})")


def _require_end_of_line(text: str, end: int) -> None:
    stop = text.find("\n", end)
    behind = text[end : stop if stop >= 0 else len(text)].strip()
    if behind:
        line = text.count("\n", 0, end) + 1
        raise PlanError(f"line {line}: {behind[:60]!r} follows the JSON; begin a new line for it")


# --- Values to a plan -----------------------------------------------------------------------------


def _plan(values: list[object]) -> Plan:
    """Return the plan of one object or list, or of an object for each ablation."""
    first = values[0]
    if len(values) == 1 and isinstance(first, list):
        return _plan_of("", "", first)
    if not (isinstance(first, dict) and any(name in first for name in _LISTS)):
        if isinstance(first, dict) and not any(_field(key) in FIELDS for key in first):
            raise PlanError("its JSON is neither an ablation nor an object with a list 'ablations'")
        return _plan_of("", "", values)
    if len(values) > 1:
        raise PlanError("it holds several JSON plans; give one object with 'ablations'")
    listed = next(name for name in _LISTS if name in first)
    for key in first:
        if key != listed and _claims_plan(key):
            raise PlanError(f"the key {key!r} is beside {listed!r}; put it into an ablation")
    entries = first[listed]
    if not isinstance(entries, list):
        raise PlanError(f"{listed!r} is {_shown(entries)}; give a list of ablations")
    return _plan_of(_text(first, _TITLES), _text(first, _REASONING), entries)


def _plan_of(title: str, reasoning: str, entries: list[object]) -> Plan:
    if not entries:
        raise PlanError("its list of ablations is empty")
    ablations = tuple(_ablation(entry, number) for number, entry in enumerate(entries, start=1))
    return Plan(title, reasoning, ablations)


def _ablation(entry: object, number: int) -> Ablation:
    where = f"ablation {number}"
    if not isinstance(entry, dict):
        raise PlanError(f"{where}: expected an object, not {_shown(entry)}")
    if "mapped_replacements" in entry:  # `plan show --json` adds the mapping of each part
        added = ("component", "field", "reason", "mapped_replacements", "mapped_metrics")
        entry = {key: value for key, value in entry.items() if key not in added}
    found: dict[str, tuple[str, object]] = {}
    unread = []
    for key, value in entry.items():
        name = _field(key)
        if name in found:
            raise PlanError(f"{where}: {found[name][0]!r} and {key!r} are the same field; keep one")
        if name in (*FIELDS, *EXTRAS):
            found[name] = (key, value)
        elif name is None and key not in _TITLES and value not in (None, "", [], {}):
            unread.append(f"{key}: {_shown(value)}")
    texts = {name: _one(where, name, *found.get(name, ("", None))) for name in FIELDS[:2]}
    replacements, metrics = (
        list(_several(where, name, *found.get(name, ("", None)))) for name in FIELDS[2:]
    )
    title = _text(entry, _TITLES)
    if not texts["part"] and not title:
        raise PlanError(f"{where}: it names no part; expected a text 'ablated_part'")
    texts |= {name: _extra(where, *found[name]) for name in EXTRAS if name in found}
    return make_ablation(title, texts, replacements, metrics, unread=unread)


def _extra(where: str, key: str, value: object) -> str:
    """Return the text of an expectation, a test or a priority, which may be a number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise PlanError(f"{where}: {key} = {_shown(value)}: expected a text or a whole number")
    return "" if value is None else str(value)


def _one(where: str, name: str, key: str, value: object) -> str:
    """Return the text of a field with one value; empty if it is null or missing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PlanError(f"{where}: {key} = {_shown(value)}: expected a text")
    require_one_field(value, name)
    return "" if is_nothing(value) else value.strip()


def _several(where: str, name: str, key: str, value: object) -> Iterator[str]:
    """Yield the texts of a field: the entries of a list, or the parts of a text's enumeration."""
    if value is None:
        return
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, str):
            raise PlanError(f"{where}: {key} = {_shown(value)}: expected a list of texts")
        require_one_field(entry, name)
        if isinstance(value, str):
            yield from split(entry)
        elif not is_nothing(entry):
            yield entry.strip()


def _text(values: dict[str, Any], names: tuple[str, ...]) -> str:
    found = next((values[name] for name in names if isinstance(values.get(name), str)), "")
    return str(found).strip()


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))
