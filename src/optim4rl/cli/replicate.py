"""`optim4rl replicate`: run the paper's experiments at the paper's scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from optim4rl.cli.evaluate import show
from optim4rl.cli.options import with_given
from optim4rl.cli.runtime import command_line, progress_bar, results_folder
from optim4rl.cli.signals import stop_now
from optim4rl.files.manifest import write_manifest
from optim4rl.jobs.pools import Workers, in_words
from optim4rl.pages.replication import write_replication
from optim4rl.study.paper import EXPERIMENTS
from optim4rl.study.replication import Replication, run_replication

ExperimentName = Literal["catch", "small_dense_long", "big_dense_long"]


@dataclass(frozen=True)
class ReplicateOptions:
    """Run an experiment of the paper at the paper's scale.

    It meta-trains Versions A and B, Version A without pipeline training, LinearOptim, L2LGD2 and
    STAR as in the paper: each at every setting of a grid, then at the best setting for several
    meta-seeds. It compares them with Adam, with RMSProp and with the untrained rules, at the step
    as trained and at a tuned step. The folder keeps finished work, and a stopped meta-training goes
    on: stop the command and start it again as you like.

      optim4rl replicate catch --out runs/paper-catch

    Attributes:
        experiment: catch takes two hours on two cores, small_dense_long 2 to 3 days,
            big_dense_long 4 to 6 days (estimates, but for catch).
        out: folder for results.md, settings.md, runs.parquet, pictures, and finished jobs.
        arms: names of the arms to run, for instance "Version A". Default: all.
        meta_seeds: reported meta-trainings of each arm. Default: the experiment's own.
        seeds: reported runs of each meta-training. Default: the experiment's own.
        meta_learning_rates: grid of the meta-learning rate. Default: the paper's.
        reset_intervals: grid of the reset interval, in meta-iterations. Default: the paper's.
        tuning_rollouts: length of the runs that choose settings, steps and rates. Short runs save
            time, and favour what learns early. Default: as long as reported runs.
        workers: where jobs run.
        json: print the results as JSON.
    """

    experiment: Annotated[ExperimentName, tyro.conf.Positional]
    out: Path
    arms: tuple[str, ...] = ()
    meta_seeds: int | None = None
    seeds: int | None = None
    meta_learning_rates: tuple[float, ...] | None = None
    reset_intervals: tuple[int, ...] | None = None
    tuning_rollouts: int | None = None
    workers: Workers = Workers()
    json: bool = False


def run(options: ReplicateOptions) -> None:
    """Run the command."""
    replication = lay_out(options)
    with results_folder(options.out):
        with (
            progress_bar(
                f"replicating {options.experiment}", "jobs", in_words(options.workers)
            ) as update,
            stop_now("jobs in flight are abandoned"),
        ):
            found = run_replication(replication, options.out, options.workers, update)
        write_replication(found, command_line())
        write_manifest(options.out)
    show(found.results, options.out, as_json=options.json)


def lay_out(options: ReplicateOptions) -> Replication:
    """Return the experiment, changed by the options.

    Raises:
        ValueError: there is no such arm, or a number is out of its range.
    """
    own = EXPERIMENTS[options.experiment]
    names = [arm.name for arm in own.arms]
    for name in options.arms:
        if name not in names:
            raise ValueError(f"arms: {name!r} is not one of {', '.join(map(repr, names))}")

    arms = tuple(
        with_given(arm, meta_seeds=options.meta_seeds)
        for arm in own.arms
        if not options.arms or arm.name in options.arms
    )
    return with_given(
        own,
        arms=arms,
        protocol=with_given(own.protocol, seeds=options.seeds),
        meta_learning_rates=options.meta_learning_rates,
        reset_intervals=options.reset_intervals,
        tuning_rollouts=options.tuning_rollouts,
    )
