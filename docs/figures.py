"""Which published figures are recomputed from committed runs: `python docs/figures.py`.

Reads every figure with an interval, "1.222 (1.05 to 1.53)", on README and on the pages of results,
and looks for it among all that the page's tables of runs say. It writes the page that lists what is
found and what is not, so that nobody takes a figure without runs for one with.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from verdicts import PAGE as VERDICTS, scores

from optim4rl.benchmark.loop import Results, read, scores_of
from optim4rl.benchmark.retell import retell
from optim4rl.benchmark.scale import Normalised, lead_over
from optim4rl.benchmark.scores import greedy_return
from optim4rl.benchmark.table import read_runs
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    bootstrap_interval,
    compare,
    final_return,
)
from optim4rl.pages.costs import time_standings
from optim4rl.pages.sensitivity import sensitivities

DOCS = Path(__file__).parent
PAGE = DOCS / "results" / "figures.md"
HEAD = """# Which published figures come out of committed runs

> **Claim.** README and the pages of results and studies show {all} figures with a 95 % interval.
> {recomputed} of them can be recomputed from the tables of runs (Parquet) in this repository.
>
> **Evidence.** `python docs/figures.py` computes all that the tables say, and looks for each figure
> with the digits that are shown. A test compares this page with its output.
>
> **What it does not show.** That the others are wrong: their runs were not kept, or belong to
> another study, so nobody can check them. They are named below. Figures without an interval are not
> looked at.

The [leaderboard](leaderboard.md) and the [verdicts](verdicts.md) are made from tables alone. Tables
of version 0.1.0 hold no tuning runs; those that `evaluate` writes today hold them all.

| page | tables of runs | figures with an interval | recomputed |
|---|---|---|---|
"""
SUITES = {
    "ppo-generalist": ("ppo-generalist/runs.parquet",),
    "ppo-generalist-bare": (
        "ppo-generalist-bare/runs.parquet",
        "ppo-generalist-bare/control.parquet",
    ),
    "discobench": ("discobench/runs.parquet",),
    "unseen": ("unseen/runs.parquet",),
    "scaled-generalist": ("scaled-generalist/control.parquet",),
    "grid-to-brax": ("unseen/runs.parquet",),
    "paper-protocol": ("../replication/catch.parquet",),
}
STUDIES = {
    "plan-on-catch": ("plan-on-catch/runs.parquet",),
    "plan-on-a-grid-world": (
        "plan-on-a-grid-world/runs.parquet",
        "plan-on-a-grid-world/alpha-0.01.parquet",
    ),
    "recipe-on-catch": ("recipe-on-catch/runs.parquet",),
}
_NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?"
FIGURE = re.compile(rf"({_NUMBER}) \(({_NUMBER}) to ({_NUMBER})\)")


def figures(text: str) -> list[str]:
    """The figures with an interval that a page has, each once."""
    one_line = re.sub(r"\s+", " ", text)
    return list(dict.fromkeys(match.group() for match in FIGURE.finditer(one_line)))


def is_among(figure: str, known: np.ndarray) -> bool:
    """Whether a figure is one of `known`, `[figure, (value, low, high)]`, as far as it is rounded.

    A difference may be told from either side.
    """
    match = FIGURE.fullmatch(figure)
    assert match is not None
    texts = [x.replace(",", "").replace("−", "-") for x in match.groups()]
    shown = np.array(texts, float)
    digits = np.array([len(x.partition(".")[2]) for x in texts])
    near = 0.5 * 10.0**-digits * (1 + 1e-6) + 1e-9
    mirrored = -known[:, [0, 2, 1]]
    return bool((np.abs(np.concatenate([known, mirrored]) - shown) <= near).all(axis=1).any())


def of_suite(path: Path) -> Iterator[Estimate]:
    """All that a benchmark's table says."""
    results = read(retell(read_runs(path), path))
    for standings in results.standings.values():
        for standing in standings.values():
            yield from _normalised(standing.auc)
            yield from _normalised(standing.final)
    for reading in results.benchmark.readings:
        yield from _leads(results, reading)
        found_in_time = time_standings(
            results.runs.curves[reading], results.benchmark.reference, results.auc_scale
        )
        for in_time in found_in_time.values():
            yield from in_time.areas
            if in_time.lead is not None:
                yield in_time.lead.mean_improvement
                yield from _normalised(in_time.lead.difference)
        for found in sensitivities(results, reading).values():
            yield found.improvement
            if found.difference is not None:
                yield found.difference
        for tasks in results.runs.curves[reading].values():
            for members in tasks:
                for score in (area_under_curve, final_return):
                    yield bootstrap_interval(np.stack([score(x) for x in members])[None])
                if all(x.greedy is not None for x in members):
                    yield bootstrap_interval(scores_of([members], greedy_return), statistic="mean")


def _leads(results: Results, reading: str) -> Iterator[Estimate]:
    """Every optimizer against every other, on all tasks and without each of them."""
    areas = {
        name: np.stack([[area_under_curve(x) for x in task] for task in tasks])
        for name, tasks in results.runs.curves[reading].items()
    }
    every = list(range(len(results.benchmark.suite.tasks)))
    for name, x in areas.items():
        for other, y in areas.items():
            told = (None, *every) if other == results.benchmark.reference else (None,)
            for left_out in told if name != other else ():
                kept = [task for task in every if task != left_out]
                if not kept:
                    continue
                lead = lead_over(x[kept], y[kept], results.auc_scale.only(kept))
                yield from _normalised(lead.difference)
                yield lead.mean_improvement
                if left_out is None:
                    yield from lead.improvement


def _normalised(found: Normalised) -> Iterator[Estimate]:
    yield from (x for x in (*found.tasks, found.mean, found.iqm) if x is not None)


def of_study(path: Path) -> Iterator[Estimate]:
    """All that a study's table says."""
    table = read_runs(path, "task").filter(purpose="tuned")
    names = table["optimizer"].unique(maintain_order=True).to_list()
    for score in ("auc", "final_return"):
        sides = {name: scores(table, name, score) for name in names}
        for name, own in sides.items():
            for which in ("iqm", "mean"):
                yield bootstrap_interval(own, statistic=which)
            if name != "reference":
                found = compare(own, sides["reference"], name, "reference")
                yield from (found.difference, found.improvement)


def known_figures(stem: str) -> np.ndarray:
    """All figures that a page's tables of runs say, `[figure, (value, low, high)]`."""
    found = [x for file in SUITES.get(stem, ()) for x in of_suite(DOCS / "results" / file)]
    found += [x for file in STUDIES.get(stem, ()) for x in of_study(DOCS / "studies" / file)]
    rows = [(x.value, x.low, x.high) for x in found]
    return np.array([row for row in rows if np.isfinite(row).all()]).reshape(-1, 3)


def pages() -> dict[str, Path]:
    """The pages that have figures, by the name of their subject, but those made from tables."""
    found = {"README": DOCS.parent / "README.md"}
    for folder in ("results", "studies"):
        for path in sorted((DOCS / folder).glob("*.md")):
            found[path.stem] = path
            details = path.with_suffix("") / "details.md"
            if details.exists():
                found[f"{path.stem}, all tables"] = details
    made = (PAGE, VERDICTS, DOCS / "results" / "leaderboard.md")
    return {name: path for name, path in found.items() if path not in made}


def page() -> str:
    """The whole page."""
    known = {stem: known_figures(stem) for stem in (*SUITES, *STUDIES)}
    known["README"] = np.concatenate(list(known.values()))
    lines, missing, counts = [], [], [0, 0]
    for name, path in pages().items():
        found = figures(path.read_text("utf-8"))
        if not found:
            continue
        subject = name.removesuffix(", all tables")
        own = known.get(subject, np.zeros((0, 3)))
        lost = [figure for figure in found if not is_among(figure, own)]
        files = (*SUITES.get(subject, ()), *STUDIES.get(subject, ()))
        tables = ", ".join(f"`{x}`" for x in files) or "none"
        if name == "README":
            tables = "all of those below"
        link = f"[{name}]({os.path.relpath(path, PAGE.parent)})"
        counts = [counts[0] + len(found) - len(lost), counts[1] + len(found)]
        lines.append(f"| {link} | {tables} | {len(found)} | {len(found) - len(lost)} |")
        if lost:
            missing += [f"## {name}", "", "; ".join(lost) + ".", ""]
    below = "\n\nFigures whose runs are not in the repository:\n\n"
    head = HEAD.format(recomputed=counts[0], all=counts[1])
    return head + "\n".join(lines) + below + "\n".join(missing)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
