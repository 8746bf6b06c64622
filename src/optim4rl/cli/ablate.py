"""`optim4rl ablate`, `optim4rl report` and `optim4rl identity`."""

import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from optim4rl.cli.runtime import print_table, progress_bar
from optim4rl.optimizers.files import write_atomically
from optim4rl.study.cells import IDENTITY_SCALES, IDENTITY_TASKS
from optim4rl.study.plan import read_plan
from optim4rl.study.planner.text import one_line
from optim4rl.study.report import write_report
from optim4rl.study.results import StudyResults
from optim4rl.study.runner import collect, lay_out, load_study, run_study
from optim4rl.study.settings import SCALES
from optim4rl.study.summary import OUTCOMES, Summary, interval, number, summarise, summary_table

Scale = Literal["smoke", "quick", "paper"]


@dataclass(frozen=True)
class AblateOptions:
    """Run an ablation plan as a study and write its report.

    Runs the reference, every replacement that the plan asks for, the paper's own ablation (pipeline
    training off), the untrained control and tuned classical optimizers, each over meta-seeds and
    evaluation seeds. Finished work is kept in the folder and never done twice: stop it and start it
    again as you like.

    Attributes:
        plan: the plan file.
        out: output folder: report.html, runs.parquet, and the finished cells.
        scale: smoke takes a minute and shows nothing but that all parts run; quick takes minutes;
            paper takes days on a laptop.
        meta_seeds: meta-trainings of each variant; the scale's own by default.
        seeds: evaluation runs of each meta-seed; the scale's own by default.
        jobs: worker processes; as many as there are processors by default.
        skip_unmapped: leave out what the study does not know of, instead of refusing the plan.
        json: print the summary as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    out: Path
    scale: Scale = "quick"
    meta_seeds: int | None = None
    seeds: int | None = None
    jobs: int | None = None
    skip_unmapped: bool = False
    json: bool = False


def ablate(options: AblateOptions) -> None:
    """The command `ablate`."""
    read_plan(options.plan)  # A path that cannot be read is named before anything else.
    settings = SCALES[options.scale]
    if options.meta_seeds is not None:
        settings = dataclasses.replace(settings, meta_seeds=options.meta_seeds)
    if options.seeds is not None:
        evaluation = dataclasses.replace(settings.evaluation, seeds=options.seeds)
        settings = dataclasses.replace(settings, evaluation=evaluation)
    jobs = options.jobs if options.jobs is not None else (os.cpu_count() or 1)
    if jobs < 1:
        raise ValueError(f"jobs = {jobs!r}: at least one worker is needed")
    study = lay_out(
        options.plan.read_bytes(), options.scale, settings, skip_unmapped=options.skip_unmapped
    )
    command = shlex.join(["optim4rl", *sys.argv[1:]])
    with progress_bar(f"study ({options.scale})", "cells") as update:
        results = run_study(study, options.out, command=command, jobs=jobs, on_progress=update)
    _finish(results, options.out, as_json=options.json)


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a finished study again.

    Attributes:
        folder: the study's output folder.
        json: print the summary as JSON.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    json: bool = False


def report(options: ReportOptions) -> None:
    """The command `report`."""
    results = collect(load_study(options.folder), options.folder)
    _finish(results, options.folder, as_json=options.json)


def _finish(results: StudyResults, folder: Path, *, as_json: bool) -> None:
    path = folder / "report.html"
    write_report(results, path)
    if as_json:
        print(json.dumps({"report": str(path), "rows": summary_table(results)}))
        return
    _print_summary(summarise(results))
    print(f"report: {path.resolve()}")
    print(f"table:  {(folder / 'runs.parquet').resolve()}")


def _print_summary(summary: Summary) -> None:
    rows = [
        [
            one_line(entry.row.label),
            entry.row.change,
            f"{number(entry.auc.iqm.value, 3)} ({interval(entry.auc.iqm, 3)})",
            f"{number(entry.final.iqm.value, 3)} ({interval(entry.final.iqm, 3)})",
            OUTCOMES[entry.auc.outcome],
        ]
        for entry in summary.rows
    ]
    columns = ["optimizer", "change", "AUC (95 %)", "final return (95 %)", "AUC against reference"]
    print_table("study", columns, rows)


@dataclass(frozen=True)
class IdentityOptions:
    """The identity experiment: can a small RNN reproduce the gradients that it is shown?

    Attributes:
        out: file for the result as JSON; none is written by default.
        scale: how long and how often.
        task: whose gradients; the scale's own by default.
        json: print the result as JSON.
    """

    out: Path | None = None
    scale: Scale = "quick"
    task: str | None = None
    json: bool = False


def identity(options: IdentityOptions) -> None:
    """The command `identity`."""
    from optim4rl.evaluation.identity import identity_experiment
    from optim4rl.tasks import default_config, make_task

    name = options.task or IDENTITY_TASKS[options.scale]
    task = make_task(default_config(name))
    with progress_bar(f"identity experiment on {name}", "") as update:
        update(0, 1)
        result = identity_experiment(task, name, IDENTITY_SCALES[options.scale])
        update(1, 1)
    text = json.dumps(dataclasses.asdict(result), default=lambda array: array.tolist())
    if options.out is not None:
        write_atomically(options.out, text.encode())
    if options.json:
        print(text)
        return
    rows = [
        [
            f"{row.input} in, {row.output} out, {row.schedule}",
            *(
                "diverged" if x != x else f"{x:.3f}"
                for x in (row.online, row.online_nonzero, row.frozen, row.frozen_nonzero)
            ),
        ]
        for row in result.rows
    ]
    columns = ["network", "online", "online, non-zero", "frozen", "frozen, non-zero"]
    print_table(f"RNN accuracy on {name} (share within 10 % of the target)", columns, rows)
