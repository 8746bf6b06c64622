"""The mapping from a plan's words to variants: known readings, laws of the registry, honesty."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.plans.components import Component
from optim4rl.plans.mapping import MappedAblation, map_plan, plan_as_dict, require_mapped
from optim4rl.plans.optim4rl import COMPONENTS, DEFAULT_METRICS, METRICS
from optim4rl.plans.plan import Ablation, Action, Plan, PlanError, read_plan

PLANS = Path(__file__).parent / "plans"
PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"
FOREIGN = "of the vision backbone encoder attention tokens"
BY_KEY = {component.key: component for component in COMPONENTS}
KNOWN_PART = {
    "structure": "optimizer structure",
    "processing": "gradient processing",
    "resets": "pipeline training",
    "cell": "recurrent cell",
    "validation": "validation rollout",
    "environments": "environments per agent",
    "width": "agent width",
    "life": "life length",
}


def _map(
    part: str,
    action: Action | None = "REPLACE",
    replacements: tuple[str, ...] = (),
    metrics: tuple[str, ...] = (),
    title: str = "",
) -> MappedAblation:
    (mapped,) = map_plan(Plan("", "", (Ablation(title, part, action, replacements, metrics),)))
    return mapped


def _key(mapped: MappedAblation) -> str | None:
    return mapped.component.key if mapped.component else None


# --- Known readings -------------------------------------------------------------------------------


def test_published_plan() -> None:
    mapped = map_plan(read_plan(PUBLISHED))
    assert [_key(m) for m in mapped] == ["structure", "processing"]
    assert [m.values for m in mapped] == [("linear", "non_adaptive"), ("raw", "symlog")]
    assert [m.metric_keys for m in mapped] == [("return", "stability"), ("return", "identity")]
    assert require_mapped(mapped, skip_unmapped=False) == mapped


@pytest.mark.parametrize(
    ("name", "keys", "values"),
    [
        ("bold_lines.md", ["structure", "processing"], [("linear", "non_adaptive"), ("raw",)]),
        ("missing_parts.md", ["processing", "structure", "resets"], None),
        ("numbered_titles.md", ["resets", "cell"], [("never",), ("lstm",)]),
        ("other_order.md", ["resets", "processing"], [("synchronous", "random"), ("raw",)]),
        ("validation_and_cell.md", ["validation", "cell"], [("last",), ()]),
        ("wrapped.md", ["processing"], [("symlog", "raw")]),
        ("vision_transformer.md", [None, None], [(), ()]),
        ("language_model.md", [None, None], [(), ()]),
    ],
)
def test_samples(name: str, keys: list[str | None], values: list[tuple[str, ...]] | None) -> None:
    mapped = map_plan(read_plan(PLANS / name))
    assert [_key(m) for m in mapped] == keys
    assert [m.values for m in mapped] == (
        values or [BY_KEY[key].defaults for key in keys if key is not None]
    )


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("Optimizer structure inspired by adaptive optimizers", "structure"),
        ("Optimiser structures", "structure"),
        ("Non-adaptive structure", "structure"),
        ("Adaptive inductive bias in the update", "structure"),
        ("Gradient pre-processing", "processing"),
        ("Without gradient processing", "processing"),
        ("The processing of the agent gradients", "processing"),
        ("no pipeline training", "resets"),
        ("Pipeline training mechanism that addresses the non-iid gradients", "resets"),
        ("Staggered agent resets", "resets"),
        ("GRU cell", "cell"),
        ("Meta-objective", "validation"),
        ("learning rate schedule of the vision backbone", None),
        ("Optimizer structure of the vision backbone", None),
        ("Reset gate of the recurrent cell", None),
        ("GRU hidden size", None),
        ("Gradient processing and pipeline training", None),
        ("Gradient clipping", None),
        ("Policy gradient transformation network", None),
        ("Data pipeline", None),
        ("Identity function", None),
        ("Transformation", None),
    ],
)
def test_parts(part: str, key: str | None) -> None:
    assert _key(_map(part)) == key


@pytest.mark.parametrize(
    ("component", "text", "value"),
    [
        ("structure", "Linear update function", "linear"),
        ("structure", "Linear update function: the gradient itself", "linear"),
        ("structure", "Linear update function: without the division", None),
        ("structure", "Linear, non-adaptive", None),
        ("cell", "No cell, LSTM", None),
        ("structure", "A simple linear function", "linear"),
        ("structure", "Non-linear update function", None),
        ("structure", "Linear learning rate decay", None),
        ("structure", "Non-adaptive structure", "non_adaptive"),
        ("structure", "Nonadaptive update", "non_adaptive"),
        ("structure", "Structure without adaptive inductive bias", "non_adaptive"),
        ("structure", "Momentum only (no second moment)", "non_adaptive"),
        ("structure", "Adaptive structure", None),
        ("structure", "L2L (learning to learn)", "l2l"),
        ("structure", "Anchored at Adam", "anchored"),
        ("structure", "Identity", None),
        ("structure", "Adam", None),
        ("processing", "No transformation", "raw"),
        ("processing", "Without any transformation (raw gradients)", "raw"),
        ("processing", "No gradient processing", "raw"),
        ("processing", "Identity transformation", "raw"),
        ("processing", "Identity function", "raw"),
        ("processing", "Alternative logarithmic scaling", "symlog"),
        ("processing", "Symmetric logarithm", "symlog"),
        ("processing", "Logarithmic scaling", None),
        ("processing", "No logarithmic scaling", None),
        ("processing", "Sign and logarithm", None),
        ("processing", "Raw and squared gradients", "raw_and_square"),
        ("processing", "Preprocessing of Andrychowicz", "andrychowicz"),
        ("processing", "Min-max normalization", None),
        ("resets", "No pipeline training", "never"),
        ("resets", "Standard training without a pipeline", "never"),
        ("resets", "All agents start at once and are never reset", "never"),
        ("resets", "Synchronous resets", "synchronous"),
        ("resets", "Random reset times", "random"),
        ("resets", "Random initialization", None),
        ("cell", "LSTM", "lstm"),
        ("cell", "No recurrent network", None),
        ("cell", "Transformer", None),
        ("validation", "A single validation rollout", "last"),
    ],
)
def test_replacements(component: str, text: str, value: str | None) -> None:
    (match,) = _map(KNOWN_PART[component], "REPLACE", (text,)).replacements
    assert (match.text, match.key) == (text, value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Return", "return"),
        ("Average cumulative reward", "return"),
        ("Final performance", "return"),
        ("Sample efficiency", "return"),
        ("Area under the learning curve (AUC)", "return"),
        ("Training stability", "stability"),
        ("Convergence speed", "stability"),
        ("Variance of returns across seeds", "stability"),
        ("Robustness", "stability"),
        ("RNN accuracy in identity function approximation", "identity"),
        ("RNN accuracy", "identity"),
        ("Identity transformation", None),
        ("Accuracy", None),
        ("Top-1 performance on ImageNet", None),
        ("Robustness to adversarial attacks", None),
        ("Inference speed", None),
        ("Gradient variance", None),
    ],
)
def test_metrics(text: str, key: str | None) -> None:
    (match,) = _map("GRU", metrics=(text,)).metrics
    assert (match.text, match.key) == (text, key)


def test_actions_without_replacements() -> None:
    assert [component.key for component in COMPONENTS] == list(KNOWN_PART)
    for component in COMPONENTS:
        part = KNOWN_PART[component.key]
        removed = (component.remove,) if component.remove else ()
        added = (component.add,) if component.add else ()
        assert _map(part, "REPLACE").values == component.defaults
        assert _map(part, None).values == component.defaults
        assert _map(part, "REMOVE").values == removed
        assert _map(part, "ADD").values == added


def test_defaults_say_that_they_are() -> None:
    mapped = _map("gradient processing", None)
    assert "states no action" in mapped.reason
    assert all("names no replacement" in match.reason for match in mapped.replacements)
    assert all("names no metric" in match.reason for match in mapped.metrics)
    assert mapped.metric_keys == DEFAULT_METRICS


def test_heading_stands_in_for_a_missing_part_only() -> None:
    mapped = _map("", title="Ablation of Gradient Processing")
    assert _key(mapped) == "processing"
    assert "heading" in mapped.reason
    assert _key(_map("Token mixing", title="Ablation of Gradient Processing")) is None


def test_repeated_names_are_compared_once() -> None:
    mapped = _map("GRU", "REPLACE", ("LSTM", "LSTM cell"), ("Reward", "Return"))
    assert (mapped.values, mapped.metric_keys) == (("lstm",), ("return",))


# --- Laws of the mapping --------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.key)
def test_every_phrase_names_its_own(component: Component) -> None:
    for phrase in component.phrases:
        assert _key(_map(phrase)) == component.key
        assert _key(_map(f"Removal of the {phrase.upper()}")) == component.key
    for choice in component.choices:
        expected = None if choice.value == component.reference else choice.value
        for phrase in choice.phrases:
            (match,) = _map(component.phrases[0], "REPLACE", (phrase,)).replacements
            assert (phrase, match.key) == (phrase, expected)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.key)
def test_foreign_words_outweigh_every_phrase(component: Component) -> None:
    for phrase in component.phrases:
        assert _key(_map(f"{phrase} {FOREIGN}")) is None
    for choice in component.choices:
        (match,) = _map(
            component.phrases[0], "REPLACE", (f"{choice.phrases[0]} {FOREIGN}",)
        ).replacements
        assert match.key is None


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.key)
def test_negation_is_removal(component: Component) -> None:
    reference = component.choice(component.reference).phrases if component.reference else ()
    for phrase in (*component.phrases, *reference):
        (match,) = _map(component.phrases[0], "REPLACE", (f"Without {phrase}",)).replacements
        assert (phrase, match.key) == (phrase, component.remove)


def test_every_metric_phrase_names_its_own() -> None:
    for metric in METRICS:
        for phrase in metric.phrases:
            assert _map("GRU", metrics=(phrase,)).metric_keys == (metric.key,)


_WORDS = (
    *("no", "non-adaptive", "linear", "of", "(", ":", "gradient", "processing", "raw", "log"),
    *("reset", "that", "RNN", "pipeline", "training", "vision", "variance", "return"),
)
_soup = st.lists(st.sampled_from(_WORDS)).map(" ".join)
_texts = st.one_of(st.text(), _soup)


@given(_texts, _texts, st.lists(_texts), st.lists(_texts))
@settings(max_examples=100, deadline=None)
def test_any_words_are_mapped_or_given_a_reason(
    title: str, part: str, replacements: list[str], metrics: list[str]
) -> None:
    mapped = _map(part, "REPLACE", tuple(replacements), tuple(metrics), title)
    assert mapped.reason
    matches = (*mapped.replacements, *mapped.metrics)
    assert all(match.reason for match in matches)
    assert [m.text for m in mapped.replacements if m.text] == [r for r in replacements if r]
    assert [m.text for m in mapped.metrics if m.text] == [m for m in metrics if m]
    if mapped.component is None:
        assert mapped.values == ()


# --- What the commands use ------------------------------------------------------------------------


def test_require_mapped_names_the_unknown_and_the_known() -> None:
    mapped = map_plan(read_plan(PLANS / "vision_transformer.md"))
    with pytest.raises(PlanError) as error:
        require_mapped(mapped, skip_unmapped=False)
    assert "Learning rate schedule of the vision backbone" in str(error.value)
    assert all(component.key in str(error.value) for component in COMPONENTS)
    assert "--skip-unmapped" in str(error.value)
    with pytest.raises(PlanError, match="experiment optim4rl can run no part of the plan"):
        require_mapped(mapped, skip_unmapped=True)
    with pytest.raises(PlanError, match="experiment mine can run no part of the plan"):
        require_mapped((), skip_unmapped=True, experiment="mine")


@pytest.mark.parametrize(
    ("replacements", "metrics", "named"),
    [
        (("Tanh", "No transformation"), ("Return",), ["'Tanh'", "raw_and_square"]),
        (("No transformation",), ("Win rate",), ["'Win rate'", "stability"]),
    ],
)
def test_require_mapped_looks_at_replacements_and_metrics(
    replacements: tuple[str, ...], metrics: tuple[str, ...], named: list[str]
) -> None:
    mapped = (_map("gradient processing", "REPLACE", replacements, metrics),)
    with pytest.raises(PlanError) as error:
        require_mapped(mapped, skip_unmapped=False)
    assert all(word in str(error.value) for word in named)
    (kept,) = require_mapped(mapped, skip_unmapped=True)
    assert kept.values == ("raw",)


def test_plan_as_dict_is_json() -> None:
    plan = read_plan(PUBLISHED)
    shown = plan_as_dict(plan, map_plan(plan))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["title"] == plan.title
    ablations = shown["ablations"]
    assert isinstance(ablations, list)
    assert ablations[0]["part"] == "Optimizer structure inspired by adaptive optimizers"
    assert (ablations[0]["component"], ablations[0]["field"]) == ("structure", "structure")
    assert ablations[1]["mapped_replacements"][0] == {
        "text": "No transformation",
        "key": "raw",
        "reason": "named by 'no transformation'",
    }


def test_programs_of_the_first_version_find_the_reader_under_its_old_name():
    from optim4rl.plans import mapping, plan
    from optim4rl.study import mapping as old_mapping, plan as old_plan

    assert old_mapping.map_plan is mapping.map_plan
    assert old_mapping.require_mapped is mapping.require_mapped
    assert old_plan.read_plan is plan.read_plan
    assert old_plan.PlanError is plan.PlanError
