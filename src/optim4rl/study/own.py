"""Optim4RL as an experiment: meta-trained, and compared with classical optimizers.

Its runs are batches of agents side by side, as in the benchmark. A meta-trained variant is
evaluated like any learned optimizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optim4rl.benchmark.contender import Maker, baseline_maker
from optim4rl.benchmark.loop import untrained_runs
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.runs import Batch, job, read_batches, split
from optim4rl.benchmark.suites import SuiteTask
from optim4rl.evaluation.curves import Curves
from optim4rl.fields import from_json
from optim4rl.jobs.job import Job
from optim4rl.plans.components import Catalogue
from optim4rl.plans.optim4rl import COMPONENTS, DEFAULT_METRICS, METRICS, OPTIM4RL
from optim4rl.study.cells import Training, does_the_same, identity_job, keep_member, training_job
from optim4rl.study.experiment import Control, Design, Values
from optim4rl.study.settings import StudySettings
from optim4rl.study.variant import REFERENCE, Variant
from optim4rl.study.work import Candidate, Member, Reported, Work

CLASSICAL_BASELINES = {
    "adam": "Tuned Adam",
    "rmsprop": "Tuned RMSProp",
    "sign_sgd": "Tuned sign-SGD",
}
# The tuned values: of trainings, of learned optimizers' runs, of classical optimizers' runs.
META_LEARNING_RATE = "meta-learning rate"
STEP_SCALE = "step scale"
LEARNING_RATE = "learning rate"


@dataclass(frozen=True, kw_only=True)
class OwnDesign(Design):
    """Optim4RL's design, with the settings of a study."""

    settings: StudySettings

    @property
    def catalogue(self) -> Catalogue:
        """Return the components and metrics that a plan can name."""
        return OPTIM4RL

    @property
    def protocol(self) -> Protocol:
        """Return the seeds of runs."""
        return self.settings.evaluation.protocol

    def same_work(self, settings: Variant) -> bool:
        """Return whether a variant trains in the same way as the reference at these settings."""
        rate = self.settings.meta_learning_rates[0]
        one, other = (make_training(self.settings, x, rate, 0) for x in (settings, REFERENCE))
        return does_the_same(one, other)


def own_design(settings: StudySettings) -> OwnDesign:
    """Return Optim4RL with the paper's ablation, the untrained control and classical optimizers."""
    no_pipeline = replace(REFERENCE, resets="never")
    rates = settings.evaluation.classical_rates
    return OwnDesign(
        name="Optim4RL",
        reference=REFERENCE,
        components=COMPONENTS,
        metrics=METRICS,
        train_grid={META_LEARNING_RATE: settings.meta_learning_rates},
        grid={STEP_SCALE: settings.evaluation.step_scales},
        controls=(
            Control("resets=never", "Without pipeline training", no_pipeline, "paper"),
            Control(
                "untrained",
                "Untrained Optim4RL",
                REFERENCE,
                change="meta-training: yes → no",
                trained=False,
            ),
            *(
                # Its name identifies a classical optimizer: the method's settings do not.
                Control(
                    key, label, REFERENCE, "baseline", "", {LEARNING_RATE: rates}, trained=False
                )
                for key, label in CLASSICAL_BASELINES.items()
            ),
        ),
        seeds=settings.evaluation.seeds,
        tuning_seeds=settings.evaluation.tuning_seeds,
        meta_seeds=settings.meta_seeds,
        tuning_meta_seeds=settings.tuning_meta_seeds,
        task=settings.environment,
        steps="environment steps",
        default_metrics=DEFAULT_METRICS,
        settings=settings,
    )


def make_training(settings: StudySettings, variant: Variant, rate: float, seed: int) -> Training:
    """Return a meta-training of a variant with the settings of a study."""
    width = settings.evaluation.width
    return Training(settings.environment, variant, settings.training, width, rate, seed)


@dataclass(frozen=True)
class OwnWork(Work):
    """Meta-trainings, and batches of agents that use the resulting optimizers."""

    settings: StudySettings

    @property
    def _task(self) -> SuiteTask:
        (task,) = self.settings.evaluation.suite(self.settings.environment).tasks
        return task

    def training(self, candidate: Candidate, values: Values, meta_seed: int) -> Job | None:
        """Return the meta-training as a job; None for a classical optimizer.

        An untrained candidate keeps its fresh weights.
        """
        if candidate.kind == "baseline":
            return None
        rate = values[META_LEARNING_RATE]
        training = make_training(self.settings, candidate.settings, rate, meta_seed)
        return training_job(replace(training, trained=candidate.trained))

    def _maker(self, folder: Path | None, member: Member) -> Maker:
        """Return a member's optimizer; its weights are put where workers find them."""
        if member.training is None:
            return baseline_maker(member.candidate.key)
        if folder is None:
            return Maker(weights=member.training.address)
        training: Training = from_json(Training, dict(member.training.arguments))
        return keep_member(folder, training)

    def _rate(self, values: Values) -> float:
        """Return a point's learning rate; for a learned optimizer a multiple of its own rate."""
        if LEARNING_RATE in values:
            return float(values[LEARNING_RATE])
        return float(self.settings.training.learning_rate * values[STEP_SCALE])

    def _batches(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Batch]:
        task, maker = self._task, self._maker(folder, member)
        ((name, first),) = member.candidate.grid.items()
        # Points that extend the grid come in separate batches, so that finished batches are reused.
        inside = [values for values in points if values[name] in first]
        groups = [inside, *([values] for values in points if values[name] not in first)]
        return [
            batch
            for group in groups
            for batch in split(
                task.config, maker, [self._rate(x) for x in group], seeds, task.rollouts
            )
        ]

    def runs(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Job]:
        """Return a member's runs, in batches."""
        return [job(batch) for batch in self._batches(folder, member, points, seeds)]

    def read(
        self, folder: Path, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Reported]:
        """Return the reports of the runs, point by point."""
        found = read_batches(folder, self._batches(folder, member, points, seeds))
        return [{"return": found[self._rate(values)]} for values in points]

    def _stress(self, folder: Path | None, member: Member, point: Values) -> list[Batch]:
        task, protocol = self._task, self.settings.evaluation.protocol
        if task.stress_rollouts is None:
            return []
        rates = [self._rate(point) * scale for scale in protocol.stress_scales]
        maker, rollouts = self._maker(folder, member), task.stress_rollouts
        return split(task.config, maker, rates, protocol.stress, rollouts, schedule=task.rollouts)

    def stress(self, folder: Path | None, member: Member, point: Values) -> list[Job]:
        """Return short runs at multiples of the step."""
        return [job(batch) for batch in self._stress(folder, member, point)]

    def read_stress(self, folder: Path, member: Member, point: Values) -> Mapping[float, Curves]:
        """Return the reports of the short runs, by multiple."""
        found = read_batches(folder, self._stress(folder, member, point)).values()
        scales = self.settings.evaluation.protocol.stress_scales
        return dict(zip(scales, found, strict=True)) if found else {}

    def _floor(self) -> list[Batch]:
        task = self._task
        return untrained_runs(task, self.settings.evaluation.protocol.reported, task.rollouts)

    def floor(self) -> list[Job]:
        """Return runs of agents that never update."""
        return [job(batch) for batch in self._floor()]

    def read_floor(self, folder: Path) -> Curves | None:
        """Return the reports of agents that never update."""
        (curves,) = read_batches(folder, self._floor()).values()
        return curves

    def once(self, metrics: frozenset[str]) -> list[Job]:
        """Return the identity experiment if the plan asks for it."""
        return [identity_job(self.settings.identity)] if "identity" in metrics else []
