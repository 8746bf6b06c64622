"""What a plan is proposed for: a method's text, or the method that a study ablates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optim4rl.files.reading import read_file, why
from optim4rl.plans.components import COMPONENTS

# The reader of plans has met every encoding and every HTML that a method's text can be damaged by.
from optim4rl.plans.plan_text import clean_text, decode_text, to_markdown
from optim4rl.plans.planner.text import PlannerError, one_line

# Four times a long paper; what a chat model can read, and what one can pay for.
MAX_CHARACTERS: Final = 200_000
MAX_BYTES: Final = 4_000_000

# The methods that the registry describes: those that a study can take as its reference.
OWN: Final = ("optim4rl",)

_BINARY: Final = {b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive"}


@dataclass(frozen=True)
class Method:
    """A method to be ablated.

    Attributes:
        name: in titles.
        text: what is known of it, as plain Markdown.
        is_own: whether the registry describes it, and not a text from outside.
    """

    name: str
    text: str
    is_own: bool = False


def read_method(path: Path) -> Method:
    """The method that a text, Markdown or HTML file describes, in whatever encoding it is.

    Raises:
        PlannerError: the file cannot be read, is no text, is empty or is too long.
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
            f"{named} is longer than {MAX_CHARACTERS:,} characters; give its method section alone"
        )
    if not text:
        raise PlannerError(f"{named} is empty; expected the description of a method")
    return Method(one_line(path.stem, 80), text)


def method_of(name: str) -> Method:
    """One of the project's own methods, described by the registry.

    Raises:
        PlannerError: there is no such method.
    """
    if name not in OWN:
        raise PlannerError(
            f"of = {one_line(name)!r}: the methods that a study can ablate are {', '.join(OWN)}"
        )
    parts = [
        f"- {c.phrases[0].capitalize()}: {c.description} Here: {c.choice(c.study).description}"
        for c in COMPONENTS
    ]
    text = "\n".join([f"# {name}", "", "A learned optimizer for reinforcement learning:", *parts])
    return Method(name, text, is_own=True)
