"""Running a study: from a plan to jobs, from jobs to results.

A variant is a contender that is meta-trained first: once the weights are there, the benchmark's
loop tunes, chooses and reports it beside the classical optimizers. Finished jobs are in the folder,
so a study that was stopped goes on where it was.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from optim4rl.benchmark import loop
from optim4rl.benchmark.contender import Contender, Maker, baseline
from optim4rl.benchmark.loop import (
    Benchmark,
    Choice,
    Runs,
    chosen_runs,
    collect as collect_runs,
    first_jobs,
    run_stages,
    scoring_areas,
    scoring_runs,
    settle,
    tuning_runs,
)
from optim4rl.benchmark.rows import table_rows
from optim4rl.benchmark.runs import job, seconds_of
from optim4rl.benchmark.table import write_runs
from optim4rl.benchmark.tuning import best_of_grid, is_edge
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, final_return, interquartile_mean
from optim4rl.files.reading import read_text
from optim4rl.jobs.job import Job
from optim4rl.jobs.pool import Stages
from optim4rl.jobs.pools import Workers, open_pool
from optim4rl.jobs.store import get_result
from optim4rl.study import identity
from optim4rl.study.cells import (
    Training,
    identity_job,
    keep_members,
    training_job,
)
from optim4rl.study.layout import Candidate, Study, make_training, record_study
from optim4rl.study.results import Row, StudyResults
from optim4rl.study.settings import TUNING_META_SEED, StudySettings
from optim4rl.study.variant import describe_change

CLASSICAL_BASELINES = {
    "adam": "Tuned Adam",
    "rmsprop": "Tuned RMSProp",
    "sign_sgd": "Tuned sign-SGD",
}
# Called when a job is finished: jobs done, jobs in all, what it was.
OnProgress = Callable[[int, int, str], None]


def trainings(study: Study, candidate: Candidate, rate: float) -> list[Training]:
    """The reported meta-trainings of a candidate at a meta-learning rate."""
    # Heads start at zero, so that the untrained rule is one, whatever its seed.
    seeds = range(study.settings.meta_seeds if candidate.trained else 1)
    return [
        dataclasses.replace(
            make_training(study.settings, candidate.variant, rate, seed), trained=candidate.trained
        )
        for seed in seeds
    ]


def tuning_trainings(study: Study, candidate: Candidate, rate: float) -> list[Training]:
    """The meta-trainings that a candidate's meta-learning rate is judged by."""
    seeds = range(TUNING_META_SEED, TUNING_META_SEED + study.settings.tuning_meta_seeds)
    return [make_training(study.settings, candidate.variant, rate, seed) for seed in seeds]


def to_tune(study: Study) -> list[tuple[Candidate, float]]:
    """The candidates and meta-learning rates to choose from; none where there is no choice."""
    rates = study.settings.meta_learning_rates
    if len(rates) == 1:
        return []
    return [(x, rate) for x in study.candidates if x.trained for rate in rates]


def baselines(study: Study) -> tuple[Contender, ...]:
    """The classical optimizers."""
    rates = study.settings.evaluation.classical_rates
    return tuple(baseline(name, rates) for name in CLASSICAL_BASELINES)


def _learned(study: Study, candidate: Candidate, members: tuple[Maker, ...]) -> Contender:
    return Contender(
        candidate.key,
        "learned" if candidate.trained else "control",
        members,
        study.settings.evaluation.step_scales,
        study.settings.training.learning_rate,
    )


def _benchmark(study: Study, folder: Path, contenders: Sequence[Contender]) -> Benchmark:
    evaluation = study.settings.evaluation
    suite = evaluation.suite(study.settings.environment)
    return Benchmark(suite, tuple(contenders), folder, evaluation.protocol)


# What is run

# From meta-trainings to how their optimizers are made, and the messages of those that diverged.
Members = Callable[[Sequence[Training]], tuple[tuple[Maker, ...], dict[int, str]]]


def tuning_benchmark(study: Study, folder: Path, members: Members) -> Benchmark:
    """The candidates at every meta-learning rate, on the tuning meta-seeds."""
    return _benchmark(
        study,
        folder,
        [
            dataclasses.replace(
                _learned(study, candidate, members(tuning_trainings(study, candidate, rate))[0]),
                name=f"{candidate.key} at {rate:g}",
            )
            for candidate, rate in to_tune(study)
        ],
    )


def scoring_jobs(b: Benchmark) -> list[Job]:
    """What meta-learning rates are judged by."""
    return [
        job(batch)
        for task in b.suite.tasks
        for contender in b.contenders
        for member in range(len(contender.members))
        for batch in scoring_runs(b, task, contender, member)
    ]


def opening_jobs(study: Study, folder: Path, rates: Mapping[str, float]) -> list[Job]:
    """What needs no weights: the identity experiment, the classical optimizers, the trainings.

    Seeds are the outer loop: workers compile different variants first, and find each other's
    programs in the compilation cache later.
    """
    jobs = [identity_job(study.settings.identity)] if study.identity else []
    jobs += first_jobs(_benchmark(study, folder, baselines(study)))
    by_seed = [trainings(study, x, rates[x.key]) for x in study.candidates]
    for seed in range(study.settings.meta_seeds):
        jobs += [training_job(found[seed]) for found in by_seed if seed < len(found)]
    return jobs


def evaluation(
    study: Study, folder: Path, rates: Mapping[str, float], members: Members
) -> tuple[Benchmark, dict[str, dict[int, str]]]:
    """The study's benchmark, and by candidate the meta-seeds whose meta-training diverged."""
    contenders, failures = list(baselines(study)), {}
    for candidate in study.candidates:
        found, failures[candidate.key] = members(trainings(study, candidate, rates[candidate.key]))
        if found:
            contenders.append(_learned(study, candidate, found))
    return _benchmark(study, folder, contenders), failures


def expected_jobs(study: Study) -> list[Job]:
    """All jobs that a study can have, with names in place of weights that nobody has yet."""

    def members(wanted: Sequence[Training]) -> tuple[tuple[Maker, ...], dict[int, str]]:
        return tuple(Maker(weights=training_job(x).address) for x in wanted), {}

    folder = Path()
    rates = dict.fromkeys((x.key for x in study.candidates), study.settings.meta_learning_rates[0])
    tuned = [x for each in to_tune(study) for x in tuning_trainings(study, *each)]
    jobs = [
        *map(training_job, tuned),
        *scoring_jobs(tuning_benchmark(study, folder, members)),
        *opening_jobs(study, folder, rates),
        *loop.expected_jobs(evaluation(study, folder, rates, members)[0]),
    ]
    return list({job.address: job for job in jobs}.values())


def run_study(
    study: Study,
    folder: Path,
    *,
    command: str,
    workers: Workers = Workers(),
    on_progress: OnProgress = lambda *_, **__: None,
) -> StudyResults:
    """Run all that is not yet done, and collect the results.

    Args:
        study: what to run.
        folder: where results go, and where finished ones are found.
        command: the command to record in the report.
        workers: who runs it.
        on_progress: called before the first job and after each one.

    Raises:
        JobError: a job failed; all others that were started are kept.
        ClusterError: there is no such cluster.
    """
    record_study(study, folder, command)
    members = partial(keep_members, folder)
    with open_pool(folder, workers) as pool:
        stages = Stages(pool, folder, expected_jobs(study), on_progress)
        tuned = [x for each in to_tune(study) for x in tuning_trainings(study, *each)]
        stages.run([training_job(x) for x in tuned])
        stages.run(scoring_jobs(tuning_benchmark(study, folder, members)))
        rates = choose_meta_learning_rates(study, folder)
        stages.run(opening_jobs(study, folder, rates))
        run_stages(evaluation(study, folder, rates, members)[0], stages)
    results, runs = _collect(study, folder)
    changes = {row.key: {"role": row.kind, "change": row.change} for row in results.rows}
    write_runs(table_rows(runs, changes), folder / "runs.parquet")
    return results


# What came of it


def choose_meta_learning_rates(study: Study, folder: Path) -> dict[str, float]:
    """Each variant's meta-learning rate: the best by the mean of its tuning meta-seeds' scores.

    A meta-seed's score is its AUC at its best step scale. A rate at which a meta-training diverged,
    or an agent did, is chosen last.
    """
    grid = study.settings.meta_learning_rates
    scores: dict[str, list[float]] = {}
    b = tuning_benchmark(study, folder, partial(keep_members, folder))
    for (candidate, _), contender in zip(to_tune(study), b.contenders, strict=True):
        best = [
            max(best_of_grid(contender.grid, areas).scores)
            for member in range(len(contender.members))
            for areas in scoring_areas(b, contender, member)
        ]
        whole = len(best) == study.settings.tuning_meta_seeds
        scores.setdefault(candidate.key, []).append(float(np.mean(best)) if whole else -np.inf)
    return {
        x.key: grid[int(np.argmax(scores[x.key]))] if x.key in scores else grid[0]
        for x in study.candidates
    }


def collect(study: Study, folder: Path) -> StudyResults:
    """The results of a study whose jobs are all done.

    Raises:
        StoreError: one is not, or its result is damaged.
    """
    return _collect(study, folder)[0]


def _collect(study: Study, folder: Path) -> tuple[StudyResults, Runs]:
    rates = choose_meta_learning_rates(study, folder)
    b, failures = evaluation(study, folder, rates, partial(keep_members, folder))
    runs = collect_runs(b, settle(b))
    learned = [
        _learned_row(study, candidate, rates[candidate.key], failures[candidate.key], runs)
        for candidate in study.candidates
    ]
    classical = [_classical_row(name, label, runs) for name, label in CLASSICAL_BASELINES.items()]
    record = json.loads(read_text(folder / "study.json"))
    found = None
    if study.identity:
        info = get_result(folder, identity_job(study.settings.identity)).info
        found = identity.from_json(info["identity"])
    results = StudyResults(
        plan=study.plan,
        mapped=study.mapped,
        rows=(*learned, *classical),
        floor=float(area_under_curve(runs.untrained[0]).mean()),
        ceiling=max(interquartile_mean(final_return(row.curves[0])) for row in classical),
        identity=found,
        task=study.settings.environment,
        scale={"name": study.scale, **dataclasses.asdict(study.settings)},
        command=record["command"],
        versions={**record["versions"], "code": record["code"][:12]},
        started=record["started"],
    )
    return results, runs


def _learned_row(
    study: Study, candidate: Candidate, rate: float, failures: Mapping[int, str], runs: Runs
) -> Row:
    choices = runs.choices.get(candidate.key, ())
    meta_learning_rate = rate if candidate.trained else None
    folder = runs.benchmark.folder
    trained = [get_result(folder, training_job(x)) for x in trainings(study, candidate, rate)]
    default = "the method as it is" if candidate.trained else "meta-training: yes → no"
    return Row(
        key=candidate.key,
        label=candidate.label,
        kind=candidate.kind,
        change=describe_change(candidate.variant) or default,
        ablation=candidate.ablation,
        curves=runs.curves["tuned"][candidate.key][0] if choices else (),
        stress=_stress(study, candidate.key, runs),
        failures=failures,
        settings={
            "meta-learning rate": meta_learning_rate,
            "step scale": [choice.each[0].rate for choice in choices],
        },
        at_edge=settings_at_edge(study.settings, meta_learning_rate, choices),
        seconds=sum(x.info["seconds"] for x in trained) + _seconds(candidate.key, runs),
    )


def settings_at_edge(
    settings: StudySettings, meta_learning_rate: float | None, choices: Sequence[Choice]
) -> tuple[str, ...]:
    """What of a variant's choices is an end of its grid, in words.

    Args:
        settings: the study's, with its grids.
        meta_learning_rate: the one chosen; None where nothing is trained.
        choices: one for each meta-seed.
    """
    chosen_end = is_edge(meta_learning_rate, settings.meta_learning_rates)
    ends = sum(choice.each[0].at_edge for choice in choices)
    of_meta_seeds = (f"step scale of {ends} of {len(choices)} meta-seeds",) if ends else ()
    return (("meta-learning rate",) if chosen_end else ()) + of_meta_seeds


def _classical_row(name: str, label: str, runs: Runs) -> Row:
    (choice,) = runs.choices[name]
    tuning = choice.each[0]
    grid = ", ".join(f"{rate:g}" for rate in tuning.rates)
    edge = ", at the edge of the grid" if tuning.at_edge else ""
    return Row(
        key=name,
        label=label,
        kind="baseline",
        change=f"learning rate {tuning.rate:g}, best of {grid}{edge}",
        ablation=None,
        curves=runs.curves["tuned"][name][0],
        stress=next(iter(runs.stress[name].values())),
        settings={"learning rate": tuning.rate},
        at_edge=("learning rate",) if edge else (),
        seconds=_seconds(name, runs),
    )


def _stress(study: Study, name: str, runs: Runs) -> Mapping[float, Curves]:
    return runs.stress.get(name, {}).get(study.settings.environment, {})


def _seconds(name: str, runs: Runs) -> float:
    """Wall-clock time of all runs of a contender."""
    b = runs.benchmark
    batches = [
        batch
        for contender in b.contenders
        if contender.name == name
        for member, choice in enumerate(runs.choices[name])
        for batch in (
            *tuning_runs(b, b.suite.tasks[0], contender, member, choice.each[0].rates),
            *chosen_runs(b, 0, contender, member, choice),
        )
    ]
    return seconds_of(b.folder, batches)
