"""Finds problems of a plan before a study runs it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from optim4rl.plans.mapping import MappedAblation
from optim4rl.plans.planner.render import unmapped
from optim4rl.plans.planner.score import Pair, pairs
from optim4rl.plans.planner.text import one_line

Kind = Literal["unmapped", "reference", "duplicate", "metric", "action", "replacement"]


@dataclass(frozen=True)
class Finding:
    """Hold one problem of a plan.

    Attributes:
        ablation: the ablation's number in the plan, from 1.
        kind: the kind of problem.
        message: the problem in words.
    """

    ablation: int
    kind: Kind
    message: str


def lint(mapped: Sequence[MappedAblation]) -> tuple[Finding, ...]:
    """Return all problems of a plan, in the plan's order."""
    return tuple(_findings(mapped))


def _findings(mapped: Sequence[MappedAblation]) -> Iterator[Finding]:
    first: dict[Pair, int] = {}
    for number, entry in enumerate(mapped, start=1):
        for note in unmapped([entry]):
            yield Finding(number, "unmapped", note)
        for text in _references(entry):
            message = f"replacement '{text}' is the reference itself; name another one"
            yield Finding(number, "reference", message)
        for component, value in pairs([entry]):
            earlier = first.setdefault((component, value), number)
            if earlier != number:
                message = f"ablation {earlier} already replaces {component} by {value}"
                yield Finding(number, "duplicate", message)
        if entry.component is not None:
            yield from _missing(number, entry)


def _references(entry: MappedAblation) -> list[str]:
    """Return the replacements named by the plan that are the reference itself."""
    if entry.component is None:
        return []
    study = entry.component.study
    return [one_line(m.text, 80) for m in entry.replacements if m.text and m.key == study]


def _missing(number: int, entry: MappedAblation) -> Iterator[Finding]:
    ablation = entry.ablation
    if ablation.action is None:
        yield Finding(number, "action", "it states no action, so it is read as REPLACE")
    if ablation.action in (None, "REPLACE") and not ablation.replacements:
        values = ", ".join(str(value) for _, value in pairs([entry])) or "nothing"
        yield Finding(
            number, "replacement", f"it names no replacement, so the study compares {values}"
        )
    if not ablation.metrics:
        metrics = ", ".join(entry.metric_keys)
        yield Finding(number, "metric", f"it names no metric, so the study reports {metrics}")
    named = Counter(match.key for match in entry.replacements)
    for value in sorted((x for x in entry.values if named[x] > 1), key=str):
        yield Finding(number, "duplicate", f"{value} is named more than once")
