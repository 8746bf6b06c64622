"""`optim4rl ablate` and `optim4rl identity`."""

import io
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import Float

from optim4rl.cli.options import with_given
from optim4rl.cli.plan import OWN
from optim4rl.cli.runtime import command_line, progress_bar, require_file_name, results_folder
from optim4rl.cli.signals import keeping, stop_in_order, stop_now
from optim4rl.cli.study_report import finish
from optim4rl.cli.terminal import print_table
from optim4rl.cli.trackers import (
    Tracker,
    TrackerName,
    log_curves,
    require_tracker,
    tracking,
    with_progress,
)
from optim4rl.fields import POSITIVE, check_fields
from optim4rl.files.atomic import write_atomically
from optim4rl.files.folders import locked
from optim4rl.jobs.job import Result
from optim4rl.jobs.pools import Workers, in_words
from optim4rl.jobs.provenance import provenance
from optim4rl.jobs.store import has_results
from optim4rl.meta.agents import num_rollouts
from optim4rl.pages.identity import identity_words, write_identity
from optim4rl.plans.mapping import MappedPlan
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.plan import PlanError
from optim4rl.study.cells import (
    IDENTITY_SCALES,
    IDENTITY_TASKS,
    identity_task,
    keep_parts,
    training_tasks,
)
from optim4rl.study.identity import IdentityResult, IdentityRow
from optim4rl.study.identity_results import ACCURACIES, over_recordings
from optim4rl.study.layout import lay_out
from optim4rl.study.lint import lint
from optim4rl.study.opening import Opened, describe_new_version, open_given, open_own
from optim4rl.study.runner import run_study
from optim4rl.study.settings import IdentityScale, StudySettings, settings_at

Scale = Literal["smoke", "quick", "standard", "paper"]
DEFAULT_SCALE: Scale = "quick"


@dataclass(frozen=True)
class AblateOptions:
    """Run an ablation plan as a study and write its report.

    The study has the reference, every replacement that the plan asks for, and the experiment's
    controls. Optim4RL's controls are the paper's own ablation (no pipeline training), the untrained
    rule and tuned classical optimizers. Each row runs on several seeds. The folder keeps finished
    work, which is never done twice: stop the command and start it again as you like.

      optim4rl ablate plans/optim4rl.md --out runs/study --scale quick
      optim4rl ablate plan.md --experiment my_method.py:experiment --out runs/mine

    Attributes:
        plan: the plan file.
        out: output folder: report.html, runs.parquet, and the finished jobs.
        scale: smoke: three minutes of one core, most of them to compile; it only shows that all
            parts run. quick: minutes. standard: half an hour. paper: days on a laptop, with the
            paper's own settings for catch and small_dense_long. Default: quick.
        experiment: optim4rl, or your own method as FILE.py:NAME. The options scale, task,
            learning-rate, meta-learning-rates and step-scales are for optim4rl.
        task: task that agents learn, in meta-training and in evaluation. Default: catch.
        learning_rate: the agents' learning rate alpha in meta-training. Default: the scale's own,
            which suits catch.
        meta_seeds: trainings of each variant. Default: the scale's or the experiment's own.
        seeds: runs of each variant, or of each of its trainings. Default: the scale's or the
            experiment's own.
        meta_learning_rates: grid over which each variant's meta-learning rate is tuned. Default:
            the scale's own.
        step_scales: grid, in multiples of alpha, over which each meta-seed's step is tuned in
            evaluation. Default: the scale's own.
        budget: minutes. Replacements run one after the other, by the plan's priority, while there
            is time for the next one. Default: all of them run.
        workers: where jobs run.
        skip_unmapped: leave out parts that the study does not know, instead of refusing the plan.
        tracker: send the learning curves to TensorBoard or Weights & Biases, too.
        json: print the summary as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    out: Path
    scale: Scale | None = None
    experiment: str = OWN
    task: str | None = None
    learning_rate: float | None = None
    meta_seeds: int | None = None
    seeds: int | None = None
    meta_learning_rates: tuple[float, ...] | None = None
    step_scales: tuple[float, ...] | None = None
    budget: float | None = None
    workers: Workers = Workers()
    skip_unmapped: bool = False
    tracker: TrackerName | None = None
    json: bool = False


def ablate(options: AblateOptions) -> None:
    """Run the command `ablate`."""
    require_tracker(options.tracker, options.out)
    check_fields(options, budget=POSITIVE)
    opened = None if options.experiment == OWN else _open_given(options)
    # Name files that cannot be read before anything else.
    known = OPTIM4RL if opened is None else opened.experiment.catalogue
    plan = MappedPlan.read(options.plan, known)
    opened = opened or open_own(options.scale or DEFAULT_SCALE, _settings(options))
    try:
        study = lay_out(plan, opened, skip_unmapped=options.skip_unmapped)
    except PlanError as error:
        raise PlanError(f"plan {str(options.plan)!r}: {error}") from None
    for finding in lint(plan.mapped):
        if finding.kind == "duplicate":
            print(f"note: ablation {finding.ablation}: {finding.message}", file=sys.stderr)
    title = f"study ({opened.scale or opened.experiment.name})"
    with results_folder(options.out):
        if changed := describe_new_version(opened, options.out):
            print(f"note: {changed}", file=sys.stderr)
        with (
            tracking(options.tracker, options.out, opened.shown()) as tracker,
            progress_bar(title, "jobs", in_words(options.workers)) as update,
            stop_now("jobs in flight are abandoned"),
        ):
            results = run_study(
                study,
                options.out,
                command=command_line(),
                workers=options.workers,
                budget=options.budget,
                on_progress=with_progress(update, tracker),
            )
            log_curves(tracker, {row.key: row.curves for row in results.rows if row.curves})
        finish(results, options.out, as_json=options.json)


def _open_given(options: AblateOptions) -> Opened:
    """Open the user's experiment.

    Raises:
        ValueError: it cannot be opened, or an option is not for it.
    """
    for name in ("scale", "task", "learning_rate", "meta_learning_rates", "step_scales"):
        value = getattr(options, name)
        if value is not None:
            raise ValueError(
                f"{name} = {value!r}: this is an option of the experiment optim4rl; "
                f"{options.experiment} has its own settings"
            )
    return open_given(options.experiment, seeds=options.seeds, meta_seeds=options.meta_seeds)


def _settings(options: AblateOptions) -> StudySettings:
    """Return the scale's settings, changed by the options.

    Raises:
        ValueError: there is no such task, or a window of inner updates does not fit it.
    """
    task = options.task or "catch"
    settings = settings_at(options.scale or DEFAULT_SCALE, task)
    training = with_given(settings.training, learning_rate=options.learning_rate)
    # An empty grid is none.
    evaluation = with_given(
        settings.evaluation, seeds=options.seeds, step_scales=options.step_scales or None
    )
    (trained,) = training_tasks(task, training)
    num_rollouts(trained.task, training.inner_updates)
    return with_given(
        settings,
        meta_seeds=options.meta_seeds,
        meta_learning_rates=options.meta_learning_rates or None,
        training=training,
        evaluation=evaluation,
    )


@dataclass(frozen=True)
class IdentityOptions:
    """Run the identity experiment: can a small RNN reproduce the gradients that it reads?

      optim4rl identity --out runs/identity.json --scale quick

    Attributes:
        out: file for the result as JSON; files of the same name are a page (HTML), and tables of
            the accuracies and the curves (Parquet). Default: none.
        scale: number of recordings, updates, networks and seeds.
        task: task whose gradients are recorded. Default: the scale's own.
        seed: seed of the recording, of the split into shares, and of the networks; each further
            recording has the next.
        recordings: number of recorded agents. Default: the scale's own.
        tracker: send the curves to TensorBoard or Weights & Biases, too.
        json: print the result as JSON.
    """

    out: Path | None = None
    scale: IdentityScale = "quick"
    task: str | None = None
    seed: int = 0
    recordings: int | None = None
    tracker: TrackerName | None = None
    json: bool = False


def identity(options: IdentityOptions) -> None:
    """Run the command `identity`."""
    folder = None
    if options.out is not None:
        require_file_name("out", options.out)
        if options.out.suffix in (".parquet", ".html"):
            raise ValueError(
                f"out = {str(options.out)!r}: the name of a JSON file is needed; the page and the "
                "Parquet files get the same name"
            )
        folder = options.out.parent
    require_tracker(options.tracker, folder)
    from optim4rl.study.identity import identity_experiment, to_json as identity_json

    name = options.task or IDENTITY_TASKS[options.scale]
    config = with_given(
        IDENTITY_SCALES[options.scale], seed=options.seed, recordings=options.recordings
    )
    task = identity_task(name, config)
    parts = options.out.with_name(f"{options.out.name}.parts") if options.out is not None else None
    keep_part = keep_parts(parts)
    total = config.recordings * (1 + len(config.networks))
    with (
        locked(parts) if parts is not None else nullcontext(),
        progress_bar(f"identity experiment on {name}", "recordings and networks") as update,
        stop_in_order(lambda: "the part in flight is finished") as stop,
        keeping(lambda: parts is not None and has_results(parts)),
    ):
        done = 0
        update(done, total)

        def keep(question: Mapping[str, Any], make: Callable[[], Result]) -> Result:
            nonlocal done
            stop.raise_if_asked()
            result = keep_part(question, make)
            done += 1
            update(done, total, " to ".join(question.get("network", ())))
            return result

        result = identity_experiment(task, name, config, keep)
    text = json.dumps({**identity_json(result), **provenance("optim4rl.study.cells")})
    if options.out is not None:
        write_atomically(options.out, text.encode())
        write_identity(result, options.out.with_suffix(".html"))
        _write_curves(result, options.out.with_suffix(".parquet"))
        _write_accuracies(result, options.out.with_suffix(".accuracies.parquet"))
    with tracking(options.tracker, folder, result.settings) as tracker:
        _log_accuracies(result, tracker)
    if options.json:
        print(text)
        return
    _print_accuracies(result, name)


def _print_accuracies(result: IdentityResult, name: str) -> None:
    rows = [
        [
            f"{row.input} in, {row.output} out, {row.schedule}",
            *(
                "diverged" if x != x else f"{x:.3f}"
                for x in (row.online, row.online_nonzero, row.frozen, row.frozen_nonzero)
            ),
        ]
        for row in over_recordings(result.rows)
    ]
    columns = ["network", "online", "online, non-zero", "frozen", "frozen, non-zero"]
    print_table(f"RNN accuracy on {name} (share within 10 % of the target)", columns, rows)
    print(*identity_words(result), sep="\n")


def _write_accuracies(result: IdentityResult, path: Path) -> None:
    """Write accuracies as Parquet, one row for each recording and network."""
    import polars as pl

    names = ("recording", "input", "output", "schedule", "learning_rate", *ACCURACIES)
    rows = [{name: getattr(row, name) for name in names} for row in result.rows]
    _write_table(pl.DataFrame(rows), path)


def _write_curves(result: IdentityResult, path: Path) -> None:
    """Write accuracy while training as Parquet, by recording, network and point of time."""
    import polars as pl

    tables = [
        pl.DataFrame(
            {
                "recording": row.recording,
                "input": row.input,
                "output": row.output,
                "schedule": row.schedule,
                "progress": _progress(row),
                "accuracy": row.curve.astype(np.float64),
            }
        )
        for row in result.rows
    ]
    _write_table(pl.concat(tables), path)


def _write_table(table: Any, path: Path) -> None:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_atomically(path, buffer.getvalue())


def _log_accuracies(result: IdentityResult, tracker: Tracker) -> None:
    """Log accuracy while training, by thousandths of the training."""
    for row in over_recordings(result.rows):
        name = f"accuracy/{row.schedule}/{row.input}-{row.output}"
        for done, accuracy in zip(_progress(row), row.curve, strict=True):
            tracker.log(round(1000 * done), {name: float(accuracy)})


def _progress(row: IdentityRow) -> Float[np.ndarray, " points"]:
    """Return the share of training done at each point of a curve."""
    return np.linspace(0.0, 1.0, row.curve.size)
