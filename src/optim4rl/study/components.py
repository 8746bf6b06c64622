"""What the study can ablate, and how a plan's words name it.

The registries are plain data: a component is one field of a study's variant, a choice is one value
of that field. `map_plan` looks for their names in an ablation's words:

1. Words are unified: no case, no plurals, one spelling ("optimiser" is "optimizer", "logarithmic"
   is "log"), no articles or prepositions.
2. A name is found where all the words of one of its phrases stand side by side.
3. It is accepted if its phrases cover more than half of the words that matter, and more of them
   than any other name's. So "optimizer structure of the vision backbone" names nothing known.
4. "Non-adaptive" does not name "adaptive": behind "no", "non" or "without" a phrase names only the
   removal of what it says.

What is not recognised is reported with a reason, never guessed.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from optim4rl.study.plan import Ablation, Action, Plan, PlanError


@dataclass(frozen=True)
class Choice:
    """One value of a variant's field, the phrases that name it, and what it changes."""

    value: str
    phrases: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Component:
    """One part of the method that the study can ablate.

    Attributes:
      key: its name in commands and reports.
      field: the field of a study's variant that it sets.
      reference: the field's value in the published method; None where the study's own reference
        variant decides.
      phrases: what names the component in prose.
      description: what the method does there, in one sentence.
      choices: every value of the field that can be asked for, the reference included.
      defaults: the values compared with the reference where a plan says REPLACE and names none.
      remove: the value that takes the component out; None where there is nothing without it.
      add: the value that ADD compares with the reference. What the method has already cannot be
        added: the comparison is then the one of `remove`, read from the other side.
    """

    key: str
    field: str
    reference: str | None
    phrases: tuple[str, ...]
    description: str
    choices: tuple[Choice, ...]
    defaults: tuple[str, ...]
    remove: str | None
    add: str | None

    def choice(self, value: str) -> Choice:
        """The choice of this value.

        Raises:
          KeyError: the component has no such value.
        """
        for choice in self.choices:
            if choice.value == value:
                return choice
        raise KeyError(f"component {self.key!r} has no value {value!r}")


@dataclass(frozen=True)
class Metric:
    """One family of measures that the study reports, and the phrases that name it."""

    key: str
    phrases: tuple[str, ...]
    description: str


COMPONENTS: Final = (
    Component(
        key="structure",
        field="structure",
        reference="adaptive",
        phrases=(
            "optimizer structure",
            "optimizer architecture",
            "structure of optimizer",
            "adaptive structure",
            "update structure",
            "update rule",
            "update function",
            "parameter update",
            "inductive bias",
            "adaptive inductive bias",
        ),
        description=(
            "The update divides a learned first moment by the root of a learned second one, "
            "Δθ = -α·m/√v, as Adam and RMSProp do."
        ),
        choices=(
            Choice(
                "adaptive",
                ("adaptive", "adaptive optimizer", "adam like", "rmsprop like"),
                "Δθ = -α·m/√v with learned m and v: the published structure.",
            ),
            Choice(
                "linear",
                ("linear", "linear update", "linear optimizer", "linearoptim", "affine"),
                "LinearOptim: Δθ = -α·(exp(o₁)·g + exp(o₂)·o₃), linear in the gradient.",
            ),
            Choice(
                "non_adaptive",
                (
                    "non adaptive",
                    "no division",
                    "no second moment",
                    "no normalization",
                    "first moment only",
                    "momentum only",
                ),
                "Δθ = -α·m: the division by √v is left out, the rest is unchanged.",
            ),
            Choice(
                "l2l",
                ("l2l", "l2lgd2", "andrychowicz", "learning to learn", "learning to learn l2l"),
                "L2LGD² (Andrychowicz et al. 2016): Δθ = -α·exp(o)·g, a learned step size alone.",
            ),
            Choice(
                "anchored",
                ("anchored", "adam anchored", "anchored adam", "anchored at adam", "residual adam"),
                "A learned correction around Adam: untrained, the update is exactly Adam's.",
            ),
            Choice(
                "mirrored",
                ("mirrored", "odd", "mirrored anchored", "sign symmetric", "sign equivariant"),
                "Anchored, reading nothing signed: mirrored gradients make mirrored updates.",
            ),
            Choice(
                "celo2",
                ("celo2", "adafactor feature"),
                "Celo2 (Moudgil et al. 2026): Δθ = -α·o, read from a tensor's scaled moments.",
            ),
            Choice(
                "star",
                ("star", "nominal term"),
                "STAR (Harrison et al. 2022): a nominal Adam-like term, a learned one, decay.",
            ),
            Choice(
                "open",
                ("open optimizer", "goldie"),
                "OPEN (Goldie et al. 2024): momenta of six time scales, noise in the actor.",
            ),
        ),
        defaults=("linear", "non_adaptive"),
        remove="non_adaptive",
        add="non_adaptive",
    ),
    Component(
        key="processing",
        field="processing",
        reference="sign_log",
        phrases=(
            "gradient processing",
            "processing of gradient",
            "agent gradient processing",
            "processing of agent gradient",
            "gradient transformation",
            "transformation of gradient",
            "gradient processing transformation",
            "input processing",
            "input transformation",
        ),
        description=(
            "The networks see a gradient as its sign and the logarithm of its size, "
            "[sgn g, log(|g| + ε)], and not as g itself."
        ),
        choices=(
            Choice(
                "sign_log",
                ("sign log", "sign and log", "log and sign", "current log", "original log"),
                "Input [sgn g, log(|g| + ε)]: the published processing.",
            ),
            Choice(
                "raw",
                (
                    "raw",
                    "raw gradient",
                    "raw gradient input",
                    "original gradient",
                    "unprocessed gradient",
                    "untransformed gradient",
                    "identity",
                    "identity transformation",
                    "identity mapping",
                    "no transformation",
                    "no processing",
                ),
                "Input g as it is, without any transformation; the output is linear.",
            ),
            Choice(
                "symlog",
                (
                    "symlog",
                    "symmetric log",
                    "signed log",
                    "alternative log",
                    "different log",
                    "alternative log scale",
                    "different log scale",
                    "log1p",
                ),
                "Input sgn(g)·log(1 + |g|/c): another logarithmic scale, linear around zero.",
            ),
            Choice(
                "raw_and_square",
                (
                    "raw and square",
                    "raw and squared gradient",
                    "gradient and squared gradient",
                    "version b",
                    "version b input",
                ),
                "Inputs g and g²: what the later release of the method uses.",
            ),
            Choice(
                "andrychowicz",
                (
                    "andrychowicz",
                    "processing of andrychowicz",
                    "l2l processing",
                    "l2lgd2",
                    "l2l",
                    "l2l transformation",
                ),
                "Input (log|g|/p, sgn g), or (-1, exp(p)·g) for tiny g (Andrychowicz 2016).",
            ),
        ),
        defaults=("raw", "symlog"),
        remove="raw",
        add="raw",
    ),
    Component(
        key="resets",
        field="resets",
        reference="staggered",
        phrases=(
            "pipeline training",
            "agent reset",
            "reset of agent",
            "reset schedule",
            "reset interval",
            "periodic reset",
            "staggered reset",
        ),
        description=(
            "Pipeline training re-initialises the agents at evenly spaced times, so that the "
            "optimizer always learns from agents of all ages."
        ),
        choices=(
            Choice(
                "staggered",
                ("staggered", "staggered reset", "evenly spaced", "evenly spaced reset"),
                "Every agent has its own evenly spaced reset time: the published schedule.",
            ),
            Choice(
                "never",
                (
                    "never",
                    "never reset",
                    "no reset",
                    "no pipeline",
                    "start at once",
                    "all at once",
                    "all agent start at once",
                    "standard training",
                    "vanilla training",
                    "conventional training",
                ),
                "All agents start at once and are never reset.",
            ),
            Choice(
                "synchronous",
                (
                    "synchronous",
                    "synchronous reset",
                    "synchronized reset",
                    "simultaneous reset",
                    "reset all agent together",
                ),
                "All agents are reset together, so they are all of one age.",
            ),
            Choice(
                "random",
                ("random reset", "random interval", "random reset interval", "stochastic reset"),
                "Agents are reset at random times instead of evenly spaced ones.",
            ),
        ),
        defaults=("never",),
        remove="never",
        add="never",
    ),
    Component(
        key="cell",
        field="cell",
        reference="gru",
        phrases=(
            "gru",
            "gru cell",
            "recurrent cell",
            "recurrent unit",
            "recurrent network",
            "recurrent neural network",
            "recurrent architecture",
            "gated recurrent unit",
            "rnn cell",
            "rnn architecture",
        ),
        description="A gated recurrent unit (GRU) keeps the memory of each agent parameter.",
        choices=(
            Choice("gru", ("gru", "gru cell", "gated recurrent unit"), "The published cell."),
            Choice(
                "lstm",
                ("lstm", "lstm cell", "long short term memory"),
                "A long short-term memory cell (LSTM) of the same hidden size.",
            ),
            Choice(
                "none",
                ("no cell", "mlp", "feed forward", "without memory"),
                "No cell: the head reads the features, and no hidden state is kept.",
            ),
        ),
        defaults=("lstm",),
        remove=None,
        add=None,
    ),
    Component(
        key="validation",
        field="validation",
        reference=None,
        phrases=(
            "validation rollout",
            "dense validation",
            "meta loss",
            "meta objective",
            "outer loss",
            "outer objective",
        ),
        description=(
            "The meta-loss is the agent's loss on fresh rollouts, at the end of a window of inner "
            "updates or after each of them."
        ),
        choices=(
            Choice(
                "last",
                ("last", "last rollout", "final rollout", "single validation rollout"),
                "One validation rollout after the window's last update: the published objective.",
            ),
            Choice(
                "dense",
                ("dense", "dense validation", "every rollout", "every step", "per step validation"),
                "Each later rollout of the window also validates the updates before it.",
            ),
        ),
        defaults=("last", "dense"),
        remove="last",
        add="dense",
    ),
)

METRICS: Final = (
    Metric(
        "return",
        (
            "return",
            "reward",
            "performance",
            "score",
            "cumulative reward",
            "cumulative return",
            "average return",
            "average reward",
            "mean return",
            "mean reward",
            "episode return",
            "episode reward",
            "episodic return",
            "episodic reward",
            "total return",
            "total reward",
            "final return",
            "final performance",
            "sample efficiency",
            "data efficiency",
            "learning efficiency",
            "learning curve",
            "learning speed",
            "auc",
            "area under curve",
            "area under learning curve",
        ),
        "Final return, and the area under the learning curve, which also shows learning speed.",
    ),
    Metric(
        "stability",
        (
            "stability",
            "training stability",
            "learning stability",
            "performance stability",
            "return stability",
            "convergence",
            "convergence speed",
            "convergence rate",
            "variance",
            "return variance",
            "reward variance",
            "performance variance",
            "variance of return",
            "variance of reward",
            "variance of performance",
            "robustness",
            "reliability",
            "divergence",
            "divergence rate",
            "failure rate",
            "stuck rate",
        ),
        "Dispersion and risk of learning curves (Chan et al. 2020), failure rate and stuck rate.",
    ),
    Metric(
        "identity",
        (
            "identity function",
            "identity function approximation",
            "approximation of identity function",
            "identity approximation",
            "rnn accuracy",
            "accuracy of rnn",
            "rnn approximation",
            "rnn approximation accuracy",
            "identity function accuracy",
        ),
        "How well a recurrent network approximates the identity on recorded agent-gradients.",
    ),
)

DEFAULT_METRICS: Final = ("return", "stability")


# --- The mapping ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """What became of one phrase of a plan.

    Attributes:
      text: the plan's words; empty for a default that stands in where it names nothing.
      key: the choice's value or the metric's key; None where nothing known is named.
      reason: why, for a reader.
    """

    text: str
    key: str | None
    reason: str


@dataclass(frozen=True)
class MappedAblation:
    """An ablation, the component it speaks of, and what it asks to compare and to measure.

    Attributes:
      ablation: the plan's own words.
      component: None where no known component is named.
      reason: why this component, or why none.
      replacements: one match per replacement; the component's own where the plan names none.
      metrics: one match per metric; `DEFAULT_METRICS` where the plan names none.
    """

    ablation: Ablation
    component: Component | None
    reason: str
    replacements: tuple[Match, ...]
    metrics: tuple[Match, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """The values to compare with the reference, each once."""
        return tuple(dict.fromkeys(m.key for m in self.replacements if m.key is not None))

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """The keys of the metrics to report, each once."""
        return tuple(dict.fromkeys(m.key for m in self.metrics if m.key is not None))


def map_plan(plan: Plan) -> tuple[MappedAblation, ...]:
    """Says for every ablation of a plan which component, choices and metrics it names.

    Never fails: what is not recognised is mapped to None, with a reason.
    """
    return tuple(_map_ablation(ablation) for ablation in plan.ablations)


def require_mapped(
    mapped: Sequence[MappedAblation], skip_unmapped: bool
) -> tuple[MappedAblation, ...]:
    """Selects the ablations that can be run: those with a component and a value to compare.

    Args:
      mapped: what `map_plan` returned.
      skip_unmapped: leave out what is not recognised instead of raising.

    Raises:
      PlanError: something is not recognised and `skip_unmapped` is false, or nothing is left.
    """
    problems = [problem for entry in mapped for problem in _problems(entry)]
    runnable = tuple(entry for entry in mapped if entry.component and entry.values)
    if problems and not skip_unmapped:
        raise PlanError(
            "the plan asks for what the study does not know:\n- "
            + "\n- ".join(problems)
            + "\nLeave these out by skipping unmapped parts, or change the plan's words."
        )
    if not runnable:
        raise PlanError(
            "nothing of the plan can be run:\n- " + "\n- ".join(problems or ["it has no ablation"])
        )
    return runnable


def plan_as_dict(plan: Plan, mapped: Sequence[MappedAblation]) -> dict[str, object]:
    """The plan and its mapping as plain values, ready for JSON."""
    ablations = [
        {
            **asdict(entry.ablation),
            "component": entry.component.key if entry.component else None,
            "field": entry.component.field if entry.component else None,
            "reason": entry.reason,
            "mapped_replacements": [asdict(match) for match in entry.replacements],
            "mapped_metrics": [asdict(match) for match in entry.metrics],
        }
        for entry in mapped
    ]
    return {"title": plan.title, "reasoning": plan.reasoning, "ablations": _jsonable(ablations)}


def registry_as_dict() -> dict[str, object]:
    """Every known component with its choices, and every metric, as plain values for JSON."""
    return {
        "components": _jsonable([asdict(component) for component in COMPONENTS]),
        "metrics": _jsonable([asdict(metric) for metric in METRICS]),
    }


def _jsonable(value: object) -> object:
    """The value with tuples as lists, as JSON reads them back."""
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value


def _problems(entry: MappedAblation) -> Iterable[str]:
    name = _short(entry.ablation.part or entry.ablation.title)
    if entry.component is None:
        yield f"part '{name}': {entry.reason}"
        return
    for kind, matches in (("replacement", entry.replacements), ("metric", entry.metrics)):
        for match in matches:
            if match.key is None:
                yield f"{kind} '{_short(match.text)}' of '{name}': {match.reason}"


def _map_ablation(ablation: Ablation) -> MappedAblation:
    component, reason = _map_part(ablation)
    if component is None:
        unknown = "not looked up, for the part is not known"
        replacements = tuple(Match(text, None, unknown) for text in ablation.replacements)
    elif ablation.replacements:
        replacements = tuple(_map_replacement(component, text) for text in ablation.replacements)
    else:
        replacements = _own_replacements(component, ablation.action)
    metrics = tuple(_map_metric(text) for text in ablation.metrics) or tuple(
        Match("", key, "the plan names no metric; reported by default") for key in DEFAULT_METRICS
    )
    return MappedAblation(ablation, component, reason, replacements, metrics)


def _map_part(ablation: Ablation) -> tuple[Component | None, str]:
    names = {c.key: (*c.phrases, *_negated(c.phrases)) for c in COMPONENTS}
    found = _find(ablation.part or ablation.title, names)
    component = next((c for c in COMPONENTS if c.key == found.key), None)
    reasons = [found.reason]
    if component is None:
        reasons.append(f"known components: {', '.join(names)}")
    if not ablation.part:
        reasons.append("the plan names no part, so its heading was read")
    if ablation.action is None:
        reasons.append("the plan states no action; read as REPLACE")
    return component, "; ".join(reasons)


def _map_replacement(component: Component, text: str) -> Match:
    names = {choice.value: choice.phrases for choice in component.choices}
    if component.remove is not None:
        present = (*component.phrases, *names.get(component.reference or "", ()))
        names[component.remove] += _negated(present)
    found = _find(text, names)
    if found.key is not None and found.key != component.reference:
        return found
    reason = found.reason if found.key is None else "it names the reference itself"
    return Match(text, None, f"{reason}; {_known(component)}")


def _own_replacements(component: Component, action: Action | None) -> tuple[Match, ...]:
    """What an ablation compares that names no replacement itself."""
    if action is None or action == "REPLACE":
        reason = f"the plan names no replacement; a default of {component.key}"
        return tuple(Match("", value, reason) for value in component.defaults)
    value = component.remove if action == "REMOVE" else component.add
    if value is None:
        reason = f"{component.key} can only be replaced; {_known(component)}"
    elif value == component.remove:
        reason = f"what is left without {component.key}"
    else:
        reason = f"what {component.key} adds"
    return (Match("", value, reason),)


def _map_metric(text: str) -> Match:
    names = {metric.key: metric.phrases for metric in METRICS}
    found = _find(text, names)
    if found.key is None:
        return Match(text, None, f"{found.reason}; known metrics: {', '.join(names)}")
    return found


def _known(component: Component) -> str:
    values = (c.value for c in component.choices if c.value != component.reference)
    return f"known replacements of {component.key}: {', '.join(values)}"


# --- Words ----------------------------------------------------------------------------------------

_WORD: Final = re.compile(r"[a-z0-9]+")
_BRITISH: Final = re.compile(r"is(e|er|ed|ing|ation)$")
_HEAD: Final = re.compile(r"[^(\[:]*")  # a name, before what explains it
_LONGEST: Final = 64  # words; more make no name

_SPELLINGS: Final = {
    spelling: word
    for word, spellings in {
        "": "a an and any are as by for from in is it its of on or our pre the their this to with",
        "no": "non not without remove removing removed removal disable disabled disabling",
        "log": "logarithm logarithmic logarithmically",
        "transformation": "transform transformed transforming",
        "processing": "processed preprocess preprocessed preprocessing",
        "scale": "scaling scaled",
        "square": "squared",
        "update": "updating",
        "reset": "resetting",
        "gru": "grus",
        "pipeline": "pipelined pipelining",
        "symmetric": "symmetrical",
        "robustness": "robust",
        "stability": "stable instability",
    }.items()
    for spelling in spellings.split()
}
# Words that say nothing about which component, choice or metric is meant.
_NEUTRAL: Final = frozenset(
    word
    for words in (
        "approach block component design mechanism method module part scheme step strategy",
        "technique variant version novel proposed basic plain simple standard",
        "agent learned meta optim4rl rl training across over run seed",
        "function input scale structure transformation update",
    )
    for word in words.split()
)
_CLAUSE: Final = frozenset({"inspired", "such", "that", "using", "via", "where", "which"})


def _find(text: str, names: Mapping[str, Sequence[str]]) -> Match:
    """Finds the one name that `text` stands for, by its head or else by all of its words."""
    whole = normalised_words(text)
    head = normalised_words((_HEAD.match(text) or [""])[0])
    clause = next((i for i, word in enumerate(head) if word in _CLAUSE), len(head))
    found = _find_in(head[:clause], text, names)
    return found if found.key is not None else _find_in(whole, text, names)


def _find_in(words: Sequence[str], text: str, names: Mapping[str, Sequence[str]]) -> Match:
    covered = {name: covered_words(words, phrases) for name, phrases in names.items()}
    most = max(len(places) for places in covered.values())
    if most == 0:
        return Match(text, None, "it names nothing known")
    best = [name for name, places in covered.items() if len(places) == most]
    if len(best) > 1:
        return Match(text, None, f"it could mean {' or '.join(best)}")
    (name,) = best
    found = " ".join(words[i] for i in sorted(covered[name]))
    any_name = frozenset[int]().union(*covered.values())
    matter = [i for i, word in enumerate(words) if word not in _NEUTRAL or i in any_name]
    if 2 * most <= len(matter):
        return Match(text, None, f"only '{found}' in it is known ({name}), the rest is not")
    return Match(text, name, f"named by '{found}'")


def covered_words(words: Sequence[str], phrases: Iterable[str]) -> frozenset[int]:
    """The places of all words that belong to one of the phrases."""
    places: set[int] = set()
    for phrase in map(_phrase, phrases):
        for i in range(len(words) - len(phrase) + 1):
            negated = i > 0 and words[i - 1] == "no" and phrase[0] != "no"
            if words[i : i + len(phrase)] == phrase and not negated:
                places.update(range(i, i + len(phrase)))
    return frozenset(places)


def normalised_words(text: str) -> tuple[str, ...]:
    """The words of a text in one spelling, the first few of them."""
    lowered = unicodedata.normalize("NFKC", text).lower().replace("nonadaptive", "non adaptive")
    words = (_unified(word) for word in _WORD.findall(lowered))
    return tuple(word for word in words if word)[:_LONGEST]


_phrase: Final = functools.cache(normalised_words)  # for the registry's phrases, which are few


def _unified(word: str) -> str:
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "aisu":  # a plural, not "bias"
        word = word[:-1]
    return _SPELLINGS.get(word, _BRITISH.sub(r"iz\1", word))


def _negated(phrases: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"no {phrase}" for phrase in phrases)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
