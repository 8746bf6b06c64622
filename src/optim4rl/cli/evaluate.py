"""`optim4rl evaluate`: compare optimizers on a task or a suite, by one protocol."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from optim4rl.benchmark.contender import (
    Contender,
    baseline,
    baseline_maker,
    given_contender,
    learned_contenders,
    load_groups,
    split_parts,
)
from optim4rl.benchmark.loop import Benchmark, Results, run as run_benchmark
from optim4rl.benchmark.protocol import EVALUATION_SEED, Protocol
from optim4rl.benchmark.register import require_claim
from optim4rl.benchmark.suites import STRESS_ROLLOUTS, Suite, load_suite, task_suite
from optim4rl.cli.options import with_given
from optim4rl.cli.runtime import command_line, progress_bar, results_folder
from optim4rl.cli.signals import stop_now
from optim4rl.cli.terminal import print_table
from optim4rl.cli.trackers import TrackerName, log_curves, require_tracker, tracking, with_progress
from optim4rl.evaluation.curves import Curves
from optim4rl.fields import COUNT, check_fields, to_json as settings_json
from optim4rl.files.manifest import write_manifest
from optim4rl.jobs.pools import Workers, in_words
from optim4rl.pages.benchmark import (
    TITLES,
    claims,
    raw_table,
    summary_table,
    to_json,
    write_report,
)
from optim4rl.tasks import PPOConfig, default_config

A2C_BASELINES = ("adam", "rmsprop", "sign_sgd", "muon", "adam_decay")
PPO_BASELINES = ("adam_ppo", "muon_ppo", "adam", "rmsprop", "muon")
COMPANION_BASELINES = ("adam_ppo", "muon_ppo")
# Rollouts of a run on a single task.
TASK_ROLLOUTS = 390


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare learned optimizers with tuned classical ones and with the untrained rules.

    Every optimizer is tuned on seeds that are not reported: learned ones over step scales,
    classical ones over as many learning rates. It then runs on the reported seeds, at the best
    setting of each task and, on a suite, at the one setting that is best for all tasks. Separate
    weights of one recipe and several meta-seeds by commas: they count as one recipe. With --out,
    finished runs are kept and never made twice: stop the command and start it again as you like.

      optim4rl evaluate anchored-catch --task catch --out runs/catch
      optim4rl evaluate ppo-generalist --suite classic --out runs/classic

    Attributes:
        weights: shipped names, paths, or comma-separated groups of them; or an optimizer of your
            own, my_file.py:make_optimizer, a function of the learning rate that returns an optax
            transformation. Companions may follow each, as in ppo-generalist+clip0.5+decay.
        task: a single task; `optim4rl list tasks` names them. Default: catch.
        suite: all tasks of a benchmark: grid, minatar, classic, brax, mixed, discobench or open.
        out: folder for results.md, results.json, runs.parquet, pictures, and finished runs.
        only: tasks of the suite to keep. Default: all.
        seeds: reported runs of an optimizer on a task.
        first_seed: the first of these seeds. For a claim, take seeds on which nothing was chosen
            and no earlier claim was made, such as 2000.
        claim: name of a claim in the register. The run must have its tasks and seeds, and no
            earlier claim may have used these seeds on these tasks.
        register: the file of claims that were written down before their runs.
        tuning_seeds: runs of each setting on a task, in tuning.
        extensions: half decades by which a grid is extended, at most, on a side where its best
            value is at the edge.
        rates: learning rates over which classical optimizers are tuned. Default: the suite's.
        step_scales: multiples of its own rate over which a learned optimizer is tuned, as many as
            there are rates. Default: the suite's.
        baselines: classical optimizers; companions may follow, as in adam+clip0.5+eps1e-5+decay.
            The first is the reference for all comparisons. Default: with PPO adam_ppo (norm clip
            0.5, epsilon 1e-5, falling rate) and others, with A2C adam and others.
        controls: run learned optimizers untrained, too.
        companions: run learned optimizers and your own with a norm clip of 0.5 and a rate that
            falls to 0, as PPO users run Adam. also: with these as well as without. only: only with
            these.
        stress_scales: multiples of the tuned setting in the stress test.
        stress_seeds: stress runs at each multiple.
        rollouts: length of a run in rollouts. On a task exactly this many, 390 by default; on a
            suite at most this many.
        stress_rollouts: rollouts of a stress run on a single task, at most those of a run. Default:
            60, or as many as an episode of 1,000 steps takes in Brax and Playground.
        num_envs: environments of each agent. Default: the task's own.
        width: units of the agents' dense layer on a single task. Default: the task's own.
        workers: where jobs run.
        tracker: send the learning curves to TensorBoard or Weights & Biases, too; needs --out.
        json: print the results as JSON.
    """

    weights: Annotated[tuple[str, ...], tyro.conf.Positional]
    task: str | None = None
    suite: str | None = None
    out: Path | None = None
    only: tuple[str, ...] = ()
    seeds: int = 16
    first_seed: int = EVALUATION_SEED
    tuning_seeds: int = 4
    claim: str | None = None
    register: Path = Path("docs/results/claims.toml")
    extensions: int = 4
    rates: tuple[float, ...] | None = None
    step_scales: tuple[float, ...] | None = None
    baselines: tuple[str, ...] | None = None
    controls: bool = True
    companions: Literal["no", "also", "only"] = "no"
    stress_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    stress_seeds: int = 16
    rollouts: int | None = None
    stress_rollouts: int | None = None
    num_envs: int | None = None
    width: int | None = None
    workers: Workers = Workers()
    tracker: TrackerName | None = None
    json: bool = False
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "runs": ("rollouts", "num_envs", "width"),
        "tuning": ("tuning_seeds", "rates", "step_scales", "extensions"),
        "claims": ("first_seed", "claim", "register"),
        "stress_test": ("stress_scales", "stress_seeds", "stress_rollouts"),
    }

    def __post_init__(self) -> None:
        check_fields(self, rollouts=COUNT, stress_rollouts=COUNT, num_envs=COUNT, width=COUNT)
        _ = self.protocol

    @property
    def learned(self) -> tuple[str, ...]:
        """Return the weights, without companions and without optimizers from users' files."""
        names = [name for name, _ in map(split_parts, self.weights) if ".py:" not in name]
        return tuple(dict.fromkeys(names))

    @property
    def protocol(self) -> Protocol:
        """Return how often each optimizer runs."""
        return Protocol(
            self.seeds,
            self.tuning_seeds,
            self.stress_scales,
            self.stress_seeds,
            self.first_seed,
            self.extensions,
        )


def run(options: EvaluateOptions) -> None:
    """Run the command."""
    _refuse_contradictions(options)
    require_tracker(options.tracker, options.out)
    suite = make_suite(options)
    load_groups(options.learned)  # Name weights that cannot be read before making a folder.
    claim = _claim(options, suite)
    with results_folder(options.out) as folder:
        benchmark = dataclasses.replace(lay_out(options, suite, folder), claim=claim)
        config = settings_json(options) | {"out": str(options.out)}
        with (
            tracking(options.tracker, options.out, config) as tracker,
            progress_bar(
                f"evaluating on {suite.name}", "batches of runs", in_words(options.workers)
            ) as update,
            stop_now("runs in flight are abandoned"),
        ):
            results = run_benchmark(benchmark, options.workers, with_progress(update, tracker))
            log_curves(tracker, _tuned_curves(results))
        if options.out is not None:
            write_report(results, command_line())
            write_manifest(options.out)
    show(results, options.out, as_json=options.json)


def _claim(options: EvaluateOptions, suite: Suite) -> str:
    """Return the registered claim in words; refuse other runs before making a folder."""
    if options.claim is None:
        return ""
    with results_folder(None) as scratch:
        benchmark = lay_out(options, suite, scratch)
    return require_claim(options.register, options.claim, benchmark)


def _refuse_contradictions(options: EvaluateOptions) -> None:
    """Refuse options that exclude each other, and missing or repeated optimizers."""
    if options.task is not None and options.suite is not None:
        raise ValueError(
            f"task = {options.task!r}, suite = {options.suite!r}: give one of them; --only keeps "
            "some tasks of a suite"
        )
    if options.only and options.suite is None:
        raise ValueError(f"only = {options.only!r}: this is for --suite; --task names one task")
    for name in ("width", "stress_rollouts"):
        if options.suite is not None and getattr(options, name) is not None:
            raise ValueError(
                f"{name} = {getattr(options, name)!r}: this is for --task; a suite has its own"
            )
    rollouts = options.rollouts or TASK_ROLLOUTS
    if (options.stress_rollouts or 0) > rollouts:
        raise ValueError(
            f"stress_rollouts = {options.stress_rollouts!r}: at most the {rollouts} rollouts of a "
            "run are needed"
        )
    if len(set(options.weights)) < len(options.weights):
        raise ValueError(f"weights = {options.weights!r}: give each optimizer once")
    if not options.weights and options.baselines == ():
        raise ValueError("weights = (), baselines = (): at least one optimizer is needed")
    makers = [baseline_maker(name) for name in options.baselines or ()]
    if options.baselines is not None and len(set(makers)) < len(makers):
        raise ValueError(f"baselines = {options.baselines!r}: give each optimizer once")


def make_suite(options: EvaluateOptions) -> Suite:
    """Return the tasks that the options ask for.

    Raises:
        ValueError: the suite or a task is unknown or cannot be made here, or grids are not of the
            same size.
    """
    if options.suite is None:
        rollouts = options.rollouts or TASK_ROLLOUTS
        task = options.task or "catch"
        suite = task_suite(
            task,
            rollouts=rollouts,
            stress_rollouts=options.stress_rollouts or min(_stress_rollouts(task), rollouts),
            width=options.width,
            num_envs=options.num_envs,
        )
    else:
        suite = load_suite(
            options.suite,
            only=options.only,
            rollouts=options.rollouts,
            num_envs=options.num_envs,
        )
    # An empty grid is none. Without a learned rule no step scale is tuned, so any as many will do.
    scales = options.step_scales or (() if options.learned else options.rates)
    return with_given(suite, rates=options.rates or None, step_scales=scales or None)


def _stress_rollouts(task: str) -> int:
    """Return the usual rollouts of a stress run: an episode must end in it."""
    if not task.startswith(("brax:", "playground:")):
        return STRESS_ROLLOUTS
    from optim4rl.tasks.environments.physics import EPISODE_LENGTH

    return max(STRESS_ROLLOUTS, -(-EPISODE_LENGTH // default_config(task).learner.rollout))


def lay_out(options: EvaluateOptions, suite: Suite, folder: Path) -> Benchmark:
    """Decide what to run, and put the weights into the folder.

    Raises:
        ValueError: weights cannot be read or grouped.
    """
    baselines = options.baselines
    if baselines is None:
        ppo = all(isinstance(task.config.learner, PPOConfig) for task in suite.tasks)
        baselines = PPO_BASELINES if ppo else A2C_BASELINES
        if suite.companions:
            baselines = COMPANION_BASELINES
        elif options.suite is not None and suite.tasks[0].config.normalise_rewards:
            baselines += ("adam_raw_rewards",)
    contenders = _asked_for(options, suite, folder)
    if options.companions != "no" and not suite.companions:
        accompanied = [x.accompanied() for x in contenders]
        contenders = accompanied if options.companions == "only" else contenders + accompanied
    contenders += [baseline(name, suite.rates) for name in baselines]
    if suite.companions:
        contenders = [x.accompanied(suffix="") for x in contenders]
    return Benchmark(suite, tuple(contenders), folder, options.protocol)


def _asked_for(options: EvaluateOptions, suite: Suite, folder: Path) -> list[Contender]:
    """Return the command line's optimizers with controls, a variant after its original."""
    learned = learned_contenders(
        options.learned, suite.step_scales, folder, controls=options.controls
    )
    each = 1 + options.controls  # An optimizer, and itself untrained.
    plain = {
        name: learned[each * index : each * (index + 1)]
        for index, name in enumerate(options.learned)
    }
    asked = [split_parts(text) for text in options.weights]
    plain |= {
        name: [given_contender(name, suite.rates, folder)] for name, _ in asked if ".py:" in name
    }
    return [
        contender.accompanied(parts, f"+{parts}") if parts else contender
        for name, parts in asked
        for contender in plain[name]
    ]


def _tuned_curves(results: Results) -> dict[str, tuple[Curves, ...]]:
    """Return every contender's reported curves on every task, at the task's own setting."""
    return {
        f"{task.name}/{name}": found[index]
        for index, task in enumerate(results.benchmark.suite.tasks)
        for name, found in results.runs.curves["tuned"].items()
    }


def show(results: Results, out: Path | None, *, as_json: bool) -> None:
    """Print the results as JSON, or the most important of them in tables."""
    if as_json:
        print(json.dumps(to_json(results)))
        return
    suite = results.benchmark.suite
    for reading in results.benchmark.readings:
        print_table(f"{suite.name}, {TITLES[reading]}", *summary_table(results, reading))
    if len(suite.tasks) == 1:
        print_table(f"{suite.name}: raw returns", *raw_table(results, "tuned", 0))
    for claim in claims(results):
        print(f"- {claim.replace('**', '')}")
    if out is not None:
        print(f"\n{out / 'results.md'}")
