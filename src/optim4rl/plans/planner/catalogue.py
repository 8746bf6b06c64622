"""Lists the components of a study for a prompt, and proposes plans from this list alone.

The catalogue's planner is deterministic. It proposes one ablation for each choice in the registry.
Choices that change more of the learned rule's weights come first.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from optim4rl.plans.components import Catalogue, Choice, Component, reference_of
from optim4rl.plans.plan import Ablation, Plan
from optim4rl.plans.planner.method import Method
from optim4rl.plans.planner.text import PlannerError
from optim4rl.plans.words import covered_words, normalised_words


def catalogue_text(known: Catalogue) -> str:
    """Return every component with its replacements, and every metric, as JSON for a prompt."""
    components = [
        {
            "part": component.name,
            "what the method does": component.description,
            "reference": reference_of(component).name,
            "replacements": [
                {"name": choice.name, "meaning": choice.description}
                for choice in component.alternatives
            ],
        }
        for component in known.components
    ]
    metrics = [{"name": m.name, "meaning": m.description} for m in known.metrics]
    return json.dumps({"components": components, "metrics": metrics}, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Candidate:
    """Hold one ablation that the catalogue can propose.

    Attributes:
        component: the ablated component.
        choice: its replacement.
        touched: number of the rule's weights that are added, dropped or change their shape.
        weights: number of weights of both rules; shared weights count once.
    """

    component: Component
    choice: Choice
    touched: int
    weights: int


def candidates(known: Catalogue) -> tuple[Candidate, ...]:
    """Return all choices that differ from the study's reference, largest changes first."""
    extent = known.extent or (lambda field, value: (0, 1))
    found = [
        Candidate(component, choice, *extent(component.field, choice.value))
        for component in known.components
        for choice in component.alternatives
    ]
    return tuple(sorted(found, key=lambda entry: -entry.touched / entry.weights))


def catalogue_plan(method: Method) -> Plan:
    """Return a plan with one ablation for each choice of each of the method's components.

    A text from outside has the components that it names.

    Raises:
        PlannerError: the text names no component.
    """
    known = method.known
    named = _named_components(method)
    chosen = [entry for entry in candidates(known) if entry.component.key in named]
    metrics = {metric.key: metric.name for metric in known.metrics}
    further = dict(known.further_metrics)
    ablations = tuple(
        Ablation(
            f"Ablation of {entry.component.name}: {entry.choice.name}",
            entry.component.name,
            "REPLACE",
            (entry.choice.name,),
            tuple(
                metrics[key]
                for key in (*known.default_metrics, *further.get(entry.component.key, ()))
            ),
            # Assume that the published design is right, until a study shows otherwise.
            expected="worse",
            tests=f"whether {entry.component.name} is needed as it is",
            priority=rank,
        )
        for rank, entry in enumerate(chosen, start=1)
    )
    reasons = "\n".join(_reasons(method, named, chosen))
    references = ", ".join(reference_of(component).name for component in known.components)
    introduction = (
        "One ablation for each replacement that the study knows, compared with the study's "
        f"reference ({references})."
    )
    if known.extent:
        introduction += (
            " They are ordered by the share of the learned rule's weights that are added, dropped "
            "or change their shape."
        )
    title = f"optim4rl-planner/catalogue/{method.name}"
    return Plan(title, f"{introduction}\n\n{reasons}", ablations)


def _reasons(method: Method, named: Mapping[str, str], chosen: list[Candidate]) -> Iterator[str]:
    for component in method.known.components:
        if component.key in named:
            found = "" if method.is_own else f" The text names it: '{named[component.key]}'."
            yield f"- {component.name}: {component.description}{found}"
        else:
            yield f"- {component.name}: left out, because the text does not name it."
    for rank, entry in enumerate(chosen, start=1):
        what = f"{entry.component.name}, {entry.choice.name}"
        if method.known.extent is None:
            yield f"{rank}. {what}. {entry.choice.description}".rstrip()
            continue
        if entry.touched:
            share = f"{entry.touched / entry.weights:.0%} of the rule's weights"
            extent = f"touches {share} ({entry.touched:,} of {entry.weights:,})"
        else:
            extent = "leaves every weight of the rule in place and changes only its training"
        yield f"{rank}. {what}: {extent}. {entry.choice.description}"


def _named_components(method: Method) -> dict[str, str]:
    """Return the method's components, each with the registry's phrase that names it."""
    components = method.known.components
    if method.is_own:
        return {component.key: component.name for component in components}
    named = {}
    sentences = [normalised_words(sentence) for sentence in _sentences(method.text)]
    for component in components:
        for phrase in component.phrases:
            if any(covered_words(words, (phrase,)) for words in sentences):
                named[component.key] = phrase
                break
    if not named:
        phrases = ", ".join(component.name for component in components)
        raise PlannerError(
            f"method {method.name!r} names no component that the study can ablate ({phrases}); "
            "give --model: a chat model may find more in it"
        )
    return named


# A name does not run over the end of a sentence or of a paragraph; long ones are read in pieces.
_SENTENCE: Final = re.compile(r"[.!?;:]\s|\n\s*\n")
_PIECE: Final = 48  # words; the reader of names takes 64, so pieces may overlap


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(text):
        words = sentence.split()
        for start in range(0, max(len(words), 1), _PIECE - 8):
            yield " ".join(words[start : start + _PIECE])
