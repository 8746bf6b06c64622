"""An experiment: what a study needs to know of a method, in a user's file or in this package.

```python
experiment = Experiment(
    name="my method",
    reference=Settings(),
    components=(Component("clip", ("gradient clipping",), (Choice(1.0, ("clip at 1",)), ...)),),
    metrics=(Metric("loss", ("loss", "training loss"), better="lower"),),
    run=run,  # from settings and a seed to {"loss": curve or number, ...}
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
    check_fields,
    check_values,
    from_json,
    shown,
    to_json,
)
from optim4rl.plans.components import Catalogue, Component, Metric

# Of a row that is in every study of an experiment, whatever the plan asks for. paper: an ablation
# of the paper's own. control: the reference without what makes it. baseline: another method, tuned.
ControlKind = Literal["paper", "control", "baseline"]
# Of any row. reference: the method as it is. replacement: asked for by the plan.
RowKind = Literal["reference", "replacement", "paper", "control", "baseline"]
# Meta-seeds that choose something and those that are reported never meet.
TUNING_META_SEED = 100
# Fields of the settings, or whatever else an experiment tunes, each with a value.
Values = Mapping[str, Any]
Grid = Mapping[str, Sequence[Any]]


class Divergence(Exception):  # noqa: N818 - an outcome, which a study reports
    """What `run` or `train` raises where it has run out of finite numbers."""


@dataclass(frozen=True)
class Control:
    """A row that every study of the experiment has.

    Attributes:
        key: short and unique, for files and tables.
        label: for people.
        settings: of the row.
        kind: why it is there.
        change: what differs from the reference, in words; by default the fields that do.
        grid: what it is tuned over, in place of the experiment's own.
        trained: False: `train` is not called; `run` has None for an artefact.
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
            raise ValueError(f"kind = {self.kind!r} of control {self.key!r}: known are {known}")


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a study needs to know of a method, apart from how it is run.

    Attributes:
        name: of the method, for people.
        reference: its settings as published: an instance of a frozen dataclass whose fields are
            text, numbers, tuples of them, or further such dataclasses.
        components: what can be ablated, one field of the settings each.
        metrics: what is reported. Rows are tuned by the first one, which comes first on the page.
        grid: fields that every row is tuned over before it is reported, on seeds of their own.
        train_grid: the same for trainings.
        controls: rows that every study has.
        seeds: reported runs of every row, or of every artefact of it.
        tuning_seeds: runs that each point of a grid is judged by.
        meta_seeds: trainings of every row; where nothing is trained they mean nothing.
        tuning_meta_seeds: trainings that each point of `train_grid` is judged by.
        task: what the method is measured on, for people.
        steps: what the horizontal axis of curves counts.
        default_metrics: reported where a plan names none; by default all.
        about: what the method is, in a few words.

    Raises:
        ValueError: something does not fit together; the message names the field.
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
        counts = ("seeds", "tuning_seeds", "meta_seeds", "tuning_meta_seeds")
        check_fields(self, **dict.fromkeys(counts, COUNT))
        _check_reference(self.reference)
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
                    raise ValueError(f"{what}: {key!r} is there twice")
        if not self.metrics[0].reported:
            raise ValueError(f"metrics: the first one, {self.metrics[0].key!r}, must be reported")

    @property
    def catalogue(self) -> Catalogue:
        """What a plan can name."""
        defaults = self.default_metrics or tuple(metric.key for metric in self.metrics)
        return Catalogue(self.name, self.components, self.metrics, defaults, about=self.about)

    @property
    def protocol(self) -> Protocol:
        """The seeds of runs that are reported and of those that choose."""
        return Protocol(self.seeds, self.tuning_seeds)

    @property
    def trains(self) -> bool:
        """Whether rows are trained, by meta-seeds, before they are run."""
        return True

    def same_work(self, settings: Any) -> bool:
        """Whether settings do the same as the reference, whatever they are called."""
        return bool(settings == self.reference)


@dataclass(frozen=True, kw_only=True)
class Experiment(Design):
    """A method that can be ablated, with the functions that run it. Further fields: see `Design`.

    Attributes:
        run: from settings and a seed, and from what `train` made if there is such a function, to a
            number or a curve for every metric. A number that is not finite is a run that diverged.
        train: from settings and a meta-seed to named arrays, for a method that learns something
            before it is evaluated; None where `run` is all.
        seconds: a run or a training that takes longer is ended, and the study says so.

    Raises:
        ValueError: something does not fit together; the message names the field.
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

    @property
    def trains(self) -> bool:
        """Whether there is a function that trains."""
        return self.train is not None


def _check_reference(reference: Any) -> None:
    """Refuse settings that cannot be written as JSON and read back."""
    frozen = dataclasses.is_dataclass(reference) and not isinstance(reference, type)
    if not frozen or not type(reference).__dataclass_params__.frozen:
        raise ValueError(
            f"reference = {shown(reference)}: an instance of a frozen dataclass is needed"
        )
    try:
        back = from_json(type(reference), json.loads(json.dumps(to_json(reference))))
    except (TypeError, ValueError, NameError) as error:
        raise ValueError(f"reference = {shown(reference)}: {error}") from error
    if back != reference:
        raise ValueError(
            f"reference = {shown(reference)}: it is another when written as JSON and read back; "
            "fields are text, numbers, tuples of them, or further frozen dataclasses"
        )


def _filled_in(reference: Any, component: Component) -> Component:
    """A component with the reference's value.

    Raises:
        ValueError: it sets no field, or a value does not fit; the message names it.
    """
    named = f"component {component.key!r}"
    names = [f.name for f in dataclasses.fields(reference)]
    if component.field not in names:
        raise ValueError(
            f"{named}: field = {component.field!r}; the settings have {', '.join(names)}"
        )
    own = getattr(reference, component.field)
    values = [choice.value for choice in component.choices]
    if own not in values:
        raise ValueError(f"{named}: the reference's value {own!r} is none of {values!r}")
    if not component.phrases or not all(choice.phrases for choice in component.choices):
        raise ValueError(f"{named}: it and every choice need phrases, the words that name them")
    for value in (*values, *component.defaults, component.remove, component.add):
        if value is not None and value not in values:
            raise ValueError(f"{named}: {value!r} is none of its choices {values!r}")
        if value is not None and value != own:
            replace_field(reference, component.field, value)
    return dataclasses.replace(component, study=own)


def _check_grid(
    name: str, grid: Grid, fields: Sequence[str], components: Sequence[Component]
) -> None:
    for key, values in grid.items():
        if key not in fields:
            raise ValueError(f"{name}: {key!r} is no field; the settings have {', '.join(fields)}")
        if not values:
            raise ValueError(f"{name}: {key!r} has no values to tune over")
        if any(component.field == key for component in components):
            raise ValueError(f"{name}: {key!r} is a component; what is ablated is not tuned")


def points(grid: Grid) -> list[dict[str, Any]]:
    """Every combination of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def replace_field(settings: Any, name: str, value: Any) -> Any:
    """The settings with one field replaced: an ablation.

    Raises:
        ValueError: there is no such field, or the value is the one it has, or it is refused.
    """
    names = [f.name for f in dataclasses.fields(settings)]
    if name not in names:
        raise ValueError(f"field = {name!r}: the fields are {', '.join(names)}")
    if getattr(settings, name) == value:
        raise ValueError(f"{name} = {value!r}: that is the reference itself")
    return dataclasses.replace(settings, **{name: value})


def describe_change(settings: Any, reference: Any) -> str:
    """What differs from the reference, as "field: old → new"."""
    pairs = [
        (f.name, getattr(reference, f.name), getattr(settings, f.name))
        for f in dataclasses.fields(reference)
    ]
    return "; ".join(f"{name}: {old} → {new}" for name, old, new in pairs if old != new)
