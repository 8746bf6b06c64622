"""Maps a plan's words to the components, choices and metrics of the registries.

1. Give all words one spelling (`words.normalised_words`).
2. Find a name if all words of one of its phrases stand side by side.
3. Accept the name if its phrases cover more than half of the words that matter, and every word that
   any other name's phrases cover. So "optimizer structure of the vision backbone" matches nothing,
   and "no cell, LSTM" matches neither.
4. "Non-adaptive" does not name "adaptive": after "no", "non" or "without", a phrase names only the
   removal of its component.

Words that are not recognised are reported with a reason, never guessed.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from optim4rl.plans.ablation import shortened
from optim4rl.plans.components import Catalogue, Component, Value
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.plan import Ablation, Action, Plan, PlanError, parse_plan, read_plan_bytes
from optim4rl.plans.words import covered_words, normalised_words

_HEAD: Final = re.compile(r"[^(\[:]*")  # a name, before its explanation
# Words that do not tell components, choices or metrics apart.
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


@dataclass(frozen=True)
class Match:
    """Hold the result of looking up one phrase of a plan.

    Attributes:
      text: the plan's words; empty for a default, if the plan names nothing.
      key: the choice's value or the metric's key; None if the words match no known name.
      reason: why, for people.
    """

    text: str
    key: Value | None
    reason: str


@dataclass(frozen=True)
class MappedAblation:
    """Hold an ablation with its component, its replacements and its metrics.

    Attributes:
      ablation: the plan's own words.
      component: the component that it names; None if it names no known component.
      reason: why this component, or why none.
      replacements: one match per replacement; the component's defaults if the plan names none.
      metrics: one match per metric; the catalogue's defaults if the plan names none.
    """

    ablation: Ablation
    component: Component | None
    reason: str
    replacements: tuple[Match, ...]
    metrics: tuple[Match, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """Return the values to compare with the reference, each once."""
        return tuple(dict.fromkeys(m.key for m in self.replacements if m.key is not None))

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """Return the keys of the metrics to report, each once."""
        return tuple(dict.fromkeys(str(m.key) for m in self.metrics if m.key is not None))

    @property
    def unknown(self) -> tuple[tuple[str, Match], ...]:
        """Return the phrases that no name matches, with their kind: part, replacement, metric."""
        if self.component is None:
            return (("part", Match(self.ablation.name, None, self.reason)),)
        found = [("replacement", match) for match in self.replacements]
        found += [("metric", match) for match in self.metrics]
        return tuple((kind, match) for kind, match in found if match.key is None)


@dataclass(frozen=True)
class MappedPlan:
    """Hold a plan that was read and mapped once.

    Attributes:
      source: the plan's bytes.
      plan: the parsed plan.
      mapped: the mapping of each of its ablations.
    """

    source: bytes
    plan: Plan
    mapped: tuple[MappedAblation, ...]

    @classmethod
    def parse(cls, source: bytes, known: Catalogue = OPTIM4RL) -> "MappedPlan":
        """Read a plan from its bytes.

        Raises:
          PlanError: `parse_plan` refuses it.
        """
        plan = parse_plan(source)
        return cls(source, plan, map_plan(plan, known))

    @classmethod
    def read(cls, path: str | Path, known: Catalogue = OPTIM4RL) -> "MappedPlan":
        """Read the plan file at `path`.

        Raises:
          PlanError: `read_plan` refuses it.
        """
        source = read_plan_bytes(path)
        try:
            return cls.parse(source, known)
        except PlanError as error:
            raise PlanError(f"plan {str(path)!r}: {error}") from None


def map_plan(plan: Plan, known: Catalogue = OPTIM4RL) -> tuple[MappedAblation, ...]:
    """Find for every ablation of a plan the component, choices and metrics that it names.

    Never fails: words that are not recognised are mapped to None, with a reason.
    """
    return tuple(_map_ablation(ablation, known) for ablation in plan.ablations)


def require_mapped(
    mapped: Sequence[MappedAblation], skip_unmapped: bool, experiment: str = "optim4rl"
) -> tuple[MappedAblation, ...]:
    """Select the ablations that can be run: those with a component and a value to compare.

    Args:
      mapped: the result of `map_plan`.
      skip_unmapped: leave out parts that are not recognised instead of raising.
      experiment: the experiment's name, for messages.

    Raises:
      PlanError: a part is not recognised and `skip_unmapped` is false, or no part is left.
    """
    problems = [problem for entry in mapped for problem in _problems(entry)]
    runnable = tuple(entry for entry in mapped if entry.component and entry.values)
    if problems and not skip_unmapped:
        raise PlanError(
            f"experiment {experiment} does not know these parts of the plan:\n- "
            + "\n- ".join(problems)
            + "\nChange the plan's words, or leave these parts out with --skip-unmapped."
        )
    if not runnable:
        raise PlanError(
            f"experiment {experiment} can run no part of the plan:\n- "
            + "\n- ".join(problems or ["it has no ablation"])
        )
    return runnable


def plan_as_dict(plan: Plan, mapped: Sequence[MappedAblation]) -> dict[str, object]:
    """Return the plan and its mapping as plain values, ready for JSON."""
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
    found = {"title": plan.title, "reasoning": plan.reasoning, "ablations": ablations}
    # Tuples become lists, as JSON reads them back.
    back: dict[str, object] = json.loads(json.dumps(found))
    return back


def _problems(entry: MappedAblation) -> Iterable[str]:
    for kind, match in entry.unknown:
        of = "" if kind == "part" else f" of '{shortened(entry.ablation.name)}'"
        yield f"{kind} '{shortened(match.text)}'{of}: {match.reason}"


def _map_ablation(ablation: Ablation, known: Catalogue) -> MappedAblation:
    component, reason = _map_part(ablation, known)
    if component is None:
        unknown = "not looked up, because the part is unknown"
        replacements = tuple(Match(text, None, unknown) for text in ablation.replacements)
    elif ablation.replacements:
        replacements = tuple(_map_replacement(component, text) for text in ablation.replacements)
    else:
        replacements = _own_replacements(component, ablation.action)
    metrics = tuple(_map_metric(text, known) for text in ablation.metrics) or tuple(
        Match("", key, "the plan names no metric; this one is reported by default")
        for key in known.default_metrics
    )
    return MappedAblation(ablation, component, reason, replacements, metrics)


def _map_part(ablation: Ablation, known: Catalogue) -> tuple[Component | None, str]:
    names: dict[Value, Sequence[str]] = {
        c.key: (*c.phrases, *_negated(c.phrases)) for c in known.components
    }
    found = _find(ablation.name, names)
    component = next((c for c in known.components if c.key == found.key), None)
    reasons = [found.reason]
    if component is None:
        reasons.append(f"known components: {', '.join(map(str, names))}")
    if not ablation.part:
        reasons.append("the plan names no part, so its heading is looked up")
    if ablation.action is None:
        reasons.append("the plan states no action, so it is read as REPLACE")
    return component, "; ".join(reasons)


def _map_replacement(component: Component, text: str) -> Match:
    names: dict[Value, tuple[str, ...]] = {x.value: tuple(x.phrases) for x in component.choices}
    if component.remove is not None:
        present = list(component.phrases)
        if component.reference is not None:
            present += names[component.reference]
        names[component.remove] += _negated(present)
    found = _find(text, names)
    if found.key is not None and found.key != component.reference:
        return found
    reason = found.reason if found.key is None else "it is the reference itself"
    return Match(text, None, f"{reason}; {_known(component)}")


def _own_replacements(component: Component, action: Action | None) -> tuple[Match, ...]:
    """Return the comparisons of an ablation that names no replacement itself."""
    if action is None or action == "REPLACE":
        reason = f"the plan names no replacement; this one is a default of {component.key}"
        values = component.defaults or tuple(choice.value for choice in component.alternatives)
        return tuple(Match("", value, reason) for value in values)
    value = component.remove if action == "REMOVE" else component.add
    if value is None:
        reason = f"{component.key} can only be replaced; {_known(component)}"
    elif value == component.remove:
        reason = f"the method without {component.key}"
    else:
        reason = f"the method with {component.key} added"
    return (Match("", value, reason),)


def _map_metric(text: str, known: Catalogue) -> Match:
    names: dict[Value, Sequence[str]] = {x.key: x.phrases for x in known.metrics}
    found = _find(text, names)
    if found.key is None:
        return Match(text, None, f"{found.reason}; known metrics: {', '.join(map(str, names))}")
    return found


def _known(component: Component) -> str:
    values = (str(c.value) for c in component.choices if c.value != component.reference)
    return f"known replacements of {component.key}: {', '.join(values)}"


def _find(text: str, names: Mapping[Value, Sequence[str]]) -> Match:
    """Find the one name that `text` means, by its head or else by all of its words."""
    whole = normalised_words(text)
    head = normalised_words((_HEAD.match(text) or [""])[0])
    clause = next((i for i, word in enumerate(head) if word in _CLAUSE), len(head))
    found = _find_in(head[:clause], text, names)
    if found.key is None:
        return _find_in(whole, text, names)
    explained = _find_in(whole[len(head) :], text, names).key
    if explained not in (None, found.key):
        return Match(text, None, f"it could mean {found.key} or {explained}")
    return found


def _find_in(words: Sequence[str], text: str, names: Mapping[Value, Sequence[str]]) -> Match:
    covered = {name: covered_words(words, phrases) for name, phrases in names.items()}
    most = max(len(places) for places in covered.values())
    if most == 0:
        return Match(text, None, "it matches no known name")
    best = [name for name, places in covered.items() if len(places) == most]
    if len(best) > 1:
        return Match(text, None, f"it could mean {' or '.join(map(str, best))}")
    (name,) = best
    others = [other for other, places in covered.items() if not places <= covered[name]]
    if others:
        return Match(text, None, f"it could mean {' or '.join(map(str, (name, *others)))}")
    found = " ".join(words[i] for i in sorted(covered[name]))
    any_name = frozenset[int]().union(*covered.values())
    matter = [i for i, word in enumerate(words) if word not in _NEUTRAL or i in any_name]
    if 2 * most <= len(matter):
        return Match(text, None, f"only '{found}' in it is known ({name})")
    return Match(text, name, f"named by '{found}'")


def _negated(phrases: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"no {phrase}" for phrase in phrases)
