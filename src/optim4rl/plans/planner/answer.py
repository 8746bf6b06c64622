"""Reads a model's answer as data: returns a plan, or raises an error that says why not."""

from typing import Any, Final, get_args

from optim4rl.plans.ablation import Expectation
from optim4rl.plans.plan import Plan, PlanError, parse_plan
from optim4rl.plans.planner.render import normalise
from optim4rl.plans.planner.text import PlannerError

# The schema of an answer, for endpoints that accept a schema.
ANSWER_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string"},
        "ablations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "part": {"type": "string"},
                    "action": {"type": "string", "enum": ["ADD", "REMOVE", "REPLACE"]},
                    "replacements": {"type": "array", "items": {"type": "string"}},
                    "metrics": {"type": "array", "items": {"type": "string"}},
                    "expected": {"type": "string", "enum": list(get_args(Expectation))},
                    "tests": {"type": "string"},
                    "priority": {"type": "integer"},
                },
                "required": [
                    *("title", "part", "action", "replacements", "metrics"),
                    *("expected", "tests", "priority"),
                ],
                "additionalProperties": False,
            },
        },
    },
    "required": ["reasoning", "ablations"],
    "additionalProperties": False,
}


class AnswerError(ValueError):
    """Report an answer without a plan; the message can be sent back to the model."""


def read_answer(text: str, title: str) -> Plan:
    """Return the plan in an answer: JSON, fenced or not, or a plan as Markdown.

    Raises:
        AnswerError: the answer holds no plan.
    """
    text = _without_thoughts(text).strip()
    if not text:
        raise AnswerError("the answer is empty")
    try:
        plan = parse_plan(text)
        return normalise(Plan(title, plan.reasoning, plan.ablations))
    except (PlanError, PlannerError) as error:
        raise AnswerError(f"the answer holds no plan: {error}") from error


def _without_thoughts(text: str) -> str:
    """Return the answer without the thoughts that some local models put before it."""
    if text.lstrip().startswith("<think>"):
        return text.partition("</think>")[2]
    return text
