"""Compute the scores of a study's optimizers, and their claims against the reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from optim4rl.plans.optim4rl import METRICS
from optim4rl.study.results import Row, StudyResults

# A final return is the mean over this many updates; a final score of another metric averages the
# last tenth of its curve.
LAST_UPDATES = 20

# Outcomes against the reference.
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
class ScoreKind:
    """Describe how runs are scored.

    Attributes:
        name: the score's name.
        metric: key of its metric.
        meaning: its meaning in a sentence.
        last: points at the end of a curve that it averages; None: all of them.
        better: the better direction.
        unit: the unit of its values.
    """

    name: str
    metric: str
    meaning: str
    last: int | None
    better: Literal["higher", "lower"]
    unit: str

    @property
    def sign(self) -> int:
        """Return the factor that makes higher scores better: 1 or -1."""
        return 1 if self.better == "higher" else -1

    def of(self, curves: Curves) -> Float[np.ndarray, " run"]:
        """Return each run's score, NaN for a diverged run."""
        return area_under_curve(curves) if self.last is None else final_return(curves, self.last)


def score_kinds(results: StudyResults) -> tuple[ScoreKind, ...]:
    """Return a study's scores: the mean and the end of a curve, or a number itself."""
    kinds = []
    for index, metric in enumerate(metric for metric in results.metrics if metric.reported):
        found = (x for row in results.rows for x in reported(row, metric.key, first=not index))
        time = next((curves.env_steps.size for curves in found), 1)
        scores: list[tuple[str, str, int | None]]
        if metric == METRICS[0]:
            scores = [
                ("AUC", "Mean return over all updates.", None),
                ("final return", "Mean return over the last 20 updates.", LAST_UPDATES),
            ]
        elif time == 1:
            scores = [(metric.key, metric.description, None)]
        else:
            told = f"{metric.description} " if metric.description else ""
            mean, last = f"{told}Mean over the run", max(1, time // 10)
            scores = [
                (f"{metric.key} over the run", f"{mean}.", None),
                (f"final {metric.key}", f"{mean}’s last tenth.", last),
            ]
        kinds += [
            ScoreKind(name, metric.key, meaning, points, metric.better, metric.unit)
            for name, meaning, points in scores
        ]
    return tuple(kinds)


def reported(row: Row, metric: str, *, first: bool) -> tuple[Curves, ...]:
    """Return a row's curves of a metric, one for each meta-seed."""
    return row.curves if first else row.more.get(metric, ())


@dataclass(frozen=True)
class Score:
    """Hold one score of one optimizer over all its runs, and its claim against the reference.

    Attributes:
        kind: how runs are scored.
        iqm: interquartile mean over all runs; claims are about it.
        mean: mean over all runs.
        meta_seed_means: mean of each meta-seed, NaN if one of its runs diverged. If nothing is
            trained: the score of each seed.
        claim: this row against the reference, judged together with all other rows; None for the
            reference itself.
        outcome: the claim in one word.
    """

    kind: ScoreKind
    iqm: Estimate
    mean: Estimate
    meta_seed_means: tuple[float, ...]
    claim: Claim | None
    outcome: Outcome

    @property
    def name(self) -> str:
        """Return the score's name."""
        return self.kind.name

    @property
    def comparison(self) -> Comparison | None:
        """Return the comparison with the reference, without correction."""
        return None if self.claim is None else self.claim.comparison

    @property
    def sentence(self) -> str:
        """Return the claim in words."""
        return "" if self.claim is None else _claim_sentence(self.claim)


@dataclass(frozen=True)
class RowSummary:
    """Hold the figures of one row of the study.

    Attributes:
        row: the row.
        curves: the curves of all its meta-seeds; None if it has none.
        scores: rows are judged by the first one.
        stability: in units of the study's reference scale; None without curves to measure.
        failure: share of diverged evaluation runs; None without curves.
        stuck: scale of the step -> share of stuck runs; empty where no scale can define "stuck".
        meta_seeds: number of meta-seeds, with the failed ones.
        seeds: evaluation seeds of each meta-seed.
    """

    row: Row
    curves: Curves | None
    scores: tuple[Score, ...]
    stability: Stability | None
    failure: Estimate | None
    stuck: Mapping[float, Estimate]
    meta_seeds: int
    seeds: int

    @property
    def primary(self) -> Score:
        """Return the score that the row is judged by."""
        return self.scores[0]


def _scores(
    row: Row, results: StudyResults, kinds: Sequence[ScoreKind]
) -> list[Float[np.ndarray, "task meta_seed seed"]]:
    """Return every score of every run; NaN for a diverged run and for a failed meta-seed."""
    rows, first = results.rows, kinds[0].metric
    seeds = next(r for r in (row, *rows) if r.curves).curves[0].returns.shape[0]
    lost = [np.full(seeds, np.nan)] * (len(row.failures) or (0 if row.curves else 1))
    found = []
    for kind in kinds:
        curves = reported(row, kind.metric, first=kind.metric == first)
        found.append(np.stack([*(kind.of(each) for each in curves), *lost])[None])
    return found


def judge_rows(
    results: StudyResults, kinds: Sequence[ScoreKind]
) -> dict[str, tuple[Claim | None, ...]]:
    """Judge each row except the reference by every score."""
    reference, *others = results.rows
    unit = "evaluation seeds" if results.trained else "seeds"
    found = [_scores(row, results, kinds) for row in results.rows]
    by_score = []
    for kind, (base, *scores) in zip(kinds, zip(*found, strict=True), strict=True):
        comparisons = [
            compare(
                own,
                base,
                row.label,
                reference.label,
                metric=kind.name,
                unit=unit,
                lower_is_better=kind.sign < 0,
            )
            for row, own in zip(others, scores, strict=True)
        ]
        by_score.append(judge(comparisons, [smallest_effect(own, base) for own in scores]))
    keys = [row.key for row in others]
    return dict(zip(keys, zip(*by_score, strict=True), strict=True))


def summarise_row(
    row: Row,
    results: StudyResults,
    kinds: Sequence[ScoreKind],
    claims: Sequence[Claim | None],
    scale: float | None,
) -> RowSummary:
    """Compute the figures of a row."""
    scores = _scores(row, results, kinds)
    curves = stack(row.curves) if row.curves else None
    steadiness = None
    if curves is not None and curves.env_steps.size > 1:
        rising = replace(curves, returns=kinds[0].sign * curves.returns)
        steadiness = stability(rising, scale or 1.0)
    own = scores[0]
    return RowSummary(
        row=row,
        curves=curves,
        scores=tuple(
            _score(kind, score, claim, each_seed=not results.trained)
            for kind, score, claim in zip(kinds, scores, claims, strict=True)
        ),
        stability=steadiness,
        failure=failure_rate(curves) if curves is not None else None,
        stuck={
            step: stuck_rate(runs, results.floor, results.ceiling)
            for step, runs in sorted(row.stress.items())
            if results.floor is not None and results.ceiling is not None
        }
        if scale
        else {},
        meta_seeds=own.shape[1],
        seeds=own.shape[2],
    )


def _score(
    kind: ScoreKind,
    own: Float[np.ndarray, "task x_meta_seed x_seed"],
    claim: Claim | None,
    *,
    each_seed: bool,
) -> Score:
    shown = own[0, 0] if each_seed else own.mean(axis=(0, 2))
    means = tuple(float(mean) for mean in shown)
    iqm, mean = (
        _turned(bootstrap_interval(kind.sign * own, statistic=which), kind.sign)
        for which in ("iqm", "mean")
    )
    return Score(kind, iqm, mean, means, claim, outcome(claim))


def _turned(estimate: Estimate, sign: int) -> Estimate:
    """Negate an estimate back if the sign says that lower is better."""
    if sign > 0:
        return estimate
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def side_of(entry: RowSummary) -> Side:
    """Return the outcome by the first score."""
    match entry.primary.outcome:
        case "better" | "worse" as side:
            return side
    return "unclear"


def outcome(claim: Claim | None) -> Outcome:
    """Return a claim in one word, which is "unclear" unless its verdict is clear."""
    if claim is None:
        return "reference"
    if claim.verdict == "not clear":
        return "unclear"
    return "better" if claim.comparison.favours_x else "worse"


def _claim_sentence(claim: Claim) -> str:
    """Put a claim into words, with the corrected p and, if not clear, what these seeds find."""
    said = f"{claim.comparison.sentence} Corrected for all comparisons: p {equals(claim.p)}"
    if claim.verdict != claim.comparison.verdict:
        said += f", so {claim.verdict}"
    if claim.verdict == "not clear":
        said += f"; {smallest_found(claim)}"
    return f"{said}."


def equals(p: float) -> str:
    """Format a p-value with its sign: "= 0.03" or "< 0.0001"."""
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def adam_of(rows: Sequence[RowSummary]) -> RowSummary | None:
    """Return the baseline that stands for tuned Adam; None if there is none."""
    baselines = [entry for entry in rows if entry.row.kind == "baseline"]
    named = [entry for entry in baselines if entry.row.key.lower().startswith("adam")]
    return next(iter(named or baselines), None)


def decimals_for(scale: float) -> int:
    """Return how many decimals resolve a thousandth of the scale."""
    return min(6, max(0, 3 - math.floor(math.log10(scale))))
