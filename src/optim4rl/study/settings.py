"""The size of a study: its task, its trainings, its evaluation, and the number of each."""

from dataclasses import dataclass, replace
from typing import Literal

from optim4rl.benchmark.protocol import Protocol, require_grid
from optim4rl.benchmark.suites import Suite, task_suite
from optim4rl.fields import COUNT, POSITIVE, check_fields
from optim4rl.meta.config import MetaClip

IdentityScale = Literal["smoke", "quick", "paper"]


@dataclass(frozen=True)
class TrainingSettings:
    """Meta-training of every variant; a variant may replace some settings.

    Attributes:
        width: units of the agents' dense layer.
        agents: agents side by side.
        envs_per_agent: environments of each agent.
        iterations: meta-iterations.
        inner_updates: K.
        reset_interval: in meta-iterations.
        learning_rate: inner learning rate alpha.
        meta_clip: see `MetaConfig`.
    """

    width: int = 32
    agents: int = 8
    envs_per_agent: int = 64
    iterations: int = 150
    inner_updates: int = 4
    reset_interval: int = 98
    learning_rate: float = 3e-3
    meta_clip: MetaClip = "value"

    def __post_init__(self) -> None:
        check_fields(
            self,
            width=COUNT,
            agents=COUNT,
            envs_per_agent=COUNT,
            iterations=COUNT,
            inner_updates=COUNT,
            reset_interval=COUNT,
            learning_rate=POSITIVE,
        )


@dataclass(frozen=True)
class EvaluationSettings:
    """The evaluation of every optimizer of a study.

    Attributes:
        width: units of the agent's dense layer.
        num_envs: environments of the agent.
        updates: updates of each run.
        seeds: number of reported runs.
        tuning_seeds: number of runs that judge each rate.
        classical_rates: learning rates for tuning classical optimizers.
        step_scales: multiples of alpha for tuning learned optimizers.
        stress_scales: multiples of the tuned rate in the stress test.
        stress_updates: updates of each stress run.
        stress_seeds: stress runs at each scale.
        extensions: the most half decades by which a grid of rates or step scales is extended, on a
            side where its best value lies at the edge.
    """

    width: int = 64
    num_envs: int = 64
    updates: int = 390
    seeds: int = 8
    tuning_seeds: int = 3
    classical_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    step_scales: tuple[float, ...] = (1.0,)
    stress_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    stress_updates: int = 60
    stress_seeds: int = 8
    extensions: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            width=COUNT,
            num_envs=COUNT,
            updates=COUNT,
            stress_updates=COUNT,
            classical_rates=POSITIVE,
            step_scales=POSITIVE,
            stress_scales=POSITIVE,
        )
        for name in ("classical_rates", "step_scales"):
            require_grid(name, getattr(self, name))
        _ = self.protocol

    @property
    def protocol(self) -> Protocol:
        """Return how often each optimizer runs."""
        return Protocol(
            self.seeds,
            self.tuning_seeds,
            self.stress_scales,
            self.stress_seeds,
            extensions=self.extensions,
        )

    def suite(self, environment: str) -> Suite:
        """Return the study's task as a suite of one task."""
        return task_suite(
            environment,
            rollouts=self.updates,
            stress_rollouts=self.stress_updates,
            width=self.width,
            num_envs=self.num_envs,
        )


@dataclass(frozen=True)
class StudySettings:
    """A whole study.

    Attributes:
        environment: the task, by name.
        meta_seeds: number of reported meta-trainings of every variant.
        meta_learning_rates: the rate is chosen per variant if there are several.
        tuning_meta_seeds: number of meta-trainings that judge each meta-learning rate; their seeds
            differ from the reported ones.
        identity: scale of the identity experiment.
        training: meta-training.
        evaluation: evaluation.
    """

    environment: str = "catch"
    meta_seeds: int = 3
    meta_learning_rates: tuple[float, ...] = (3e-3,)
    tuning_meta_seeds: int = 4
    identity: IdentityScale = "quick"
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        check_fields(self, meta_seeds=COUNT, tuning_meta_seeds=COUNT, meta_learning_rates=POSITIVE)
        require_grid("meta_learning_rates", self.meta_learning_rates)


# Seconds: shows only that everything runs.
SMOKE = StudySettings(
    meta_seeds=2,
    identity="smoke",
    training=TrainingSettings(width=4, agents=4, envs_per_agent=4, iterations=6, reset_interval=4),
    evaluation=EvaluationSettings(
        width=8,
        num_envs=8,
        updates=24,
        seeds=2,
        tuning_seeds=1,
        classical_rates=(1e-3, 1e-2),
        stress_scales=(1.0, 2.0),
        stress_updates=12,
        stress_seeds=2,
    ),
)

# Minutes on two cores: many environments per agent and narrow agents in meta-training.
QUICK = StudySettings()

# Half an hour: as much work as quick, everything tuned, enough meta-seeds for the test.
STANDARD = replace(
    QUICK,
    meta_seeds=10,
    meta_learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    evaluation=replace(
        QUICK.evaluation,
        classical_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        step_scales=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        extensions=2,
    ),
)

# Hours: the paper's protocol on Catch (64 agents of one environment each, 5e5 steps), everything
# tuned, agents of the paper's width, and enough seeds for the test.
PAPER = StudySettings(
    meta_seeds=6,
    meta_learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    identity="paper",
    training=TrainingSettings(
        width=256,
        agents=64,
        envs_per_agent=1,
        iterations=78,
        reset_interval=64,
        learning_rate=1e-3,
    ),
    evaluation=EvaluationSettings(
        width=256,
        seeds=10,
        tuning_seeds=5,
        classical_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        step_scales=(0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        stress_seeds=17,
        extensions=2,
    ),
)

# The same on the paper's small grid world: 512 agents of one environment each for 3e7 steps.
# Evaluation takes as many steps, with 512 environments.
PAPER_SMALL_DENSE_LONG = replace(
    PAPER,
    environment="small_dense_long",
    meta_seeds=5,
    meta_learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    tuning_meta_seeds=2,
    training=replace(
        PAPER.training, width=32, agents=512, iterations=586, reset_interval=72, learning_rate=3e-2
    ),
    evaluation=replace(
        PAPER.evaluation,
        width=32,
        num_envs=512,
        updates=2_930,
        tuning_seeds=4,
        classical_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        step_scales=(0.1, 0.3, 1.0, 3.0),
    ),
)

SCALES: dict[str, StudySettings] = {
    "smoke": SMOKE,
    "quick": QUICK,
    "standard": STANDARD,
    "paper": PAPER,
}


def settings_at(scale: str, environment: str) -> StudySettings:
    """Return the settings of a scale on a task; small_dense_long has its own at scale "paper"."""
    if (scale, environment) == ("paper", PAPER_SMALL_DENSE_LONG.environment):
        return PAPER_SMALL_DENSE_LONG
    return replace(SCALES[scale], environment=environment)
