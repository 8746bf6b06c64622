"""Gives the words of plans, methods and registries one spelling, and finds phrases in them.

It ignores case, plurals, articles and prepositions, and unifies spellings ("optimiser" is
"optimizer", "logarithmic" is "log").
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

_WORD: Final = re.compile(r"[a-z0-9]+")
_BRITISH: Final = re.compile(r"is(e|er|ed|ing|ation)$")
_LONGEST: Final = 64  # words; more make no name

_SPELLINGS: Final = {
    spelling: word
    for word, spellings in {
        "": "a an and any are as by for from in is it its of on or our pre the their this to with",
        "no": "non not without remove removing removed removal disable disabled disabling",
        "log": "logarithm logarithmic logarithmically",
        "transformation": "transform transformed transforming",
        "processing": "processed preprocess preprocessed preprocessing",
        "scale": "scaling scaled",
        "square": "squared",
        "update": "updating",
        "reset": "resetting",
        "gru": "grus",
        "pipeline": "pipelined pipelining",
        "symmetric": "symmetrical",
        "robustness": "robust",
        "stability": "stable instability",
    }.items()
    for spelling in spellings.split()
}


def covered_words(words: Sequence[str], phrases: Iterable[str]) -> frozenset[int]:
    """Return the places of all words that belong to one of the phrases."""
    places: set[int] = set()
    for phrase in filter(None, map(_phrase, phrases)):
        for i in range(len(words) - len(phrase) + 1):
            negated = i > 0 and words[i - 1] == "no" and phrase[0] != "no"
            if words[i : i + len(phrase)] == phrase and not negated:
                places.update(range(i, i + len(phrase)))
    return frozenset(places)


def normalised_words(text: str) -> tuple[str, ...]:
    """Return the first `_LONGEST` words of a text, in one spelling."""
    lowered = unicodedata.normalize("NFKC", text).lower().replace("nonadaptive", "non adaptive")
    words = (_unified(word) for word in _WORD.findall(lowered))
    return tuple(word for word in words if word)[:_LONGEST]


_phrase: Final = functools.cache(normalised_words)  # for the registry's phrases, which are few


def _unified(word: str) -> str:
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "aisu":  # a plural, not "bias"
        word = word[:-1]
    return _SPELLINGS.get(word, _BRITISH.sub(r"iz\1", word))
