"""What every optimizer of a study scored, and its claim about the reference."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.claims import Claim, judge, smallest_effect
from optim4rl.evaluation.curves import Curves, stack
from optim4rl.evaluation.returns import (
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
from optim4rl.pages.words import p_value, smallest_found
from optim4rl.study.results import Row, StudyResults

# Against the reference.
Outcome = Literal["better", "unclear", "worse", "reference"]
Side = Literal["better", "worse", "unclear"]
Tone = Literal["good", "bad", "open"]
OUTCOMES: dict[Outcome, str] = {
    "better": "clearly better",
    "unclear": "no clear difference",
    "worse": "clearly worse",
    "reference": "reference",
}


@dataclass(frozen=True)
class Score:
    """One score of one optimizer over all its runs, and against the reference.

    Attributes:
        name: "AUC" or "final return".
        iqm: interquartile mean over all runs, which claims are about.
        mean: their mean.
        meta_seed_means: mean of each meta-seed; NaN where one of its runs diverged.
        claim: this row against the reference, judged together with all other rows; None for the
            reference itself.
        outcome: the claim in one word.
    """

    name: str
    iqm: Estimate
    mean: Estimate
    meta_seed_means: tuple[float, ...]
    claim: Claim | None
    outcome: Outcome

    @property
    def comparison(self) -> Comparison | None:
        """The comparison with the reference, by itself."""
        return None if self.claim is None else self.claim.comparison

    @property
    def sentence(self) -> str:
        """The claim in words."""
        return "" if self.claim is None else _claim_sentence(self.claim)


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


def _scores(row: Row, rows: Sequence[Row]) -> Float[np.ndarray, "score task meta_seed seed"]:
    """AUC and final return of every run; NaN for a diverged run and for all of a lost meta-seed."""
    runs = [np.stack([area_under_curve(c), final_return(c)]) for c in row.curves]
    seeds = (
        runs[0].shape[1] if runs else next(r for r in rows if r.curves).curves[0].returns.shape[0]
    )
    lost = np.full((2, seeds), np.nan)
    runs += [lost] * (len(row.failures) or (0 if runs else 1))
    return np.stack(runs, axis=1)[:, None]


def judge_rows(rows: Sequence[Row]) -> dict[str, tuple[Claim | None, ...]]:
    """For each row but the reference its claims by AUC and by final return."""
    reference, *others = rows
    base = _scores(reference, rows)
    by_score = []
    for index, metric in enumerate(("AUC", "final return")):
        pairs = [(row.label, _scores(row, rows)[index]) for row in others]
        comparisons = [
            compare(own, base[index], label, reference.label, metric=metric) for label, own in pairs
        ]
        by_score.append(judge(comparisons, [smallest_effect(x, base[index]) for _, x in pairs]))
    keys = [row.key for row in others]
    return dict(zip(keys, zip(*by_score, strict=True), strict=True))


def summarise_row(
    row: Row,
    results: StudyResults,
    claims: Sequence[Claim | None],
    scale: float | None,
) -> RowSummary:
    """A row in figures."""
    scores = _scores(row, results.rows)
    curves = stack(row.curves) if row.curves else None
    measurable = curves is not None and curves.env_steps.size > 1
    auc, final = (
        _score(name, own, claim)
        for name, own, claim in zip(("AUC", "final return"), scores, claims, strict=True)
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
    claim: Claim | None,
) -> Score:
    means = tuple(float(mean) for mean in own.mean(axis=(0, 2)))
    iqm, mean = (bootstrap_interval(own, statistic=which) for which in ("iqm", "mean"))
    return Score(name, iqm, mean, means, claim, outcome(claim))


def outcome(claim: Claim | None) -> Outcome:
    """A claim about the reference in one word; only its verdict makes it more than "unclear"."""
    if claim is None:
        return "reference"
    if claim.verdict == "not clear":
        return "unclear"
    return "better" if claim.is_higher else "worse"


def _claim_sentence(claim: Claim) -> str:
    """A comparison in words, its p corrected, and what these seeds can find if nothing is clear."""
    said = f"{claim.comparison.sentence} Corrected for all comparisons: p {equals(claim.p)}"
    if claim.verdict != claim.comparison.verdict:
        said += f", so {claim.verdict}"
    if claim.verdict == "not clear":
        said += f"; {smallest_found(claim)}"
    return f"{said}."


def equals(p: float) -> str:
    """A p-value with its sign: "= 0.03" or "< 0.0001"."""
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def adam_of(rows: Sequence[RowSummary]) -> RowSummary | None:
    """The baseline that stands for tuned Adam; None where there is none."""
    baselines = [entry for entry in rows if entry.row.kind == "baseline"]
    named = [entry for entry in baselines if entry.row.key.lower().startswith("adam")]
    return next(iter(named or baselines), None)


def magnitudes(rows: Iterable[RowSummary]) -> list[float]:
    """The sizes of the rows' AUC."""
    values = (abs(entry.auc.iqm.value) for entry in rows)
    return [value for value in values if value > 0]


def decimals_for(scale: float) -> int:
    """Digits behind the point that resolve a thousandth of the scale."""
    return min(6, max(0, 3 - math.floor(math.log10(scale))))
