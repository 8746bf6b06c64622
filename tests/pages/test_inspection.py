"""The page of an inspection: it says what was measured, and nothing in it can run or load."""

from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from optim4rl.evaluation.phases import TENSORS, Phases
from optim4rl.evaluation.response import CLASSICAL, TimeScales, measure
from optim4rl.optimizers import LEARNED, untrained
from optim4rl.pages.inspection import (
    ADAM,
    RULE,
    SIGN_SGD,
    Inspection,
    inspect,
    render_inspection,
    surface_figure,
    to_json,
)
from optim4rl.pages.inspection_words import forgets

HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)>"
SCALES = TimeScales((1e-3,), np.array([[0.0, 3.0, np.inf]]), np.array([[9.5]]))


@pytest.fixture(scope="module")
def inspection():
    """A card full of markup; the rule's response is Adam's."""
    responses = {name: measure(tx) for name, tx in CLASSICAL.items()}
    optimizer = untrained("anchored", 1e-3, jax.random.key(0))
    optimizer = replace(optimizer, card={"task": HOSTILE, HOSTILE: [HOSTILE, "</style>", "\ud800"]})
    return Inspection(HOSTILE, optimizer, {RULE: responses[ADAM], **responses}, SCALES)


@pytest.fixture(scope="module")
def html(inspection):
    return render_inspection(inspection)


class Page(HTMLParser):
    """What a browser would load, run or follow."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_in_the_page_runs_or_loads(html):
    page = Page(html)
    assert not {"script", "img", "iframe", "link", "object", "image"} & set(page.tags)
    assert page.tags.count("style") == 1
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
    policies = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'") for value in policies)
    assert HOSTILE in "".join(page.text)


def test_a_rule_that_reads_uses_is_drawn_by_phase(inspection):
    share = (np.arange(16) + 0.5) / 16
    uses = {use: share * (1 + place) for place, use in enumerate(TENSORS)}
    phases = Phases(share, uses, {use: 0.5 * x for use, x in uses.items()})
    drawn = replace(inspection, phases=phases)
    page = Page(render_inspection(drawn))
    assert page.tags.count("figure") == 15
    said = " ".join(page.text)
    assert "kernel 0.0312, 0.531; bias 0.0625, 1.06; policy head 0.0938, 1.59; value" in said
    assert "Muon’s kernels start at 0.17" in said
    assert to_json(drawn)["phases"]["last_epoch"]["bias"] == share.tolist()


def test_it_has_every_picture_with_a_title_and_words(html):
    page = Page(html)
    assert page.tags.count("figure") == page.tags.count("figcaption") == 11
    assert "By phase of training" not in "".join(page.text)  # It reads no use.
    said = " ".join(page.text)
    for words in ("Response surface", "changes its sign", "Implied momentum", "Time scales"):
        assert words in said


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(inspection, html):
    assert render_inspection(inspection) == html


def test_numbers_come_as_json(inspection):
    values = to_json(inspection)
    assert set(values["responses"]) == {RULE, ADAM, SIGN_SGD}
    assert values["state_floats"] == 11
    assert values["responses"][SIGN_SGD]["settled_step"] == [1.0] * len(values["sizes"])
    assert values["time_constants"] == {"0.001": {"hidden": [0.0, 3.0, None], "moments": [9.5]}}


@pytest.mark.parametrize(
    ("constant", "said"),
    [
        (9.5, "forgets in 9.5 updates"),
        (np.inf, "does not forget"),
        (np.nan, "forgets in a time that is not clear"),
    ],
)
def test_how_soon_a_state_forgets_is_said(constant, said):
    assert forgets(constant) == said


def test_a_rule_that_diverges_is_drawn_as_such(inspection):
    good = inspection.responses[ADAM]
    fields = ("constant", "alternating", "vanishing", "noisy", "kernel")
    lost = replace(good, **{name: getattr(good, name) * np.nan for name in fields})
    html = render_inspection(replace(inspection, responses={**inspection.responses, RULE: lost}))
    assert "not finite" in html


def test_the_response_surface_is_a_figure_of_as_many_panels(inspection):
    figure = surface_figure({name: inspection.responses[name] for name in (RULE, ADAM)})
    assert [axes.get_title() for axes in figure.axes] == [RULE, ADAM, ""]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_every_preset_can_be_inspected(name):
    optimizer = untrained(name, 1e-3, jax.random.key(0))
    found = inspect(name, optimizer)
    for field in ("constant", "alternating", "vanishing", "noisy", "kernel"):
        assert np.isfinite(getattr(found.responses[RULE], field)).all(), field
    moments = optimizer.spec.structure.num_moments
    assert found.scales.moments.shape == (3, moments)
    assert found.scales.hidden.shape == (3, optimizer.spec.state_floats - moments)
    assert Page(render_inspection(found)).tags.count("figure") == 11
