"""Compute the statistics of a study: scores of every optimizer, and the findings from them.

Nothing is rendered here. Every sentence is made from the verdict of one comparison with the
reference, so nothing is claimed that `compare` does not support.
"""

import math
from dataclasses import dataclass
from typing import Any

from optim4rl.pages.findings import Finding, by_other_scores, caveats, findings
from optim4rl.pages.predictions import Prediction, judge_predictions
from optim4rl.pages.scores import (
    OUTCOMES as OUTCOMES,
    RowSummary,
    Score,
    adam_of,
    decimals_for,
    judge_rows,
    score_kinds,
    summarise_row,
)
from optim4rl.pages.words import estimate_json, finite
from optim4rl.study.results import StudyResults


@dataclass(frozen=True)
class Summary:
    """Hold all statements about a study's returns.

    Attributes:
        rows: in the study's order, the reference first.
        adam: the baseline that stands for tuned Adam; None where the study has no baseline.
        control: the untrained reference, if the study has one.
        scale: ceiling minus floor, the unit of the stability metrics; None if this is not a
            positive number. Then the unit is the unit of return.
        decimals: number of decimals for returns.
        places: number of decimals for each score.
        findings: the main findings, by the first score.
        by_other_scores: a sentence that says which verdicts differ by the other scores.
        predictions: the plan's predictions, with their outcomes.
        caveats: the limits of the study.
    """

    rows: tuple[RowSummary, ...]
    adam: RowSummary | None
    control: RowSummary | None
    scale: float | None
    decimals: int
    places: tuple[int, ...]
    findings: tuple[Finding, ...]
    by_other_scores: str
    predictions: tuple[Prediction, ...]
    caveats: tuple[str, ...]

    @property
    def reference(self) -> RowSummary:
        """Return the row that all others are compared with."""
        return self.rows[0]


def summarise(results: StudyResults) -> Summary:
    """Compute every figure of a report except the identity experiment's.

    A meta-seed whose meta-training failed has no curves. All its runs count as diverged, so that
    failing never improves a row's scores.

    Raises:
        ValueError: there are no rows, the first is not the reference, or no row has a curve.
    """
    if not results.rows or results.rows[0].kind != "reference":
        raise ValueError("rows: the first row of a study must be its reference")
    if not any(row.curves for row in results.rows):
        raise ValueError("rows: none has a curve, so there is nothing to report")
    scale = math.nan
    if results.ceiling is not None and results.floor is not None:
        scale = results.ceiling - results.floor
    usable = scale if math.isfinite(scale) and scale > 0 else None
    kinds = score_kinds(results)
    claims, none = judge_rows(results, kinds), (None,) * len(kinds)
    rows = tuple(
        summarise_row(row, results, kinds, claims.get(row.key, none), usable)
        for row in results.rows
    )
    adam = adam_of(rows)
    control = next((entry for entry in rows if entry.row.kind == "control"), None)
    places = tuple(
        decimals_for(usable or max((size for size in sizes if size > 0), default=1.0))
        for sizes in zip(*([abs(x.iqm.value) for x in row.scores] for row in rows), strict=True)
    )
    decimals = places[0]
    return Summary(
        rows=rows,
        adam=adam,
        control=control,
        scale=usable,
        decimals=decimals,
        places=places,
        findings=tuple(findings(rows, adam, control, decimals, trained=results.trained)),
        by_other_scores=by_other_scores(rows),
        predictions=judge_predictions(results, rows),
        caveats=tuple(caveats(results, rows, usable, decimals)),
    )


def summary_table(results: StudyResults) -> list[dict[str, Any]]:
    """Return the study as one plain dict for each optimizer, ready for JSON.

    Estimates are ``{"value", "low", "high"}``. A number that diverged runs leave undefined is None;
    ``diverged_runs`` and ``failed_meta_seeds`` say how many there are.
    """
    return [_table_row(entry) for entry in summarise(results).rows]


# JSON

# Names in JSON for the scores of this project's own study.
JSON_NAMES = {"AUC": "auc", "final return": "final"}


def _table_row(entry: RowSummary) -> dict[str, Any]:
    row, curves = entry.row, entry.curves
    found = {
        "key": row.key,
        "label": row.label,
        "kind": row.kind,
        "change": row.change,
        "ablation": row.ablation,
        "runs": entry.meta_seeds * entry.seeds,
        "meta_seeds": entry.meta_seeds,
        "failed_meta_seeds": {str(key): message for key, message in row.failures.items()},
        "diverged_runs": int(curves.diverged.sum()) if curves is not None else 0,
        "failure_rate": estimate_json(entry.failure),
        "stuck_rate": {f"{step:g}": estimate_json(rate) for step, rate in entry.stuck.items()},
        "seconds": row.seconds,
    }
    names = {x.name: JSON_NAMES.get(x.name, x.name) for x in entry.scores}
    scores = {
        f"metric {names[x.name]}" if names[x.name] in found else names[x.name]: _score_as_dict(x)
        for x in entry.scores
    }
    return found | scores


def _score_as_dict(score: Score) -> dict[str, Any]:
    comparison = score.comparison
    return {
        "iqm": estimate_json(score.iqm),
        "mean": estimate_json(score.mean),
        "meta_seed_means": [finite(mean) for mean in score.meta_seed_means],
        "difference": estimate_json(comparison.difference) if comparison else None,
        "improvement": estimate_json(comparison.improvement) if comparison else None,
        "p": comparison.test.p if comparison else None,
        "p_corrected": score.claim.p if score.claim else None,
        "smallest_effect": score.claim.smallest_effect if score.claim else None,
        "verdict": OUTCOMES[score.outcome],
        "sentence": score.sentence or None,
    }
