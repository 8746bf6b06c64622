"""Writes a plan as a file from which the plan reader reads the same plan."""

import dataclasses
import html
from collections.abc import Callable, Sequence
from typing import Final

from optim4rl.plans.components import Catalogue
from optim4rl.plans.mapping import MappedAblation, map_plan
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.plan import Ablation, Plan, PlanError, parse_plan
from optim4rl.plans.planner.text import PlannerError, one_line

MAX_ABLATIONS: Final = 200
_MAX_VALUE: Final = 300  # characters of a part, a replacement or a metric
_MAX_REASONING: Final = 40_000  # characters
_ROUNDS: Final = 4  # readings until a plan no longer changes; one is usual


def normalise(plan: Plan) -> Plan:
    """Return the plan as it is read back from its own file, with one line for each value.

    Raises:
        PlannerError: it has no ablations, too many, or words that no file can hold.
    """
    if len(plan.ablations) > MAX_ABLATIONS:
        raise PlannerError(
            f"it has {len(plan.ablations):,} ablations; at most {MAX_ABLATIONS} are possible"
        )
    plan = _tidy(plan)
    for _ in range(_ROUNDS):
        if _readable_text(plan, ()) is not None:
            return plan
        try:
            read = _tidy(parse_plan(_write_guarded(plan, ())))
        except PlanError as error:
            raise PlannerError(f"its words are not a plan: {error}") from error
        plan = dataclasses.replace(plan, ablations=read.ablations)
    raise PlannerError("its words cannot be written and read back unchanged")


def render_plan(plan: Plan, known: Catalogue = OPTIM4RL) -> str:
    """Return a normalised plan as Markdown; parts that map to nothing are marked with the reason.

    Possible HTML is written as entities, so a page that shows the file runs no code.
    """
    text = _readable_text(plan, map_plan(plan, known))
    assert text is not None, "a normalised plan is read back as it is"
    return text


def _readable_text(plan: Plan, mapped: Sequence[MappedAblation]) -> str | None:
    """Return the first form of the plan that is read back as the same plan."""
    for write in _FORMS:
        text = write(plan, mapped)
        try:
            if _content(_tidy(parse_plan(text))) == _content(plan):
                return text
        except PlanError:
            continue
    return None


def unmapped(mapped: Sequence[MappedAblation]) -> tuple[str, ...]:
    """Return the parts of a plan that map to nothing in a study, with reasons, one line each."""
    notes = []
    for entry in mapped:
        name = one_line(entry.ablation.name, 80)
        for kind, match in entry.unknown:
            what = f"part '{name}'" if kind == "part" else f"{kind} '{match.text}' of '{name}'"
            notes.append(one_line(f"the study does not know the {what} ({match.reason})", 400))
    return tuple(notes)


def _content(plan: Plan) -> list[tuple[object, ...]]:
    """Return the content of a plan for a study; titles and prose are for people."""
    return [dataclasses.astuple(a)[1:] for a in plan.ablations]


def _tidy(plan: Plan) -> Plan:
    paragraphs = plan.reasoning[:_MAX_REASONING].split("\n\n")
    lines = ("\n".join(one_line(line, 4_000) for line in p.splitlines()) for p in paragraphs)
    return Plan(
        one_line(plan.title, 160),
        "\n\n".join(line for line in lines if line.strip()),
        tuple(ablation for ablation in map(_tidy_ablation, plan.ablations) if ablation.part),
    )


def _tidy_ablation(ablation: Ablation) -> Ablation:
    def tidied(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line for value in values if (line := one_line(value, _MAX_VALUE)))

    return dataclasses.replace(
        ablation,
        title=one_line(ablation.title, 120),
        # The reader takes a missing part from the heading; here headings are only for people.
        part=one_line(ablation.name, _MAX_VALUE),
        replacements=tidied(ablation.replacements),
        metrics=tidied(ablation.metrics),
        tests=one_line(ablation.tests, _MAX_VALUE),
    )


def _write(
    plan: Plan, mapped: Sequence[MappedAblation], title: Callable[[int, str], str], reasoning: str
) -> str:
    lines = [f"# {_escape(plan.title)}", "", "## Reasoning Trace", "", reasoning, ""]
    lines += ["## Ablation Plan", ""]
    for index, ablation in enumerate(plan.ablations):
        lines.append(f"### {_escape(title(index + 1, ablation.title))}")
        lines.append(f"- **Ablated Part**: {_escape(ablation.part)}")
        if ablation.action:
            lines.append(f"- **Action**: {ablation.action}")
        if ablation.replacements:
            lines.append("- **Replacement**:")
            lines += [f"  - {_escape(text)}" for text in ablation.replacements]
        if ablation.metrics:
            lines.append(f"- **Metrics**: {_escape(', '.join(ablation.metrics))}")
        if ablation.expected:
            lines.append(f"- **Expected**: {ablation.expected}")
        if ablation.tests:
            lines.append(f"- **Tests**: {_escape(ablation.tests)}")
        if ablation.priority is not None:
            lines.append(f"- **Priority**: {ablation.priority}")
        notes = unmapped(mapped[index : index + 1])
        lines += [f"- **Note**: {_escape(note)}" for note in notes]
        lines.append("")
    return "\n".join(lines)


def _write_plainly(plan: Plan, mapped: Sequence[MappedAblation]) -> str:
    return _write(plan, mapped, lambda _, title: title or "Ablation", _escape(plan.reasoning))


def _write_guarded(plan: Plan, mapped: Sequence[MappedAblation]) -> str:
    """Write a plan whose title or prose would be read as a heading or a field of the plan."""
    prose = "The planner's words, on one line: " + " ".join(plan.reasoning.split())
    return _write(plan, mapped, lambda index, _: f"Ablation {index}", _escape(prose))


_FORMS: Final = (_write_plainly, _write_guarded)


def _escape(text: str) -> str:
    return html.escape(text, quote=False)
