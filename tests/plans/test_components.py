"""The registries of components and metrics agree with themselves."""

import pytest

from optim4rl.plans.components import COMPONENTS, DEFAULT_METRICS, METRICS

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
