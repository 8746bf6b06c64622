"""Reads a model's answer as data: returns a plan, or raises an error that says why not."""

from typing import Any, Final, get_args

from optim4rl.plans.ablation import Action, Expectation, Plan, PlanError
from optim4rl.plans.plan import parse_plan
from optim4rl.plans.planner.render import normalise
from optim4rl.plans.planner.text import PlannerError


def object_schema(**properties: Any) -> dict[str, Any]:
    """Return the JSON schema of an object with all of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_schema(items: Any) -> dict[str, Any]:
    """Return the JSON schema of a list of such items."""
    return {"type": "array", "items": items}


TEXT_SCHEMA: Final = {"type": "string"}
# The schema of an answer, for endpoints that accept a schema.
ANSWER_SCHEMA: Final = object_schema(
    reasoning=TEXT_SCHEMA,
    ablations=array_schema(
        object_schema(
            title=TEXT_SCHEMA,
            part=TEXT_SCHEMA,
            action={**TEXT_SCHEMA, "enum": list(get_args(Action))},
            replacements=array_schema(TEXT_SCHEMA),
            metrics=array_schema(TEXT_SCHEMA),
            expected={**TEXT_SCHEMA, "enum": list(get_args(Expectation))},
            tests=TEXT_SCHEMA,
            priority={"type": "integer"},
        )
    ),
)


class AnswerError(ValueError):
    """Report an answer without a plan; the message can be sent back to the model."""


def read_answer(text: str, title: str) -> Plan:
    """Return the plan in an answer: JSON, fenced or not, or a plan as Markdown.

    Raises:
        AnswerError: the answer holds no plan.
    """
    if text.lstrip().startswith("<think>"):  # Some local models put thoughts before the answer.
        text = text.partition("</think>")[2]
    text = text.strip()
    if not text:
        raise AnswerError("the answer is empty")
    try:
        plan = parse_plan(text)
        return normalise(Plan(title, plan.reasoning, plan.ablations))
    except (PlanError, PlannerError) as error:
        raise AnswerError(f"the answer holds no plan: {error}") from error
