"""One ablation of a plan, and the rules that hold whatever form the plan is written in.

A plan is understood, or it is refused. A default never replaces text that was not understood.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from optim4rl.plans.plan_text import words

Action = Literal["ADD", "REMOVE", "REPLACE"]
# The expected outcome of a replacement against the reference.
Expectation = Literal["worse", "better", "same"]


class PlanError(ValueError):
    """A plan that cannot be read, or that asks for something that the study cannot do."""


@dataclass(frozen=True)
class Ablation:
    """One ablation, in the plan's own words.

    Attributes:
      title: the heading above it; empty where there is none.
      part: what is ablated; empty where the plan does not say.
      action: ``None`` where the plan states none, or none of the three.
      replacements: what takes the part's place; empty where the plan names nothing.
      metrics: what is to be measured; empty where the plan names nothing.
      expected: how the replacements are expected to do against the method as it is.
      tests: what the ablation tests, in a sentence; empty where the plan does not say.
      priority: its place in the order of importance, from 1; None where the plan gives none.
    """

    title: str
    part: str
    action: Action | None
    replacements: tuple[str, ...]
    metrics: tuple[str, ...]
    expected: Expectation | None = None
    tests: str = ""
    priority: int | None = None


@dataclass(frozen=True)
class Plan:
    """A published plan: its title, its reasoning trace as plain Markdown, and its ablations."""

    title: str
    reasoning: str
    ablations: tuple[Ablation, ...]


def refuse(text: str, reason: str) -> NoReturn:
    """Refuses a plan for a piece of its text.

    Raises:
      PlanError: always.
    """
    shown = text if len(text) <= 120 else text[:119] + "…"
    raise PlanError(f"{shown!r}: {reason}")


# --- Values ---------------------------------------------------------------------------------------

_VERBS: Final[dict[Action, str]] = {
    "ADD": "add adds added adding addition insert include introduce",
    "REMOVE": "remove removes removed removing removal drop disable eliminate delete omit",
    "REPLACE": "replace replaces replaced replacing replacement substitute substitution swap",
}
_ACTIONS: Final = {verb: action for action, verbs in _VERBS.items() for verb in verbs.split()}
# What may stand beside the verb of an action that is all that a plan says of a change.
_FILLERS: Final = words(
    "a an and completely component entirely from fully is it method module of out part the this we"
)
_CHANGE: Final = re.compile(r"\b(?:replac|substitut|swap)", re.IGNORECASE)
_INTO: Final = re.compile(r"\b(?:by|for|with)\b", re.IGNORECASE)
_INSTEAD: Final = re.compile(r"\binstead\b|->|→", re.IGNORECASE)
_SEVERAL: Final = re.compile(r"[;|\t]")
_WORD: Final = re.compile(r"[a-z]+")
_FIRST_WORD: Final = re.compile(r"[^A-Za-z]*+([A-Za-z]++)(\s*+(?:[/|,]|(?:or|and)\b))?")
_SEPARATOR: Final = re.compile(r"[()]|;|,(?!\d)|\s(?:and|or|&)\s", re.IGNORECASE)
_PARENTHESIS: Final = re.compile(r"[()]")
_NOTHING: Final = frozenset({"", "none", "n/a", "na", "null", "nil", "tbd", "not applicable"})


def make_ablation(
    title: str,
    part: str,
    action: str,
    replacements: Iterable[str],
    metrics: Iterable[str],
    *,
    details: str = "",
    unread: Sequence[str] = (),
    extras: Mapping[str, str] = {},
) -> Ablation:
    """Makes an ablation of its texts.

    Args:
      title: its heading or name.
      part: what is ablated.
      action: the plan's words for what is done.
      replacements: what takes the part's place.
      metrics: what is measured.
      details: further text about the part.
      unread: texts of the ablation that belong to no known field.
      extras: what else it says: "expected", "tests" and "priority".

    Raises:
      PlanError: something was not understood, and a default would stand in for it.
    """
    made = Ablation(
        title,
        part,
        read_action(action),
        tuple(replacements),
        tuple(metrics),
        read_expectation(extras.get("expected", "")),
        extras.get("tests", "").strip(),
        read_priority(extras.get("priority", "")),
    )
    if not made.replacements:
        _require_no_replacement(made, action, f"{part} {details}")
    if unread and not (made.metrics and (made.replacements or made.action in ("ADD", "REMOVE"))):
        refuse(unread[0], "it is none of the fields part, action, replacement, metrics")
    return made


def _require_no_replacement(made: Ablation, action: str, part: str) -> None:
    """Refuses texts that may name a replacement where no field of that name does."""
    advice = "name a replacement as 'Replacement: …'"
    for text in (made.title, part):
        if _says_change(text) or (text is part and _SEVERAL.search(text)):
            refuse(text, f"it seems to say what replaces the part; {advice}")
    known = _ACTIONS.keys() | _FILLERS | lower_words(f"{made.title} {part}")
    if not is_nothing(action) and (made.action is None or not lower_words(action) <= known):
        refuse(action, f"expected the action ADD, REMOVE or REPLACE alone; {advice}")


def _says_change(text: str) -> bool:
    change = _CHANGE.search(text)
    return bool(_INSTEAD.search(text) or (change and _INTO.search(text, change.end())))


def read_action(value: str) -> Action | None:
    """The one action a value names; None where it names none or leaves several open."""
    first = _FIRST_WORD.match(value)
    if first and not first[2] and (action := _ACTIONS.get(first[1].lower())):
        return action
    named = {_ACTIONS[word] for word in _WORD.findall(value.lower()) if word in _ACTIONS}
    return named.pop() if len(named) == 1 else None


_EXPECTED: Final[dict[Expectation, str]] = {
    "worse": "worse worsen worsens lower drop drops decrease decreases degrade degrades hurt hurts "
    "harm harms fall falls decline declines",
    "better": "better higher improve improves increase increases gain gains",
    "same": "same equal unchanged no similar none",
}
_RANKS: Final = {"high": 1, "medium": 2, "low": 3}


def read_expectation(value: str) -> Expectation | None:
    """How a replacement is expected to do; None where nothing is said.

    Raises:
      PlanError: it says something, and not one of worse, better and same.
    """
    if not value.strip():
        return None
    found = lower_words(value)
    named = [key for key, verbs in _EXPECTED.items() if found & words(verbs)]
    if len(named) != 1:
        refuse(value, "expected is one of worse, better and same")
    return named[0]


def read_priority(value: str) -> int | None:
    """A place in the order of importance, from 1; None where nothing is said.

    Raises:
      PlanError: it says something, and no whole number, high, medium or low.
    """
    if not value.strip():
        return None
    numbers = re.findall(r"[0-9]{1,6}", value)
    ranks = [rank for word, rank in _RANKS.items() if word in lower_words(value)]
    if len(numbers) == 1 and not ranks:
        return int(numbers[0])
    if len(ranks) == 1 and not numbers:
        return ranks[0]
    refuse(value, "a priority is a whole number, or high, medium or low")


def is_nothing(value: str) -> bool:
    """Whether a value is empty or says 'none'."""
    return value.strip(" \t[]()\"'.;,-–—").lower() in _NOTHING


def plain(text: str) -> str:
    """The text without Markdown's emphasis."""
    return text.replace("**", "").strip(" \t*_`")


def stated(value: str) -> list[str]:
    """The value without brackets and final punctuation, or nothing where it says 'none'."""
    value = value.strip(" \t[]\"'").rstrip(".;,").strip()
    return [] if is_nothing(value) else [plain(value)]


def split(text: str) -> Iterable[str]:
    """Splits an enumeration at commas, semicolons and 'and', but not inside parentheses."""
    start, protected = 0, 0
    closed = _closed_at(text)
    for separator in _SEPARATOR.finditer(text):
        if separator[0] == "(":
            protected = max(protected, closed.get(separator.start(), 0))
        elif separator[0] != ")" and separator.start() >= protected:
            yield from stated(text[start : separator.start()])
            start = separator.end()
    yield from stated(text[start:])


def _closed_at(text: str) -> dict[int, int]:
    """Where each parenthesis that is closed opens, and where it is closed."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for parenthesis in _PARENTHESIS.finditer(text):
        if parenthesis[0] == "(":
            opened.append(parenthesis.start())
        elif opened:
            closed[opened.pop()] = parenthesis.start()
    return closed


def lower_words(text: str) -> frozenset[str]:
    """The set of a text's words in lower case."""
    return frozenset(_WORD.findall(text.lower()))
