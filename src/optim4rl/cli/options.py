"""Read commands' options into dataclasses, and show their docstrings in --help."""

import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from optim4rl.cli.terminal import columns

# Options of parts have short names: --iterations, not --recipe.meta.iterations. None means that
# nothing was given; nobody can write it on the command line.
_CONFIG = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.DisallowNone,
    tyro.conf.PositionalMetavarFromFieldName,
)
# Defaults that --help does not print; an option's text explains them if necessary.
_UNSAID = ("", "None", "''")

Settings = TypeVar("Settings")


def parse(options: type[Any], program: str, words: Sequence[str], default: Any = None) -> Any:
    """Parse words into options; --help prints the help and ends the process.

    Args:
        options: a dataclass.
        program: the command's name.
        words: the words after it.
        default: options that the words change.

    Raises:
        SystemExit: with 0 after --help; with 2 if the words are not valid options.
        ValueError: the dataclass refuses them.
    """
    chosen = {} if default is None else {"default": default}
    return tyro.cli(
        options,
        prog=program,
        description=description(options),
        args=words,
        config=_CONFIG,
        registry=REGISTRY,
        **chosen,
    )


def parse_known(options: type[Any], program: str, words: Sequence[str]) -> Any:
    """Parse these options, and ignore all other words."""
    return tyro.cli(
        options,
        prog=program,
        args=words,
        config=_CONFIG,
        registry=REGISTRY,
        return_unknown_args=True,
    )[0]


def with_given(settings: Settings, **given: Any) -> Settings:
    """Return settings with the given values; None leaves a setting as it is."""
    values = {name: value for name, value in given.items() if value is not None}
    return cast(Settings, dataclasses.replace(cast(Any, settings), **values))


def description(options: type[Any]) -> str:
    """Return a command's description without its options, wrapped for the terminal."""
    text = inspect.getdoc(options) or ""
    paragraphs = text.partition("\nAttributes:")[0].strip().split("\n\n")
    width = min(columns(), 80) - 2
    # Indented paragraphs are examples, and stay as they are. Tyro keeps the end of a line that does
    # not start with a letter: hence the spaces.
    return "\n\n".join(
        p
        if p.startswith("  ")
        else textwrap.indent(textwrap.fill(" ".join(p.split()), width), "  ")
        for p in paragraphs
    )


_WITH_HINT = tyro.conf.arg(
    help_behavior_hint=lambda default: "" if default in _UNSAID else f"(default: {default})"
)
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Require a path of at least one character: '' would be the current folder."""
    if info.type is not Path:
        return None

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("'' is not a path; the current folder is '.'")
        return Path(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.struct_rule
def _settings(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read a dataclass, with its own help for each option, which explains a default of None."""
    cls = info.type
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return None
    types, help_of = get_type_hints(cls, include_extras=True), _field_help(cls)
    groups: Mapping[str, tuple[str, ...]] = getattr(cls, "groups", {})
    grouped = {name for names in groups.values() for name in names}

    def default(field: dataclasses.Field[Any]) -> Any:
        if isinstance(info.default, cls):
            return getattr(info.default, field.name)
        return tyro.MISSING if field.default is dataclasses.MISSING else field.default

    fields = {field.name: (types[field.name], default(field)) for field in dataclasses.fields(cls)}
    own = [
        StructFieldSpec(name, cast(Any, Annotated[kind, _WITH_HINT]), found, help_of.get(name))
        for name, (kind, found) in fields.items()
        if name not in grouped
    ]
    parts = [
        _part(title, {name: fields[name] for name in names}, help_of)
        for title, names in groups.items()
    ]

    def make(**values: Any) -> Any:
        inside = [vars(values.pop(title)) for title in groups]
        return cls(**values, **{name: x for part in inside for name, x in part.items()})

    return StructConstructorSpec(instantiate=make, fields=(*own, *parts))


def _part(
    title: str, fields: Mapping[str, tuple[Any, Any]], help_of: Mapping[str, str]
) -> StructFieldSpec:
    """Make a class of some options of a class, which --help shows as a group."""
    part = dataclasses.make_dataclass(title, [(name, kind) for name, (kind, _) in fields.items()])
    said = "\n".join(f"    {name}: {help_of.get(name, '')}" for name in fields)
    part.__doc__ = f"{title.replace('_', ' ').capitalize()}.\n\nAttributes:\n{said}\n"
    default = part(**{name: found for name, (_, found) in fields.items()})
    return StructFieldSpec(title, part, default)


@functools.cache
def _field_help(cls: type[Any]) -> dict[str, str]:
    """Return the text of each field in a docstring of Google's style."""
    text = inspect.getdoc(cls) or ""
    attributes = textwrap.dedent(text.partition("\nAttributes:\n")[2])
    entries = re.split(r"^(\w+): ", attributes, flags=re.M)[1:]
    said = (" ".join(words.split()) for words in entries[1::2])
    return dict(zip(entries[::2], said, strict=True))
