"""Plans as fields on one line, tables and JSON: read back as written, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.plans.mapping import map_plan, plan_as_dict, require_mapped
from optim4rl.plans.optim4rl import COMPONENTS, METRICS
from optim4rl.plans.plan import MAX_BYTES, Ablation, Action, Plan, PlanError, parse_plan, read_plan
from optim4rl.plans.planner.render import normalise, render_plan

PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"


# --- Every form -----------------------------------------------------------------------------------


def _as_fields(plan: Plan) -> str:
    lines = [f"# {plan.title}", "", "## Reasoning", "", plan.reasoning, "", "## Ablation plan"]
    for a in plan.ablations:
        lines += ["", f"### {a.title}", f"- **Ablated Part**: {a.part}"]
        lines += [f"- **Action**: {a.action}"] if a.action else []
        lines += ["- **Replacement**:", *(f"  - {text}" for text in a.replacements)]
        lines += ["- **Metrics**:", *(f"  - {text}" for text in a.metrics)]
    return "\n".join(lines) + "\n"


def _as_lines_of_fields(plan: Plan) -> str:
    lines = [f"# {plan.title}", "## Reasoning", plan.reasoning, "## Ablation plan"]
    for a in plan.ablations:
        fields = [f"**Ablated Part**: {a.part}"]
        fields += [f"**Action**: {a.action}"] if a.action else []
        fields += [f"**Replacement**: {', '.join(a.replacements)}"] if a.replacements else []
        fields += [f"**Metrics**: {', '.join(a.metrics)}"] if a.metrics else []
        lines += [f"### {a.title}", "- " + "; ".join(fields)]
    return "\n".join(lines) + "\n"


def _as_table(plan: Plan) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|") or "-"

    lines = [f"# {plan.title}", "## Reasoning", plan.reasoning, "## Ablation plan", ""]
    lines += ["| # | Name | Ablated part | Action | Replacement | Metrics |"]
    lines += ["|---|:-----|:------------:|--------|-------------|--------:|"]
    for i, a in enumerate(plan.ablations, start=1):
        named = ("; ".join(a.replacements), "<br>".join(a.metrics))
        cells = (str(i), *map(cell, (a.title, a.part, a.action or "", *named)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bench(a: Ablation) -> dict[str, object]:
    """AblationBench's keys."""
    replacement: object = list(a.replacements) or None
    values = {"name": a.title, "ablated_part": a.part, "action": a.action}
    return {**values, "replacement": replacement, "metrics": list(a.metrics)}


def _as_json_lines(plan: Plan) -> str:
    return "".join(json.dumps(_bench(a)) + "\n" for a in plan.ablations)


def _as_json_list(plan: Plan) -> str:
    return json.dumps([_bench(a) for a in plan.ablations], indent=2, ensure_ascii=False)


def _as_answer(plan: Plan) -> str:
    ablations = [
        {
            "title": a.title,
            "part": a.part,
            "action": a.action,
            "replacements": a.replacements,
            "metrics": a.metrics,
        }
        for a in plan.ablations
    ]
    values = {"title": plan.title, "reasoning": plan.reasoning, "ablations": ablations}
    return json.dumps(values, ensure_ascii=False)


def _as_shown(plan: Plan) -> str:
    return json.dumps(plan_as_dict(plan, map_plan(plan)), indent=1)


def _fenced(write: Callable[[Plan], str]) -> Callable[[Plan], str]:
    def text(plan: Plan) -> str:
        return f"# {plan.title}\n\n{plan.reasoning}\n\n```json\n{write(plan).rstrip()}\n```\n"

    return text


def _as_proposed(plan: Plan) -> str:
    return render_plan(normalise(plan))


FORMS: dict[str, Callable[[Plan], str]] = {
    "fields": _as_fields,
    "fields on one line": _as_lines_of_fields,
    "table": _as_table,
    "JSON lines": _as_json_lines,
    "JSON list": _as_json_list,
    "answer": _as_answer,
    "plan show --json": _as_shown,
    "fenced lines": _fenced(_as_json_lines),
    "fenced list": _fenced(_as_json_list),
    "fenced answer": _fenced(_as_answer),
    "plan propose": _as_proposed,
}
WITHOUT_TITLE = ("JSON lines", "JSON list")


def _one_text(text: str) -> bool:
    return not any(separator in f" {text} " for separator in (" and ", " or ", ","))


_Fields = tuple[str, str, Action | None, tuple[str, ...], tuple[str, ...]]


@st.composite
def _known_ablations(draw: st.DrawFn) -> _Fields:
    component = draw(st.sampled_from(COMPONENTS))
    action: Action | None = draw(st.sampled_from(["ADD", "REMOVE", "REPLACE", None]))
    phrases = [p for c in component.choices if c.value != component.reference for p in c.phrases]
    replacements = st.lists(st.sampled_from(list(filter(_one_text, phrases))), max_size=3)
    metrics = st.lists(st.sampled_from([p for m in METRICS for p in m.phrases]), max_size=3)
    part = draw(st.sampled_from(component.phrases))
    title = draw(st.sampled_from(["Ablation", "Case A"])) + f" of {part}"
    return title, part, action, tuple(draw(replacements)), tuple(draw(metrics))


_titles = st.sampled_from(["A study", "Étude 2"])
_reasonings = st.sampled_from(["Parts are new.", 'One "part" \\ is new.\n\nIt\'s so.'])


@pytest.mark.parametrize("form", FORMS)
@given(_titles, _reasonings, st.lists(_known_ablations(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_plan_of_known_parts_is_read_back(
    form: str, title: str, reasoning: str, ablations: list[_Fields]
) -> None:
    plan = Plan(title, reasoning, tuple(Ablation(*fields) for fields in ablations))
    read = parse_plan(FORMS[form](plan))
    assert read.ablations == plan.ablations
    assert map_plan(read) == map_plan(plan)
    if form not in WITHOUT_TITLE:
        assert (read.title, read.reasoning) == (plan.title, plan.reasoning)


PLAN = Plan(
    "A study",
    "Parts are new.",
    (
        Ablation("First", "GRU cell", "REPLACE", ("no cell",), ("return",)),
        Ablation(
            "Second",
            "optimizer structure",
            "REPLACE",
            ("linear update", "non-adaptive"),
            ("average return", "training stability"),
        ),
        Ablation("Third", "gradient processing", "REMOVE", (), ("rnn accuracy",)),
    ),
)


def _asked(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]] | None:
    """What a study of the plan would do; None for a plan that is refused."""
    try:
        mapped = require_mapped(map_plan(parse_plan(text)), skip_unmapped=False)
    except PlanError:
        return None
    return [(m.component.key, m.values, m.metric_keys) for m in mapped if m.component]


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_character_loses_no_claim(form: str) -> None:
    """Whichever character is missing, the study is the same, or the plan is refused."""
    text = FORMS[form](PLAN)
    asked = _asked(text)
    assert asked
    changed = {}
    for i in range(text.find("First"), len(text), 1 + len(text) // 300):
        damaged = text[:i] + text[i + 1 :]
        if (other := _asked(damaged)) not in (asked, None):
            changed[damaged[max(0, i - 40) : i + 40]] = other
    assert not changed


ADDED = "\n,;:|\"'{}[]()*-#\t\\"


def _require_same_study_with_added(form: str, steps: range) -> None:
    text = FORMS[form](PLAN)
    asked = _asked(text)
    start = text.find("First")
    for i in range(start, len(text), 1 + len(text) // 300):
        for step in steps:
            damaged = text[:i] + ADDED[(i + step) % len(ADDED)] + text[i:]
            assert _asked(damaged) in (asked, None), damaged[max(start, i - 40) : i + 40]


@pytest.mark.parametrize("form", FORMS)
def test_an_added_character_hides_no_claim(form: str) -> None:
    """One character at each place."""
    _require_same_study_with_added(form, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_no_added_character_hides_a_claim(form: str) -> None:
    """Every character at each place."""
    _require_same_study_with_added(form, range(1, len(ADDED)))


# --- Values ---------------------------------------------------------------------------------------


def test_json_texts_are_kept_as_they_are() -> None:
    odd = 'a "quoted", comma; \\ back\\slash, <b>tag</b> | pipe, ünï and more'
    entry = {"ablated_part": odd, "action": "REPLACE", "replacement": [odd], "metrics": [odd]}
    for text in (json.dumps(entry), json.dumps([entry]), json.dumps({"ablations": [entry]})):
        (ablation,) = parse_plan(text).ablations
        assert ablation == Ablation("", odd, "REPLACE", (odd,), (odd,))


@pytest.mark.parametrize(
    ("stated", "replacements"),
    [
        ('"LSTM"', ("LSTM",)),
        ('"LSTM, no cell"', ("LSTM", "no cell")),
        ('["LSTM, no cell"]', ("LSTM, no cell",)),
        ('["LSTM", "none", " "]', ("LSTM",)),
        ("null", ()),
        ("[]", ()),
        ('"N/A"', ()),
    ],
)
def test_json_replacements(stated: str, replacements: tuple[str, ...]) -> None:
    text = f'{{"ablated_part": "GRU", "action": "REMOVE", "replacement": {stated}, "metrics": []}}'
    (ablation,) = parse_plan(text).ablations
    assert ablation.replacements == replacements


@pytest.mark.parametrize(
    ("cell", "replacements"),
    [
        ("LSTM; no cell", ("LSTM", "no cell")),
        ("LSTM<br>no cell", ("LSTM", "no cell")),
        ("LSTM<BR />no cell", ("LSTM", "no cell")),
        ("**LSTM**, `no cell`", ("LSTM", "no cell")),
        ("a \\| b", ("a | b",)),
        ("a &#124; b", ("a | b",)),
        ("-", ()),
        ("", ()),
        ("n/a", ()),
    ],
)
def test_table_cells(cell: str, replacements: tuple[str, ...]) -> None:
    text = f"Part | Alternative | Action\n:-- | :--: | ---\nGRU | {cell} | REMOVE\n"
    for quoted in (text, "".join(f"| {line} |\n" for line in text.splitlines())):
        (ablation,) = parse_plan(quoted).ablations
        assert (ablation.part, ablation.action) == ("GRU", "REMOVE")
        assert ablation.replacements == replacements


def test_other_tables_and_other_json_stay_prose() -> None:
    text = (
        "# T\n\n| Method | Return |\n|---|---|\n| Adam | 0.5 |\n\n"
        '```json\n{"lr": 1}\n```\n\n## Ablation plan\n- Ablated Part: x\n- Action: ADD\n'
    )
    plan = parse_plan(text)
    assert plan.ablations == (Ablation("", "x", "ADD", (), ()),)
    assert "| Adam | 0.5 |" in plan.reasoning
    assert '{"lr": 1}' in plan.reasoning


# --- What is refused, and how ---------------------------------------------------------------------

ENTRY = '{"ablated_part": "GRU", "action": "REPLACE", "replacement": "LSTM", "metrics": ["return"]}'
FIELDS = "- Ablated Part: GRU\n- Action: REPLACE\n- Replacement: LSTM\n"
HEADER = "| Part | Action | Replacement | Metrics |\n"
TABLE = f"{HEADER}|---|---|---|---|\n| GRU | REPLACE | LSTM | return |\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"{ENTRY}\n{ENTRY[:-1]}", "line 2"),
        (f"{ENTRY}\n{ENTRY},\n{ENTRY}", "line 2"),
        (f"{ENTRY} {ENTRY}", "line 1"),
        (f"[{ENTRY},\n{ENTRY}", "line 2"),
        (f"[{ENTRY},\n{ENTRY},\n]", "line 3"),
        (f"Here it is:\n```json\n{ENTRY[:40]}\n```\n", "line 3"),
        ('{"ablations": []}', "empty"),
        ('{"ablations": {"1": {}}}', "'ablations'"),
        ('{"ablations": ["GRU"]}', '"GRU"'),
        ('{"ablations": [{"part": "GRU", "part": "LSTM"}]}', "'part'"),
        ('{"ablated_part": "GRU", "component": "GRU"}', "'component'"),
        (f'{{"metrics": ["return"], "ablations": [{ENTRY}]}}', "'metrics'"),
        (f'{{"ablations": [{ENTRY}]}}\n{ENTRY}', "several JSON plans"),
        ('{"ablated_part": 3}', "expected a text"),
        ('{"ablated_part": ["GRU"]}', "expected a text"),
        ('{"ablated_part": "GRU", "metrics": [1]}', "metrics = [1]"),
        ('{"ablated_part": "GRU", "metrics": NaN}', "NaN"),
        ('{"ablated_part": "GRU", "replacement": {"a": "LSTM"}}', "expected a list of texts"),
        ('{"action": "REMOVE"}', "names no part"),
        ('{"ablated_part": "GRU", "action": "REPLACE", "substitute": "LSTM"}', "substitute"),
        ('{"ablated_part": "GRU", "action": "REPLACE by LSTM"}', "REPLACE by LSTM"),
        ('{"ablated_part": "GRU", "action": "REPLACE; Replacement: LSTM"}', "Replacement"),
        ('{"a": ' * 5_000, "line 1"),
        ("{}", "nor an object with a list 'ablations'"),
        (ENTRY + "\n" + FIELDS, "fields or a table; use one form"),
        (TABLE + "\n" + ENTRY, "fields or a table; use one form"),
        (TABLE + "\n" + FIELDS, "labelled fields; use one form"),
        (FIELDS + "\n" + TABLE, "labelled fields; use one form"),
        (HEADER + "| GRU | REPLACE | LSTM | return |\n", "line of dashes"),
        (HEADER + "|---|---|---|\n| GRU | REPLACE | LSTM | return |\n", "line of dashes"),
        (TABLE + "| GRU | REMOVE | return |\n", "3 cells"),
        (TABLE + "| GRU | REMOVE | a | b | return |\n", "5 cells"),
        (TABLE + "| | REMOVE | a | return |\n", "names no part"),
        (TABLE + "\n| GRU | REMOVE | a | return |\n", "outside its table"),
        (TABLE.replace("Metrics", "Part"), "two columns"),
        (TABLE.replace("Metrics", "Priority").replace("Action", "Importance"), "two columns"),
        (TABLE.replace("Part", "Colour"), "no column 'Ablated part'"),
        (TABLE.replace("Replacement", "Swap in"), "Swap in"),
        (TABLE.replace("LSTM", "Metrics: identity"), "'Metrics'"),
        (f"{FIELDS}\n## Ablation plan\n{FIELDS.replace('GRU', 'width')}", "outside the section"),
    ],
)
def test_what_is_broken_or_mixed_is_refused(text: str, named: str) -> None:
    with pytest.raises(PlanError) as error:
        parse_plan(text)
    assert named in str(error.value)


def test_a_plan_has_a_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "p.md"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(PlanError, match=r"p\.md.*longer than 1,000,000 bytes"):
        read_plan(path)
    with pytest.raises(PlanError, match="longer than"):
        parse_plan("x" * (MAX_BYTES + 1))


def test_only_regular_files_are_read() -> None:
    for path in ("/dev/zero", "/dev", "/dev/stdin"):
        with pytest.raises(PlanError, match="cannot be read"):
            read_plan(path)
