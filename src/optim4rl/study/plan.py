"""Reading ablation plans as language-model planners publish them.

A plan file is Markdown wrapped in HTML: a title, a reasoning trace in prose, and a plan whose
ablations are fields ("Ablated Part", "Action", "Replacement", "Metrics") below a heading. No two
files look alike, so the reader keeps to three steps, each one pass over the text:

1. bytes to text, undoing the usual damage (byte-order marks, UTF-16, UTF-8 read as Windows-1252);
2. HTML to Markdown lines;
3. lines to sections, and the plan's lines to records of fields.

The HTML is stripped here rather than by ``html.parser`` (alone or below BeautifulSoup): that parser
takes quadratic time on malformed input such as repeated ``<!--`` or ``<a b='``, and it raises on
``<![x]>`` and on long character references. A plan needs a dozen tags and no tree.
"""

import codecs
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NoReturn

Action = Literal["ADD", "REMOVE", "REPLACE"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class PlanError(ValueError):
    """A plan that cannot be read, or that asks for what the study cannot do."""


@dataclass(frozen=True)
class Ablation:
    """One ablation, in the plan's own words.

    Attributes:
      title: the heading above it; empty where there is none.
      part: what is ablated; empty where the plan does not say.
      action: ``None`` where the plan states none, or none of the three.
      replacements: what takes the part's place; empty where the plan names nothing.
      metrics: what is to be measured; empty where the plan names nothing.
    """

    title: str
    part: str
    action: Action | None
    replacements: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A published plan: its title, its reasoning trace as plain Markdown, and its ablations."""

    title: str
    reasoning: str
    ablations: tuple[Ablation, ...]


def read_plan(path: str | Path) -> Plan:
    """Reads the plan file at `path`.

    Raises:
      PlanError: the file cannot be read, is empty, or holds no ablation.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise PlanError(f"plan {str(path)!r} cannot be read: {error}") from error
    try:
        return parse_plan(data)
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}: {error}") from None


def parse_plan(text: str | bytes) -> Plan:
    """Reads a plan from its text, or from bytes in whatever encoding they are.

    Takes time linear in the input's length.

    Raises:
      PlanError: the text is empty, holds no ablation, or claims something that was not understood.
    """
    lines = to_markdown(
        clean_text(decode_text(text) if isinstance(text, bytes) else text)
    ).splitlines()
    if not any(line.strip() for line in lines):
        raise PlanError("it is empty; expected a title, a reasoning trace and an ablation plan")
    title, reasoning, plan_lines = _sections(lines)
    ablations = _ablations(plan_lines) or _ablations(lines)
    if not ablations:
        raise PlanError(
            "it holds no ablation; expected lines such as 'Ablated Part: …', "
            "'Action: REPLACE', 'Replacement: …', 'Metrics: …'"
        )
    return Plan(title, reasoning, ablations)


# --- 1. Bytes to text -----------------------------------------------------------------------------

_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its prefix
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _cp1252(byte: int) -> str:
    """Windows-1252, with its five undefined bytes read as Latin-1, as browsers do."""
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


# "surrogateescape" marks a byte that is no UTF-8 as U+DC00 + byte: read those as Windows-1252.
_STRAY_BYTES: Final = {0xDC00 + byte: _cp1252(byte) for byte in range(0x80, 0x100)}

# One UTF-8 sequence that was read as Windows-1252 or Latin-1. Two-byte sequences only of the
# leads that make Latin-1 and Greek letters: others occur as real text (a capital before a quote).
_BYTE_OF: Final = {
    character: byte for byte in range(0x80, 0x100) for character in (_cp1252(byte), chr(byte))
}
_TAIL: Final = "[" + "".join(c for c, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
_MOJIBAKE: Final = re.compile(f"[ÂÃÎÏ]{_TAIL}|[à-ï]{_TAIL}{{2}}|[ð-ô]{_TAIL}{{3}}")

# Control, zero-width and lone surrogate characters say nothing; a no-break space is a space.
_NOISE: Final[dict[int, str | None]] = {
    **dict.fromkeys([*range(0x09), *range(0x0E, 0x1C), 0x1F, 0x7F, 0x200B, 0x2060, 0xFEFF], None),
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
    0xA0: " ",
}


def decode_text(data: bytes) -> str:
    """Text in whatever encoding it came; a stray byte is what Windows would show for it."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    head = data[:4096]
    for parity, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if 5 * head[parity::2].count(0) > len(head):  # every second byte of Latin text is zero
            return data.decode(encoding, "replace")
    return data.decode("utf-8", "surrogateescape").translate(_STRAY_BYTES)


def _repair(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE_OF[character] for character in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def clean_text(text: str) -> str:
    """Text that was decoded wrongly on its way here, repaired, and without invisible marks."""
    return _MOJIBAKE.sub(_repair, text).translate(_NOISE)


# --- 2. HTML to Markdown --------------------------------------------------------------------------

# Neither alternative can run past the next "<", so a search over the whole text is linear.
_TAG: Final = re.compile(r"<!--|<(/?)([A-Za-z][A-Za-z0-9]*+)(?:[\s/][^<>]*+)?>")
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_HIDDEN: Final = {
    "<!--": re.compile("-->"),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
}
_BLOCKS: Final = _words(
    "address article aside blockquote body br center dd details div dl dt fieldset figcaption "
    "figure footer form head header hr html main nav p pre section summary table tbody td tfoot "
    "th thead tr"
)
_INLINE: Final = _words(
    "a abbr cite code em font i img ins kbd link mark meta q s samp small span style script sub "
    "sup tt u var"
)
_HEADINGS: Final = {"title": "# ", **{f"h{level}": "#" * level + " " for level in range(1, 7)}}
_DEEPEST: Final = 16  # levels of list indentation told apart; keeps deep nesting linear
_SPACE: Final = re.compile(r"\s*+")


def to_markdown(text: str) -> str:
    """Replaces tags by what they mean in Markdown; what is no HTML tag stays as it is."""
    pieces: list[str] = []
    unclosed: set[str] = set()
    start = depth = 0
    while tag := _TAG.search(text, start):
        pieces.append(text[start : tag.start()])
        start = tag.end()
        closing, name = tag[1] == "/", (tag[2] or tag[0]).lower()
        if name in _HIDDEN and not closing and name not in unclosed:
            if end := _HIDDEN[name].search(text, start):
                start = end.end()
            else:
                unclosed.add(name)  # hide nothing rather than all the rest; never search again
        elif name in ("ul", "ol"):
            depth = max(0, depth + (-1 if closing else 1))
            pieces.append("\n")
        elif name in ("b", "strong"):
            pieces.append("**")
        elif name in _HEADINGS or name == "li":
            indent = "  " * min(depth, _DEEPEST)
            pieces.append("\n" if closing else "\n" + _HEADINGS.get(name, indent + "- "))
            if not closing and (space := _SPACE.match(text, start)):
                start = space.end()
        elif name in _BLOCKS:
            pieces.append("\n")
        elif name not in _INLINE and name not in _HIDDEN:
            pieces.append(tag[0])
    pieces.append(text[start:])
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), "".join(pieces))


# --- 3. Lines -------------------------------------------------------------------------------------

_BULLET: Final = re.compile(r"(?:[-+*–—]\s|[•‣▪◦·])\s*+")
_NUMBER: Final = re.compile(r"\(?(?:[0-9]{1,3}|[A-Za-z])[.)]\s++")
_WORD: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class _Line:
    indent: int
    marker: Literal["", "#", "-", "1"]  # prose, heading, bullet, numbered bullet
    text: str
    bold: bool  # as a whole

    @property
    def is_heading(self) -> bool:
        return self.marker == "#" or self.bold


def _line(raw: str) -> _Line | None:
    """Takes one line apart; None for a blank one, a rule or a code fence."""
    expanded = raw.expandtabs(4)
    body = raw.strip().lstrip("> \t")
    if not body.strip("-=_*|#`~ ") or body.startswith(("```", "~~~")):
        return None
    indent = len(expanded) - len(expanded.lstrip("> "))
    marker: Literal["", "#", "-", "1"] = ""
    if body.startswith("#"):
        marker, body = "#", body.strip("# ")
    elif bullet := _BULLET.match(body):
        marker, body = "-", body[bullet.end() :]
    elif number := _NUMBER.match(body):
        marker, body = "1", body[number.end() :]
    core = body.rstrip(": ")
    bold = len(core) > 4 and core[:2] == core[-2:] in ("**", "__") and core[:2] not in core[2:-2]
    return _Line(indent, marker, body, bold)


def _plain(text: str) -> str:
    return text.replace("**", "").strip(" \t*_`")


def _caption(line: _Line) -> str:
    return _plain(_plain(line.text).rstrip(" :："))


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
        "other": "rationale, hypothesis, description, motivation, goal, objective, purpose, "
        "reason, justification, expected outcome, expected result, expected results, why, "
        "expected impact, note, notes, setup, experiment setup, experimental setup, details, "
        "implementation, baseline, baselines, dataset, datasets, environment, environments",
    }.items()
    for label in labels.split(", ")
}
_SHORT: Final = 60  # characters; no label or section heading is longer
# Labels only before a colon, and never in headings ("### Component 1: Gradient processing").
_WEAK: Final = _words(
    "part component module target type evaluation measure measures setup details baseline dataset "
    "environment alternative alternatives"
)
_LABEL: Final = re.compile(r"([^:：=]{1,40}?)\s*+(?:[:：=]|(?<=\s)[-–—]+(?:\s|$))")

_BOLD_START: Final = re.compile(r"(\*\*|__)(.{1,60}?)\1(.*)")


def _label(text: str) -> str:
    return " ".join(_WORD.findall(text[:_SHORT].lower().replace("(s)", "s")))


def _field(line: _Line) -> tuple[str, str] | None:
    """The (name, value) of a line such as '**Action**: REPLACE'; None for any other line."""
    plain = _plain(line.text)
    if match := _LABEL.match(plain):
        label, value = _label(match[1]), plain[match.end() :]
        if label in _LABELS and not (line.marker == "#" and label in _WEAK):
            return _LABELS[label], _plain(value)
    bold = _BOLD_START.match(line.text)
    label, value = (_label(bold[2]), bold[3]) if bold and not line.bold else (_label(plain), "")
    if label in _LABELS and label not in _WEAK and (value or len(plain) <= _SHORT):
        return _LABELS[label], _plain(value)
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
    """A label inside a text.

    Attributes:
      start: where it begins, with its marks of emphasis.
      end: where its value begins.
      name: the field's name.
      label: as it is written.
      weak: the label is a word that occurs in prose, too.
      between: what sets it apart from the word before; empty where only a space does.
    """

    start: int
    end: int
    name: str
    label: str
    weak: bool
    between: str

    def opens_field(self, inside: str) -> bool:
        """Whether the next field begins here, and the one of name `inside` ends."""
        if not self.between or any(bracket in self.between for bracket in "([{"):
            return False
        return inside != "other" or not self.weak or any(mark in self.between for mark in ";|\t*")

    def is_lost(self, inside: str) -> bool:
        """Whether what it claims would be lost inside the value of a field of name `inside`."""
        if self.name == "other":
            return False
        if inside == "other":
            return not self.weak and self.label[0].isupper()
        return not self.weak or (self.name != inside and self.label[0].isupper())


def _claims(text: str) -> Iterable[_Claim]:
    """The labels in a text: before a colon, in bold, or apart from other words before a dash."""
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


def _fields(line: _Line) -> list[tuple[str, str]]:
    """The fields of a line, which may hold several; none where it does not begin with one."""
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
            (claim.name, _plain(line.text[claim.end : end].strip(_SEPARATORS)))
            for claim, end in zip(claims, ends, strict=True)
        ),
    ]


def _require_one_field(text: str, inside: str) -> None:
    """Refuses text of one field that holds another field's label: its claim would be lost.

    Headings, list entries and prose outside all fields count as text of the field "other".
    """
    for claim in _claims(text):
        if claim.is_lost(inside) or (claim.name != "other" and claim.opens_field(inside)):
            _refuse(text, f"the label {claim.label!r} is inside other text; begin a line with it")


def _refuse(text: str, reason: str) -> NoReturn:
    raise PlanError(f"{text if len(text) <= 120 else text[:119] + '…'!r}: {reason}")


# --- Lines to sections ----------------------------------------------------------------------------

_PLAN_WORDS: Final = _words(
    "ablation ablations study studies plan plans proposed suggested experiment experiments "
    "additional new final the our"
)
_REASONING_WORDS: Final = _words(
    "reasoning trace traces thinking thought thoughts process chain of the model planner step by "
    "steps"
)


def _section(raw: str) -> Literal["plan", "reasoning"] | None:
    """Whether a line, marked as a heading or not, opens one of a file's two sections."""
    if len(raw) > 4 * _SHORT or (line := _line(raw)) is None:
        return None
    caption = _caption(line)
    if len(caption) > _SHORT or caption[-1:].isdigit():  # "Ablation study 2" is an ablation's title
        return None
    words = frozenset(_WORD.findall(caption.lower()))
    if words <= _PLAN_WORDS and (
        words & {"plan", "plans", "ablations"} or ("ablation" in words and len(words) > 1)
    ):
        return "plan"
    if words <= _REASONING_WORDS and words & {"reasoning", "thinking", "thought", "thoughts"}:
        return "reasoning"
    return None


def _opens_ablation(line: _Line) -> bool:
    return any(
        name == "part" or (name == "action" and _action(value) is not None)
        for name, value in _fields(line)
    )


def _first_ablation(lines: Sequence[str]) -> int | None:
    """Where the first ablation begins: at its heading, or at the first of its fields."""
    parsed = [_line(raw) for raw in lines]
    start = next((i for i, line in enumerate(parsed) if line and _opens_ablation(line)), None)
    for i in range((start or 0) - 1, -1, -1):
        line = parsed[i]
        if line is None:
            continue
        if _section(lines[i]) or not (line.is_heading or line.marker or _field(line)):
            break
        start = i
        if line.is_heading:
            break
    return start


def _sections(lines: Sequence[str]) -> tuple[str, str, list[str]]:
    """Splits a file into its title, its reasoning trace, and the lines of its plan."""
    marks = [_section(raw) for raw in lines]
    start = None if "plan" in marks else _first_ablation(lines)
    sections: dict[str, list[str]] = {"preamble": [], "reasoning": [], "plan": []}
    current: str = "preamble"
    for i, (raw, mark) in enumerate(zip(lines, marks, strict=True)):
        if mark:
            current = mark
            continue
        if i == start:
            current = "plan"
        sections[current].append(raw)
    preamble = sections["preamble"]
    title, prose = "", preamble
    for i, raw in enumerate(preamble):
        if (line := _line(raw)) and line.is_heading:
            title, prose = _caption(line), preamble[i + 1 :]
            break
    return title, _prose(sections["reasoning"] or prose), sections["plan"]


def _prose(lines: Iterable[str]) -> str:
    """Joins lines into paragraphs that one blank line sets apart."""
    paragraphs: list[list[str]] = [[]]
    for raw in lines:
        if raw.strip():
            paragraphs[-1].append(raw.rstrip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs).strip()


# --- Lines to ablations ---------------------------------------------------------------------------

_VERBS: Final[dict[Action, str]] = {
    "ADD": "add adds added adding addition insert include introduce",
    "REMOVE": "remove removes removed removing removal drop disable eliminate delete omit",
    "REPLACE": "replace replaces replaced replacing replacement substitute substitution swap",
}
_ACTIONS: Final = {verb: action for action, verbs in _VERBS.items() for verb in verbs.split()}
# What may stand beside the verb of an action that is all that a plan says of a change.
_FILLERS: Final = _words(
    "a an and completely component entirely from fully is it method module of out part the this we"
)
_CHANGE: Final = re.compile(
    r"\b(?:replac|substitut|swap)\w*\b.*\b(?:by|for|with)\b|\binstead\b|->|→|[;|\t]", re.IGNORECASE
)
_FIRST_WORD: Final = re.compile(r"[^A-Za-z]*+([A-Za-z]++)(\s*+(?:[/|,]|(?:or|and)\b))?")
_SEPARATOR: Final = re.compile(r"[()]|;|,(?!\d)|\s(?:and|or|&)\s", re.IGNORECASE)
_NOTHING: Final = frozenset({"", "none", "n/a", "na", "null", "nil", "tbd", "not applicable"})
_Text = list[str]  # the lines that one value is wrapped over


@dataclass(slots=True)
class _Field:
    """One field of a record while its lines are read."""

    name: str
    indent: int
    inline: _Text
    items: list[_Text] = field(default_factory=list)
    marker: str = ""
    item_indent: int = 0

    def takes(self, line: _Line) -> bool:
        """Whether a bullet is one of this field's items, or a detail below one of them."""
        if not line.marker or (self.items and line.marker != self.marker and self._is_item(line)):
            return False
        return line.indent > self.indent or (not self.inline and line.indent == self.indent)

    def add(self, line: _Line) -> _Text | None:
        """Adds the item and returns its text; None for a detail, which is left out."""
        if self.items and not self._is_item(line):
            return None
        if not self.items:
            self.marker, self.item_indent = line.marker, line.indent
        self.items.append([_plain(line.text)])
        return self.items[-1]

    def _is_item(self, line: _Line) -> bool:
        return line.indent <= self.item_indent + 1

    @property
    def is_empty(self) -> bool:
        """Whether a label has claimed something that has not come yet."""
        return not self.inline and not self.items and self.name != "other"


@dataclass(slots=True)
class _Record:
    """One ablation while its lines are read; a field that is given twice has two entries."""

    title: str
    fields: dict[str, list[_Field]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # lines among its fields that belong to none

    def closes_before(self, name: str, value: str) -> bool:
        """Whether a further field of this name belongs to the next ablation."""
        if name not in self.fields:
            return False
        if name in ("part", "action"):
            return self._scalar(name) != value
        return name == next(iter(self.fields))

    def ablation(self) -> Ablation | None:
        """The ablation, or None where the fields make none.

        Raises:
          PlanError: something was not understood, and a default would stand in for it.
        """
        part, action = self._scalar("part"), _action(self._scalar("action"))
        replacements = tuple(self._values("replacements", split_items=False))
        metrics = tuple(self._values("metrics", split_items=True))
        if not part and not (self.title and (action or replacements)):
            return None
        if not replacements:
            self._require_plain_action(action)
        if self.unread and not (metrics and (replacements or action in ("ADD", "REMOVE"))):
            _refuse(self.unread[0], "it is none of the fields part, action, replacement, metrics")
        return Ablation(self.title, part, action, replacements, metrics)

    def claims(self, name: str) -> str:
        """All text of the fields of this name."""
        entries = self.fields.get(name, ())
        return " ".join(" ".join(text) for e in entries for text in (e.inline, *e.items)).strip()

    def _require_plain_action(self, action: Action | None) -> None:
        """Refuses what may name a replacement elsewhere than in a field of that name."""
        advice = "name a replacement as 'Replacement: …'"
        for text in (self.title, self.claims("part")):
            if action in (None, "REPLACE") and _CHANGE.search(text):
                _refuse(text, f"it seems to name a replacement; {advice}")
        stated = self.claims("action")
        known = _ACTIONS.keys() | _FILLERS | _lower_words(f"{self.title} {self.claims('part')}")
        if _stated(stated) and (action is None or not _lower_words(stated) <= known):
            _refuse(
                stated, f"expected the action ADD, REMOVE or REPLACE alone; if it is more, {advice}"
            )

    def _scalar(self, name: str) -> str:
        for entry in self.fields.get(name, ()):
            for text in (entry.inline, *entry.items):
                if value := " ".join(text).strip():
                    return value
        return ""

    def _values(self, name: str, split_items: bool) -> Iterable[str]:
        for entry in self.fields.get(name, ()):
            inline = " ".join(entry.inline)
            if not (entry.items and inline.endswith(":")):  # not "one of the following:"
                yield from _split(inline)
            for item in (" ".join(text) for text in entry.items):
                yield from _split(item) if split_items else _stated(item)


class _Reader:
    """Collects records from a plan's lines, one line at a time."""

    def __init__(self) -> None:
        self.ablations: list[Ablation] = []
        self.rests: list[_Record] = []  # fields that make no ablation
        self._record: _Record | None = None
        self._heading = ""  # waits for the first field below it
        self._open: _Field | None = None  # takes the bullets that follow
        self._tail: tuple[int, _Text] | None = None  # takes wrapped lines indented deeper than it
        self._passed: list[_Line] = []  # lines since the last field that belong to no field

    def read(self, line: _Line | None) -> None:
        if line is None:
            self._tail = None
        elif fields := _fields(line):
            self._start_fields(fields, line)
        elif line.marker != "#" and self._open and self._open.takes(line):
            _require_one_field(line.text, self._open.name)
            text = self._open.add(line)
            self._tail = (line.indent, text) if text else None
        elif line.is_heading:
            _require_one_field(line.text, "other")
            self.finish()
            self._heading = _caption(line)
        elif line.marker:
            _require_one_field(line.text, "other")
            self._pass(line)
            self._open, self._tail, self._heading = None, None, _caption(line)
        else:
            self._read_prose(line)

    def finish(self) -> None:
        """Ends the record that is being read, if any."""
        if self._record:
            self._record.unread += [x.text for x in self._passed if _LABEL.match(_plain(x.text))]
            if ablation := self._record.ablation():
                self.ablations.append(ablation)
            else:
                self.rests.append(self._record)
        self._record = self._open = self._tail = None
        self._passed = []

    def _start_fields(self, fields: list[tuple[str, str]], line: _Line) -> None:
        names = [name for name, _ in fields]
        if max(names.count("part"), names.count("action")) > 1:
            _refuse(line.text, "a field stands twice on one line")
        if self._open and self._open.is_empty and line.indent > self._open.indent:
            _refuse(line.text, f"it stands below a field {self._open.name!r} that is empty")
        if len(fields) > 1 and self._record and not self._record.fields.keys().isdisjoint(names):
            self._close(line)
        for name, value in fields:
            _require_one_field(value, name)
            self._start_field(name, value, line)

    def _start_field(self, name: str, value: str, line: _Line) -> None:
        entry = _Field(name, line.indent, [value] if value else [])
        if name != "other":
            if self._record and self._record.closes_before(name, value):
                self._close(line)
            if self._record is None:
                self._record, self._heading = _Record(self._heading), ""
            self._take_passed(self._record)
            self._record.fields.setdefault(name, []).append(entry)
        self._open, self._tail = entry, (line.indent, entry.inline)

    def _close(self, line: _Line) -> None:
        """Ends the record before a field of the next one, whose title the last line may be."""
        if self._passed and self._passed[-1].marker:
            self._passed.pop()
        self.finish()

    def _take_passed(self, record: _Record) -> None:
        """Adds lines that stand between two fields of a record to what of it was not read."""
        if record.fields:
            for line in self._passed:
                if line.marker and not _LABEL.match(_plain(line.text)):
                    _refuse(line.text, "it stands among the fields of an ablation, without a label")
            record.unread += [line.text for line in self._passed]
            self._heading = ""
        self._passed = []

    def _pass(self, line: _Line) -> None:
        if self._record:
            self._passed.append(line)

    def _read_prose(self, line: _Line) -> None:
        if self._tail and line.indent > self._tail[0]:
            _require_one_field(line.text, self._open.name if self._open else "other")
            self._tail[1].append(_plain(line.text))
        elif self._open and (self._open.is_empty or (self._tail and not self._open.inline)):
            _require_one_field(line.text, self._open.name)  # a list without bullets
            self._open.items.append([_plain(line.text)])
            self._open.item_indent = line.indent
            self._tail = (line.indent, self._open.items[-1])
        elif not (self._open and self._open.name == "other"):
            _require_one_field(line.text, "other")
            self._pass(line)
            self._open = self._tail = None


def _ablations(lines: Iterable[str]) -> tuple[Ablation, ...]:
    reader = _Reader()
    for raw in lines:
        reader.read(_line(raw))
    reader.finish()
    for rest in reader.rests if reader.ablations else ():
        _require_nothing_lost(rest, reader.ablations)
    return tuple(reader.ablations)


def _require_nothing_lost(rest: _Record, ablations: Sequence[Ablation]) -> None:
    """Refuses fields of no ablation, where they could say what the ablations leave open."""
    if rest.claims("replacements") or _action(rest.claims("action")):
        _refuse(rest.claims("replacements") or rest.claims("action"), "its ablation has no part")
    if rest.claims("metrics") and not all(ablation.metrics for ablation in ablations):
        _refuse(rest.claims("metrics"), "these metrics belong to no ablation; repeat them in each")


def _lower_words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _action(value: str) -> Action | None:
    """The one action a value names; None where it names none or leaves several open."""
    first = _FIRST_WORD.match(value)
    if first and not first[2] and (action := _ACTIONS.get(first[1].lower())):
        return action
    named = {_ACTIONS[word] for word in _WORD.findall(value.lower()) if word in _ACTIONS}
    return named.pop() if len(named) == 1 else None


def _stated(value: str) -> list[str]:
    """The value without brackets and final punctuation, or nothing where it says 'none'."""
    value = value.strip(" \t[]\"'").rstrip(".;,").strip()
    return [] if value.strip("()-–—").lower() in _NOTHING else [_plain(value)]


def _split(text: str) -> Iterable[str]:
    """Splits an enumeration at commas, semicolons and 'and', but not inside parentheses."""
    depth = start = 0
    for separator in _SEPARATOR.finditer(text):
        if separator[0] in "()":
            depth = max(0, depth + (1 if separator[0] == "(" else -1))
        elif depth == 0:
            yield from _stated(text[start : separator.start()])
            start = separator.end()
    yield from _stated(text[start:])
