"""Scores a plan by how much of a reference plan it finds."""

from collections.abc import Sequence
from dataclasses import dataclass

from optim4rl.plans.components import Value
from optim4rl.plans.mapping import MappedAblation
from optim4rl.plans.planner.render import unmapped
from optim4rl.plans.planner.text import PlannerError

Pair = tuple[str, Value]  # a component's key, and the value that replaces the reference's


@dataclass(frozen=True)
class Found:
    """Hold how much of one ablation of the reference plan a plan finds.

    Attributes:
        title: the ablation's title.
        wanted: its pairs.
        found: the pairs among them that the plan also proposes.
    """

    title: str
    wanted: tuple[Pair, ...]
    found: tuple[Pair, ...]


@dataclass(frozen=True)
class Score:
    """Score a plan against a reference plan, over pairs of component and replacement.

    Attributes:
        ablations: one entry for each ablation of the reference that a study can run.
        proposed: the pairs that the plan proposes, each once.
        wanted: the pairs of the reference, each once.
        unmapped: number of the plan's phrases that map to nothing; they do not count.
    """

    ablations: tuple[Found, ...]
    proposed: tuple[Pair, ...]
    wanted: tuple[Pair, ...]
    unmapped: int

    @property
    def hits(self) -> int:
        """Return the number of pairs that both plans have."""
        return len(set(self.proposed) & set(self.wanted))

    @property
    def precision(self) -> float:
        """Return the share of the proposed pairs that are wanted; 0 if none is proposed."""
        return self.hits / len(self.proposed) if self.proposed else 0.0

    @property
    def recall(self) -> float:
        """Return the share of the wanted pairs that are proposed."""
        return self.hits / len(self.wanted)

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall; 0 if both are 0."""
        return 2 * self.hits / (len(self.proposed) + len(self.wanted))

    @property
    def complete(self) -> int:
        """Return the number of the reference's ablations of which all pairs are found."""
        return sum(entry.found == entry.wanted for entry in self.ablations)


def score_plan(mapped: Sequence[MappedAblation], wanted: Sequence[MappedAblation]) -> Score:
    """Score which of the reference's ablations a plan finds.

    Args:
        mapped: the plan's ablations, from `map_plan`.
        wanted: the reference plan's ablations, from `map_plan`.

    Raises:
        PlannerError: a study can run no part of the reference.
    """
    proposed = pairs(mapped)
    ablations = tuple(
        Found(
            entry.ablation.title or entry.ablation.part,
            own,
            tuple(pair for pair in own if pair in proposed),
        )
        for entry in wanted
        if (own := pairs([entry]))
    )
    if not ablations:
        raise PlannerError(
            "a study can run no part of the reference plan, so there is nothing to find"
        )
    return Score(ablations, proposed, pairs(wanted), len(unmapped(mapped)))


def pairs(mapped: Sequence[MappedAblation]) -> tuple[Pair, ...]:
    """Return the pairs that a study compares, each once and in the plan's order."""
    found = (
        (entry.component.key, value)
        for entry in mapped
        if entry.component is not None
        for value in entry.values
        if value != entry.component.study
    )
    return tuple(dict.fromkeys(found))
