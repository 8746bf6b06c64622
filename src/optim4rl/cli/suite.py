"""`optim4rl evaluate --suite NAME`: one protocol for all tasks of a benchmark."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from optim4rl.benchmark.pieces import Method, keep_weights
from optim4rl.benchmark.protocol import require_grid
from optim4rl.benchmark.runs import (
    BASELINES,
    REFERENCE,
    Benchmark,
    Entry,
    Results,
    Role,
    run_benchmark,
)
from optim4rl.benchmark.suites import load_suite
from optim4rl.cli.evaluate import CONTROL, load_groups
from optim4rl.cli.runtime import progress_bar
from optim4rl.cli.signals import stop_now
from optim4rl.cli.trackers import TrackerName, log_curves, require_tracker, tracking, with_progress
from optim4rl.evaluation.curves import Curves
from optim4rl.fields import COUNT, check_fields
from optim4rl.files.folders import locked
from optim4rl.files.manifest import remove_manifest, write_manifest
from optim4rl.jobs.pools import Workers
from optim4rl.pages.benchmark import print_summary, to_json, write_report

Baseline = Literal["adam", "rmsprop", "sign_sgd", "muon", "adam_decay", "adam_raw_rewards"]


@dataclass(frozen=True)
class SuiteOptions:
    """Compare learned optimizers with classical ones on all tasks of a suite.

    Every optimizer is tuned on seeds that are not reported, learned ones over as many step scales
    as classical ones over learning rates; it is then run on the reported seeds, at each task's own
    best setting and at the one setting that is best for all tasks together. Weights of one recipe
    and several meta-seeds can be given together, separated by commas: they count as one recipe.
    Finished runs are kept in the folder and never made twice: stop it and start it again as you
    like.

    Attributes:
        weights: shipped names, paths, or comma-separated groups of them.
        suite: grid, minatar, classic, brax or mixed.
        out: output folder: results.md, results.json, runs.parquet, pictures, and finished runs.
        only: environments of the suite to keep; all by default.
        seeds: reported runs of an optimizer on a task.
        tuning_seeds: runs that each setting is judged by on a task.
        rates: learning rates that classical optimizers are tuned over; the suite's by default.
        step_scales: multiples of its own rate that a learned optimizer is tuned over, as many as
            there are rates; the suite's by default.
        baselines: classical optimizers to compare with; adam is always needed.
        controls: run learned optimizers untrained, too.
        stress_scales: multiples of the tuned setting in the stress test.
        stress_seeds: stress runs at each of them.
        rollouts: at most so many rollouts of a run, for a quick look.
        num_envs: environments of each agent; the suite's by default.
        workers: who makes the runs.
        tracker: send the learning curves to TensorBoard or Weights & Biases, too.
        json: print the results as JSON.
    """

    weights: Annotated[tuple[str, ...], tyro.conf.Positional]
    suite: str
    out: Path
    only: tuple[str, ...] = ()
    seeds: int = 16
    tuning_seeds: int = 4
    rates: tuple[float, ...] | None = None
    step_scales: tuple[float, ...] | None = None
    baselines: tuple[Baseline, ...] = get_args(Baseline)
    controls: bool = True
    stress_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    stress_seeds: int = 16
    rollouts: int | None = None
    num_envs: int | None = None
    workers: Annotated[Workers, tyro.conf.arg(name="")] = Workers()
    tracker: TrackerName | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            seeds=COUNT,
            tuning_seeds=COUNT,
            stress_seeds=COUNT,
            rollouts=COUNT,
            num_envs=COUNT,
        )
        require_grid("stress_scales", self.stress_scales)
        if REFERENCE not in self.baselines:
            raise ValueError(
                f"baselines = {self.baselines!r}: {REFERENCE} is needed; all is compared with it"
            )


def run(options: SuiteOptions) -> None:
    """The command."""
    require_tracker(options.tracker, options.out)
    benchmark = lay_out(options)
    config = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    with locked(options.out):
        remove_manifest(options.out)
        with (
            tracking(options.tracker, options.out, config) as tracker,
            progress_bar(f"suite {options.suite}", "pieces") as update,
            stop_now("runs in flight are abandoned"),
        ):
            results = run_benchmark(benchmark, options.workers, with_progress(update, tracker))
            log_curves(tracker, _tuned_curves(results))
        write_report(results, shlex.join(["optim4rl", *sys.argv[1:]]))
        write_manifest(options.out)
    if options.json:
        print(json.dumps(to_json(results)))
    else:
        print_summary(results)


def _tuned_curves(results: Results) -> dict[str, tuple[Curves, ...]]:
    """Every optimizer's reported curves on every task, at the task's own setting."""
    tasks = [task.name for task in results.benchmark.suite.tasks]
    return {
        f"{task}/{name}": found[index]
        for index, task in enumerate(tasks)
        for name, found in results.curves["tuned"].items()
    }


def lay_out(options: SuiteOptions) -> Benchmark:
    """Decide what to run, and put the weights into the folder.

    Raises:
        ValueError: the suite or a task is unknown or cannot be made here, weights cannot be read or
            grouped, or grids are not of the same size.
    """
    suite = load_suite(
        options.suite, only=options.only, rollouts=options.rollouts, num_envs=options.num_envs
    )
    suite = dataclasses.replace(
        suite,
        rates=options.rates or suite.rates,
        step_scales=options.step_scales or suite.step_scales,
    )
    learned = load_groups(options.weights)
    # A folder that cannot be written is named before the work.
    options.out.mkdir(parents=True, exist_ok=True)
    names = _short_names(options.weights)
    entries = []
    for name, optimizers in learned.items():
        control = name.endswith(CONTROL)
        if control and not options.controls:
            continue
        addresses = [keep_weights(options.out, optimizer) for optimizer in optimizers]
        members = tuple(Method(None, weights=address) for address in dict.fromkeys(addresses))
        if len(members) < len(optimizers) and not control:
            raise ValueError(f"weights = {name!r}: the same weights twice are one meta-seed")
        short = names[name.removesuffix(CONTROL)] + CONTROL * control
        role: Role = "control" if control else "learned"
        alpha = optimizers[0].learning_rate
        own = short + CONTROL if options.controls and not control else None
        entries.append(Entry(short, role, members, suite.step_scales, alpha, own))
    entries += [
        Entry(name, "baseline", (BASELINES[name],), suite.rates) for name in options.baselines
    ]
    return Benchmark(
        suite,
        tuple(entries),
        options.out,
        options.seeds,
        options.tuning_seeds,
        options.stress_scales,
        options.stress_seeds,
    )


def _short_names(groups: Sequence[str]) -> dict[str, str]:
    """What tables call each group: its first member's file name and how many follow it."""
    names = {}
    for group in groups:
        first, *others = group.split(",")
        names[group] = Path(first).stem + (f" +{len(others)}" if others else "")
    if len({*names.values(), *BASELINES}) < len(names) + len(BASELINES):
        return {group: group for group in groups}
    return names
