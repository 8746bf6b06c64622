"""What `ablate` and `report` leave of a study: its page, its checksums, and a few lines."""

import json
from pathlib import Path

from optim4rl.cli.terminal import print_table
from optim4rl.files.manifest import write_manifest
from optim4rl.pages.predictions import tally
from optim4rl.pages.study import write_report
from optim4rl.pages.summary import OUTCOMES, Summary, summarise, summary_table
from optim4rl.pages.words import interval, number
from optim4rl.plans.planner.text import one_line
from optim4rl.study.results import StudyResults

# Scores in the terminal; the page has all.
SHOWN_SCORES = 2


def finish(results: StudyResults, folder: Path, *, as_json: bool, page: Path | None = None) -> None:
    """Write a study's report, by default into its folder, and show the most important."""
    path = page or folder / "report.html"
    write_report(results, path)
    write_manifest(folder)
    if as_json:
        print(json.dumps({"report": str(path), "rows": summary_table(results)}))
        return
    _print_summary(summarise(results))
    print(f"report: {path.resolve()}")
    print(f"table:  {(folder / 'runs.parquet').resolve()}")


def _print_summary(summary: Summary) -> None:
    places = summary.places[:SHOWN_SCORES]
    rows = [
        [
            one_line(entry.row.label),
            one_line(entry.row.change),
            *(
                f"{number(score.iqm.value, digits)} ({interval(score.iqm, digits)})"
                for score, digits in zip(entry.scores, places, strict=False)
            ),
            OUTCOMES[entry.primary.outcome],
        ]
        for entry in summary.rows
    ]
    names = [score.name for score in summary.reference.scores]
    shown = [f"{name} (95 %)" for name in names[:SHOWN_SCORES]]
    columns = ["variant", "change", *shown, f"{names[0]} against reference"]
    print_table("study", columns, rows)
    if summary.predictions:
        print(tally(summary.predictions))
