"""Defines an experiment: a method that a study ablates, in a user's file or in this package.

```python
experiment = Experiment(
    name="my method",
    reference=Settings(),
    components=(Component("clip", ("gradient clipping",), (Choice(1.0, ("clip at 1",)), ...)),),
    metrics=(Metric("loss", ("loss", "training loss"), better="lower"),),
    run=run,  # takes settings and a seed, returns {"loss": curve or number, ...}
)
```
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from optim4rl.benchmark.protocol import Protocol
from optim4rl.fields import (
    COUNT,
    POSITIVE,
    Range,
    check_fields,
    check_values,
    from_json,
    shown,
    to_json,
)
from optim4rl.plans.components import Catalogue, Component, Metric
from optim4rl.plans.words import normalised_words

# Kinds of rows that every study of an experiment has, whatever the plan. paper: an ablation from
# the paper. control: the reference without its essential part. baseline: another method, tuned.
ControlKind = Literal["paper", "control", "baseline"]
# Kinds of all rows. reference: the method as published. replacement: asked for by the plan.
RowKind = Literal["reference", "replacement", "paper", "control", "baseline"]
# The meta-seeds that choose settings are never among the reported meta-seeds.
TUNING_META_SEED = 100
META_SEEDS = Range(
    f"a whole number from 1 to {TUNING_META_SEED}", lambda x: 1 <= x <= TUNING_META_SEED
)
# A value for each field of the settings, or for anything else that an experiment tunes.
Values = Mapping[str, Any]
Grid = Mapping[str, Sequence[Any]]


class Divergence(Exception):  # noqa: N818 - an outcome, which a study reports
    """`run` or `train` raises it when numbers are no longer finite."""


@dataclass(frozen=True)
class Control:
    """A row that every study of the experiment has.

    Attributes:
        key: short and unique, for files and tables.
        label: name for people.
        settings: settings of the row.
        kind: why the row is in the study.
        change: the difference from the reference in words; by default the fields that differ.
        grid: replaces the experiment's grid for tuning this row.
        trained: False: `train` is not called, and `run` gets None as the artefact.
    """

    key: str
    label: str
    settings: Any
    kind: ControlKind = "control"
    change: str = ""
    grid: Grid | None = None
    trained: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ControlKind):
            known = ", ".join(get_args(ControlKind))
            raise ValueError(f"kind = {self.kind!r} of control {self.key!r}: give one of {known}")


@dataclass(frozen=True, kw_only=True)
class Design:
    """A description of a method for a study, without the functions that run it.

    Attributes:
        name: the method's name, for people.
        reference: the published settings: an instance of a frozen dataclass whose fields are text,
            numbers, tuples of them, or further such dataclasses.
        components: the parts that can be ablated; each is one field of the settings.
        metrics: the reported metrics. The first one tunes all rows, and is shown first.
        grid: fields to tune for every row before it is reported, on separate seeds.
        train_grid: the same for trainings.
        controls: rows that every study has.
        seeds: reported runs of every row, or of every artefact of it.
        tuning_seeds: number of runs that each point of a grid is judged by.
        meta_seeds: trainings of every row; unused if nothing is trained.
        tuning_meta_seeds: number of trainings that each point of `train_grid` is judged by.
        task: name of the task that the method is measured on, for people.
        steps: unit of the horizontal axis of curves.
        default_metrics: metrics to report if a plan names none; by default all.
        about: the method in a few words.

    Raises:
        ValueError: two values do not fit together; the message names the field.
    """

    name: str
    reference: Any
    components: tuple[Component, ...]
    metrics: tuple[Metric, ...]
    grid: Grid = field(default_factory=dict)
    train_grid: Grid = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    seeds: int = 10
    tuning_seeds: int = 3
    meta_seeds: int = 5
    tuning_meta_seeds: int = 3
    task: str = ""
    steps: str = "steps"
    default_metrics: tuple[str, ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("seeds", "tuning_seeds", "tuning_meta_seeds"), COUNT)
        check_fields(self, **counts, meta_seeds=META_SEEDS)
        _check_settings("reference", self.reference)
        for control in self.controls:
            named = f"control {control.key!r}: settings"
            if type(control.settings) is not type(self.reference):
                kind = type(self.reference).__name__
                raise ValueError(f"{named} = {shown(control.settings)}: {kind} is needed")
            _check_settings(named, control.settings)
        for metric in self.metrics:
            _check_phrases(f"metric {metric.key!r}", metric.phrases)
        components = tuple(_filled_in(self.reference, x) for x in self.components)
        object.__setattr__(self, "components", components)
        for what, keys in (
            ("components", [x.key for x in components]),
            ("metrics", [x.key for x in self.metrics]),
            ("controls", ["reference", *(x.key for x in self.controls)]),
        ):
            if not keys:
                raise ValueError(f"{what} = (): at least one is needed")
            for key in keys:
                if keys.count(key) > 1:
                    raise ValueError(f"{what}: {key!r} is there twice; give each key once")
        known = [x.key for x in self.metrics]
        for key in self.default_metrics:
            if key not in known:
                raise ValueError(
                    f"default_metrics: {key!r} is not a metric; the metrics are {', '.join(known)}"
                )
        if not self.metrics[0].reported:
            raise ValueError(
                f"metrics: the first one is {self.metrics[0].key!r}; give one that `run` reports"
            )

    @property
    def catalogue(self) -> Catalogue:
        """Return the components and metrics that a plan can name."""
        defaults = self.default_metrics or tuple(metric.key for metric in self.metrics)
        return Catalogue(self.name, self.components, self.metrics, defaults, about=self.about)

    @property
    def protocol(self) -> Protocol:
        """Return the seeds of reported runs and of tuning runs."""
        return Protocol(self.seeds, self.tuning_seeds)

    @property
    def trains(self) -> bool:
        """Return whether rows are trained, one training per meta-seed, before they are run."""
        return True

    def same_work(self, settings: Any) -> bool:
        """Return whether settings do the same as the reference, whatever their names."""
        return bool(settings == self.reference)


@dataclass(frozen=True, kw_only=True)
class Experiment(Design):
    """A method that can be ablated, with the functions that run it. `Design` has further fields.

    Attributes:
        run: takes settings and a seed, and the result of `train` if the experiment has it. Returns
            a number or a curve for every metric. A number that is not finite means divergence.
        train: takes settings and a meta-seed and returns named arrays, for a method that learns
            something before its evaluation; None if the method has only `run`.
        seconds: time limit of one run or training; the study ends and reports slower ones.

    Raises:
        ValueError: two values do not fit together; the message names the field.
    """

    run: Callable[..., Mapping[str, Any]]
    train: Callable[..., Mapping[str, Any]] | None = None
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(Experiment, {"seconds": self.seconds}, seconds=POSITIVE)
        for name in ("run", "train"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ValueError(f"{name} = {shown(function)}: a function is needed")
        names = [f.name for f in dataclasses.fields(self.reference)]
        for name in ("grid", "train_grid"):
            _check_grid(name, getattr(self, name), names, self.components)
        for control in self.controls:
            _check_grid(f"control {control.key!r}: grid", control.grid or {}, names, ())

    @property
    def trains(self) -> bool:
        """Return whether the experiment has a function that trains."""
        return self.train is not None


def _check_settings(name: str, settings: Any) -> None:
    """Refuse settings that do not survive being written as JSON and read back."""
    frozen = dataclasses.is_dataclass(settings) and not isinstance(settings, type)
    if not frozen or not type(settings).__dataclass_params__.frozen:
        raise ValueError(f"{name} = {shown(settings)}: an instance of a frozen dataclass is needed")
    try:
        back = from_json(type(settings), json.loads(json.dumps(to_json(settings))))
    except (TypeError, ValueError, NameError) as error:
        raise ValueError(f"{name} = {shown(settings)}: {error}") from error
    if back != settings:
        raise ValueError(
            f"{name} = {shown(settings)}: it changes when written as JSON and read back; "
            "fields must be text, numbers, tuples of them, or further frozen dataclasses"
        )


def _check_phrases(named: str, phrases: Sequence[str]) -> None:
    for phrase in phrases:
        if not normalised_words(phrase):
            raise ValueError(
                f"{named}: the phrase {phrase!r} has no word that names anything; give other words"
            )


def _require_json(named: str, value: Any) -> None:
    try:
        json.dumps(to_json(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{named}: {shown(value)} cannot be written as JSON; give text or a number of Python"
        ) from error


def _filled_in(reference: Any, component: Component) -> Component:
    """Return a component with the reference's value filled in.

    Raises:
        ValueError: the component sets no field, or a value does not fit; the message names it.
    """
    named = f"component {component.key!r}"
    names = [f.name for f in dataclasses.fields(reference)]
    if component.field not in names:
        raise ValueError(
            f"{named}: field = {component.field!r}: the settings have {', '.join(names)}"
        )
    own = getattr(reference, component.field)
    values = [choice.value for choice in component.choices]
    if own not in values:
        raise ValueError(
            f"{named}: the reference's value {own!r} is not among its choices {values!r}"
        )
    if not component.phrases or not all(choice.phrases for choice in component.choices):
        raise ValueError(
            f"{named}: phrases are missing; it and each choice need words that name them"
        )
    for phrases in (component.phrases, *(choice.phrases for choice in component.choices)):
        _check_phrases(named, phrases)
    for choice in component.choices:
        _require_json(named, choice.value)
    for value in (*values, *component.defaults, component.remove, component.add):
        if value is not None and value not in values:
            raise ValueError(f"{named}: {value!r} is not among its choices {values!r}")
        if value is not None and value != own:
            dataclasses.replace(reference, **{component.field: value})
    return dataclasses.replace(component, study=own)


def _check_grid(
    name: str, grid: Grid, fields: Sequence[str], components: Sequence[Component]
) -> None:
    if not isinstance(grid, Mapping):
        raise ValueError(f"{name} = {shown(grid)}: a dict of fields and their values is needed")
    for key, values in grid.items():
        if key not in fields:
            raise ValueError(
                f"{name}: {key!r} is not a field; the settings have {', '.join(fields)}"
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(
                f"{name}: {key!r} = {shown(values)}: a tuple of at least one value is needed"
            )
        for value in values:
            _require_json(f"{name}: {key!r}", value)
        if any(component.field == key for component in components):
            raise ValueError(f"{name}: {key!r} is a component, and components are not tuned")


def points(grid: Grid) -> list[Values]:
    """Return every combination of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def describe_change(settings: Any, reference: Any) -> str:
    """Describe the differences from the reference, as "field: old → new"."""
    pairs = [
        (f.name, getattr(reference, f.name), getattr(settings, f.name))
        for f in dataclasses.fields(reference)
    ]
    return "; ".join(f"{name}: {old} → {new}" for name, old, new in pairs if old != new)
