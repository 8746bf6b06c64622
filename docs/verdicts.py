"""Judge every published table of runs by today's rule: `python docs/verdicts.py` writes the page.

Studies and suites of version 0.1.0 were judged by weaker rules. This reads their runs again and
applies `optim4rl.evaluation.claims`: an interval, and a test corrected for all comparisons.
"""

from pathlib import Path

import numpy as np
import polars as pl

from optim4rl.benchmark.scale import lead_over, make_scale
from optim4rl.benchmark.table import read_runs
from optim4rl.evaluation.claims import Claim, judge, smallest_effect
from optim4rl.evaluation.returns import compare
from optim4rl.pages.words import p_value, with_interval

DOCS = Path(__file__).parent
PAGE = DOCS / "results" / "verdicts.md"
HEAD = """# Published results, judged again by today's rule

> **Claim.** By today's stricter rule, no suite that we can judge again shows a clear difference
> from Adam, from Muon or from the untrained rule. In the studies, some verdicts change.
>
> **Evidence.** Every committed run, read again: an interval that excludes 0, **and** a test with
> a corrected p of at most 0.05.
>
> **What it does not show.** That there is no difference. Where nothing is clear, the last column
> says which difference these seeds would find four times in five.

There is no picture of these tables.

## How to run it

`python docs/verdicts.py` makes these tables from the committed runs; a test compares them with
this page.

Version 0.1.0 called a difference in a suite clear when its interval excluded 0, and a difference
in a study when a test agreed as well, without correction. Today one rule holds for both. The test
treats meta-seeds and seeds as random, and Holm's correction counts all comparisons of a table.
Interval and test are about interquartile means: one failed run decides nothing.

Differences are in the interquartile mean of AUC. In studies their unit is the return; in suites
they are on the scale from the untrained policy (0) to tuned Adam (1). `weights +2` and
`scaled-generalist +2` are three meta-seeds of one recipe.
"""
# Title, table of runs, its page, what is compared with what.
SUITES = (
    ("ppo-generalist", "ppo-generalist-bare/runs.parquet", "weights +2", ("adam", "muon")),
    (
        "ppo-generalist, untrained",
        "ppo-generalist-bare/control.parquet",
        "weights +2",
        ("weights +2 untrained",),
    ),
    ("unseen", "unseen/runs.parquet", "scaled-generalist +2", ("adam",)),
)
STUDIES = (
    ("plan-on-catch/runs.parquet", "../studies/plan-on-catch.md", "catch"),
    ("plan-on-a-grid-world/runs.parquet", "../studies/plan-on-a-grid-world.md", "small_dense_long"),
    ("recipe-on-catch/runs.parquet", "../studies/recipe-on-catch.md", "catch"),
)
HEADER = (
    "| {} | against | difference (95 %) | p | p, corrected | verdict | found four times in five |\n"
    "|---|---|---|---|---|---|---|"
)


def scores(table: pl.DataFrame, optimizer: str, score: str = "auc") -> np.ndarray:
    """Return a score of an optimizer's runs, `[task, meta_seed, seed]`, in the table's order."""
    rows = table.filter(optimizer=optimizer)
    return np.stack(
        [
            np.stack([runs[score].to_numpy() for runs in task.partition_by("meta_seed")])
            for task in rows.partition_by("task", maintain_order=True)
        ]
    )


def row(name: str, other: str, claim: Claim) -> str:
    """Write a claim as a line of a table."""
    words = {True: "clearly better", False: "clearly worse"}[claim.is_higher]
    verdict = "no clear difference"
    if claim.verdict != "not clear":
        verdict = words
    effect = "" if claim.smallest_effect is None else f"{claim.smallest_effect:.2g}"
    ps = f"{p_value(claim.comparison.test.p)} | {p_value(claim.p)}"
    shown = with_interval(claim.interval)
    return f"| {name} | {other} | {shown} | {ps} | {verdict} | {effect} |"


def suite(path: Path, name: str, others: tuple[str, ...]) -> list[str]:
    """Judge a suite, in both readings."""
    table = read_runs(path)
    reported = table.filter(pl.col("role") != "untrained")
    untrained = scores(table.filter(role="untrained"), "untrained policy")[:, 0]
    tuned = reported.filter(purpose="tuned")
    scale = make_scale({"adam": scores(tuned, "adam")[:, 0]}, untrained)
    pairs, comparisons, effects, intervals = [], [], [], []
    for reading in ("one", "tuned"):
        runs = reported.filter(purpose=reading)
        for other in others:
            x, y = scores(runs, name), scores(runs, other)
            on_scale = [scale.apply(side)[scale.resolved] for side in (x, y)]
            pairs.append(f"{other}, {'one setting' if reading == 'one' else 'tuned'}")
            comparisons.append(compare(*on_scale, name, other))
            effects.append(smallest_effect(*on_scale))
            difference = lead_over(x, y, scale).difference.iqm
            assert difference is not None
            intervals.append(difference)
    claims = judge(comparisons, effects, intervals)
    return [row(name, other, claim) for other, claim in zip(pairs, claims, strict=True)]


def study(path: Path, task: str) -> list[str]:
    """Judge a study, every row against the reference."""
    table = read_runs(path, task).filter(purpose="tuned")
    names = [x for x in table["optimizer"].unique(maintain_order=True) if x != "reference"]
    reference = scores(table, "reference")
    # An untrained rule with zero heads is the same for every meta-seed: count it once.
    sides = {x: scores(table, x)[:, : 1 if x == "untrained" else None] for x in names}
    comparisons = [compare(side, reference, name, "reference") for name, side in sides.items()]
    effects = [smallest_effect(side, reference) for side in sides.values()]
    claims = judge(comparisons, effects)
    return [row(name, "reference", claim) for name, claim in zip(names, claims, strict=True)]


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for about, file, name, others in SUITES:
        lines = suite(DOCS / "results" / file, name, others)
        title = f"## Suite `mixed`: [{about}]({Path(file).parent.name}.md)\n"
        parts += [title, HEADER.format("optimizer"), *lines, "", f"From `{file}`.", ""]
    for file, about, task in STUDIES:
        lines = study(DOCS / "studies" / file, task)
        title = f"## Study on {task}: [{Path(about).stem}]({about})\n"
        parts += [title, HEADER.format("variant"), *lines, "", f"From `{file}`.", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
