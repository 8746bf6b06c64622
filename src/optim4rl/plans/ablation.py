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
    """Report a plan that cannot be read, or that asks for something that the study cannot do."""


@dataclass(frozen=True)
class Ablation:
    """Hold one ablation, in the plan's own words.

    Attributes:
      title: the heading above it; empty if it has no heading.
      part: the ablated part; empty if the plan names none.
      action: None if the plan states none of the three.
      replacements: replacements of the part; empty if the plan names none.
      metrics: metrics to report; empty if the plan names none.
      expected: the expected result of the replacements against the reference.
      tests: the question that the ablation answers, in a sentence; empty if the plan has none.
      priority: its place in the order of importance, from 1; None if the plan gives none.
    """

    title: str
    part: str
    action: Action | None
    replacements: tuple[str, ...]
    metrics: tuple[str, ...]
    expected: Expectation | None = None
    tests: str = ""
    priority: int | None = None

    @property
    def name(self) -> str:
        """Return the words that name its part: its heading, if it has no other."""
        return self.part or self.title


@dataclass(frozen=True)
class Plan:
    """Hold a plan: its title, its reasoning trace as plain Markdown, and its ablations."""

    title: str
    reasoning: str
    ablations: tuple[Ablation, ...]


def refuse(text: str, reason: str) -> NoReturn:
    """Refuse a plan because of a piece of its text.

    Raises:
      PlanError: always.
    """
    raise PlanError(f"{shortened(text, 120)!r}: {reason}")


def shortened(text: str, limit: int = 80) -> str:
    """Return the first `limit` characters of a text, with a mark if there are more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- Values ---------------------------------------------------------------------------------------

_VERBS: Final[dict[Action, str]] = {
    "ADD": "add adds added adding addition insert include introduce",
    "REMOVE": "remove removes removed removing removal drop disable eliminate delete omit",
    "REPLACE": "replace replaces replaced replacing replacement substitute substitution swap",
}
_ACTIONS: Final = {verb: action for action, verbs in _VERBS.items() for verb in verbs.split()}
# Words allowed beside the verb of an action, if the plan says nothing else about the change.
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
    texts: Mapping[str, str],
    replacements: Iterable[str],
    metrics: Iterable[str],
    *,
    details: str = "",
    unread: Sequence[str] = (),
) -> Ablation:
    """Make an ablation from its texts.

    Args:
      title: its heading or name.
      texts: the texts of its fields "part" and "action", and of those that it has of "expected",
        "tests" and "priority".
      replacements: replacements of the part.
      metrics: metrics to report.
      details: further text about the part.
      unread: texts of the ablation that belong to no known field.

    Raises:
      PlanError: a text was not understood, and a default would replace it.
    """
    made = Ablation(
        title,
        texts["part"],
        read_action(texts["action"]),
        tuple(replacements),
        tuple(metrics),
        read_expectation(texts.get("expected", "")),
        texts.get("tests", "").strip(),
        read_priority(texts.get("priority", "")),
    )
    if not made.replacements:
        _require_no_replacement(made, texts["action"], f"{made.part} {details}")
    if unread and not (made.metrics and (made.replacements or made.action in ("ADD", "REMOVE"))):
        refuse(
            unread[0],
            "it belongs to no field; the fields are part, action, replacement and metrics",
        )
    return made


def _require_no_replacement(made: Ablation, action: str, part: str) -> None:
    """Refuse texts that may name a replacement if no replacement field does."""
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
    """Return the action that a value names; None if it names none or several."""
    first = _FIRST_WORD.match(value)
    if first and not first[2] and (action := _ACTIONS.get(first[1].lower())):
        return action
    named = {_ACTIONS[word] for word in _WORD.findall(value.lower()) if word in _ACTIONS}
    return named.pop() if len(named) == 1 else None


_EXPECTED: Final[dict[Expectation, str]] = {
    "worse": "worse worsen worsens degrade degrades hurt hurts harm harms",
    "better": "better improve improves gain gains",
    "same": "same equal unchanged similar",
}
# Beside them the words above may mean the opposite; the last one is that of "doesn't".
_NEGATIONS: Final = words("not never without cannot no nor neither hardly less t")
_RANKS: Final = {"high": 1, "medium": 2, "low": 3}


def read_expectation(value: str) -> Expectation | None:
    """Return the expected result of a replacement; None if the value says nothing.

    Raises:
      PlanError: the value is not one of worse, better and same, or holds a negation.
    """
    if is_nothing(value):
        return None
    found = lower_words(value)
    named = [key for key, verbs in _EXPECTED.items() if found & words(verbs)]
    if len(named) != 1 or found & _NEGATIONS:
        refuse(value, "give worse, better or same as the expected result")
    return named[0]


def read_priority(value: str) -> int | None:
    """Return a place in the order of importance, from 1; None if the value says nothing.

    Raises:
      PlanError: the value is not a whole number of at least 1, high, medium or low.
    """
    if is_nothing(value):
        return None
    numbers = re.findall(r"[-−]?[0-9]{1,6}", value)
    ranks = [rank for word, rank in _RANKS.items() if word in lower_words(value)]
    if len(numbers) == 1 and not ranks and numbers[0].isdigit() and int(numbers[0]):
        return int(numbers[0])
    if len(ranks) == 1 and not numbers:
        return ranks[0]
    refuse(value, "give a whole number of at least 1, high, medium or low as the priority")


def is_nothing(value: str) -> bool:
    """Return whether a value is empty or says 'none'."""
    return value.strip(" \t[]()\"'.;,-–—").lower() in _NOTHING


def plain(text: str) -> str:
    """Return the text without Markdown's emphasis."""
    return text.replace("**", "").strip(" \t*_`")


def stated(value: str) -> list[str]:
    """Return the value without brackets and final punctuation; nothing if it says 'none'."""
    value = value.strip(" \t[]\"'").rstrip(".;,").strip()
    return [] if is_nothing(value) else [plain(value)]


def split(text: str) -> Iterable[str]:
    """Split an enumeration at commas, semicolons and 'and', but not inside parentheses."""
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
    """Return where each closed pair of parentheses opens and closes."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for parenthesis in _PARENTHESIS.finditer(text):
        if parenthesis[0] == "(":
            opened.append(parenthesis.start())
        elif opened:
            closed[opened.pop()] = parenthesis.start()
    return closed


def lower_words(text: str) -> frozenset[str]:
    """Return the set of a text's words in lower case."""
    return frozenset(_WORD.findall(text.lower()))
