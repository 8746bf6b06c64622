"""Checks of settings: each field has its declared type, is finite, and lies in its range.

Every settings class lists the fields with a range in its `__post_init__`:
`check_fields(self, rollout=COUNT, gamma=SHARE)`. Annotations declare the types. A float must lie in
its range in Python and in float32, in which devices compute: in float32 1e308 is infinite, 1e-50 is
zero, and 1 - 1e-12 is 1.
"""

import ctypes
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes, as a test and in words."""

    words: str
    holds: Callable[[float], bool]


COUNT = Range("a whole number of at least 1", lambda x: x >= 1)
COUNT_OR_ZERO = Range("a whole number of at least 0", lambda x: x >= 0)
POSITIVE = Range("a positive finite number", lambda x: x > 0)
NOT_NEGATIVE = Range("a finite number of at least 0", lambda x: x >= 0)
AT_LEAST_1 = Range("a finite number of at least 1", lambda x: x >= 1)
SHARE = Range("a number in [0, 1]", lambda x: 0 <= x <= 1)
DECAY = Range("a number in [0, 1)", lambda x: 0 <= x < 1)
# Devices count in 32 bits.
_LARGEST = 2**31 - 1
# Float32 numbers nearer to zero than this are zero on most devices.
_SMALLEST_FLOAT32 = 2.0**-126
# Messages show this many characters of a value.
_SHOWN = 100


def check_fields(settings: Any, **ranges: Range) -> None:
    """Refuse settings if a field has the wrong type or is out of its range.

    Args:
        settings: an instance of a dataclass.
        ranges: ranges by field. If a field has several numbers, each must be in the range; None
            has no number.

    Raises:
        ValueError: the message names the field, its value, and a right value.
    """
    values = {name: getattr(settings, name) for name in _declared(type(settings))}
    check_values(type(settings), values, **ranges)


def check_values(cls: type[Any], values: Mapping[str, Any], **ranges: Range) -> None:
    """Refuse wrong values for the fields of a settings class, before an instance is made.

    Raises:
        ValueError: as in `check_fields`.
    """
    declared_fields = _declared(cls)
    for name, value in values.items():
        if name not in declared_fields:
            known = ", ".join(declared_fields) or "none"
            raise ValueError(f"{name} = {shown(value)}: known settings are {known}")
        declared, wanted = declared_fields[name], ranges.get(name)
        numbers = _numbers(value)
        if not _fits(value, declared) or (wanted and not all(map(wanted.holds, numbers))):
            right = _describe(declared, wanted)
        elif any(isinstance(x, int) and abs(x) > _LARGEST for x in numbers):
            right = "a whole number below 2**31 is needed"
        elif wrong := [
            x
            for x in map(float32, numbers)
            if not math.isfinite(x) or (wanted and not wanted.holds(x))
        ]:
            right = f"{_describe(declared, wanted)}, in float32 too: there it is {wrong[0]}"
        else:
            continue
        raise ValueError(f"{name} = {shown(value)}: {right}")


def float32(number: int | float) -> float:
    """Return the number as devices compute with it, in float32."""
    rounded = ctypes.c_float(number).value
    return rounded if abs(rounded) >= _SMALLEST_FLOAT32 else 0.0


def shown(value: object) -> str:
    """Return a value's repr for a message, cut to a length."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers with thousands of digits.
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"


def _declared(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _numbers(value: Any) -> tuple[Any, ...]:
    """Return the numbers in a value, to which a range applies."""
    values = value if isinstance(value, tuple) else (value,)
    return tuple(x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool))


def _fits(value: Any, declared: Any) -> bool:
    """Return whether a value has the declared type, and no number is infinite or NaN."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if declared is Any:
        return True
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(x, parts[0]) for x in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if declared is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and _is_finite(value)
    # A protocol declares methods; only a call shows whether a value has them.
    if not isinstance(declared, type) or getattr(declared, "_is_protocol", False):
        return value is not None
    return isinstance(value, declared)


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def _describe(declared: Any, wanted: Range | None) -> str:
    """Describe the right values."""
    alternatives = _alternatives(declared)
    if choices := [x for part in alternatives for x in _choices(part)]:
        return f"known values are {', '.join(map(str, choices))}"
    several = [part for part in alternatives if typing.get_origin(part) is tuple]
    single = [part for part in alternatives if part not in several]
    kinds = " or ".join(dict.fromkeys(_kind(part, wanted) for part in single))
    if not several:
        return f"{kinds} is needed"
    parts = typing.get_args(several[0])
    element = _kind(parts[0], wanted)
    if kinds in ("", "None"):
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} values are needed, and "
        return f"{count}each value must be {element}"
    return f"{kinds} is needed, or several" + (
        " of them" if kinds == element else f", each {element}"
    )


def _alternatives(declared: Any) -> tuple[Any, ...]:
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        return _alternatives(parts[0])
    if origin in (Union, types.UnionType):
        return tuple(x for part in parts for x in _alternatives(part))
    return (declared,)


def _choices(declared: Any) -> tuple[Any, ...]:
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin is tuple:
        return _choices(parts[0])
    return parts if origin is Literal else ()


def _kind(declared: Any, wanted: Range | None) -> str:
    if wanted is not None and declared in (int, float):
        return wanted.words
    names = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}
    if declared is type(None):
        return "None"
    return names.get(declared, f"a {getattr(declared, '__name__', declared)}")


# Settings as JSON


def to_json(value: Any) -> Any:
    """Return settings as plain JSON values; the "type" of a dataclass's object is its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {x.name: to_json(getattr(value, x.name)) for x in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): to_json(x) for key, x in value.items()}
    return [to_json(x) for x in value] if isinstance(value, (list, tuple)) else value


def from_json(declared: Any, value: Any) -> Any:
    """Return the value of a declared type from the JSON values of `to_json`.

    Raises:
        ValueError: the value has another type or other fields, or a field is out of its range.
    """
    found = _parse(declared, value)
    if not _fits(found, declared):
        raise ValueError(f"{shown(value)}: {_describe(declared, None)}")
    return found


def _parse(declared: Any, value: Any) -> Any:
    """Turn objects into dataclasses and lists into tuples, following the declared type."""
    alternatives = _alternatives(declared)
    if isinstance(value, dict):
        classes = {
            x.__name__: x
            for x in alternatives
            if isinstance(x, type) and dataclasses.is_dataclass(x)
        }
        fields = dict(value)
        cls = classes.get(str(fields.pop("type", None)))
        known = {} if cls is None else _declared(cls)
        if cls is None or set(fields) != set(known):
            raise ValueError(f"{shown(value)}: these are not the fields of {' or '.join(classes)}")
        return cls(**{name: from_json(known[name], x) for name, x in fields.items()})
    if isinstance(value, list):
        for part in alternatives:
            each = typing.get_args(part)
            if typing.get_origin(part) is tuple:
                whole = each[:1] * len(value) if each[-1] is Ellipsis else each
                return tuple(from_json(x, y) for x, y in zip(whole, value, strict=True))
    return value
