"""The protocol of every evaluation: tune on some seeds, report on others, then stress.

Classical and learned optimizers go through the same steps with the same budget of seeds; only the
grid of rates differs, and results state it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optim4rl.benchmark.tuning import Tuning, tune_rate
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.learning import Family, learning_curves
from optim4rl.fields import COUNT, POSITIVE, check_fields
from optim4rl.optimizers.rule import MetaParameters
from optim4rl.tasks.interface import EvaluationTask

# Seeds of runs that choose something and of runs that are reported never meet.
EVALUATION_SEED = 1_000
TUNING_SEED = 5_000
STRESS_SEED = 9_000


@dataclass(frozen=True)
class EvaluationSettings:
    """How an optimizer is evaluated.

    Attributes:
        width: units of the agent's dense layer.
        num_envs: environments of the agent.
        updates: updates of each run.
        seeds: reported runs.
        tuning_seeds: runs that each rate is judged by.
        classical_rates: learning rates that classical optimizers are tuned over.
        step_scales: multiples of alpha that learned optimizers are tuned over.
        stress_scales: multiples of the tuned rate in the stress test.
        stress_updates: updates of each stress run.
        stress_seeds: stress runs at each scale.
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

    def __post_init__(self) -> None:
        check_fields(
            self,
            width=COUNT,
            num_envs=COUNT,
            updates=COUNT,
            seeds=COUNT,
            tuning_seeds=COUNT,
            stress_updates=COUNT,
            stress_seeds=COUNT,
            classical_rates=POSITIVE,
            step_scales=POSITIVE,
            stress_scales=POSITIVE,
        )
        for name in ("classical_rates", "step_scales", "stress_scales"):
            require_grid(name, getattr(self, name))


def require_grid(name: str, grid: Sequence[float]) -> None:
    """Refuse a grid that is empty, not positive or not ascending.

    Raises:
        ValueError: the message names the grid.
    """
    if not grid or any(not 0 < x < float("inf") for x in grid):
        raise ValueError(f"{name} = {grid!r}: one or more positive numbers are needed")
    if list(grid) != sorted(set(grid)):
        raise ValueError(f"{name} = {grid!r}: the numbers must ascend")


@dataclass(frozen=True)
class Evaluation:
    """What an optimizer's evaluation found.

    Attributes:
        tuning: its rate and how it was chosen.
        curves: the reported runs.
        stress: short runs at multiples of the rate.
    """

    tuning: Tuning
    curves: Curves
    stress: Mapping[float, Curves]


def evaluate(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    rates: Sequence[float],
    settings: EvaluationSettings,
) -> Evaluation:
    """Choose the rate on the tuning seeds, then make the reported runs and the stress test.

    A single rate is no choice and is not tuned.
    """
    tuning = Tuning(float(rates[0]), tuple(rates), ())
    if len(rates) > 1:
        tuning = tune(task, family, parameters, rates, settings)
    (curves,) = learning_curves(
        task,
        family,
        parameters,
        rates=[tuning.rate],
        seeds=range(EVALUATION_SEED, EVALUATION_SEED + settings.seeds),
        updates=settings.updates,
    )
    stress = learning_curves(
        task,
        family,
        parameters,
        rates=[tuning.rate * scale for scale in settings.stress_scales],
        seeds=range(STRESS_SEED, STRESS_SEED + settings.stress_seeds),
        updates=settings.stress_updates,
    )
    return Evaluation(tuning, curves, dict(zip(settings.stress_scales, stress, strict=True)))


def tune(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    rates: Sequence[float],
    settings: EvaluationSettings,
) -> Tuning:
    """The best rate on the tuning seeds."""
    return tune_rate(
        task,
        family,
        parameters,
        rates=rates,
        seeds=range(TUNING_SEED, TUNING_SEED + settings.tuning_seeds),
        updates=settings.updates,
    )
