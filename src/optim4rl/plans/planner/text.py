"""Cuts and cleans text from outside, so that it can be shown."""

import unicodedata


class PlannerError(ValueError):
    """Report a plan that cannot be proposed, scored or priced; the message says what would help."""


def one_line(text: str, limit: int = 200) -> str:
    """Return the text on one line of at most `limit` characters, safe for a terminal.

    Control, direction-changing, zero-width and lone surrogate characters are removed.
    """
    kept = "".join(
        " " if character.isspace() else character
        for character in text[: 8 * limit]
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit and len(text) <= 8 * limit else line[: limit - 1] + "…"
