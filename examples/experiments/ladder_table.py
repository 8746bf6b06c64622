"""Compare each rung of the ladder with the rung below it: what is each learned part worth?

The study of `plans/ladder.md` compares every rung with the highest one. This reads its runs again
and compares neighbours, by the same rule for claims:

    python examples/experiments/ladder_table.py runs/ladder
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from optim4rl.benchmark.table import read_runs
from optim4rl.evaluation.claims import Claim, judge, smallest_effect
from optim4rl.evaluation.returns import compare
from optim4rl.pages.words import markdown_table, p_value, with_interval

# From the lowest rung up: what it learns -> its name in the study's table of runs.
RUNGS = {
    "nothing": "untrained",
    "gains of kinds": "rung=kinds",
    "phase of training": "rung=training",
    "phase of the rollout": "rung=epochs",
    "noise ratios": "rung=noise",
    "directions": "reference",
}
HEADER = ["learned part", "score", "minus the rung below", "p, corrected", "verdict"]


def scores_of(table: pl.DataFrame, name: str) -> Float[np.ndarray, "1 meta_seed seed"]:
    """Return the scores of a variant's reported runs.

    An untrained rule with zero heads is the same for every meta-seed, so it counts once.
    """
    rows = table.filter(optimizer=name, purpose="tuned")
    members = [runs["auc"].to_numpy() for runs in rows.partition_by("meta_seed")]
    return np.stack(members[:1] if name == "untrained" else members)[None]


def table_of_rungs(table: pl.DataFrame) -> list[str]:
    """Return the table as Markdown; Holm's correction counts all of its comparisons."""
    sides = {part: scores_of(table, name) for part, name in RUNGS.items()}
    pairs = list(itertools.pairwise(RUNGS))
    comparisons = [
        compare(sides[part], sides[below], RUNGS[part], RUNGS[below]) for below, part in pairs
    ]
    claims = judge(comparisons, [smallest_effect(sides[x], sides[y]) for y, x in pairs])
    lowest, *others = sides
    rows = [[lowest, _middle(sides[lowest]), "", "", ""]]
    rows += [_row(part, sides[part], claim) for part, claim in zip(others, claims, strict=True)]
    return markdown_table(HEADER, rows)


def _middle(scores: Float[np.ndarray, "1 meta_seed seed"]) -> str:
    return f"{scores.mean():.3f}"


def _row(part: str, scores: Float[np.ndarray, "1 meta_seed seed"], claim: Claim) -> list[str]:
    verdict = "clearly better" if claim.is_higher else "clearly worse"
    if claim.verdict == "not clear":
        found = claim.smallest_effect
        verdict = "not clear" + ("" if found is None else f"; would find {found:.2g}")
    difference = with_interval(claim.interval)
    return [part, _middle(scores), difference, p_value(claim.p), verdict]


if __name__ == "__main__":
    print("\n".join(table_of_rungs(read_runs(Path(sys.argv[1]) / "runs.parquet"))))
