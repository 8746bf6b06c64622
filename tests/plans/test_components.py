"""The registries of components and metrics agree with themselves."""

import dataclasses
from typing import get_args

import pytest

from optim4rl.meta.config import ResetSchedule, Validation
from optim4rl.optimizers.cells import CellKind
from optim4rl.optimizers.processing import PROCESSINGS
from optim4rl.optimizers.structures import STRUCTURES
from optim4rl.plans.optim4rl import COMPONENTS, DEFAULT_METRICS, METRICS
from optim4rl.study.variant import REFERENCE

BY_KEY = {component.key: component for component in COMPONENTS}


def test_registry_is_consistent() -> None:
    assert len(BY_KEY) == len(COMPONENTS) == len({c.field for c in COMPONENTS})
    for component in COMPONENTS:
        values = [choice.value for choice in component.choices]
        assert len(set(values)) == len(values)
        assert component.reference is None or component.reference in values
        assert component.reference not in component.defaults
        assert {*component.defaults, component.remove, component.add} <= {*values, None}
        assert component.choice(values[0]).value == values[0]
        assert all(choice.description.endswith(".") for choice in component.choices)
    assert set(DEFAULT_METRICS) <= {metric.key for metric in METRICS}


def test_unknown_choice() -> None:
    with pytest.raises(KeyError, match=r"cell.*tanh"):
        BY_KEY["cell"].choice("tanh")


def test_the_registry_agrees_with_what_a_study_runs() -> None:
    """It repeats names that stand beside JAX code, so that a plan is read without JAX."""
    assert {c.field: c.study for c in COMPONENTS} == dataclasses.asdict(REFERENCE)
    runs = {
        "structure": STRUCTURES,
        "processing": PROCESSINGS,
        "cell": get_args(CellKind),
        "resets": get_args(ResetSchedule),
        "validation": get_args(Validation),
    }
    for field, values in runs.items():
        assert {choice.value for choice in BY_KEY[field].choices} <= {*values}
