"""Write a study's findings and caveats in sentences, each made from verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from optim4rl.pages.scores import OUTCOMES, Outcome, RowSummary, Side, Tone, equals, side_of
from optim4rl.pages.words import interval, number, smallest_found
from optim4rl.study.results import RowKind, StudyResults


class Evidence(NamedTuple):
    """Hold one row behind a finding: its outcome against the reference, and figures if shown."""

    outcome: Outcome
    label: str
    figures: str


@dataclass(frozen=True)
class Finding:
    """Hold the answer to one of the reader's questions.

    Attributes:
        question: the question in plain words.
        answer: the answer in a few words.
        tone: whether the answer is good, bad or open; it decides the colour.
        headline: the finding in one sentence.
        detail: further sentences; may be empty.
        evidence: the rows behind the finding, each with its figures.
    """

    question: str
    answer: str
    tone: Tone
    headline: str
    detail: str
    evidence: tuple[Evidence, ...]


def findings(
    rows: Sequence[RowSummary],
    adam: RowSummary | None,
    control: RowSummary | None,
    decimals: int,
    *,
    trained: bool,
) -> Iterable[Finding]:
    """Answer the reader's questions, each from verdicts."""
    of_kind = {kind: [e for e in rows if e.row.kind == kind] for kind in get_args(RowKind)}
    if trained:
        yield _against_control(control, decimals)
    if trained or adam is not None:
        yield _against_baselines(of_kind["baseline"], adam, decimals)
    if replacements := of_kind["replacement"]:
        question = "Does the method’s own design win?"
        yield _against_variants(question, "the plan’s replacements", replacements, decimals)
    if paper := of_kind["paper"]:
        question = "Does the paper’s own ablation hold?"
        yield _against_variants(question, "the paper’s ablations", paper, decimals)


def _against_control(control: RowSummary | None, decimals: int) -> Finding:
    question = "Did meta-training do anything?"
    if control is None:
        headline = "The study has no untrained control, so it cannot show what meta-training did."
        return Finding(question, "Not tested", "open", headline, "", ())
    answers: dict[Side, tuple[str, Tone, str]] = {
        "worse": ("Yes", "good", "Meta-training helps."),
        "better": ("It made it worse", "bad", "Meta-training hurts."),
        "unclear": ("Not clear", "open", "It is not clear that meta-training did anything."),
    }
    details: dict[Side, str] = {
        "worse": "The trained reference clearly beats the untrained one.",
        "better": "The untrained reference clearly beats the trained one.",
        "unclear": "The trained and the untrained reference do not differ clearly.",
    }
    side = side_of(control)
    return Finding(question, *answers[side], details[side], (_evidence(control, decimals),))


def _against_baselines(
    baselines: Sequence[RowSummary], adam: RowSummary | None, decimals: int
) -> Finding:
    if adam is None:
        headline = "The study has no classical optimizer to compare with."
        return Finding("Does it beat tuned Adam?", "Not tested", "open", headline, "", ())
    name = adam.row.label
    others = [e for e in baselines if e is not adam and side_of(e) == "better"]
    detail = " ".join(f"{e.row.label} clearly beats the reference." for e in others)
    evidence = tuple(_evidence(entry, decimals) for entry in (adam, *others))
    answers: dict[Side, tuple[str, Tone, str]] = {
        "worse": ("Yes", "bad" if others else "good", f"The reference clearly beats {name}."),
        "better": ("No, it loses", "bad", f"{name} clearly beats the reference."),
        "unclear": ("Not clear", "open", f"The reference and {name} do not differ clearly."),
    }
    return Finding(f"Does it beat {name}?", *answers[side_of(adam)], detail, evidence)


def _against_variants(
    question: str, what: str, variants: Sequence[RowSummary], decimals: int
) -> Finding:
    """Sort variants by outcome; the reference wins only if every variant loses."""
    sides = {side: [e for e in variants if side_of(e) == side] for side in get_args(Side)}
    better, worse, unclear = sides["better"], sides["worse"], sides["unclear"]
    tone: Tone = "bad" if better else "open" if unclear else "good"
    told = [*worse, *unclear]
    if better:
        headline = "; ".join(f"{e.row.label} clearly beats the reference" for e in better)
        headline += "."
    elif len(variants) == 1:
        headline, told = f"{_tell(variants)}.", []
    elif not unclear:
        headline = f"The reference beats all of {what}."
    elif not worse:
        headline, told = f"None of {what} differs clearly from the reference.", []
    else:
        headline = f"None of {what} clearly beats the reference."
    if len(variants) == 1:
        answer = {"bad": "No, it is better", "open": "Not clear", "good": "Yes"}[tone]
    else:
        answer = ", ".join(f"{len(sides[side])} {side}" for side in sides if sides[side])
    # With several variants, show only outcomes: the chart right below has the figures.
    decimals_or_none = decimals if len(variants) == 1 else None
    evidence = tuple(_evidence(entry, decimals_or_none) for entry in variants)
    detail = f"{_tell(told)}." if told else ""
    return Finding(question, answer, tone, headline, detail, evidence)


def by_other_scores(rows: Sequence[RowSummary]) -> str:
    """Say which verdicts differ by the other scores."""
    first, *others = rows[0].scores
    said = []
    for index, score in enumerate(others, start=1):
        changed = [e for e in rows if e.scores[index].outcome != e.primary.outcome]
        compared = (e.scores[index].comparison for e in rows)
        lost = next((x.diverged[1] for x in compared if x is not None), 0)
        if lost and all(e.scores[index].outcome == "unclear" for e in rows[1:]):
            runs = "1 run" if lost == 1 else f"{lost} runs"
            said.append(f"by {score.name}, nothing is sure: {runs} of the reference diverged")
        elif changed:
            said.append(f"by {score.name}, {_tell(changed, index)}")
        else:
            said.append(f"by {score.name}, every verdict is the same")
    return f"{'; '.join([f'These verdicts are by {first.name}', *said])}."


def _tell(entries: Sequence[RowSummary], index: int = 0) -> str:
    """Name the rows by outcome: "A is clearly worse than the reference; B and C …"."""
    parts = []
    for key, words in OUTCOMES.items():
        group = [entry for entry in entries if entry.scores[index].outcome == key]
        if group and key == "unclear":
            verb = "does" if len(group) == 1 else "do"
            parts.append(f"{_names(group)} {verb} not differ clearly from the reference")
        elif group:
            verb = "is" if len(group) == 1 else "are"
            parts.append(f"{_names(group)} {verb} {words} than the reference")
    return "; ".join(parts)


def _names(entries: Sequence[RowSummary]) -> str:
    *names, last = (entry.row.label for entry in entries)
    return f"{', '.join(names)} and {last}" if names else last


def _evidence(entry: RowSummary, decimals: int | None) -> Evidence:
    """Return a row's outcome, its name and, with `decimals`, the figures of its first score."""
    comparison = entry.primary.comparison
    if comparison is None or decimals is None:
        return Evidence(entry.primary.outcome, entry.row.label, "")
    if any(comparison.diverged):
        shown = (
            f"beats the reference with probability {number(comparison.improvement.value, 2)} "
            f"[{interval(comparison.improvement, 2)}]"
        )
    else:
        shown = (
            f"{number(comparison.difference.value, decimals, signed=True)} {entry.primary.name} "
            f"[{interval(comparison.difference, decimals, signed=True)}]"
        )
    assert entry.primary.claim is not None
    figures = f"{shown}, corrected p {equals(entry.primary.claim.p)}"
    if entry.primary.outcome == "unclear":
        figures += f"; {smallest_found(entry.primary.claim)}"
    return Evidence(entry.primary.outcome, entry.row.label, figures)


# Caveats


def caveats(
    results: StudyResults, rows: Sequence[RowSummary], scale: float | None, decimals: int
) -> Iterable[str]:
    """Yield the limits of a study, one at a time."""
    yield from _sample_caveats(rows, trained=results.trained)
    yield from _loss_caveats(rows)
    floor, ceiling = (
        number(math.nan if x is None else x, decimals) for x in (results.floor, results.ceiling)
    )
    if results.floor is None:
        if any(entry.stability for entry in rows):
            yield "Stability is in units of the first metric."
    elif scale:
        yield (
            f"All rows share one reference scale, from {floor} (the untrained policy) to {ceiling} "
            "(the best classical optimizer’s final return). Stability is in units of this scale. "
            "A run is stuck if its final return stays below 90 % of the way."
        )
    else:
        yield (
            f"The untrained policy’s return, {floor}, and the best classical optimizer’s final "
            f"return, {ceiling}, span no scale: nothing was learned. So stability is in units of "
            "return, and no run can be called stuck."
        )
    stuck = [rate.value for entry in rows for rate in entry.stuck.values()]
    if stuck and min(stuck) == 1.0:
        yield (
            "The short runs tell nothing here: no optimizer gets 90 % of the way in so few "
            "updates, at any multiple of its step."
        )
    yield (
        "Tuning has a budget, too: the table of changes says how each row was tuned, and the table "
        "of settings gives the result. A wider grid or more runs for one side would favour it."
    )
    ends = [f"{e.row.label} ({', '.join(e.row.at_edge)})" for e in rows if e.row.at_edge]
    if ends:
        yield (
            "The best setting is at an end of its grid, so these may be better than shown: "
            f"{'; '.join(ends)}."
        )
    yield (
        f"The p-values of the {len(rows) - 1} comparisons with the reference are corrected "
        "together (Holm 1979), for each score separately: "
        f"{', '.join(x.name for x in rows[0].scores)}."
    )
    if results.task:
        yield f"The study has one task, {results.task}; it says nothing about other tasks."
    if results.left_out:
        yield (
            "The budget left no time for these rows of the plan: "
            f"{', '.join(results.left_out)}. To run them, repeat the command with a larger budget."
        )
    yield from dict.fromkeys(
        f"{caveat[:1].upper()}{caveat[1:]}."
        for entry in rows
        if entry.stability
        for caveat in entry.stability.caveats
        if "diverged" not in caveat
    )


def _sample_caveats(rows: Sequence[RowSummary], *, trained: bool) -> Iterable[str]:
    reference = rows[0]
    yield (
        f"Every row was run {_times(reference.seeds)}, with the same seeds for all. A seed is a "
        "whole run of its own. The test compares interquartile means, so one failed run does not "
        "decide it."
        if not trained
        else f"The reference was meta-trained {_times(reference.meta_seeds)}, and each result was "
        f"evaluated on {reference.seeds} seeds. The test treats meta-seeds and seeds as random. It "
        "compares interquartile means, so one failed run does not decide it. A classical optimizer "
        "has no meta-seeds. An untrained rule with zero heads is the same for every meta-seed."
    )
    if trained and any(entry.meta_seeds == 2 for entry in rows):
        yield "Two meta-seeds do not show how much meta-seeds differ: nothing is clear with two."
    yield (
        "“Not clear” is not “equal”: each comparison says how large a difference these seeds find "
        "four times in five. "
        f"Bootstrap intervals over a handful of {'meta-' if trained else ''}seeds are somewhat too "
        "narrow, so a verdict needs both the interval and the test."
    )


def _loss_caveats(rows: Sequence[RowSummary]) -> Iterable[str]:
    for entry in rows:
        for seed, message in entry.row.failures.items():
            yield f"Meta-training of {entry.row.label} failed for meta-seed {seed}: “{message}”."
        if entry.row.failures:
            yield (
                f"{len(entry.row.failures)} of {entry.meta_seeds} meta-seeds of {entry.row.label} "
                "failed. Its scores count them as diverged; no curve, stability metric or stuck "
                "rate includes them."
            )
        if entry.curves is not None and (lost := int(entry.curves.diverged.sum())):
            yield (
                f"{lost} of {entry.curves.diverged.size} evaluation runs of {entry.row.label} "
                "diverged. They rank below every other run; the first four stability metrics "
                "cannot include them, and the risk across runs is undefined."
            )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
