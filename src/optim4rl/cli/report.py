"""`optim4rl report`: compare finished runs, without JAX, or write a study's report again."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.cli.terminal import columns, print_table
from optim4rl.evaluation.returns import Estimate
from optim4rl.files.folders import locked
from optim4rl.files.manifest import check_files
from optim4rl.pages.comparison import (
    FILES,
    differing_settings,
    numbers_by_name,
    read_run,
    short_names,
    write_comparison,
)
from optim4rl.pages.words import interval, number


@dataclass(frozen=True)
class ReportOptions:
    """Write a study's report again, or compare finished runs on one page.

    With the folder of one study, the page is its report. With several folders, or another kind, the
    page compares the runs: settings that differ, final numbers, curves. Mix folders of `train`,
    `evaluate --out` and `ablate` as you like.

      optim4rl report runs/a runs/b --out runs/comparison.html

    Attributes:
        folders: output folders of finished runs.
        out: file to write. Default: report.html in the folder, or comparison.html for several.
        json: print the numbers as JSON.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path | None = None
    json: bool = False


def report(options: ReportOptions) -> None:
    """Run the command `report`."""
    if not options.folders:
        raise ValueError("folders = (): the output folder of at least one finished run is needed")
    if options.out is not None:
        require_file_name("out", options.out)
    first = options.folders[0]
    if len(options.folders) == 1 and (first / "study.json").is_file():
        with locked(first):
            from optim4rl.cli.study_report import finish
            from optim4rl.study.collecting import collect
            from optim4rl.study.layout import load_study

            check_files(first, FILES)
            results = collect(load_study(first), first)
            finish(results, first, as_json=options.json, page=options.out)
        return
    alone = first / "report.html" if len(options.folders) == 1 else Path("comparison.html")
    _compare(options.folders, options.out or alone, as_json=options.json)


def _compare(folders: Sequence[Path], page: Path, *, as_json: bool) -> None:
    runs = [read_run(folder) for folder in folders]
    write_comparison(runs, page)
    numbers = numbers_by_name(runs)
    if as_json:
        values = {name: [_json_value(x) for x in found] for name, found in numbers.items()}
        print(json.dumps({"report": str(page), "runs": [str(x) for x in folders], **values}))
        return
    rows = [[name, *map(_words, found)] for name, found in numbers.items()]
    print_table("finished runs", ["measure", *short_names(runs)], rows)
    differing = f"settings that differ: {', '.join(differing_settings(runs)) or 'none'}"
    print(textwrap.fill(differing, columns(), subsequent_indent="  "))
    print(f"report: {page.resolve()}")


def _json_value(value: Estimate | float | str | None) -> Any:
    """Return a JSON value; None if a run diverged or does not have the number."""
    if isinstance(value, Estimate):
        return [_json_value(x) for x in (value.value, value.low, value.high)]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _words(value: Estimate | float | str | None) -> str:
    match value:
        case Estimate():
            return f"{number(value.value, 3)} ({interval(value, 3)})"
        case float():
            return f"{value:.4g}"
        case None:
            return "-"
        case _:
            return value
