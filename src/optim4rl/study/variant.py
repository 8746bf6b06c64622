"""A variant of the method: the reference with at most one field replaced, and what it trains."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from optim4rl.meta.meta_gradient import Validation
from optim4rl.meta.resets import ResetSchedule
from optim4rl.optimizers.networks import CellKind
from optim4rl.optimizers.processing import PROCESSINGS
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.optimizers.structures import STRUCTURES


@dataclass(frozen=True)
class Variant:
    """The choices that a study can ablate. The defaults are the reference: Optim4RL, Version A.

    Attributes:
        structure: update structure, a key of `STRUCTURES`.
        processing: gradient processing, a key of `PROCESSINGS`.
        cell: recurrent cell.
        resets: reset schedule of the agents; "staggered" is pipeline training.
        validation: meta-objective; "dense" counts every later rollout of a window.
    """

    structure: str = "adaptive"
    processing: str = "sign_log"
    cell: CellKind = "gru"
    resets: ResetSchedule = "staggered"
    validation: Validation = "dense"


REFERENCE = Variant()


def replace_field(variant: Variant, field: str, value: str) -> Variant:
    """The variant with one field replaced: an ablation.

    Raises:
        ValueError: there is no such field, or the value is the one it has.
    """
    fields = [f.name for f in dataclasses.fields(Variant)]
    if field not in fields:
        raise ValueError(f"field = {field!r}: a variant's fields are {', '.join(fields)}")
    if getattr(variant, field) == value:
        raise ValueError(f"{field} = {value!r}: that is the reference itself")
    changes: dict[str, Any] = {field: value}
    return dataclasses.replace(variant, **changes)


def describe_change(variant: Variant, reference: Variant = REFERENCE) -> str:
    """What differs from the reference, as "field: old → new"."""
    pairs = [
        (field.name, getattr(reference, field.name), getattr(variant, field.name))
        for field in dataclasses.fields(Variant)
    ]
    return "; ".join(f"{name}: {old} → {new}" for name, old, new in pairs if old != new)


def variant_spec(variant: Variant, clip: float | None) -> OptimizerSpec:
    """The rule of a variant: Version A with the variant's choices.

    The heads start at zero, so that every variant starts as a known update (the reference as
    sign-SGD) whatever its seed.
    """
    return OptimizerSpec(
        processing=PROCESSINGS[variant.processing](),
        structure=STRUCTURES[variant.structure](),
        cell=variant.cell,
        zero_head=True,
        clip=clip,
    )
