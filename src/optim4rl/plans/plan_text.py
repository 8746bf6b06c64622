"""Turns a plan's bytes into lines of Markdown.

1. Bytes to text. This repairs the usual damage: byte-order marks, UTF-16, UTF-8 that was read as
   Windows-1252.
2. HTML to Markdown.

The HTML is stripped here and not by ``html.parser`` (alone or below BeautifulSoup). That parser
takes quadratic time on malformed input such as repeated ``<!--`` or ``<a b='``, and it raises on
``<![x]>`` and on long character references. A plan needs a dozen tags and no tree.
"""

import codecs
import html
import re
from typing import Final


def words(text: str) -> frozenset[str]:
    """Return the set of a text's words."""
    return frozenset(text.split())


# --- Bytes to text -----------------------------------------------------------------------------

_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its prefix
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _cp1252(byte: int) -> str:
    """Decode a byte as Windows-1252; its five undefined bytes are Latin-1, as in browsers."""
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


# "surrogateescape" marks a byte that is not UTF-8 as U+DC00 + byte: read it as Windows-1252.
_STRAY_BYTES: Final = {0xDC00 + byte: _cp1252(byte) for byte in range(0x80, 0x100)}

# One UTF-8 sequence that was read as Windows-1252 or Latin-1. Two-byte sequences only of the
# leads that make Latin-1 and Greek letters: others occur as real text (a capital before a quote).
_BYTE_OF: Final = {
    character: byte for byte in range(0x80, 0x100) for character in (_cp1252(byte), chr(byte))
}
_TAIL: Final = "[" + "".join(c for c, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
_MOJIBAKE: Final = re.compile(f"[ÂÃÎÏ]{_TAIL}|[à-ï]{_TAIL}{{2}}|[ð-ô]{_TAIL}{{3}}")

# Control, zero-width and lone surrogate characters have no meaning; a no-break space is a space.
_NOISE: Final[dict[int, str | None]] = {
    **dict.fromkeys([*range(0x09), *range(0x0E, 0x1C), 0x1F, 0x7F, 0x200B, 0x2060, 0xFEFF], None),
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
    0xA0: " ",
}


def decode_text(data: bytes) -> str:
    """Decode text of any encoding; stray bytes are read as Windows-1252."""
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
    """Repair text that was decoded wrongly, and remove invisible marks."""
    return _MOJIBAKE.sub(_repair, text).translate(_NOISE)


# --- HTML to Markdown --------------------------------------------------------------------------

# Neither alternative can run past the next "<", so a search over the whole text is linear.
_TAG: Final = re.compile(r"<!--|<(/?)([A-Za-z][A-Za-z0-9]*+)(?:[\s/][^<>]*+)?>")
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_HIDDEN: Final = {
    "<!--": re.compile("-->"),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
}
_BLOCKS: Final = words(
    "address article aside blockquote body br center dd details div dl dt fieldset figcaption "
    "figure footer form head header hr html main nav p pre section summary table tbody td tfoot "
    "th thead tr"
)
_INLINE: Final = words(
    "a abbr cite code em font i img ins kbd link mark meta q s samp small span style script sub "
    "sup tt u var"
)
_HEADINGS: Final = {"title": "# ", **{f"h{level}": "#" * level + " " for level in range(1, 7)}}
_DEEPEST: Final = 16  # levels of list indentation told apart; keeps deep nesting linear
_SPACE: Final = re.compile(r"\s*+")


def to_markdown(text: str) -> str:
    """Replace HTML tags by Markdown; all other text stays as it is."""
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
