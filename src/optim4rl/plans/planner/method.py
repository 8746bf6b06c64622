"""Reads the method that a plan is proposed for: from a text, or from an experiment's catalogue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optim4rl.files.reading import read_file, why
from optim4rl.plans.components import Catalogue, reference_of
from optim4rl.plans.optim4rl import OPTIM4RL

# The reader of plans repairs all damage of encodings and HTML that a method's text can have.
from optim4rl.plans.plan_text import clean_text, decode_text, to_markdown
from optim4rl.plans.planner.text import PlannerError, one_line

# Four times a long paper: a chat model can read this much, and its price is bearable.
MAX_CHARACTERS: Final = 200_000
MAX_BYTES: Final = 4_000_000

_BINARY: Final = {b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive"}


@dataclass(frozen=True)
class Method:
    """Describe a method to ablate.

    Attributes:
        name: its name in titles.
        text: its description, as plain Markdown.
        is_own: whether the description comes from the catalogue, and not from outside.
        known: the catalogue that a study of it uses.
    """

    name: str
    text: str
    is_own: bool = False
    known: Catalogue = OPTIM4RL


def read_method(path: Path, known: Catalogue = OPTIM4RL) -> Method:
    """Read the method that a text, Markdown or HTML file describes, in any encoding.

    Raises:
        PlannerError: the file cannot be read, is not text, is empty or is too long.
    """
    named = f"method {one_line(str(path))!r}"
    try:
        data = read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise PlannerError(f"{named} cannot be read: {why(error)}") from error
    for start, what in _BINARY.items():
        if data.startswith(start):
            raise PlannerError(f"{named} is {what}; give its text, as plain text, Markdown or HTML")
    text = to_markdown(clean_text(decode_text(data))).strip()
    if len(text) > MAX_CHARACTERS:
        raise PlannerError(
            f"{named} is longer than {MAX_CHARACTERS:,} characters; give only its method section"
        )
    if not text:
        raise PlannerError(f"{named} is empty; give the description of a method")
    return Method(one_line(path.stem, 80), text, known=known)


def method_of(known: Catalogue) -> Method:
    """Return the method of an experiment, as its catalogue describes it."""
    parts = [
        f"- {c.name.capitalize()}: {c.description} Here: {reference_of(c).description}"
        for c in known.components
    ]
    about = f"{known.about}:" if known.about else "Its parts:"
    text = "\n".join([f"# {known.name}", "", about, *parts])
    return Method(known.name, text, is_own=True, known=known)
