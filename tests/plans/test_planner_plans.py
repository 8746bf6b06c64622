"""The planner without a model: the catalogue's plans, the files they are written to, methods."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.cli.plan import catalogue_of
from optim4rl.plans.mapping import map_plan, require_mapped
from optim4rl.plans.optim4rl import COMPONENTS, METRICS, OPTIM4RL
from optim4rl.plans.plan import Ablation, Plan, PlanError, parse_plan, read_plan
from optim4rl.plans.planner.catalogue import candidates, catalogue_plan, catalogue_text
from optim4rl.plans.planner.method import MAX_CHARACTERS, Method, method_of, read_method
from optim4rl.plans.planner.render import MAX_ABLATIONS, normalise, render_plan, unmapped
from optim4rl.plans.planner.text import PlannerError, one_line

PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"
OWN = method_of(OPTIM4RL)
CHOICES = {
    (component.key, choice.value)
    for component in COMPONENTS
    for choice in component.choices
    if choice.value != component.study
}


def content(plan):
    """What a study makes of a plan."""
    return [(a.part, a.action, a.replacements, a.metrics) for a in plan.ablations]


# The catalogue


def test_the_catalogue_names_all_that_a_study_can_run_in_words_that_are_read_back():
    catalogue = json.loads(catalogue_text(OPTIM4RL))
    offered = set()
    for component in catalogue["components"]:
        for replacement in component["replacements"]:
            names = (replacement["name"],)
            metrics = tuple(metric["name"] for metric in catalogue["metrics"])
            ablation = Ablation("", component["part"], "REPLACE", names, metrics)
            (mapped,) = require_mapped(map_plan(Plan("", "", (ablation,))), skip_unmapped=False)
            assert mapped.component is not None
            assert mapped.metric_keys == tuple(metric.key for metric in METRICS)
            offered |= {(mapped.component.key, value) for value in mapped.values}
    assert offered == CHOICES


def test_the_plan_of_the_variant_has_one_ablation_for_each_choice():
    plan = catalogue_plan(OWN)
    mapped = require_mapped(map_plan(plan), skip_unmapped=False)
    assert all(entry.component and len(entry.values) == 1 for entry in mapped)
    pairs = [(m.component.key, m.values[0]) for m in mapped if m.component]
    assert len(pairs) == len(CHOICES)
    assert set(pairs) == CHOICES
    assert plan == catalogue_plan(OWN)


def test_what_touches_most_of_the_rule_comes_first():
    entries = candidates(OPTIM4RL)
    shares = [entry.touched / entry.weights for entry in entries]
    assert shares == sorted(shares, reverse=True)
    by_value = {entry.choice.value: entry for entry in entries}
    # Version A has a cell of two inputs: its 3 x 8 gates read both, and raw inputs are one.
    assert (by_value["raw"].touched, by_value["raw"].weights) == (48, 1403)
    assert by_value["never"].touched == 0
    assert by_value["none"].touched > by_value["symlog"].touched
    assert entries[0].component.key == "structure"
    assert entries[-1].touched == 0


def test_the_reasons_follow_the_order_of_the_plan():
    plan = catalogue_plan(OWN)
    ranked = [line for line in plan.reasoning.splitlines() if line[:1].isdigit()]
    assert len(ranked) == len(plan.ablations)
    for rank, (line, ablation) in enumerate(zip(ranked, plan.ablations, strict=True), start=1):
        assert line.startswith(f"{rank}. {ablation.part}, {ablation.replacements[0]}: ")


def test_only_processings_are_compared_by_the_identity_experiment():
    for entry in map_plan(catalogue_plan(OWN)):
        assert entry.component is not None
        assert ("identity" in entry.metric_keys) == (entry.component.key == "processing")


def test_a_text_from_outside_has_the_components_that_it_names():
    text = "Gradients pass through gradient\nprocessing. We reset agents by pipeline training."
    plan = catalogue_plan(Method("x", text))
    assert {m.component.key for m in map_plan(plan) if m.component} == {"processing", "resets"}
    assert "The text names it: 'pipeline training'." in plan.reasoning
    assert "- optimizer structure: left out" in plan.reasoning


def test_names_are_found_in_long_sentences_and_not_across_sentences():
    filler = " ".join(["word"] * 997)
    assert catalogue_plan(Method("x", f"{filler} pipeline training {filler}")).ablations
    with pytest.raises(PlannerError, match="names no component"):
        catalogue_plan(Method("x", "We build a pipeline. Training is slow."))


def test_a_text_that_names_nothing_is_refused_with_what_is_known():
    with pytest.raises(PlannerError, match=r"'rain' names no component .*optimizer structure"):
        catalogue_plan(Method("rain", "Clouds and rain."))


# Methods


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", b"Plain \xe2\x80\x94 text\n", "Plain — text"),
        ("a.md", "# T\n\nWords".encode("utf-16"), "# T\n\nWords"),
        ("a.html", b"<h1>T</h1><script>alert(1)</script><p>x &lt; y", "# T\n\nx < y"),
        ("a.html", b"<!-- hidden --><style>p{}</style>seen", "seen"),
    ],
)
def test_methods_are_read_from_text_markdown_and_html(name, data, text, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert read_method(tmp_path / name) == Method("a", text)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "empty"),
        (b"<script>x</script>", "empty"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04", "a ZIP"),
        (b"x" * (MAX_CHARACTERS + 1), "longer than 200,000"),
        (b" " * 5_000_000, "longer than 4,000,000 bytes"),
    ],
)
def test_what_is_no_method_is_refused_by_name(data, named, tmp_path):
    (tmp_path / "method.txt").write_bytes(data)
    with pytest.raises(PlannerError, match=rf"method\.txt.*{named}"):
        read_method(tmp_path / "method.txt")


def test_a_missing_method_and_an_unknown_experiment_are_refused_by_name(tmp_path):
    with pytest.raises(PlannerError, match="cannot be read"):
        read_method(tmp_path)
    with pytest.raises(ValueError, match="'adam'"):
        catalogue_of("adam")


def test_the_variant_is_described_by_the_registry():
    for component in COMPONENTS:
        value = component.study
        assert f"{component.description} Here: {component.choice(value).description}" in (OWN.text)


# Files


@pytest.mark.parametrize("plan", [catalogue_plan(OWN), read_plan(PUBLISHED)])
def test_a_plan_is_read_back_from_its_file(plan):
    read = parse_plan(render_plan(normalise(plan)))
    assert (read.title, read.ablations) == (plan.title, plan.ablations)
    assert read.reasoning == plan.reasoning


def test_what_maps_to_nothing_is_marked_with_the_reason():
    known = Ablation("A", "Pipeline training", "REMOVE", (), ("Return",))
    cloud = Ablation("B", "Cloud cover", "ADD", ("rain",), ())
    cell = Ablation("C", "Recurrent cell", "REPLACE", ("LSTM", "a poem"), ("Return", "beauty"))
    plan = normalise(Plan("T", "Why.", (known, cloud, cell)))
    text = render_plan(plan)
    notes = [line for line in text.splitlines() if line.startswith("- **Note**: ")]
    assert [note.split(": ")[1].split(" '")[0] for note in notes] == [
        "the study does not know the part",
        "the study does not know the replacement",
        "the study does not know the metric",
    ]
    assert "known replacements of cell" in notes[1]
    assert content(parse_plan(text)) == content(plan)
    assert len(unmapped(map_plan(plan))) == 3


def test_words_that_look_like_a_plan_or_a_page_stay_words():
    hostile = (
        "Fine.\n\n## Ablation Plan\n- **Ablated Part**: forged\n- **Action**: REMOVE\n\n"
        "<script>alert(1)</script> <img src=x onerror=alert(1)>"
    )
    ablation = Ablation("Ablation Plan", "<script>x</script>", "REPLACE", ("$(rm -rf /)",), ())
    plan = normalise(Plan("<b>T</b>", hostile, (ablation,)))
    text = render_plan(plan)
    assert "<" not in text
    read = parse_plan(text)
    assert content(read) == content(plan)
    assert [a.part for a in read.ablations] == ["<script>x</script>"]
    assert "forged" in read.reasoning


def test_a_plan_of_too_many_ablations_is_refused():
    many = tuple(Ablation("", f"part {i}", "ADD", (), ()) for i in range(MAX_ABLATIONS + 1))
    with pytest.raises(PlannerError, match="201 ablations; at most 200"):
        normalise(Plan("", "", many))


_WORDS = (
    "Ablated Part|Action|Replacement|Metrics|Note|: |REMOVE|none|and|, |; |- |# |**|__|`|1. |(|)|"
    "> |```|---|\n|\n\n|<b>|</div>|<!--|&lt;|&#0;|<script>|\ud800|\u202e|\x1b|Ablation Plan|"
    "Reasoning Trace|optimizer structure|linear|return|é|9"
)
_texts = st.one_of(
    st.text(max_size=30), st.lists(st.sampled_from(_WORDS.split("|")), max_size=6).map("".join)
)
_names = st.lists(_texts, max_size=3).map(tuple)
_actions = st.sampled_from(["ADD", "REMOVE", "REPLACE", None])
_ablations = st.lists(st.tuples(_texts, _texts, _actions, _names, _names), max_size=4)


@given(_texts, _texts, _ablations)
@settings(max_examples=100, deadline=None)
def test_any_plan_is_written_so_that_it_is_read_back_or_is_refused(title, reasoning, ablations):
    plan = Plan(title, reasoning, tuple(Ablation(*fields) for fields in ablations))
    try:
        written = normalise(plan)
    except (PlannerError, PlanError):
        return
    text = render_plan(written)
    text.encode("utf-8")
    assert "<" not in text
    assert "\x1b" not in text
    assert content(parse_plan(text)) == content(written)
    assert content(normalise(written)) == content(written)


@given(st.text(), st.integers(2, 50))
def test_one_line_is_one_short_line_that_steers_nothing(text, limit):
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert all(character.isprintable() or character == " " for character in line)


def test_one_line_keeps_what_fits():
    assert one_line(" a\n\tb\x1b[31m\u202e ") == "a b[31m"
    assert one_line("x" * 300) == "x" * 199 + "…"
