"""Say in sentences what a benchmark's runs show and what they cannot, by the rule for claims."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from optim4rl.benchmark.contender import Contender
from optim4rl.benchmark.loop import Reading, Results, scores_of
from optim4rl.benchmark.scale import MIN_META_SEEDS, Lead, Standing, lead_over
from optim4rl.benchmark.scores import SCORE_NAMES, SCORES, Score
from optim4rl.benchmark.tuning import is_coarse
from optim4rl.evaluation.claims import Claim, judge, smallest_effect
from optim4rl.evaluation.returns import Estimate, Statistic, compare
from optim4rl.pages.words import p_value, smallest_found, with_interval

# Roles of the contenders whose leads are judged.
CLAIMING = ("learned", "given")
# With fewer, the report says that intervals are too narrow.
FEW_SEEDS = 10
FEW_META_SEEDS = 6
TITLES: dict[Reading, str] = {
    "tuned": "tuned for each task",
    "one": "one setting for all tasks",
}


def task_names(results: Results) -> list[str]:
    """Return the names of a benchmark's tasks."""
    return [task.name for task in results.benchmark.suite.tasks]


def tuning_budget(results: Results) -> dict[str, int]:
    """Count the tuning runs of each contender, over all tasks and meta-seeds."""
    return {
        name: results.benchmark.protocol.tuning_seeds
        * sum(len(x.rates) for choice in choices for x in choice.each if len(x.rates) > 1)
        for name, choices in results.runs.choices.items()
    }


def counted(number: int, what: str) -> str:
    """Format a count: "1 task", "2 tasks"."""
    return f"{number} {what}{'s' * (number > 1)}"


def auc_order(standing: Standing | None) -> float:
    """Return a key for sorting: the highest mean AUC comes first, diverged ones last."""
    mean = None if standing is None else standing.auc.mean
    return np.inf if mean is None or np.isnan(mean.value) else -mean.value


def lead_cells(lead: Lead | None, statistic: Statistic) -> list[str]:
    """Format a lead: the difference by a statistic, and the probability of improvement."""
    if lead is None:
        return ["-", "-"]
    found = lead.difference
    difference = found.iqm if statistic == "iqm" else found.mean
    return [with_interval(difference), with_interval(lead.mean_improvement)]


@dataclass(frozen=True)
class LeadClaim:
    """Hold the claim about a learned or given contender against another, in one reading.

    Attributes:
        contender: its name.
        other: the other's name.
        reading: the reading.
        score: the score that is compared.
        lead: its lead over the other by this score.
        claim: the verdict.
    """

    contender: str
    other: str
    reading: Reading
    score: Score
    lead: Lead
    claim: Claim


def lead_claims(results: Results) -> list[LeadClaim]:
    """Judge every learned or given contender against each baseline and its untrained control.

    All comparisons are judged together, by the score that chooses settings in this suite. The
    difference is between interquartile means of normalised scores. Its interval also resamples the
    runs that define the scale.
    """
    b, scale = results.benchmark, results.scale
    if not scale.resolved.any():
        return []
    pairs = [
        (contender.name, other, reading)
        for contender in b.contenders
        if contender.role in CLAIMING
        for reading in b.readings
        for other in (*(x.name for x in b.baselines), contender.control)
        if other is not None
    ]
    leads, comparisons, effects, intervals = [], [], [], []
    metric = f"normalised {SCORE_NAMES[b.suite.score]}"
    for name, other, reading in pairs:
        curves = results.runs.curves[reading]
        x, y = (scores_of(curves[each], SCORES[b.suite.score]) for each in (name, other))
        leads.append(lead_over(x, y, scale))
        x, y = (scale.apply(each)[scale.resolved] for each in (x, y))
        comparisons.append(compare(x, y, name, other, metric=metric))
        effects.append(smallest_effect(x, y))
        if (interval := leads[-1].difference.iqm) is not None:
            intervals.append(interval)
    judged = zip(pairs, leads, judge(comparisons, effects, intervals), strict=True)
    return [LeadClaim(*pair, b.suite.score, lead, claim) for pair, lead, claim in judged]


def claims(results: Results) -> list[str]:
    """Say what these runs show and what they cannot, the most important sentence first."""
    said: list[str] = []
    found = lead_claims(results)
    for contender in results.benchmark.contenders:
        if contender.role in CLAIMING:
            said += _claims_about(results, contender, found)
    return [*said, *_caveats(results, len(found))]


def _claims_about(
    results: Results, contender: Contender, found: Sequence[LeadClaim]
) -> Iterable[str]:
    name, count = f"**{contender.name}**", len(contender.members)
    if contender.role == "learned" and count < MIN_META_SEEDS:
        yield (
            f"{name}: nothing can be claimed about the recipe: a claim needs {MIN_META_SEEDS} "
            f"meta-seeds, and the run has {count}. The figures hold for these weights alone."
        )
    for each in found:
        if each.contender == contender.name:
            yield f"{name}, {TITLES[each.reading]}: {describe_claim(each)}"
    for reading in results.benchmark.readings:
        standing = results.standings[reading][contender.name]
        if standing.auc.mean is not None:
            yield f"{name}, {TITLES[reading]}: {_against_one(results, standing)}"
        yield (f"{name}, {TITLES[reading]}: {standing.diverged} of {standing.runs} runs diverged.")


def describe_claim(each: LeadClaim) -> str:
    """Put a verdict into a sentence, by the rule of `evaluation.claims`."""
    claim, other = each.claim, each.other
    figures = (
        f"difference in the IQM of normalised {SCORE_NAMES[each.score]} "
        f"{with_interval(each.lead.difference.iqm)}, corrected p {p_value(claim.p)}; a run of it "
        f"beats a run of {other} with probability {with_interval(each.lead.mean_improvement)}"
    )
    if any(claim.comparison.diverged):
        figures += "; a run diverged, so ranks decide"
    if claim.verdict == "not clear":
        return f"no clear difference from {other} ({figures}); {smallest_found(claim)}."
    side = "above" if claim.is_higher else "below"
    return f"clearly {side} {other} ({figures})."


def _against_one(results: Results, standing: Standing) -> str:
    """Compare a standing with the best of the baselines that define the scale of each task."""
    below, above = (
        [
            task
            for task, x in zip(task_names(results), standing.auc.tasks, strict=True)
            if x and _side_of_one(x) == side
        ]
        for side in ("below", "above")
    )
    return (
        f"normalised AUC {with_interval(standing.auc.mean)} on average and "
        f"{with_interval(standing.auc.iqm)} by its IQM, where 1 is the best of "
        f"{', '.join(results.benchmark.ceilings)} on each task; final return "
        f"{with_interval(standing.final.mean)}. The interval of AUC lies below 1 on "
        f"{', '.join(below) or 'no task'}, and above 1 on {', '.join(above) or 'no task'}."
    )


def _side_of_one(estimate: Estimate) -> str:
    if estimate.low > 1:
        return "above"
    # A diverged run leaves neither a mean nor an upper end: it is below any number.
    return "below" if estimate.high < 1 or np.isnan(estimate.value) else ""


def _caveats(results: Results, comparisons: int) -> Iterable[str]:
    protocol, ceilings = results.benchmark.protocol, ", ".join(results.benchmark.ceilings)
    who = f"none of {ceilings}" if ceilings else "no baseline"
    for scale, score in ((results.auc_scale, "AUC"), (results.final_scale, "final return")):
        resolved = zip(task_names(results), scale.resolved, strict=True)
        if lost := [task for task, ok in resolved if not ok]:
            yield (
                f"By {score}, {who} clearly beats the untrained policy on {', '.join(lost)}. "
                "These tasks have no scale, and no mean includes them."
            )
    edges = {x.name: _edges(results, x) for x in results.benchmark.contenders}
    if found := [f"{name} ({', '.join(tasks)})" for name, tasks in edges.items() if tasks]:
        yield (
            "These may be better than shown, because their best setting is at an edge of its grid: "
            f"{'; '.join(found)}."
        )
    coarse = [x.name for x in results.benchmark.contenders if is_coarse(x.grid)]
    if coarse:
        yield (
            "Neighbours in the grid are more than half a decade apart, so a better setting may lie "
            f"between them: {', '.join(coarse)}."
        )
    members = {x.name: len(x.members) for x in results.benchmark.contenders}
    spent = [runs // members[name] for name, runs in tuning_budget(results).items()]
    if any(spent):
        runs = " to ".join(dict.fromkeys(map(str, (min(spent), max(spent)))))
        yield f"Tuning took {runs} runs for each meta-seed of an optimizer; one rule holds for all."
    if protocol.seeds == 1:
        yield "One seed shows no spread: there are no intervals, and nothing is certain."
    elif protocol.seeds < FEW_SEEDS:
        yield f"{protocol.seeds} seeds are few: intervals are too narrow."
    few = [len(x.members) for x in results.benchmark.contenders if x.role == "learned"]
    if any(MIN_META_SEEDS <= count < FEW_META_SEEDS for count in few):
        yield (
            "With so few meta-seeds a bootstrap interval is somewhat too narrow (with four it "
            "covers the truth about 90 % of the time): look at each meta-seed, too."
        )
    if comparisons:
        yield (
            "A difference of interquartile means is called clear if its interval excludes 0 and "
            "its test, which treats meta-seeds and seeds as random, has p <= 0.05 after Holm's "
            f"correction for all {comparisons} comparisons here. Intervals of single tasks are not "
            "corrected."
        )


def _edges(results: Results, contender: Contender) -> list[str]:
    choices = results.runs.choices[contender.name]
    found = [
        task
        for index, task in enumerate(task_names(results))
        if any(choice.each[index].at_edge for choice in choices)
    ]
    several = len(results.benchmark.readings) > 1
    return found + ["one setting"] * (several and any(choice.one.at_edge for choice in choices))
