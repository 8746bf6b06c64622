"""A variant of the method, the reference with at most one field replaced, and its training."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from optim4rl.meta.config import ResetSchedule, Validation
from optim4rl.optimizers.cells import CellKind
from optim4rl.optimizers.processing import PROCESSINGS
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.optimizers.structures import STRUCTURES
from optim4rl.study.settings import TrainingSettings

Environments = Literal["many", "one"]
Width = Literal["narrow", "full"]
Life = Literal["whole", "short"]

# The length of a short life as a share of a whole life, which lasts one run of the evaluation.
SHORT_LIFE = 1 / 8


@dataclass(frozen=True)
class Variant:
    """The choices that a study can ablate. The defaults are the reference: Optim4RL, Version A.

    Attributes:
        structure: update structure, a key of `STRUCTURES`.
        processing: gradient processing, a key of `PROCESSINGS`.
        cell: recurrent cell.
        resets: reset schedule of the agents; "staggered" is pipeline training.
        validation: meta-objective; "dense" counts every later rollout of a window.
        environments: environments per agent in meta-training: the number of the study's scale, or
            one with as many more agents.
        width: units of the agents' dense layer in meta-training: the scale's or the evaluation's.
        life: length of an agent's life in meta-training: the scale's or an eighth of it.
    """

    structure: str = "adaptive"
    processing: str = "sign_log"
    cell: CellKind = "gru"
    resets: ResetSchedule = "staggered"
    validation: Validation = "dense"
    environments: Environments = "many"
    width: Width = "narrow"
    life: Life = "whole"


REFERENCE = Variant()


def variant_spec(variant: Variant, clip: float | None) -> OptimizerSpec:
    """Return the rule of a variant: Version A with the variant's choices.

    The heads start at zero, so every variant starts as a known update whatever its seed; the
    reference starts as sign-SGD.
    """
    return OptimizerSpec(
        processing=PROCESSINGS[variant.processing](),
        structure=STRUCTURES[variant.structure](),
        cell=variant.cell,
        zero_head=True,
        clip=clip,
    )


def variant_training(
    variant: Variant, training: TrainingSettings, evaluation_width: int
) -> TrainingSettings:
    """Return the population, the agents and the lives of a variant's meta-training.

    Args:
        variant: the variant.
        training: the reference's meta-training.
        evaluation_width: units of the agents' dense layer in evaluation.
    """
    if variant.environments == "one":
        agents = training.agents * training.envs_per_agent
        training = dataclasses.replace(training, agents=agents, envs_per_agent=1)
    if variant.width == "full":
        training = dataclasses.replace(training, width=evaluation_width)
    if variant.life == "short":
        interval = max(1, round(SHORT_LIFE * training.reset_interval))
        training = dataclasses.replace(training, reset_interval=interval)
    return training
