"""This project's own experiment: Optim4RL, meta-trained and evaluated beside classical optimizers.

Its runs are agents side by side in batches, so its work is the benchmark's: a variant that is
meta-trained is made as any learned optimizer is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optim4rl.benchmark.contender import UNTRAINED, Maker, baseline_maker
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.runs import Batch, job, read_batches, split
from optim4rl.benchmark.suites import SuiteTask
from optim4rl.evaluation.curves import Curves
from optim4rl.fields import from_json
from optim4rl.jobs.job import Job
from optim4rl.plans.components import Catalogue
from optim4rl.plans.optim4rl import COMPONENTS, DEFAULT_METRICS, METRICS, OPTIM4RL
from optim4rl.study.cells import Training, does_the_same, identity_job, keep_members, training_job
from optim4rl.study.experiment import Control, Design, Values, replace_field
from optim4rl.study.settings import StudySettings
from optim4rl.study.variant import REFERENCE, Variant
from optim4rl.study.work import Candidate, Member, Reported

CLASSICAL_BASELINES = {
    "adam": "Tuned Adam",
    "rmsprop": "Tuned RMSProp",
    "sign_sgd": "Tuned sign-SGD",
}
# What is tuned: of trainings, of learned optimizers' runs, of classical optimizers' runs.
META_LEARNING_RATE = "meta-learning rate"
STEP_SCALE = "step scale"
LEARNING_RATE = "learning rate"


@dataclass(frozen=True, kw_only=True)
class OwnDesign(Design):
    """Optim4RL's design, with the settings of a study."""

    settings: StudySettings

    @property
    def catalogue(self) -> Catalogue:
        """What a plan can name."""
        return OPTIM4RL

    @property
    def protocol(self) -> Protocol:
        """The seeds of runs."""
        return self.settings.evaluation.protocol

    def same_work(self, settings: Variant) -> bool:
        """Whether a variant is trained as the reference is, with these settings."""
        rate = self.settings.meta_learning_rates[0]
        one, other = (make_training(self.settings, x, rate, 0) for x in (settings, REFERENCE))
        return does_the_same(one, other)


def own_design(settings: StudySettings) -> OwnDesign:
    """Optim4RL with the paper's own ablation, the untrained control and classical optimizers."""
    no_pipeline = replace_field(REFERENCE, "resets", "never")
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
                # What it is made of is its name: the method's settings say nothing of it.
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
    """A meta-training of a variant with the settings of a study."""
    width = settings.evaluation.width
    return Training(settings.environment, variant, settings.training, width, rate, seed)


@dataclass(frozen=True)
class OwnWork:
    """Meta-trainings, and batches of agents with the optimizers that come of them."""

    settings: StudySettings

    @property
    def module(self) -> str:
        """The module whose code decides the results."""
        return "optim4rl.study.own"

    @property
    def _task(self) -> SuiteTask:
        (task,) = self.settings.evaluation.suite(self.settings.environment).tasks
        return task

    def meta_training(self, candidate: Candidate, values: Values, meta_seed: int) -> Training:
        """A meta-training of a candidate; of an untrained one its fresh weights."""
        rate = values[META_LEARNING_RATE]
        training = make_training(self.settings, candidate.settings, rate, meta_seed)
        return replace(training, trained=candidate.trained)

    def training(self, candidate: Candidate, values: Values, meta_seed: int) -> Job | None:
        """The meta-training as a job; a classical optimizer has none."""
        if candidate.kind == "baseline":
            return None
        return training_job(self.meta_training(candidate, values, meta_seed))

    def _maker(self, folder: Path | None, member: Member) -> Maker:
        """How a member's optimizer is made; its weights are put where workers find them."""
        if member.training is None:
            return baseline_maker(member.candidate.key)
        if folder is None:
            return Maker(weights=member.training.address)
        training: Training = from_json(Training, dict(member.training.arguments))
        return keep_members(folder, [training])[0][0]

    def _rate(self, values: Values) -> float:
        """The learning rate of a point: of a learned optimizer a multiple of its own."""
        if LEARNING_RATE in values:
            return float(values[LEARNING_RATE])
        return float(self.settings.training.learning_rate * values[STEP_SCALE])

    def _batches(
        self, folder: Path | None, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Batch]:
        task, maker = self._task, self._maker(folder, member)
        ((name, first),) = member.candidate.grid.items()
        groups: list[list[Values]]
        # What extends the grid comes in batches of its own, so that the others are found again.
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
        """A member's runs, in batches."""
        return [job(batch) for batch in self._batches(folder, member, points, seeds)]

    def read(
        self, folder: Path, member: Member, points: Sequence[Values], seeds: Sequence[int]
    ) -> list[Reported]:
        """What the runs reported, point by point."""
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
        """Short runs at multiples of the step."""
        return [job(batch) for batch in self._stress(folder, member, point)]

    def read_stress(self, folder: Path, member: Member, point: Values) -> Mapping[float, Curves]:
        """What these reported, by multiple."""
        found = read_batches(folder, self._stress(folder, member, point)).values()
        scales = self.settings.evaluation.protocol.stress_scales
        return dict(zip(scales, found, strict=True)) if found else {}

    def _floor(self) -> list[Batch]:
        task, protocol = self._task, self.settings.evaluation.protocol
        return split(task.config, UNTRAINED, [0.0], protocol.reported, task.rollouts)

    def floor(self) -> list[Job]:
        """Agents that never update."""
        return [job(batch) for batch in self._floor()]

    def read_floor(self, folder: Path) -> Curves | None:
        """What these reported."""
        (curves,) = read_batches(folder, self._floor()).values()
        return curves

    def once(self, metrics: frozenset[str]) -> list[Job]:
        """The identity experiment, where the plan asks for it."""
        return [identity_job(self.settings.identity)] if "identity" in metrics else []
