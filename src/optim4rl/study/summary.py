"""The statistics of a study: what every optimizer scored, and what that lets one say.

Nothing is rendered here and nothing is claimed that `compare` does not support: every sentence is
put together from the verdict of one comparison with the reference.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import (
    WELCH_META_SEEDS,
    Comparison,
    Estimate,
    area_under_curve,
    bootstrap_interval,
    compare,
    failure_rate,
    final_return,
    stuck_rate,
)
from optim4rl.evaluation.stability import Stability, stability
from optim4rl.study.results import Row, RowKind, StudyResults

# Against the reference. "at_resolution": as clear as so few meta-seeds can show.
Outcome = Literal[
    "better", "better_at_resolution", "unclear", "worse_at_resolution", "worse", "reference"
]
Side = Literal["better", "worse", "unclear"]
Tone = Literal["good", "bad", "open"]
OUTCOMES: dict[Outcome, str] = {
    "better": "clearly better",
    "better_at_resolution": "better, at this resolution",
    "unclear": "no clear difference",
    "worse_at_resolution": "worse, at this resolution",
    "worse": "clearly worse",
    "reference": "reference",
}


@dataclass(frozen=True)
class Score:
    """One score of one optimizer over all its runs, and against the reference.

    Attributes:
        name: "AUC" or "final return".
        iqm: interquartile mean over all runs.
        meta_seed_means: mean of each meta-seed; NaN where one of its runs diverged.
        comparison: `compare(this row, the reference)`; None for the reference itself.
        outcome: the comparison in one word.
    """

    name: str
    iqm: Estimate
    meta_seed_means: tuple[float, ...]
    comparison: Comparison | None
    outcome: Outcome


@dataclass(frozen=True)
class RowSummary:
    """One row of the study in figures.

    Attributes:
        row: the row.
        curves: the curves of all its meta-seeds; None if it has none.
        auc: mean return over all updates.
        final: mean return over the last updates.
        stability: in units of the study's reference scale; None without curves to measure.
        failure: share of diverged evaluation runs; None without curves.
        stuck: scale of the step -> share of stuck runs; empty where no scale can define "stuck".
        meta_seeds: number of meta-seeds, those that failed included.
        seeds: evaluation seeds of each.
    """

    row: Row
    curves: Curves | None
    auc: Score
    final: Score
    stability: Stability | None
    failure: Estimate | None
    stuck: Mapping[float, Estimate]
    meta_seeds: int
    seeds: int


class Evidence(NamedTuple):
    """One row behind a finding: its outcome against the reference, and maybe its figures."""

    outcome: Outcome
    label: str
    figures: str


@dataclass(frozen=True)
class Finding:
    """The answer to one question that a reader brings along.

    Attributes:
        question: in plain words.
        answer: in a few words.
        tone: how the answer is to be taken, for its colour.
        headline: the finding in one sentence.
        detail: what else belongs to it; may be empty.
        evidence: the rows behind it, each with its figures.
    """

    question: str
    answer: str
    tone: Tone
    headline: str
    detail: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Summary:
    """Everything that is said about a study's returns.

    Attributes:
        rows: in the study's order, the reference first.
        adam: the baseline that stands for tuned Adam; None where the study has no baseline.
        control: the untrained reference, if the study has one.
        scale: ceiling minus floor, the unit of the stability metrics; None where that is no
            positive number, so that they are in units of return.
        decimals: digits behind the point for returns.
        findings: what to read first, all by AUC.
        by_final_return: which verdicts are others by final return.
        caveats: what limits it, one sentence each.
    """

    rows: tuple[RowSummary, ...]
    adam: RowSummary | None
    control: RowSummary | None
    scale: float | None
    decimals: int
    findings: tuple[Finding, ...]
    by_final_return: str
    caveats: tuple[str, ...]

    @property
    def reference(self) -> RowSummary:
        """The row that all others are compared with."""
        return self.rows[0]


def summarise(results: StudyResults) -> Summary:
    """Computes every figure of a report except those of the identity experiment.

    A meta-seed whose meta-training failed has no curves. It counts as a learned optimizer all of
    whose runs diverged, so that failing never improves a row's scores.

    Raises:
        ValueError: there are no rows, the first is not the reference, or no row has a curve.
    """
    if not results.rows or results.rows[0].kind != "reference":
        raise ValueError("rows: the first row of a study must be its reference")
    if not any(row.curves for row in results.rows):
        raise ValueError("rows: none has a curve, so there is nothing to report")
    scale = results.ceiling - results.floor
    usable = scale if math.isfinite(scale) and scale > 0 else None
    reference = _scores(results.rows[0], results.rows)
    rows = tuple(_summarise_row(row, results, reference, usable) for row in results.rows)
    adam = _adam(rows)
    control = next((entry for entry in rows if entry.row.kind == "control"), None)
    decimals = _decimals(usable or max(_magnitudes(rows), default=1.0))
    return Summary(
        rows=rows,
        adam=adam,
        control=control,
        scale=usable,
        decimals=decimals,
        findings=tuple(_findings(rows, adam, control, decimals)),
        by_final_return=_by_final_return(rows),
        caveats=tuple(_caveats(results, rows, usable, decimals)),
    )


def summary_table(results: StudyResults) -> list[dict[str, Any]]:
    """The study as one plain dict for each optimizer, ready for JSON.

    Estimates are ``{"value", "low", "high"}``. A number that diverged runs leave undefined is None;
    ``diverged_runs`` and ``failed_meta_seeds`` say how many there are.
    """
    return [_table_row(entry) for entry in summarise(results).rows]


# Numbers in words


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; NaN, the score of a diverged run, is "diverged"."""
    if math.isnan(value):
        return "diverged"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int, *, signed: bool = False) -> str:
    """The 95 % interval of an estimate, "0.91 to 0.97", or "no interval"."""
    if not estimate.has_interval:
        return "no interval"
    low = number(estimate.low, decimals, signed=signed)
    return f"{low} to {number(estimate.high, decimals, signed=signed)}"


def p_value(p: float) -> str:
    """A p-value with two significant digits, never in exponent form."""
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.{max(2, 1 - math.floor(math.log10(p)))}f}"


# Scores


def _scores(row: Row, rows: Sequence[Row]) -> Float[np.ndarray, "score task meta_seed seed"]:
    """AUC and final return of every run; NaN for a diverged run and for all of a lost meta-seed."""
    runs = [np.stack([area_under_curve(c), final_return(c)]) for c in row.curves]
    seeds = (
        runs[0].shape[1] if runs else next(r for r in rows if r.curves).curves[0].returns.shape[0]
    )
    lost = np.full((2, seeds), np.nan)
    runs += [lost] * (len(row.failures) or (0 if runs else 1))
    return np.stack(runs, axis=1)[:, None]


def _summarise_row(
    row: Row,
    results: StudyResults,
    reference: Float[np.ndarray, "score task x_meta_seed x_seed"],
    scale: float | None,
) -> RowSummary:
    scores = _scores(row, results.rows)
    curves = stack(row.curves) if row.curves else None
    measurable = curves is not None and curves.env_steps.size > 1
    auc, final = (
        _score(name, own, None if row is results.rows[0] else other, row, results.rows[0])
        for name, own, other in zip(("AUC", "final return"), scores, reference, strict=True)
    )
    return RowSummary(
        row=row,
        curves=curves,
        auc=auc,
        final=final,
        stability=stability(curves, scale or 1.0) if curves is not None and measurable else None,
        failure=failure_rate(curves) if curves is not None else None,
        stuck={
            step: stuck_rate(runs, results.floor, results.ceiling)
            for step, runs in sorted(row.stress.items())
        }
        if scale
        else {},
        meta_seeds=scores.shape[2],
        seeds=scores.shape[3],
    )


def _score(
    name: str,
    own: Float[np.ndarray, "task x_meta_seed x_seed"],
    reference: Float[np.ndarray, "task y_meta_seed y_seed"] | None,
    row: Row,
    reference_row: Row,
) -> Score:
    means = tuple(float(mean) for mean in own.mean(axis=(0, 2)))
    comparison = None
    if reference is not None:
        comparison = compare(own, reference, row.label, reference_row.label, metric=name)
    return Score(name, bootstrap_interval(own), means, comparison, outcome(comparison))


def outcome(comparison: Comparison | None) -> Outcome:
    """A comparison with the reference in one word; only its verdict makes it more than "unclear".

    Where a run diverged there is no difference of means, and the probability of improvement says
    which side is ahead.
    """
    if comparison is None:
        return "reference"
    if comparison.verdict == "not clear":
        return "unclear"
    ahead = (
        comparison.improvement.value > 0.5
        if any(comparison.diverged)
        else comparison.difference.value > 0
    )
    if comparison.verdict == "clear":
        return "better" if ahead else "worse"
    return "better_at_resolution" if ahead else "worse_at_resolution"


def _adam(rows: Sequence[RowSummary]) -> RowSummary | None:
    baselines = [entry for entry in rows if entry.row.kind == "baseline"]
    named = [entry for entry in baselines if entry.row.key.lower().startswith("adam")]
    return next(iter(named or baselines), None)


def _magnitudes(rows: Iterable[RowSummary]) -> list[float]:
    values = (abs(entry.auc.iqm.value) for entry in rows)
    return [value for value in values if value > 0]


def _decimals(scale: float) -> int:
    """Digits behind the point that resolve a thousandth of the scale."""
    return min(6, max(0, 3 - math.floor(math.log10(scale))))


# Findings


def _findings(
    rows: Sequence[RowSummary],
    adam: RowSummary | None,
    control: RowSummary | None,
    decimals: int,
) -> Iterable[Finding]:
    of_kind = {kind: [e for e in rows if e.row.kind == kind] for kind in get_args(RowKind)}
    yield _against_control(control, decimals)
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
        headline = (
            "Without an untrained control, nothing here shows that meta-training did anything."
        )
        return Finding(question, "Not tested", "open", headline, "", ())
    evidence = (_evidence(control, decimals),)
    match _side(control):
        case "worse":
            detail = f"Trained, the reference {_beats(control)} itself untrained{_as_far(control)}."
            answer = "Yes" + _reservation(control)
            return Finding(question, answer, "good", "Meta-training helps.", detail, evidence)
        case "better":
            detail = f"Untrained, the reference {_beats(control)} itself trained{_as_far(control)}."
            answer = "It made it worse" + _reservation(control)
            return Finding(question, answer, "bad", "Meta-training hurts.", detail, evidence)
    headline = "It is not clear that meta-training did anything."
    detail = "Trained and untrained, the reference does not differ clearly."
    return Finding(question, "Not clear", "open", headline, detail, evidence)


def _against_baselines(
    baselines: Sequence[RowSummary], adam: RowSummary | None, decimals: int
) -> Finding:
    if adam is None:
        headline = "The study has no classical optimizer to compare with."
        return Finding("Does it beat tuned Adam?", "Not tested", "open", headline, "", ())
    name = adam.row.label
    others = [e for e in baselines if e is not adam and _side(e) == "better"]
    detail = " ".join(f"{e.row.label} {_beats(e)} the reference{_as_far(e)}." for e in others)
    evidence = tuple(_evidence(entry, decimals) for entry in (adam, *others))
    question = f"Does it beat {name}?"
    match _side(adam):
        case "worse":
            headline = f"The reference {_beats(adam)} {name}{_as_far(adam)}."
            tone: Tone = "bad" if others else "good"
            return Finding(question, "Yes" + _reservation(adam), tone, headline, detail, evidence)
        case "better":
            headline = f"The reference is itself beaten: {name} {_beats(adam)} it{_as_far(adam)}."
            answer = "No, it loses" + _reservation(adam)
            return Finding(question, answer, "bad", headline, detail, evidence)
    headline = f"Between the reference and {name} there is no clear difference."
    return Finding(question, "Not clear", "open", headline, detail, evidence)


def _against_variants(
    question: str, what: str, variants: Sequence[RowSummary], decimals: int
) -> Finding:
    """Sorts variants by their outcome; the reference wins only if every one of them loses."""
    sides = {side: [e for e in variants if _side(e) == side] for side in get_args(Side)}
    better, worse, unclear = sides["better"], sides["worse"], sides["unclear"]
    tone: Tone = "bad" if better else "open" if unclear else "good"
    told = [*worse, *unclear]
    if better:
        headline = "; ".join(f"{e.row.label} {_beats(e)} the reference{_as_far(e)}" for e in better)
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
        answer += _reservation(variants[0])
    else:
        answer = ", ".join(f"{len(sides[side])} {side}" for side in sides if sides[side])
    # Of several variants only the outcomes: their figures stand in the chart right below.
    decimals_or_none = decimals if len(variants) == 1 else None
    evidence = tuple(_evidence(entry, decimals_or_none) for entry in variants)
    detail = f"{_tell(told)}." if told else ""
    return Finding(question, answer, tone, headline, detail, evidence)


def _by_final_return(rows: Sequence[RowSummary]) -> str:
    """What changes for a reader who looks at the final return instead of the AUC."""
    changed = [e for e in rows if e.final.outcome != e.auc.outcome]
    if not changed:
        return "All of this is by AUC; by final return every verdict is the same."
    return f"All of this is by AUC; by final return, {_tell(changed, 'final')}."


def _tell(entries: Sequence[RowSummary], score: Literal["auc", "final"] = "auc") -> str:
    """Names the rows by their outcome: "A is clearly worse than the reference; B and C …"."""
    parts = []
    for key, words in OUTCOMES.items():
        group = [entry for entry in entries if getattr(entry, score).outcome == key]
        if group and key == "unclear":
            verb = "does" if len(group) == 1 else "do"
            parts.append(f"{_names(group)} {verb} not differ clearly from the reference")
        elif group:
            verb = "is" if len(group) == 1 else "are"
            word, _, reservation = words.partition(",")
            comma = f",{reservation}" if reservation else ""
            parts.append(f"{_names(group)} {verb} {word} than the reference{comma}")
    return "; ".join(parts)


def _side(entry: RowSummary) -> Side:
    """The outcome by AUC, whatever its resolution."""
    match entry.auc.outcome:
        case "better" | "better_at_resolution":
            return "better"
        case "worse" | "worse_at_resolution":
            return "worse"
    return "unclear"


def _beats(entry: RowSummary) -> str:
    return "beats" if _reservation(entry) else "clearly beats"


def _as_far(entry: RowSummary) -> str:
    """Behind a claim at a coarse resolution, how far it goes."""
    if not _reservation(entry) or entry.auc.comparison is None:
        return ""
    return f", as clearly as {entry.auc.comparison.units} can show"


def _reservation(entry: RowSummary) -> str:
    return ", at this resolution" if entry.auc.outcome.endswith("at_resolution") else ""


def _names(entries: Sequence[RowSummary]) -> str:
    *names, last = (entry.row.label for entry in entries)
    return f"{', '.join(names)} and {last}" if names else last


def _evidence(entry: RowSummary, decimals: int | None) -> Evidence:
    """A row's outcome, its name, and with `decimals` the figures of its AUC."""
    comparison = entry.auc.comparison
    if comparison is None or decimals is None:
        return Evidence(entry.auc.outcome, entry.row.label, "")
    if any(comparison.diverged):
        shown = (
            f"beats the reference with probability {number(comparison.improvement.value, 2)} "
            f"[{interval(comparison.improvement, 2)}]"
        )
    else:
        shown = (
            f"{number(comparison.difference.value, decimals, signed=True)} mean AUC "
            f"[{interval(comparison.difference, decimals, signed=True)}]"
        )
    floor = ", its floor" if comparison.test.at_floor else ""
    p = p_value(comparison.test.p)
    figures = f"{shown}, p {p if p.startswith('<') else f'= {p}'}{floor}"
    return Evidence(entry.auc.outcome, entry.row.label, figures)


# Caveats


def _caveats(
    results: StudyResults, rows: Sequence[RowSummary], scale: float | None, decimals: int
) -> Iterable[str]:
    yield from _sample_caveats(rows)
    yield from _loss_caveats(rows)
    floor, ceiling = number(results.floor, decimals), number(results.ceiling, decimals)
    if scale:
        yield (
            f"One reference scale serves all rows: {floor} (the untrained policy) to {ceiling} "
            "(the best classical optimizer’s final return). Stability is measured in units of "
            f"it; a run is stuck if its final return stays below 90 % of the way."
        )
    else:
        yield (
            f"The untrained policy’s return, {floor}, and the best classical optimizer’s final "
            f"return, {ceiling}, span no scale: nothing was learned. Stability is therefore in "
            "units of return, and no run can be called stuck."
        )
    stuck = [rate.value for entry in rows for rate in entry.stuck.values()]
    if stuck and min(stuck) == 1.0:
        yield (
            "The short runs tell nothing here: no optimizer comes to 90 % of the way in so few "
            "updates, at any multiple of its step."
        )
    yield (
        "Tuning has a budget too: the table of changes says how each row was tuned, the table of "
        "settings to what. A wider grid or more tuning runs for one side would favour that side."
    )
    ends = [f"{e.row.label} ({', '.join(e.row.at_edge)})" for e in rows if e.row.at_edge]
    if ends:
        yield (
            "The best setting is an end of its grid, so that these may be better than shown: "
            f"{'; '.join(ends)}."
        )
    yield (
        f"{2 * (len(rows) - 1)} comparisons with the reference are shown without correction: if "
        "nothing differed at all, one in twenty would still reach p ≤ 0.05 where its floor lets it."
    )
    yield f"All of this is one task, {results.task}; it says nothing about any other."
    yield from dict.fromkeys(
        f"{_upper(caveat)}."
        for entry in rows
        if entry.stability
        for caveat in entry.stability.caveats
        if "diverged" not in caveat
    )


def _sample_caveats(rows: Sequence[RowSummary]) -> Iterable[str]:
    reference = rows[0]
    yield (
        f"The reference was meta-trained {_times(reference.meta_seeds)}, and each result "
        f"evaluated on {reference.seeds} seeds. Runs of one meta-seed are not independent, so "
        "meta-seed means are what the tests permute. A classical optimizer has no meta-seeds, and "
        "an untrained one whose heads are zero is the same for all: against these, where the other "
        f"side has at least {WELCH_META_SEEDS}, the test is Welch’s, in which meta-seeds and "
        "evaluation seeds are both luck."
    )
    floors: dict[str, float] = {}
    for entry in rows:
        if entry.auc.comparison and entry.auc.comparison.test.floor:
            floors[entry.auc.comparison.units] = entry.auc.comparison.test.floor
    for units, floor in floors.items():
        if floor > 0.05:
            sense = f"{p_value(floor)}, so no difference of these sizes can be significant at 5 %"
        else:
            sense = f"{p_value(floor)}, reached only where the two groups do not overlap"
        yield f"The smallest p that a permutation test over {units} can give is {sense}."
    yield (
        "“Not clear” is not “equal”: with these numbers of seeds only large differences can show. "
        "Bootstrap intervals over a handful of meta-seeds are somewhat too narrow, which is why a "
        "verdict asks for both the interval and the test."
    )


def _loss_caveats(rows: Sequence[RowSummary]) -> Iterable[str]:
    for entry in rows:
        for seed, message in entry.row.failures.items():
            yield f"Meta-training of {entry.row.label} failed for meta-seed {seed}: “{message}”."
        if entry.row.failures:
            yield (
                f"The {len(entry.row.failures)} failed of {entry.meta_seeds} meta-seeds of "
                f"{entry.row.label} count as diverged in its scores; they are in no curve, no "
                "stability metric and no stuck rate."
            )
        lost = int(entry.curves.diverged.sum()) if entry.curves is not None else 0
        if lost and entry.curves is not None:
            yield (
                f"{lost} of {entry.curves.diverged.size} evaluation runs of {entry.row.label} "
                "diverged. They rank below every other run; the first four stability metrics "
                "cannot include them, and the risk across runs is undefined."
            )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


# JSON


def _table_row(entry: RowSummary) -> dict[str, Any]:
    row, curves = entry.row, entry.curves
    return {
        "key": row.key,
        "label": row.label,
        "kind": row.kind,
        "change": row.change,
        "ablation": row.ablation,
        "auc": _score_as_dict(entry.auc),
        "final": _score_as_dict(entry.final),
        "runs": entry.meta_seeds * entry.seeds,
        "meta_seeds": entry.meta_seeds,
        "failed_meta_seeds": {str(key): message for key, message in row.failures.items()},
        "diverged_runs": int(curves.diverged.sum()) if curves is not None else 0,
        "failure_rate": _as_dict(entry.failure),
        "stuck_rate": {f"{step:g}": _as_dict(rate) for step, rate in entry.stuck.items()},
        "seconds": row.seconds,
    }


def _score_as_dict(score: Score) -> dict[str, Any]:
    comparison = score.comparison
    return {
        "iqm": _as_dict(score.iqm),
        "meta_seed_means": [_finite(mean) for mean in score.meta_seed_means],
        "difference": _as_dict(comparison.difference) if comparison else None,
        "improvement": _as_dict(comparison.improvement) if comparison else None,
        "p": comparison.test.p if comparison else None,
        "p_floor": (comparison.test.floor or None) if comparison else None,
        "verdict": OUTCOMES[score.outcome],
        "sentence": comparison.sentence if comparison else None,
    }


def _as_dict(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    return {name: _finite(getattr(estimate, name)) for name in ("value", "low", "high")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
