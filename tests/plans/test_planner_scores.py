"""What plans are worth before they are run: scores against a reference, and lint."""

from pathlib import Path

import pytest

from optim4rl.plans.mapping import map_plan
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.plan import Ablation, Plan, read_plan
from optim4rl.plans.planner.catalogue import catalogue_plan
from optim4rl.plans.planner.method import method_of
from optim4rl.plans.planner.score import Score, score_plan
from optim4rl.plans.planner.text import PlannerError
from optim4rl.study.lint import lint

PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"
REFERENCE = read_plan(PUBLISHED)


def plan(*parts):
    """A plan of (part, replacements) pairs."""
    metrics = ("return",)
    ablations = (Ablation("", part, "REPLACE", values, metrics) for part, values in parts)
    return Plan("", "", tuple(ablations))


def score_of(found: Plan, reference: Plan) -> Score:
    return score_plan(map_plan(found), map_plan(reference))


# Scores


def test_the_catalogue_finds_both_ablations_of_the_published_plan():
    proposed = catalogue_plan(method_of(OPTIM4RL))
    score = score_of(proposed, REFERENCE)
    assert (score.complete, len(score.ablations)) == (2, 2)
    assert (score.hits, score.recall, score.unmapped) == (4, 1.0, 0)
    assert score.precision == 4 / len(proposed.ablations)


def test_a_plan_finds_itself():
    score = score_of(REFERENCE, REFERENCE)
    assert (score.precision, score.recall, score.f1, score.complete) == (1.0, 1.0, 1.0, 2)


def test_precision_recall_and_f1():
    found = plan(
        ("optimizer structure", ("linear", "star")),
        ("gradient processing", ("raw", "symlog")),
        ("pipeline training", ("never",)),
        ("cloud cover", ("rain",)),
        ("optimizer structure", ("linear update function",)),
    )
    score = score_of(found, REFERENCE)
    assert score.proposed == (
        ("structure", "linear"),
        ("structure", "star"),
        ("processing", "raw"),
        ("processing", "symlog"),
        ("resets", "never"),
    )
    assert (score.hits, len(score.wanted), score.unmapped) == (3, 4, 1)
    assert score.precision == pytest.approx(3 / 5)
    assert score.recall == pytest.approx(3 / 4)
    assert score.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert [len(entry.found) for entry in score.ablations] == [1, 2]
    assert score.complete == 1


@pytest.mark.parametrize("found", [plan(("rain", ())), plan(("validation rollout", ("dense",)))])
def test_a_plan_that_proposes_nothing_has_no_precision(found):
    score = score_of(found, REFERENCE)
    assert (score.precision, score.recall, score.f1, score.complete) == (0.0, 0.0, 0.0, 0)


def test_a_reference_of_nothing_known_is_refused():
    with pytest.raises(PlannerError, match="no part of the reference"):
        score_of(REFERENCE, plan(("rain", ())))


# Lint


def findings(*ablations):
    return [(finding.ablation, finding.kind) for finding in lint(map_plan(Plan("", "", ablations)))]


@pytest.mark.parametrize("good", [REFERENCE, catalogue_plan(method_of(OPTIM4RL))])
def test_nothing_is_wrong_with_a_good_plan(good):
    assert lint(map_plan(good)) == ()


@pytest.mark.parametrize(
    ("ablation", "kinds"),
    [
        (Ablation("", "rain", "REMOVE", (), ("return",)), ["unmapped"]),
        (Ablation("", "gru", "REMOVE", (), ("return",)), ["unmapped"]),
        (Ablation("", "gru", "REPLACE", ("LSTM", "a poem"), ("beauty",)), ["unmapped"] * 2),
        (Ablation("", "gru", "REPLACE", ("LSTM", "GRU"), ("return",)), ["unmapped"]),
        (Ablation("", "validation rollout", "REPLACE", ("dense",), ("return",)), ["reference"]),
        (Ablation("", "gru", "REPLACE", ("LSTM",), ()), ["metric"]),
        (Ablation("", "gru", "REPLACE", (), ("return",)), ["replacement"]),
        (Ablation("", "gru", None, ("LSTM",), ("return",)), ["action"]),
        (Ablation("", "gru", "REPLACE", ("LSTM", "lstm cell"), ("return",)), ["duplicate"]),
        (Ablation("", "pipeline training", "REMOVE", (), ("return",)), []),
    ],
)
def test_what_is_wrong_is_found(ablation, kinds):
    assert findings(ablation) == [(1, kind) for kind in kinds]


def test_a_comparison_that_is_asked_for_twice_is_found():
    first = Ablation("", "pipeline training", "REMOVE", (), ("return",))
    again = Ablation("", "reset schedule", "REPLACE", ("never",), ("return",))
    assert findings(first, again) == [(2, "duplicate")]
    (finding,) = lint(map_plan(Plan("", "", (first, again))))
    assert "ablation 1" in finding.message


def test_the_reference_itself_is_named_as_such():
    asked = Ablation("", "optimizer structure", "REPLACE", ("adaptive",), ("return",))
    (finding,) = lint(map_plan(Plan("", "", (asked,))))
    assert "it is the reference itself" in finding.message
