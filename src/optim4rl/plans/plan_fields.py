"""Reads plans of labelled fields: 'Ablated Part', 'Action', 'Replacement', 'Metrics'.

A label begins a line, or is separated from the text before it ("…; **Action**: REPLACE"). Its value
follows on the line, in wrapped lines or in the list below it. Lines become records of fields, and
records become ablations. Files differ in form, but the value of a label is never dropped.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from optim4rl.plans.ablation import (
    Ablation,
    make_ablation,
    plain,
    read_action,
    refuse,
    split,
    stated,
)
from optim4rl.plans.plan_text import words

# --- Lines -------------------------------------------------------------------------------------

_HEADING: Final = re.compile(r"#++\s*+(?:[\w*(]|$)")
_BULLET: Final = re.compile(r"(?:[-+*–—]\s|[•‣▪◦·])\s*+")
_NUMBER: Final = re.compile(r"\(?(?:[0-9]{1,3}|[A-Za-z])[.)]\s++")
_WORD: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one line of a plan, without its marker and its indentation."""

    indent: int
    marker: Literal["", "#", "-", "1"]  # prose, heading, bullet, numbered bullet
    text: str
    bold: bool  # the whole line

    @property
    def is_heading(self) -> bool:
        """Return whether it is marked as a heading, or wholly bold."""
        return self.marker == "#" or self.bold


def parse_line(raw: str) -> Line | None:
    """Parse one line; return None for a blank line, a rule or a code fence."""
    expanded = raw.expandtabs(4)
    indent = len(expanded) - len(expanded.lstrip("> "))
    body = raw.strip().lstrip("> \t")
    if body in ("-", "*", "+", "•"):  # its text is on the next line
        return Line(indent, "-", "", bold=False)
    if not body.strip("-=_*|#`~ ") or body.startswith(("```", "~~~")):
        return None
    marker: Literal["", "#", "-", "1"] = ""
    if _HEADING.match(body):
        marker, body = "#", body.strip("# ")
    elif bullet := _BULLET.match(body):
        marker, body = "-", body[bullet.end() :]
    elif number := _NUMBER.match(body):
        marker, body = "1", body[number.end() :]
    core = body.rstrip(": ")
    bold = len(core) > 4 and core[:2] == core[-2:] in ("**", "__") and core[:2] not in core[2:-2]
    return Line(indent, marker, body, bold)


def caption(line: Line) -> str:
    """Return the line's text as a title."""
    return plain(plain(line.text).rstrip(" :："))


_LABELS: Final = {
    label: name
    for name, labels in {
        "part": "ablated part, ablated parts, ablation part, ablated component, ablated module, "
        "ablation component, ablation target, part to ablate, component to ablate, what to ablate, "
        "part, component, module, target",
        "action": "action, action type, ablation action, ablation type, operation, type",
        "replacements": "replacement, replacements, replacement option, replacement options, "
        "alternative, alternatives, replace with, replace by, replaced with, replaced by",
        "metrics": "metric, metrics, evaluation metric, evaluation metrics, measure, measures, "
        "measured by, metrics to measure, metrics to report, evaluation",
        "expected": "expected, expectation, prediction, predicted",
        "tests": "tests, it tests, what it tests",
        "priority": "priority, importance",
        "other": "rationale, hypothesis, description, motivation, goal, objective, purpose, "
        "reason, justification, expected outcome, expected result, expected results, why, "
        "expected impact, note, notes, setup, experiment setup, experimental setup, details, "
        "implementation, baseline, baselines, dataset, datasets, environment, environments",
    }.items()
    for label in labels.split(", ")
}
FIELDS: Final = ("part", "action", "replacements", "metrics")
EXTRAS: Final = ("expected", "tests", "priority")
_SHORT: Final = 60  # characters; no label is longer
# Labels only before a colon, and never in headings ("### Component 1: Gradient processing").
_WEAK: Final = words(
    "part component module target type evaluation measure measures setup details baseline dataset "
    "environment alternative alternatives expected expectation prediction predicted tests priority "
    "importance"
)
_LABEL: Final = re.compile(r"([^:：=]{1,40}?)\s*+(?:[:：=]|(?<=\s)[-–—]+(?:\s|$))")

_BOLD_START: Final = re.compile(r"(\*\*|__)(.{1,60}?)\1(.*)")


def field_name(text: str, *, weak: bool = True) -> str | None:
    """Return the field that a label names; None if it is no label, or a weak one without `weak`."""
    label = _label(text)
    return _LABELS.get(label) if weak or label not in _WEAK else None


def _label(text: str) -> str:
    return " ".join(_WORD.findall(text[:_SHORT].lower().replace("(s)", "s")))


def _field(line: Line) -> tuple[str, str] | None:
    """Return (name, value) of a line such as '**Action**: REPLACE'; None for other lines."""
    text = plain(line.text)
    if match := _LABEL.match(text):
        label, value = _label(match[1]), text[match.end() :]
        if label in _LABELS and not (line.marker == "#" and label in _WEAK):
            return _LABELS[label], plain(value)
    bold = _BOLD_START.match(line.text)
    label, value = (_label(bold[2]), bold[3]) if bold and not line.bold else (_label(text), "")
    if label in _LABELS and label not in _WEAK and (value or len(text) <= _SHORT):
        return _LABELS[label], plain(value)
    return None


# --- Several fields on one line -------------------------------------------------------------------

_MARK: Final = re.compile(
    r"(?<=[A-Za-z0-9)])[*_`\"'”’\]]{0,4}"
    r"(?:\s{0,3}(?P<colon>[:：=])|\s{1,3}(?P<dash>[-–—]+)(?=\s)|(?<=\*\*)|(?<=__))"
)
_LAST_WORDS: Final = re.compile(
    r"(?:[A-Za-z]+[ \t_-]{1,2}){0,3}[A-Za-z]+(?:\([sS]\))?(?: ?[0-9]{1,2})?$"
)
_NO_WORD: Final = re.compile(r"[\W_]*$")
_OPENING: Final = "*_`\"'“‘"
_SEPARATORS: Final = " \t.;,|/\\•·–—-"


@dataclass(frozen=True, slots=True)
class _Claim:
    """Hold a label inside a text.

    Attributes:
      start: where it begins, with its marks of emphasis.
      end: where its value begins.
      name: the field's name.
      label: the label as written.
      weak: the label is a word that also occurs in prose.
      between: the characters between it and the word before; empty if only a space.
    """

    start: int
    end: int
    name: str
    label: str
    weak: bool
    between: str

    def opens_field(self, inside: str) -> bool:
        """Return whether the next field begins here, and the field `inside` ends."""
        if not self.between or any(bracket in self.between for bracket in "([{"):
            return False
        return inside != "other" or not self.weak or any(mark in self.between for mark in ";|\t*")

    def is_lost(self, inside: str) -> bool:
        """Return whether its value would be lost inside the value of the field `inside`."""
        if self.name == "other":
            return False
        if inside == "other":
            return not self.weak and self.label[0].isupper()
        return not self.weak or (self.name != inside and self.label[0].isupper())


def _claims(text: str) -> Iterable[_Claim]:
    """Yield the labels in a text: before a colon, in bold, or separated words before a dash."""
    for mark in _MARK.finditer(text):
        first = max(0, mark.start() - _SHORT)
        last = _LAST_WORDS.search(text[first : mark.start()])
        words = list(_WORD.finditer(last[0].lower().replace("(s)", "s"))) if last else []
        for i, word in enumerate(words):
            label = " ".join(word[0] for word in words[i:])
            if last and label in _LABELS:
                if claim := _claim(text, first + last.start() + word.start(), mark, label):
                    yield claim
                break


def _claim(text: str, start: int, mark: re.Match[str], label: str) -> _Claim | None:
    run = (_NO_WORD.search(text[max(0, start - 12) : start]) or [""])[0]
    if run in ("-", "'", "’", "_"):  # the second half of a word
        return None
    bold = "**" in run or "__" in run
    between = "".join(character for character in run if character not in " " + _OPENING)
    between += "*" if bold else ""
    if not mark["colon"] and not (between if mark["dash"] else bold):
        return None
    opening = len(run) - len(run.rstrip(_OPENING))
    written = text[start : mark.start()]
    return _Claim(start - opening, mark.end(), _LABELS[label], written, label in _WEAK, between)


def fields_of(line: Line) -> list[tuple[str, str]]:
    """Return the fields of a line, which may hold several; empty if none begins the line."""
    if (whole := _field(line)) is None:
        return []
    name, claims = whole[0], list[_Claim]()
    for claim in _claims(line.text):
        if claim.start > 0 and claim.opens_field(name):
            claims.append(claim)
            name = claim.name
    if not claims:
        return [whole]
    ends = [*(claim.start for claim in claims[1:]), len(line.text)]
    first = replace(line, text=line.text[: claims[0].start].rstrip(_SEPARATORS))
    return [
        _field(first) or (whole[0], ""),
        *(
            (claim.name, plain(line.text[claim.end : end].strip(_SEPARATORS)))
            for claim, end in zip(claims, ends, strict=True)
        ),
    ]


def require_one_field(text: str, inside: str) -> None:
    """Refuse text of one field that holds another field's label, whose value would be lost.

    Headings, list entries and prose outside all fields count as text of the field "other".

    Raises:
      PlanError: the text holds such a label.
    """
    for claim in _claims(text):
        if claim.is_lost(inside) or (claim.name != "other" and claim.opens_field(inside)):
            refuse(text, f"the label {claim.label!r} is inside other text; begin a line with it")


# --- Lines to ablations ---------------------------------------------------------------------------

_Text = list[str]  # the lines that one value is wrapped over


@dataclass(slots=True)
class _Field:
    """Hold one field of a record while its lines are read."""

    name: str
    indent: int
    inline: _Text
    items: list[_Text] = field(default_factory=list)
    marker: str = ""
    item_indent: int = 0

    def takes(self, line: Line) -> bool:
        """Return whether a bullet is one of this field's items."""
        is_next = line.indent <= self.item_indent + 1
        if not line.marker or (self.items and line.marker != self.marker and is_next):
            return False
        return line.indent > self.indent or (not self.inline and line.indent == self.indent)

    def add(self, line: Line) -> _Text:
        """Add an item and return its text, which the next lines may continue."""
        if not self.items:
            self.marker, self.item_indent = line.marker, line.indent
        self.items.append([plain(line.text)])
        return self.items[-1]

    @property
    def is_empty(self) -> bool:
        """Return whether its label has no value yet."""
        return not self.inline and not self.items and self.name != "other"


@dataclass(slots=True)
class _Record:
    """Hold one ablation while its lines are read; a field that is given twice has two entries."""

    title: str
    fields: dict[str, list[_Field]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # lines among its fields, of no field

    def closes_before(self, name: str, value: str) -> bool:
        """Return whether a further field of this name belongs to the next ablation."""
        if name not in self.fields:
            return False
        if name in ("part", "action"):
            return self._scalar(name) != value
        return name == next(iter(self.fields))

    def ablation(self) -> Ablation | None:
        """Return the ablation; None if the fields make none.

        Raises:
          PlanError: a text was not understood, and a default would replace it.
        """
        part, action = self._scalar("part"), self.claims("action")
        replacements = tuple(self._values("replacements", split_items=False))
        if not part and not (self.title and (read_action(action) or replacements)):
            return None
        return make_ablation(
            self.title,
            {"part": part, "action": action, **{name: self.claims(name) for name in EXTRAS}},
            replacements,
            self._values("metrics", split_items=True),
            details=self.claims("part"),
            unread=self.unread,
        )

    def claims(self, name: str) -> str:
        """Return all text of the fields of this name."""
        return " ".join(self._texts(name)).strip()

    def _scalar(self, name: str) -> str:
        return next(filter(None, map(str.strip, self._texts(name))), "")

    def _texts(self, name: str) -> Iterable[str]:
        for entry in self.fields.get(name, ()):
            yield from map(" ".join, (entry.inline, *entry.items))

    def _values(self, name: str, split_items: bool) -> Iterable[str]:
        for entry in self.fields.get(name, ()):
            inline = " ".join(entry.inline)
            if not (entry.items and inline.endswith(":")):  # not "one of the following:"
                yield from split(inline)
            for item in map(" ".join, entry.items):
                yield from split(item) if split_items else stated(item)


class _Reader:
    """Collect records from a plan's lines, one line at a time."""

    def __init__(self) -> None:
        self.ablations: list[Ablation] = []
        self.rests: list[_Record] = []  # fields that make no ablation
        self._record: _Record | None = None
        self._heading = ""  # waits for the first field below it
        self._open: _Field | None = None  # takes the bullets that follow
        self._tail: tuple[int, _Text] | None = None  # takes wrapped lines
        self._passed: list[Line] = []  # lines since the last field that belong to no field

    def read(self, line: Line | None) -> None:
        if line is None:
            self._tail = None
        elif fields := fields_of(line):
            self._start_fields(fields, line)
        elif line.marker != "#" and self._open and self._open.takes(line):
            require_one_field(line.text, self._open.name)
            self._tail = (line.indent, self._open.add(line))
        elif line.marker == "-" and not line.text:
            self._tail = None
        elif line.is_heading:
            require_one_field(line.text, "other")
            self.finish()
            self._heading = caption(line)
        elif line.marker:
            require_one_field(line.text, "other")
            self._pass(line)
            self._open, self._tail, self._heading = None, None, caption(line)
        else:
            self._read_prose(line)

    def finish(self) -> None:
        """End the record that is being read, if any."""
        if self._record:
            self._record.unread += [
                line.text for line in self._passed if line.marker or _LABEL.match(plain(line.text))
            ]
            if ablation := self._record.ablation():
                self.ablations.append(ablation)
            else:
                self.rests.append(self._record)
        self._record = self._open = self._tail = None
        self._passed = []

    def _start_fields(self, fields: list[tuple[str, str]], line: Line) -> None:
        names = [name for name, _ in fields]
        if max(names.count("part"), names.count("action")) > 1:
            refuse(line.text, "a field is on one line twice; keep one")
        if self._open and self._open.is_empty and line.indent > self._open.indent:
            refuse(
                line.text, f"it is below the empty field {self._open.name!r}; fill that field first"
            )
        if len(fields) > 1 and self._record and not self._record.fields.keys().isdisjoint(names):
            self._close()
        for name, value in fields:
            require_one_field(value, name)
            self._start_field(name, value, line)

    def _start_field(self, name: str, value: str, line: Line) -> None:
        entry = _Field(name, line.indent, [value] if value else [])
        if name != "other":
            if self._record and self._record.closes_before(name, value):
                self._close()
            if self._record is None:
                self._record, self._heading = _Record(self._heading), ""
            self._take_passed(self._record)
            entries = self._record.fields.setdefault(name, [])
            if entries and entries[-1].is_empty:
                entries.pop()
            entries.append(entry)
        self._open, self._tail = entry, (line.indent, entry.inline)

    def _close(self) -> None:
        """End the record before a field of the next one; its last line may be the next title."""
        if self._passed and self._passed[-1].marker:
            self._passed.pop()
        self.finish()

    def _take_passed(self, record: _Record) -> None:
        """Add lines between two fields of a record to its unread lines."""
        if record.fields:
            for line in self._passed:
                if not _LABEL.match(plain(line.text)):
                    refuse(
                        line.text, "it is among the fields of an ablation; begin it with a label"
                    )
            record.unread += [line.text for line in self._passed]
            self._heading = ""
        self._passed = []

    def _pass(self, line: Line) -> None:
        if self._record:
            self._passed.append(line)

    def _read_prose(self, line: Line) -> None:
        is_list = self._open and not self._open.inline and (self._tail or self._open.is_empty)
        if self._open and is_list and not (self._tail and line.indent > self._tail[0]):
            require_one_field(line.text, self._open.name)  # a list without bullets
            self._tail = (line.indent, self._open.add(line))
        elif self._open and self._tail:  # a wrapped line, indented or not, as in Markdown
            require_one_field(line.text, self._open.name)
            self._tail[1].append(plain(line.text))
        elif not (self._open and self._open.name == "other"):
            require_one_field(line.text, "other")
            self._pass(line)
            self._open = self._tail = None


def read_fields(lines: Iterable[str]) -> tuple[Ablation, ...]:
    """Return the ablations of a plan's lines, in their order; empty if no field makes one.

    Raises:
      PlanError: the value of a label was not understood.
    """
    reader = _Reader()
    for raw in lines:
        reader.read(parse_line(raw))
    reader.finish()
    for rest in reader.rests if reader.ablations else ():
        _require_nothing_lost(rest, reader.ablations)
    return tuple(reader.ablations)


def _require_nothing_lost(rest: _Record, ablations: Sequence[Ablation]) -> None:
    """Refuse fields outside ablations if they could complete an ablation."""
    action = rest.claims("action")
    claimed = ["replacements", *(["action"] if read_action(action) else []), *EXTRAS]
    if lost := next(filter(None, map(rest.claims, claimed)), ""):
        refuse(lost, "its ablation has no part; add 'Ablated Part: …'")
    if rest.claims("metrics") and not all(ablation.metrics for ablation in ablations):
        refuse(
            rest.claims("metrics"),
            "these metrics belong to no ablation; repeat them in each ablation",
        )
