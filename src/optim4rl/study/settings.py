"""How large a study is: what is trained, on what, how often, and how it is evaluated."""

from dataclasses import dataclass
from typing import Literal

from optim4rl.meta.trainer import MetaClip

IdentityScale = Literal["smoke", "quick", "paper"]

# Seeds of runs that choose something and of runs that are reported never meet.
EVALUATION_SEED = 1_000
TUNING_SEED = 5_000
STRESS_SEED = 9_000
TUNING_META_SEED = 100


@dataclass(frozen=True)
class TrainingSettings:
    """Meta-training of every variant, apart from what a variant replaces.

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
    iterations: int = 200
    inner_updates: int = 4
    reset_interval: int = 98
    learning_rate: float = 3e-3
    meta_clip: MetaClip = "value"


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation of every optimizer.

    Attributes:
        width: units of the agent's dense layer.
        num_envs: environments of the agent.
        updates: updates of each run.
        seeds: runs of each meta-seed.
        tuning_seeds: runs that rates are chosen on, other seeds than the reported ones.
        classical_rates: learning rates that classical optimizers are tuned over.
        step_scales: multiples of alpha that learned optimizers are tuned over.
        stress_scales: multiples of the tuned rate in the stress test.
        stress_updates: updates of each stress run.
        stress_seeds: stress runs at each scale, of each meta-seed.
    """

    width: int = 64
    num_envs: int = 64
    updates: int = 390
    seeds: int = 5
    tuning_seeds: int = 3
    classical_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    step_scales: tuple[float, ...] = (1.0,)
    stress_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    stress_updates: int = 60
    stress_seeds: int = 10


@dataclass(frozen=True)
class StudySettings:
    """A whole study.

    Attributes:
        environment: the task, by name.
        meta_seeds: meta-trainings of every variant that are reported.
        meta_learning_rates: chosen per variant where there are several.
        tuning_meta_seeds: meta-trainings that each meta-learning rate is judged by, others than the
            reported ones.
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
        counts = {
            "meta_seeds": self.meta_seeds,
            "tuning_meta_seeds": self.tuning_meta_seeds,
            "seeds": self.evaluation.seeds,
            "tuning_seeds": self.evaluation.tuning_seeds,
            "updates": self.evaluation.updates,
            "stress_updates": self.evaluation.stress_updates,
            "stress_seeds": self.evaluation.stress_seeds,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} = {count!r}: at least 1 is needed")
        grids = {
            "meta_learning_rates": self.meta_learning_rates,
            "classical_rates": self.evaluation.classical_rates,
            "step_scales": self.evaluation.step_scales,
            "stress_scales": self.evaluation.stress_scales,
        }
        for name, grid in grids.items():
            if not grid or any(not 0 < x < float("inf") for x in grid):
                raise ValueError(f"{name} = {grid!r}: one or more positive numbers are needed")
            if list(grid) != sorted(set(grid)):
                raise ValueError(f"{name} = {grid!r}: the numbers must ascend")


# Seconds: proves that the machinery runs, and nothing else.
SMOKE = StudySettings(
    meta_seeds=2,
    identity="smoke",
    training=TrainingSettings(width=8, agents=4, envs_per_agent=4, iterations=6, reset_interval=4),
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

# Minutes on two cores: many environments to an agent and narrow agents in meta-training.
QUICK = StudySettings()

# Hours: the paper's protocol on Catch (64 agents of one environment each, 5e5 steps), everything
# tuned, agents of the paper's width, and enough seeds for an exact test to speak.
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
    ),
)

SCALES: dict[str, StudySettings] = {"smoke": SMOKE, "quick": QUICK, "paper": PAPER}
