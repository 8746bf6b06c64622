"""Settings next to given ones: one field changed at a time, for tests of all fields of a class."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union


def neighbours(settings: Any) -> Iterator[Any]:
    """The settings with one field changed, for each field, and for fields of fields.

    A field that can only change together with another has no neighbour.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        changes = _others(hints[field.name], value)
        if dataclasses.is_dataclass(value):
            changes = (*neighbours(value), *changes)
        yield from _allowed(settings, field.name, changes)


def _allowed(settings: Any, name: str, values: Any) -> Iterator[Any]:
    """The settings with each value that they take there; of numbers one is enough."""
    for value in values:
        try:
            yield dataclasses.replace(settings, **{name: value})
        except ValueError:
            continue
        if not dataclasses.is_dataclass(value):
            return


def _others(declared: Any, value: Any) -> list[Any]:
    """Other values of a declared type, some of which may be out of their range."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        return [x for part in parts for x in _others(part, value)]
    if origin is Literal:
        return [x for x in parts if x != value]
    if origin is tuple:
        return _other_tuples(parts, value) if isinstance(value, tuple) else []
    if dataclasses.is_dataclass(declared):
        return [] if isinstance(value, declared) else [declared()]
    if declared is bool:
        return [not value]
    if declared is int:
        return [value + 1, 2 * value] if type(value) is int else [3]
    if declared is float:
        return [value / 2, value + 0.25] if isinstance(value, float) else [0.5]
    if declared is str:
        return [f"{value}x"] if isinstance(value, str) else ["x"]
    return []


def _other_tuples(parts: tuple[Any, ...], value: tuple[Any, ...]) -> list[Any]:
    if parts[-1] is Ellipsis:
        last = _others(parts[0], value[-1])
        return [(*value, x) for x in reversed(last)] + [(*value[:-1], x) for x in last]
    return [
        (*value[:i], x, *value[i + 1 :])
        for i, part in enumerate(parts)
        for x in _others(part, value[i])
    ]
