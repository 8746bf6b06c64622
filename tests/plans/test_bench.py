"""AblationBench's forms and scores, and predictions in plans."""

import json
import math

import pytest

from optim4rl.plans.mapping import map_plan
from optim4rl.plans.plan import Ablation, Plan, PlanError, parse_plan
from optim4rl.plans.planner.bench import (
    bench_score,
    export_lines,
    judge_plan,
    match_plans,
)
from optim4rl.plans.planner.propose import Answer, Record
from optim4rl.plans.planner.render import normalise, render_plan
from optim4rl.plans.planner.text import PlannerError

PLAN = Plan(
    "mine",
    "",
    (
        Ablation("A", "weather", "REMOVE", (), ("return",), "same", "", 3),
        Ablation("B", "optimizer structure", "REPLACE", ("linear", "l2l"), ("return",), "worse"),
        Ablation("C", "loss function", "REPLACE", ("Huber loss",), ("return",), None, "a b", 1),
    ),
)


def test_lines_are_those_of_ablation_bench_in_order_of_priority():
    lines = [json.loads(line) for line in export_lines(PLAN).splitlines()]
    assert [line["name"] for line in lines] == ["C", "A", "B"]
    assert lines[1] == {
        "name": "A",
        "ablated_part": "weather",
        "action": "REMOVE",
        "replacement": None,
        "metrics": ["return"],
    }


def test_exported_lines_are_read_back():
    back = parse_plan(export_lines(PLAN))
    by_title = {x.title: x for x in PLAN.ablations}
    for ablation in back.ablations:
        own = by_title[ablation.title]
        assert (ablation.part, ablation.action) == (own.part, own.action)
        assert (ablation.replacements, ablation.metrics) == (own.replacements, own.metrics)


def test_one_common_replacement_is_a_match():
    """By what it maps to where that is known, by its words elsewhere; and the action must agree."""
    wanted = Plan(
        "gold",
        "",
        (
            Ablation("", "update rule", "REPLACE", ("LinearOptim", "Adam"), ()),
            Ablation("", "The loss function", "REPLACE", ("the Huber loss", "L1"), ()),
            Ablation("", "loss function", "REMOVE", (), ()),
            Ablation("", "weather", "REMOVE", (), ()),
            Ablation("", "optimizer structure", "REPLACE", ("non adaptive",), ()),
        ),
    )
    assert match_plans(map_plan(PLAN), map_plan(wanted)) == (1, 2, None, 0, None)


def test_scores_are_those_of_closed_form():
    """Three of four are found, two of them by one ablation; two of four proposed are extra."""
    score = bench_score((0, 2, None, 2), 4)
    assert (score.found, score.extra, score.proposed) == (3, 2, 4)
    assert (score.precision, score.recall) == (3 / 5, 3 / 4)
    assert score.f1 == pytest.approx(2 * 3 / 5 * 3 / 4 / (3 / 5 + 3 / 4))
    ideal = sum(1 / math.log2(place + 2) for place in range(4))
    assert score.ndcg == pytest.approx((1 + 1 / 2) / ideal)
    first = bench_score((0, 2, None, 2), 4, k=1)
    assert (first.found, first.extra, first.precision, first.ndcg) == (1, 0, 1.0, 1.0)
    nothing = bench_score((None,), 0)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.ndcg) == (0, 0, 0, 0)


class Judge:
    """A model that says one thing."""

    def __init__(self, text):
        self.text, self.asked = text, []

    def ask(self, messages):
        self.asked.append(messages)
        return Answer(self.text, self.text)


def test_a_model_can_be_the_judge(tmp_path):
    text = (
        'So: {"discussion": "x", "matches": [{"paper": 1, "plan": 3}, {"paper": 2, "plan": null}]}'
    )
    wanted = Plan("gold", "", PLAN.ablations[:2])
    judge = Judge(text)
    assert judge_plan(PLAN, wanted, judge, Record(tmp_path / "r.jsonl")) == (2, None)
    assert '"ablated_part": "weather"' in judge.asked[0][1]["content"]
    kept = [json.loads(line)["event"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert kept == ["prompt", "answer"]


@pytest.mark.parametrize(
    "text",
    [
        "none",
        '{"matches": []}',
        '{"matches": [{"paper": 1, "plan": 4}]}',
        '{"matches": [{"paper": 1, "plan": true}]}',
        '{"matches": [{"paper": 2, "plan": 1}]}',
        '{"matches": [[1]]}',
    ],
)
def test_an_answer_that_says_no_matches_is_refused(text, tmp_path):
    wanted = Plan("gold", "", PLAN.ablations[:1])
    with pytest.raises(PlannerError, match="the judge's answer"):
        judge_plan(PLAN, wanted, Judge(text), Record(tmp_path / "r.jsonl"))


# Predictions

FORMS = {
    "fields": "### A\n- **Ablated Part**: GRU\n- **Action**: REMOVE\n- **Expected**: worse\n"
    "- **Tests**: whether memory matters\n- **Priority**: 2\n",
    "one line": "**Ablated Part**: GRU; **Action**: REMOVE; **Expected**: worse; "
    "**Tests**: whether memory matters; **Priority**: 2\n",
    "table": "| Ablated part | Action | Expected | Tests | Priority |\n|---|---|---|---|---|\n"
    "| GRU | REMOVE | worse | whether memory matters | 2 |\n",
    "JSON": '{"ablated_part": "GRU", "action": "REMOVE", "expected": "worse", '
    '"tests": "whether memory matters", "priority": 2}',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_predictions_are_read_in_every_form(text):
    (ablation,) = parse_plan(text).ablations
    assert (ablation.part, ablation.action) == ("GRU", "REMOVE")
    assert (ablation.expected, ablation.tests) == ("worse", "whether memory matters")
    assert ablation.priority == 2


def test_a_plan_with_predictions_is_read_back():
    plan = normalise(PLAN)
    back = parse_plan(render_plan(plan))
    assert [x.expected for x in back.ablations] == ["same", "worse", None]
    assert [x.tests for x in back.ablations] == ["", "", "a b"]
    assert [x.priority for x in back.ablations] == [3, None, 1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("- **Expected**: better or worse", "give worse, better or same as the expected result"),
        ("- **Expected**: who knows", "give worse, better or same as the expected result"),
        ("- **Expected**: not worse", "give worse, better or same as the expected result"),
        ("- **Expected**: it doesn't improve", "give worse, better or same as the expected"),
        ("- **Expected**: lower loss", "give worse, better or same as the expected result"),
        ("- **Priority**: 1 or 2", "give a whole number of at least 1, high, medium or low as"),
        ("- **Priority**: -1", "give a whole number of at least 1, high, medium or low as"),
        ("- **Priority**: 0", "give a whole number of at least 1, high, medium or low as"),
        ("### B\n- **Expected**: worse", "'worse': its ablation has no part; add 'Ablated Part"),
    ],
)
def test_a_prediction_that_is_not_understood_is_refused(line, said):
    with pytest.raises(PlanError, match=said):
        parse_plan(f"### A\n- **Ablated Part**: GRU\n- **Action**: REMOVE\n{line}\n")


def test_none_is_no_prediction_and_no_priority():
    (fields,) = parse_plan(
        f"{FORMS['fields']}".replace("worse", "none").replace("2", "n/a")
    ).ablations
    (table,) = parse_plan(FORMS["table"].replace("worse", "none").replace("2", "n/a")).ablations
    assert (fields.expected, fields.priority) == (table.expected, table.priority) == (None, None)


@pytest.mark.parametrize(
    ("words", "priority"), [("high", 1), ("Medium", 2), ("low", 3), ("1 (highest)", 1), ("P4", 4)]
)
def test_priorities_come_in_words_and_numbers(words, priority):
    text = f"### A\n- **Ablated Part**: GRU\n- **Action**: REMOVE\n- **Priority**: {words}\n"
    assert parse_plan(text).ablations[0].priority == priority
