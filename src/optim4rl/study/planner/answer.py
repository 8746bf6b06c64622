"""Reading a model's answer: data, from whatever was sent, to a plan or to a reason why not."""

import json
from collections.abc import Mapping
from typing import Any, Final

from optim4rl.plans.plan import Ablation, Action, Plan, PlanError, parse_plan
from optim4rl.study.planner.render import normalise
from optim4rl.study.planner.text import PlannerError, one_line

# What an answer holds, for endpoints that can be told so.
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
                },
                "required": ["title", "part", "action", "replacements", "metrics"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["reasoning", "ablations"],
    "additionalProperties": False,
}

_ACTIONS: Final[Mapping[str, Action]] = {"ADD": "ADD", "REMOVE": "REMOVE", "REPLACE": "REPLACE"}


class AnswerError(ValueError):
    """An answer that holds no plan; the message can be sent back to the model."""


def read_answer(text: str, title: str) -> Plan:
    """The plan in an answer: one JSON object, fenced or not, or a plan as Markdown.

    Raises:
        AnswerError: there is none.
    """
    text = _without_thoughts(text).strip()
    if not text:
        raise AnswerError("the answer is empty")
    try:
        plan = _from_json(text)
        if plan is None:
            plan = parse_plan(text)
        return normalise(Plan(title, plan.reasoning, plan.ablations))
    except (PlanError, PlannerError) as error:
        raise AnswerError(f"the answer holds no plan: {error}") from error


def _without_thoughts(text: str) -> str:
    """The answer without what some local models think aloud before it."""
    if text.lstrip().startswith("<think>"):
        return text.partition("</think>")[2]
    return text


def _from_json(text: str) -> Plan | None:
    """The plan in a JSON object; None where there is no object that has ablations."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        values, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        if start == 0 or '"ablations"' in text:
            raise AnswerError(f"the answer is no valid JSON: {one_line(str(error))}") from error
        return None
    if not isinstance(values, dict) or "ablations" not in values:
        if start == 0:
            raise AnswerError("the answer's JSON has no list 'ablations'")
        return None
    entries = values["ablations"]
    if not isinstance(entries, list) or not entries:
        raise AnswerError("'ablations' is no list of one or more ablations")
    reasoning = values.get("reasoning")
    return Plan("", reasoning if isinstance(reasoning, str) else "", tuple(map(_ablation, entries)))


def _ablation(values: object) -> Ablation:
    if not isinstance(values, dict) or not isinstance(values.get("part"), str):
        raise AnswerError("an ablation in the answer's JSON is no object with a string 'part'")

    def texts(name: str) -> tuple[str, ...]:
        found = values.get(name)
        entries = found if isinstance(found, list) else [found]
        return tuple(entry for entry in entries if isinstance(entry, str))

    title, action = values.get("title"), values.get("action")
    return Ablation(
        title if isinstance(title, str) else "",
        values["part"],
        _ACTIONS.get(action.strip().upper()) if isinstance(action, str) else None,
        texts("replacements"),
        texts("metrics"),
    )
