"""Catalogues: the components that a study can ablate, and the metrics that it can report.

A catalogue is plain data: a component is one field of a study's settings, and a choice is one value
of that field. `mapping.map_plan` looks for their phrases in a plan's words. Each experiment has a
catalogue; `OPTIM4RL` is the catalogue of this project's own study.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# A value of a field, as in JSON.
Value = str | int | float | bool


class _Named:
    """Something that a plan can name: its phrases become a tuple."""

    phrases: str | tuple[str, ...]

    def __post_init__(self) -> None:
        parts = self.phrases.split(";") if isinstance(self.phrases, str) else self.phrases
        object.__setattr__(self, "phrases", tuple(part.strip() for part in parts))

    @property
    def name(self) -> str:
        """Return its name in prompts and proposed plans: the first of its phrases."""
        return self.phrases[0]


@dataclass(frozen=True)
class Choice(_Named):
    """Describe one value of a field.

    Attributes:
      value: the field's value.
      phrases: words that name it in a plan: a tuple, or one text separated by semicolons.
      description: its effect, in one sentence.
    """

    value: Value
    phrases: str | tuple[str, ...]
    description: str = ""


@dataclass(frozen=True)
class Component(_Named):
    """Describe one part of the method that the study can ablate.

    Attributes:
      key: its name in commands and reports.
      phrases: words that name it in a plan: a tuple, or one text separated by semicolons.
      choices: all values of the field that a plan can ask for, with the reference.
      description: its role in the method, in one sentence.
      field: the field of a study's settings that it sets; by default the key.
      reference: the field's value in the published method, which is never a replacement; None if
        every value may be a replacement.
      study: the field's value in the study's own reference; an experiment fills it in.
      defaults: the values compared with the reference if a plan says REPLACE and names none; by
        default all.
      remove: the value that takes the component out; None if the method needs it.
      add: the value that ADD compares with the reference. If the method has the component already,
        this is the comparison of `remove`, read from the other side.
    """

    key: str
    phrases: str | tuple[str, ...]
    choices: tuple[Choice, ...]
    description: str = ""
    field: str = ""
    reference: Value | None = None
    study: Value | None = None
    defaults: tuple[Value, ...] = ()
    remove: Value | None = None
    add: Value | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "field", self.field or self.key)

    def choice(self, value: Value) -> Choice:
        """Return the choice with this value.

        Raises:
          KeyError: the component has no such value.
        """
        for choice in self.choices:
            if choice.value == value:
                return choice
        raise KeyError(f"component {self.key!r} has no value {value!r}")

    @property
    def alternatives(self) -> tuple[Choice, ...]:
        """Return the choices that differ from the study's reference."""
        return tuple(choice for choice in self.choices if choice.value != self.study)


@dataclass(frozen=True)
class Metric(_Named):
    """Describe one metric that a study reports.

    Attributes:
      key: its name in reports, and in the result of an experiment's `run`.
      phrases: words that name it in a plan: a tuple, or one text separated by semicolons.
      description: the measured quantity, in one sentence.
      better: the better direction.
      unit: unit of its values.
      reported: whether `run` reports it; False if the study computes it from other metrics.
    """

    key: str
    phrases: str | tuple[str, ...]
    description: str = ""
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    reported: bool = True


@dataclass(frozen=True)
class Catalogue:
    """List everything that a plan can name in one experiment.

    Attributes:
      name: the experiment's name.
      components: the components that can be ablated.
      metrics: the metrics that can be reported.
      default_metrics: keys of the metrics that are reported if a plan names none.
      further_metrics: by component, further metrics that the catalogue's planner proposes.
      about: the method in a few words.
      extent: returns how many of a rule's weights a value changes, and how many there are; None if
        the experiment has no such count.
    """

    name: str
    components: tuple[Component, ...]
    metrics: tuple[Metric, ...]
    default_metrics: tuple[str, ...]
    further_metrics: tuple[tuple[str, tuple[str, ...]], ...] = ()
    about: str = ""
    extent: Callable[[str, Value], tuple[int, int]] | None = None


def reference_of(component: Component) -> Choice:
    """Return the choice of the study's reference."""
    assert component.study is not None, "an experiment fills it in"
    return component.choice(component.study)
