"""The plan reader: known readings, damage survived, every rendering read back, linear time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.plans.plan import MAX_BYTES, Ablation, Action, Plan, PlanError, parse_plan, read_plan

PLANS = Path(__file__).parent / "plans"
PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"

STRUCTURE = Ablation(
    "Ablation of Optimizer Structure",
    "Optimizer structure inspired by adaptive optimizers",
    "REPLACE",
    ("Linear update function", "Non-adaptive structure"),
    ("Return", "Training stability"),
)
PROCESSING = Ablation(
    "Ablation of Gradient Processing",
    "Gradient processing transformation",
    "REPLACE",
    ("No transformation", "Alternative logarithmic scaling"),
    ("Return", "RNN accuracy in identity function approximation"),
)
BOTH = (STRUCTURE, PROCESSING)

READINGS: dict[str, tuple[str, tuple[Ablation, ...]]] = {
    "bold_lines.md": (
        "A study of learned optimizers",
        (
            Ablation(
                "Ablation 1: structure",
                "Optimiser structure",
                "REPLACE",
                ("Linear update function", "Non-adaptive structure"),
                ("Return", "Training stability"),
            ),
            Ablation(
                "Ablation 2: inputs",
                "Gradient pre-processing",
                "REPLACE",
                ("Raw gradients",),
                ("Return", "sample efficiency"),
            ),
        ),
    ),
    "flat_bullets.md": (
        "Flat bullets",
        (
            PROCESSING,
            Ablation(
                "Ablation of Pipeline Training", "Pipeline training", "REMOVE", (), ("Return",)
            ),
        ),
    ),
    "html_lists.html": (
        "Learned optimizers & RL",
        (
            Ablation(
                "Ablation of Optimizer Structure",
                "Optimizer structure",
                "REPLACE",
                ("Linear update function", "Momentum only (no second moment, no division)"),
                ("Return", "Training stability"),
            ),
        ),
    ),
    "invalid_utf8.txt": ("lm-planner/gpt-4o/étude_for_Reinforcement_Learning", BOTH),
    "language_model.md": (
        "",
        (
            Ablation(
                "", "Retrieval augmentation module", "ADD", (), ("Perplexity", "inference speed")
            ),
            Ablation(
                "",
                "Optimizer structure of the reward model",
                "REPLACE",
                ("Adafactor",),
                ("Win rate",),
            ),
        ),
    ),
    "missing_parts.md": (
        "Missing parts",
        (
            Ablation("Ablation of Gradient Processing", "", "REPLACE", (), ()),
            Ablation("Ablation of Optimizer Structure", "Optimizer structure", None, (), ()),
            Ablation("Ablation of Pipeline Training", "Pipeline training", None, (), ()),
        ),
    ),
    "mojibake.md": ("Résumé — étude", BOTH),
    "numbered_titles.md": (
        "Optim4RL, seen by another planner",
        (
            Ablation(
                "Pipeline training",
                "Pipeline training",
                "REMOVE",
                (),
                ("Return", "Training stability"),
            ),
            Ablation(
                "Recurrent cell",
                "GRU cell",
                "REPLACE",
                ("LSTM",),
                ("Average return", "Variance across seeds"),
            ),
        ),
    ),
    "other_order.md": (
        "Fields in another order",
        (
            Ablation(
                "",
                "Reset schedule",
                "REPLACE",
                ("Synchronous resets", "Random reset times"),
                ("Return", "Training stability"),
            ),
            Ablation("", "Gradient processing", "REMOVE", (), ("Return",)),
        ),
    ),
    "utf16.txt": ("lm-planner/gpt-4o/Learning_to_Optimize_for_Reinforcement_Learning", BOTH),
    "validation_and_cell.md": (
        "Extensions",
        (
            Ablation(
                "Outer loop",
                "Validation rollout",
                "ADD",
                (),
                ("Sample efficiency (AUC, not the final return)",),
            ),
            Ablation("Memory", "Recurrent cell", "REMOVE", (), ()),
        ),
    ),
    "vision_transformer.md": (
        "lm-planner/other/Masked_Pretraining_for_Vision_Transformers",
        (
            Ablation(
                "Ablation of the Learning Rate Schedule",
                "Learning rate schedule of the vision backbone",
                "REPLACE",
                ("Constant learning rate", "Linear learning rate decay"),
                ("Top-1 accuracy", "Training loss"),
            ),
            Ablation(
                "Ablation of Masking",
                "Random masking of image patches",
                "REMOVE",
                (),
                ("Top-1 accuracy on ImageNet",),
            ),
        ),
    ),
    "wrapped.md": (
        "Wrapped lines",
        (
            Ablation(
                "Ablation of Gradient Processing",
                "Gradient processing transformation",
                "REPLACE",
                (
                    "Alternative logarithmic scaling: keeps the sign",
                    "a detail that is no replacement",
                    "No transformation",
                ),
                ("Return", "Training stability"),
            ),
        ),
    ),
}


def test_published_plan() -> None:
    plan = read_plan(PUBLISHED)
    assert plan.title == "lm-planner/gpt-4o/Learning_to_Optimize_for_Reinforcement_Learning"
    assert plan.ablations == BOTH
    paragraphs = plan.reasoning.split("\n\n")
    assert len(paragraphs) == 4
    assert paragraphs[0].startswith('The paper "Learning to Optimize')
    assert paragraphs[-1].endswith("potential improvements or alternative approaches.")


def test_every_sample_has_a_reading() -> None:
    assert {path.name for path in PLANS.iterdir()} == set(READINGS)


@pytest.mark.parametrize("name", READINGS)
def test_samples(name: str) -> None:
    plan = read_plan(PLANS / name)
    assert (plan.title, plan.ablations) == READINGS[name]


@pytest.mark.parametrize("name", ["invalid_utf8.txt", "mojibake.md", "utf16.txt"])
def test_damaged_encodings_keep_the_reasoning(name: str) -> None:
    assert read_plan(PLANS / name).reasoning == read_plan(PUBLISHED).reasoning


def test_html_comments_styles_and_entities() -> None:
    assert read_plan(PLANS / "html_lists.html").reasoning == "Updates for |g| < 1 need care."


@pytest.mark.parametrize(
    "lost", ["Ablation Plan", "Reasoning Trace", "</style>", "</div>", "</h2>"]
)
def test_published_plan_without_one_of_its_marks(lost: str) -> None:
    text = PUBLISHED.read_text(encoding="utf-8")
    assert lost in text
    assert parse_plan(text.replace(lost, "")).ablations == BOTH


def test_labels_alone_on_their_lines() -> None:
    text = "# T\n#### Ablated Part\nThe cell\n- Action\n  - replace\n\n**Replacement**\n- LSTM\n"
    assert parse_plan(text).ablations == (Ablation("T", "The cell", "REPLACE", ("LSTM",), ()),)


def test_plan_section_before_the_reasoning() -> None:
    text = "# T\n## Plan\n- Part: a\n- Action: add\n## Reasoning\nWhy.\n- Action: remove\n"
    assert parse_plan(text) == Plan(
        "T", "Why.\n- Action: remove", (Ablation("", "a", "ADD", (), ()),)
    )


@pytest.mark.parametrize("line", ["**Reasoning:**", "#### Reasoning", "Thought process"])
def test_an_ablation_behind_the_reasoning_is_refused(line: str) -> None:
    text = (
        f"# T\n## Plan\n- Part: a\n- Action: add\n{line}\nWhy.\n\n### B\n- Part: b\n- Action: add\n"
    )
    with pytest.raises(PlanError, match="'b': this ablation stands outside the section"):
        parse_plan(text)


@pytest.mark.parametrize(
    ("stated", "action"),
    [
        ("REPLACE", "REPLACE"),
        ("Removal of the part", "REMOVE"),
        ("We add it", "ADD"),
        ("`Remove`.", "REMOVE"),
        ("Remove the GRU", "REMOVE"),
        ("", None),
        ("n/a", None),
    ],
)
def test_actions(stated: str, action: str | None) -> None:
    (ablation,) = parse_plan(f"- Ablated Part: GRU\n- Action: {stated}\n").ablations
    assert ablation.action == action


@pytest.mark.parametrize(
    ("stated", "action"),
    [
        ("replace (remove the division, add momentum)", "REPLACE"),
        ("ADD/REMOVE", None),
        ("either add it or remove it", None),
        ("tune", None),
        ("REPLACE with no cell", "REPLACE"),
        ("REMOVE; instead of it no cell", "REMOVE"),
        ("REMOVE; Put in: no cell", "REMOVE"),
    ],
)
def test_actions_that_say_more_need_a_replacement_beside_them(
    stated: str, action: str | None
) -> None:
    text = f"- Ablated Part: x\n- Action: {stated}\n"
    with pytest.raises(PlanError, match="expected the action") as error:
        parse_plan(text)
    assert stated in str(error.value)
    (ablation,) = parse_plan(f"{text}- Replacement: y\n").ablations
    assert (ablation.action, ablation.replacements) == (action, ("y",))


# --- Whatever a label claims is read or refused --------------------------------------------------

ONE_LINE = ("GRU cell", "REPLACE", "no cell", "return")
LABELS_OF_ONE_LINE = (
    ("Ablated Part", "Action", "Replacement", "Metrics"),
    ("Component", "Type", "Alternative", "Measures"),
    ("ablated_part", "action", "replacement", "metrics"),
)


@pytest.mark.parametrize("labels", LABELS_OF_ONE_LINE)
@pytest.mark.parametrize("form", ["**{}**: {}", "**{}:** {}", "{}: {}", "__{}__: {}", "`{}`: {}"])
@pytest.mark.parametrize(
    "separator", ["; ", ", ", " | ", "\t", " / ", ". ", " - ", " — ", ";", " • ", " ;; "]
)
def test_fields_on_one_line(labels: tuple[str, ...], form: str, separator: str) -> None:
    line = separator.join(map(form.format, labels, ONE_LINE))
    expected = Ablation("", "GRU cell", "REPLACE", ("no cell",), ("return",))
    for start in ("", "- ", "1. ", "> - "):
        assert parse_plan(f"## Plan\n{start}{line}\n").ablations == (expected,)
        assert parse_plan(f"{start}{line}\n{start}{line}\n").ablations == (expected, expected)


@pytest.mark.parametrize("form", ["**{}** {}", "{} - {}"])
def test_fields_on_one_line_without_a_colon(form: str) -> None:
    line = "; ".join(map(form.format, LABELS_OF_ONE_LINE[0], ONE_LINE))
    (ablation,) = parse_plan(f"- {line}\n").ablations
    assert ablation == Ablation("", "GRU cell", "REPLACE", ("no cell",), ("return",))


HEAD = "## Ablation plan\n### One\n- Ablated Part: GRU cell\n"
CLAIMS = {
    "labels apart by a space alone": "- Action: REPLACE Replacement: no cell\n",
    "weak labels apart by a space": "- Type: REPLACE Alternative: no cell Measures: return\n",
    "in brackets": "- Action: REPLACE (Replacement: no cell)\n",
    "in square brackets": "- Action: REPLACE [Replacement: no cell]\n",
    "inside a remark": "- Rationale: it may be needless Replacement: no cell\n",
    "in a list's entry": "- Metrics:\n  - return Replacement: no cell\n",
    "in a wrapped line": "- Metrics: return,\n  stability; Replacement: no cell\n",
    "in a heading": "### Two (Action: REPLACE, Replacement: no cell)\n",
    "in prose": "The rest stays. Replacement: no cell\n",
    "in an entry without a label": "- Here; Replacement: no cell\n",
    "an unknown label": "- Action: REPLACE\n- Substitute: no cell\n",
    "an unknown label in prose": "- Action: REPLACE\n\nSubstitute: no cell\n",
    "a label with a remark": "- Action: REPLACE\n- Replacement (if any): no cell\n",
    "no label": "- Action: REPLACE\n- no cell\n- Metrics: return\n",
    "no label, prose": "- Action: REPLACE\nno cell\n- Metrics: return\n",
    "a list with other bullets": "- Replacement:\n  - LSTM\n  1. no cell\n- Metrics: return\n",
    "outside an empty field": "  - Replacement:\n- no cell\n- Metrics: return\n",
    "a field below an empty one": "- Replacement:\n  - Baseline: no cell\n",
    "below the action": "- Action: REPLACE\n  - by no cell\n",
    "in the title": "### Replace the GRU by no cell\n- Ablated Part: GRU cell\n",
    "in the part": "### Two\n- Ablated Part: GRU cell, replaced by no cell\n",
    "in the part, unknown": "### Two\n- Ablated Part: GRU cell; Use: no cell\n",
    "twice on a line": "- Action: REPLACE; Action: REMOVE\n",
    "twice": "- Action: REPLACE\n- Action: REMOVE\n",
    "a damaged label": "- Action: REMOVE\n- **Metricsreturn\n",
    "below a label that is indented": "  - no cell\n\t- Metrics:\n  - return\n",
    "metrics of all": "### For all\n- Metrics: identity\n",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_is_claimed_and_not_understood_is_refused(claim: str) -> None:
    with pytest.raises(PlanError) as error:
        parse_plan(HEAD + CLAIMS[claim])
    assert "'" in str(error.value)
    assert "holds no ablation" not in str(error.value)


def test_a_value_below_its_label_is_read_across_blank_lines() -> None:
    text = f"{HEAD}**Replacement**:\n\nno cell\n\n**Metrics**:\n\n- return\n"
    (ablation,) = parse_plan(text).ablations
    assert (ablation.replacements, ablation.metrics) == (("no cell",), ("return",))


def test_remarks_may_say_what_they_like() -> None:
    text = (
        f"{HEAD}- Action: REPLACE\n- Replacement: no cell\n- Metrics: return\n"
        "- Rationale: we know two metrics: return and stability, and the type: a cell\n"
        "- Expected insight: memory helps\nA closing remark: all is said.\n"
    )
    (ablation,) = parse_plan(text).ablations
    assert (ablation.replacements, ablation.metrics) == (("no cell",), ("return",))


@pytest.mark.parametrize(
    ("stated", "metrics"),
    [
        ("Return, Training stability", ("Return", "Training stability")),
        ("Return; stability.", ("Return", "stability")),
        ("Return, reward, and stability", ("Return", "reward", "stability")),
        ("return (mean, median) & AUC", ("return (mean, median)", "AUC")),
        ("Return at 1,000 steps", ("Return at 1,000 steps",)),
        ("[Return, 'AUC']", ("Return", "AUC")),
        ("None", ()),
        ("(n/a)", ()),
    ],
)
def test_enumerations(stated: str, metrics: tuple[str, ...]) -> None:
    (ablation,) = parse_plan(f"- Ablated Part: x\n- Metrics: {stated}\n").ablations
    assert ablation.metrics == metrics


@pytest.mark.parametrize("nothing", ["", b"", " \n\t\r\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_empty(nothing: str | bytes) -> None:
    with pytest.raises(PlanError, match="empty"):
        parse_plan(nothing)


@pytest.mark.parametrize(
    "text", ["A note.", "# Heading\n- Metrics: Return", "<style>Part: x</style>."]
)
def test_no_ablation(text: str) -> None:
    with pytest.raises(PlanError, match="holds no ablation"):
        parse_plan(text)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"missing\.md.*cannot be read"):
        read_plan(tmp_path / "missing.md")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path)
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan("\0")
    (tmp_path / "note.md").write_text("A note.")
    with pytest.raises(PlanError, match=r"note\.md.*no ablation"):
        read_plan(tmp_path / "note.md")


# --- Every rendering of a plan is read back ------------------------------------------------------

_Fields = tuple[str, str, Action | None, tuple[str, ...], tuple[str, ...]]

# The leading "q" keeps words from being labels, separators or section headings by chance.
_words = st.lists(st.text("abcéα-", min_size=1, max_size=5), min_size=1, max_size=4).map(
    lambda words: " ".join("q" + word.strip("-") for word in words)
)
_names = st.lists(_words, max_size=3).map(tuple)
_actions = st.sampled_from(["ADD", "REMOVE", "REPLACE", None])
_ablations = st.tuples(_words, _words, _actions, _names, _names)
_reasonings = st.lists(_words, min_size=1, max_size=3).map("\n\n".join)
_plans = st.tuples(_words, _reasonings, st.lists(_ablations, min_size=1, max_size=3))
_HEADINGS = (
    "# {}",
    "### {}",
    "###### {} ##",
    "**{}**",
    "**{}:**",
    "<h3>\n{}</h3>",
    "<h4 x='y'>{}</h4>",
)
_LABELS = ("**{}**: ", "**{}:** ", "__{}__: ", "{}: ", "<b>{}</b>: ", "{} - ", "**{}** ")


def _render_names(draw: st.DrawFn, label: str, names: tuple[str, ...], indent: str) -> list[str]:
    if not names:
        return draw(st.sampled_from([[], [label], [label + "None"], [label + "N/A"]]))
    if draw(st.booleans()):
        return [label + draw(st.sampled_from([", ", "; ", " and ", ", and ", " or "])).join(names)]
    marker = draw(st.sampled_from(["- ", "* ", "+ ", "1. ", "2) ", "• "]))
    return [label.rstrip(), *(f"{indent}  {marker}{name}" for name in names)]


def _render_ablation(draw: st.DrawFn, ablation: _Fields, style: dict[str, str]) -> list[str]:
    title, part, action, replacements, metrics = ablation

    def label(name: str) -> str:
        cased = draw(st.sampled_from([name, name.upper(), name.lower()]))
        return style["indent"] + style["bullet"] + style["label"].format(cased)

    fields = [
        [label("Ablated Part") + part],
        _render_names(draw, label("Replacement"), replacements, style["indent"]),
        _render_names(draw, label("Metrics"), metrics, style["indent"]),
    ]
    if action:
        fields.append([label("Action") + draw(st.sampled_from([action, action.capitalize()]))])
    lines = [style["heading"].format(title), draw(st.sampled_from(["", " \t"]))]
    for field in draw(st.permutations(fields)):
        lines += field
    return [*lines, ""]


@st.composite
def _rendered(draw: st.DrawFn) -> tuple[tuple[str, str, list[_Fields]], bytes]:
    title, reasoning, ablations = plan = draw(_plans)
    style = {
        "heading": draw(st.sampled_from(_HEADINGS)),
        "label": draw(st.sampled_from(_LABELS)),
        "bullet": draw(st.sampled_from(["", "- ", "* "])),
        "indent": draw(st.sampled_from(["", "  "])),
    }
    head = draw(st.sampled_from(_HEADINGS))
    lines = ["<style>", "p { color: red }", "</style>", f"# {title}", ""]
    lines += ['<div style="x">', head.format("🧠 Reasoning Trace"), "", reasoning, "</div>"]
    lines += ["", "<div>", head.format("📋 Ablation Plan"), ""]
    for ablation in ablations:
        lines += _render_ablation(draw, ablation, style)
    text = draw(st.sampled_from(["\n", "\r\n"])).join([*lines, "</div>"])
    if draw(st.booleans()):  # UTF-8 read as Windows-1252, or Latin-1 where that has no character
        text = "".join(_misread(byte) for byte in text.encode())
    return plan, text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])))


def _misread(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


@given(_rendered())
@settings(max_examples=150, deadline=None)
def test_renderings_are_read_back(
    rendered: tuple[tuple[str, str, list[_Fields]], bytes],
) -> None:
    (title, reasoning, ablations), data = rendered
    expected = tuple(Ablation(*fields) for fields in ablations)
    assert parse_plan(data) == Plan(title, reasoning, expected)


# --- Anything is a plan or a PlanError -----------------------------------------------------------

_SOUP = (
    *(
        "<",
        ">",
        "</",
        "<!--",
        "-->",
        "<style>",
        "</style",
        "<b>",
        "<ul><li>",
        "<h2>",
        "<![x]>",
        "&#",
    ),
    *(
        "9" * 5000 + ";",
        "&amp;",
        "**",
        "__",
        "#",
        "- ",
        "1. ",
        "> ",
        "\n",
        "  ",
        "\t",
        "\0",
        "ð",
        "Ÿ",
    ),
    *("Ablated Part", "Action", "Replacement", "Metrics", ":", "REPLACE", ",", " and ", "(", "x"),
    *("Ablation Plan", "Reasoning Trace", "none", "\ud800", "\u2028", "\ufeff", "\xa0", "\x85"),
)


def _plan_or_error(text: str | bytes) -> None:
    try:
        plan = parse_plan(text)
    except PlanError:
        return
    assert plan.ablations
    for ablation in plan.ablations:
        assert ablation.part or ablation.title
        assert all(name.strip() for name in (*ablation.replacements, *ablation.metrics))
    repr(plan).encode("utf-8")


@given(st.one_of(st.text(), st.binary(), st.lists(st.sampled_from(_SOUP)).map("".join)))
@settings(max_examples=300, deadline=None)
def test_anything(text: str | bytes) -> None:
    _plan_or_error(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_mutations_of_the_published_plan(data: st.DataObject) -> None:
    text = PUBLISHED.read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        middle = data.draw(st.sampled_from([b"", text[start:stop] * 2, b"\xff", b"\n", b"<", b"*"]))
        text = text[:start] + middle + text[stop:]
    _plan_or_error(text)


# --- Time ----------------------------------------------------------------------------------------

# As users run it: without the suite's type checks, which cost more time than the reading.
SECONDS = """
import json, sys, time
from optim4rl.plans.plan import PlanError, parse_plan

def seconds(data):
    start = time.process_time()
    try:
        parse_plan(data)
    except PlanError:
        pass
    return time.process_time() - start

print(json.dumps([min(seconds(data), seconds(data)) for data in json.load(sys.stdin)]))
"""
UNITS = [
    *("<div>", "<ul><li>", "<!--", "<style>", "<a b='", "</style", "&", "&#9", "**", "__", "("),
    *("<", " ", "\t", "\n", "a\n", "**a**\n", "# x\n", "  y\n", "a, ", "  - x\n", "a:", "a; "),
    *("- Metrics: a and b\n", "Ablated Part:", "- Ablated Part: x\n", "Metrics:\n- a\n", "> "),
    *("- ", "ð", "Ablation plan\n", "; Metrics: a", "replace ", "|", "| a | b |\n", "|---", "\\|"),
    *("Part | Action\n--|--\n", "{", '{"', '{"part":', '{"part":\n', '[{"a":1},\n', '{"a":1}\n'),
    *('{"ablated_part":"x","action":"ADD"}\n', "[{\n", '"action": '),
]


def _seconds(texts: list[str]) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", SECONDS], input=json.dumps(texts), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_time_is_linear_in_hostile_repetition() -> None:
    head = "# T\n- Ablated Part: x\n- Replacement:\n  - z\n"
    texts = [
        start + unit * (size // len(unit))
        for unit in UNITS
        for start in (head, "")
        for size in (8_000, 32_000)
    ]
    seconds = _seconds(texts)
    for text, small, large in zip(texts[::2], seconds[::2], seconds[1::2], strict=True):
        assert large < 10 * max(small, 0.01), text[:100]  # 4 if linear, 16 if quadratic


def test_deep_nesting() -> None:
    published = PUBLISHED.read_text(encoding="utf-8")
    deep = "<div>" * 10_000 + "<ul><li>" * 1_000 + "</ul>" * 1_000
    plan = parse_plan(deep + published + "</b></div>" * 10_000)
    assert [ablation.part for ablation in plan.ablations] == [a.part for a in BOTH]


def test_as_long_as_a_plan_may_be() -> None:
    published = PUBLISHED.read_text(encoding="utf-8")
    prose = "A sentence of the reasoning trace, with <i>markup</i> &amp; a < b.\n" * 3_400
    short = published.replace("The paper", f"{prose}The paper", 1)
    long = published.replace("The paper", f"{prose * 4}The paper", 1)
    assert MAX_BYTES > len(long) > 900_000
    one, four = _seconds([short, long])
    assert four < 10 * one  # 4 if linear, 16 if quadratic
