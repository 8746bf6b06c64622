"""What a study can ablate and measure: the catalogue that a plan's words are looked up in.

A catalogue is plain data: a component is one field of a study's settings, a choice is one value of
that field. `mapping.map_plan` looks for their phrases in a plan's words. An experiment has a
catalogue of its own; `OPTIM4RL` is that of this project's own study.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# A value of a field, as JSON has it.
Value = str | int | float | bool


def _split(phrases: str | tuple[str, ...]) -> tuple[str, ...]:
    """Phrases of one text, apart by semicolons, or of several."""
    parts = phrases.split(";") if isinstance(phrases, str) else phrases
    return tuple(part.strip() for part in parts)


@dataclass(frozen=True)
class Choice:
    """One value of a field, the phrases that name it, and what it changes.

    Attributes:
      value: the field's value.
      phrases: what names it in prose: a tuple, or one text with semicolons between.
      description: what it does, in one sentence.
    """

    value: Value
    phrases: str | tuple[str, ...]
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", _split(self.phrases))


@dataclass(frozen=True)
class Component:
    """One part of the method that the study can ablate.

    Attributes:
      key: its name in commands and reports.
      phrases: what names the component in prose: a tuple, or one text with semicolons between.
      choices: every value of the field that can be asked for, the reference included.
      description: what the method does there, in one sentence.
      field: the field of a study's settings that it sets; by default the key.
      reference: the field's value in the published method, which no plan can ask for as a
        replacement; None where every value may be one.
      study: the field's value in the study's own reference; an experiment fills it in.
      defaults: the values compared with the reference where a plan says REPLACE and names none; by
        default all.
      remove: the value that takes the component out; None where there is nothing without it.
      add: the value that ADD compares with the reference. What the method has already cannot be
        added: the comparison is then the one of `remove`, read from the other side.
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
        object.__setattr__(self, "phrases", _split(self.phrases))
        object.__setattr__(self, "field", self.field or self.key)

    def choice(self, value: Value) -> Choice:
        """The choice of this value.

        Raises:
          KeyError: the component has no such value.
        """
        for choice in self.choices:
            if choice.value == value:
                return choice
        raise KeyError(f"component {self.key!r} has no value {value!r}")

    @property
    def alternatives(self) -> tuple[Choice, ...]:
        """The choices that differ from the study's reference."""
        return tuple(choice for choice in self.choices if choice.value != self.study)


@dataclass(frozen=True)
class Metric:
    """What a study reports under one name, and the phrases that name it.

    Attributes:
      key: its name in reports, and what an experiment's `run` calls it.
      phrases: what names it in prose: a tuple, or one text with semicolons between.
      description: what is measured, in one sentence.
      better: the better direction.
      unit: of its values.
      reported: whether `run` reports it; False for what a study works out of other metrics.
    """

    key: str
    phrases: str | tuple[str, ...]
    description: str = ""
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    reported: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", _split(self.phrases))


@dataclass(frozen=True)
class Catalogue:
    """All that a plan can name in one experiment.

    Attributes:
      name: the experiment's.
      components: what can be ablated.
      metrics: what can be measured.
      default_metrics: keys of those that are reported where a plan names none.
      further_metrics: by component, what the catalogue's planner measures besides.
      about: what the method is, in a few words.
      extent: how many of a rule's weights a value touches, and how many there are; None where that
        says nothing.
    """

    name: str
    components: tuple[Component, ...]
    metrics: tuple[Metric, ...]
    default_metrics: tuple[str, ...]
    further_metrics: tuple[tuple[str, tuple[str, ...]], ...] = ()
    about: str = ""
    extent: Callable[[str, Value], tuple[int, int]] | None = None


def reference_of(component: Component) -> Choice:
    """The choice that the study's reference has."""
    assert component.study is not None, "an experiment fills it in"
    return component.choice(component.study)
