"""`optim4rl replicate`: run the paper's experiments at the paper's scale."""

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from optim4rl.cli.evaluate import print_summary
from optim4rl.cli.runtime import progress_bar
from optim4rl.cli.signals import keeping, stop_now
from optim4rl.files.folders import locked
from optim4rl.files.manifest import remove_manifest, write_manifest
from optim4rl.jobs.pools import Workers, in_words
from optim4rl.jobs.store import has_results
from optim4rl.pages.benchmark import to_json
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
        experiment: catch takes an hour on two cores, small_dense_long a night, big_dense_long days.
        out: folder for results.md, settings.md, runs.parquet, pictures, and finished jobs.
        arms: names of the arms to run, for instance "Version A". Default: all.
        meta_seeds: reported meta-trainings of each arm. Default: the experiment's own.
        seeds: reported runs of each meta-training. Default: the experiment's own.
        meta_learning_rates: grid of the meta-learning rate. Default: the paper's.
        reset_intervals: grid of the reset interval, in meta-iterations. Default: the paper's.
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
    workers: Workers = Workers()
    json: bool = False


def run(options: ReplicateOptions) -> None:
    """Run the command."""
    replication = lay_out(options)
    with locked(options.out), keeping(lambda: has_results(options.out)):
        remove_manifest(options.out)
        with (
            progress_bar(
                f"replicating {options.experiment}", "jobs", in_words(options.workers)
            ) as update,
            stop_now("jobs in flight are abandoned"),
        ):
            found = run_replication(replication, options.out, options.workers, update)
        write_replication(found, shlex.join(["optim4rl", *sys.argv[1:]]))
        write_manifest(options.out)
    if options.json:
        print(json.dumps(to_json(found.results)))
    else:
        print_summary(found.results, options.out)


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

    def given(name: str, own: Any) -> Any:
        value = getattr(options, name)
        return own if value is None else value

    arms = tuple(
        dataclasses.replace(arm, meta_seeds=given("meta_seeds", arm.meta_seeds))
        for arm in own.arms
        if not options.arms or arm.name in options.arms
    )
    protocol = dataclasses.replace(own.protocol, seeds=given("seeds", own.protocol.seeds))
    return dataclasses.replace(
        own,
        arms=arms,
        protocol=protocol,
        meta_learning_rates=given("meta_learning_rates", own.meta_learning_rates),
        reset_intervals=given("reset_intervals", own.reset_intervals),
    )
