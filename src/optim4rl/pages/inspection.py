"""Draw a learned optimizer's response to gradients on one self-contained HTML page.

`evaluation.response` measures the response; this module draws it beside Adam and sign-SGD. Like a
report, the page holds no script and loads nothing, and the same weights give the same bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.evaluation.phases import Phases, measure_phases
from optim4rl.evaluation.response import (
    CLASSICAL,
    LIFE,
    NOISY_STREAMS,
    SIGNAL_TO_NOISE,
    SIZES,
    TENSOR,
    TYPICAL,
    VANISHES_AT,
    WINDOW,
    Response,
    TimeScales,
    measure,
    respond,
    time_scales,
)
from optim4rl.optimizers.rule import spec_to_dict
from optim4rl.optimizers.weights import LearnedOptimizer
from optim4rl.pages import figures
from optim4rl.pages.figures import Axis, Series
from optim4rl.pages.inspection_phases import phase_pictures, phases_json
from optim4rl.pages.inspection_pictures import (
    UNIT,
    Decades,
    Picture,
    Section,
    as_svg,
    drawn_steps,
    steps_axis,
    surface_figure as surface_figure,
)
from optim4rl.pages.inspection_words import (
    after_the_end,
    at_size,
    brief,
    change,
    forgets,
    index,
    momentum,
    number,
    relative,
    tenth_after,
)
from optim4rl.pages.page import page_template
from optim4rl.pages.words import finite

RULE, ADAM, SIGN_SGD = "this rule", "Adam", "sign-SGD"
MAX_CARD = 20_000  # characters of a card that are shown
_STYLES = {RULE: "variant", ADAM: "adam", SIGN_SGD: "reference"}


@dataclass(frozen=True)
class Inspection:
    """Hold a learned optimizer and its measurements.

    Attributes:
        name: its name.
        optimizer: the optimizer itself.
        responses: its response under `RULE`, and the responses of Adam and sign-SGD.
        scales: the time scales of its state.
        phases: its steps by phase of training and use of the tensor; None if it does not read what
            a tensor is for.
    """

    name: str
    optimizer: LearnedOptimizer
    responses: Mapping[str, Response]
    scales: TimeScales
    phases: Phases | None = None


def inspect(name: str, optimizer: LearnedOptimizer) -> Inspection:
    """Measure all that the page shows. It takes seconds, mostly to compile."""
    classical = {other: measure(tx) for other, tx in CLASSICAL.items()}
    responses = {RULE: respond(optimizer), **classical}
    phases = measure_phases(optimizer) if optimizer.spec.inputs else None
    return Inspection(name, optimizer, responses, time_scales(optimizer), phases)


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Return the numbers behind the page as JSON values; None if there is none."""
    scales = inspection.scales
    return {
        "name": inspection.name,
        **facts(inspection.optimizer),
        "sizes": SIZES.tolist(),
        "phases": None if inspection.phases is None else phases_json(inspection.phases),
        "responses": {name: _summary(r) for name, r in inspection.responses.items()},
        "time_constants": {
            f"{size:g}": {"hidden": _values(hidden), "moments": _values(moments)}
            for size, hidden, moments in zip(
                scales.sizes, scales.hidden, scales.moments, strict=True
            )
        },
    }


def facts(optimizer: LearnedOptimizer) -> dict[str, Any]:
    """Return the metadata of a weights file, and the size of its optimizer."""
    spec = optimizer.spec
    return {
        "learning_rate": optimizer.learning_rate,
        "spec": spec_to_dict(spec),
        "weights": sum(
            x.size for network in optimizer.meta_parameters.values() for x in network.values()
        ),
        "state_floats": spec.state_floats,
        "card": dict(optimizer.card),
    }


def _summary(response: Response) -> dict[str, Any]:
    return {
        "first_step": _values(response.constant[0, 0]),
        "settled_step": _values(response.constant[0, -1]),
        "settled_step_of_negative": _values(response.constant[1, -1]),
        "settled_alternating_step": float(response.alternating[-1]),
        "effective_step": _values(response.effective_step),
        "drift": _values(response.drift),
        "implied_momentum": _values(response.implied_momentum),
        "kernel": _values(response.kernel[-1]),
    }


def _values(numbers: Float[np.ndarray, " n"]) -> list[float | None]:
    return [finite(x) for x in numbers]


# The page


def render_inspection(inspection: Inspection) -> str:
    """Return the page as HTML."""
    optimizer = inspection.optimizer
    card = json.dumps(dict(optimizer.card), indent=1, ensure_ascii=False)
    axis, rows = _time_strips(inspection.scales)
    return page_template("inspect.html.jinja").render(
        name=inspection.name,
        facts=facts(optimizer),
        card=card[:MAX_CARD],
        cut=max(0, len(card) - MAX_CARD),
        tensorwise=optimizer.spec.tensorwise,
        answers=list(_answers(inspection)),
        sections=list(_sections(inspection)),
        time_axis=axis,
        time_rows=rows,
        tensor=TENSOR,
        typical=number(TYPICAL),
        life=LIFE,
    )


def _answers(inspection: Inspection) -> Iterable[tuple[str, str, str]]:
    """Yield questions, answers and evidence, the most important first."""
    rule, adam = (inspection.responses[name] for name in (RULE, ADAM))
    at_the_end, others = at_size(rule, -1), at_size(adam, -1)
    yield (
        f"Step under a constant gradient of {number(TYPICAL)}",
        number(at_the_end),
        f"learning rates, after {LIFE} updates; the first is {number(at_size(rule, 0))}. "
        f"Adam: {number(others)}.",
    )
    low, high = (at_size(rule, -1, size) for size in (1e-6, 1.0))
    yield (
        "Step at |g| = 1 divided by step at |g| = 10⁻⁶",
        number(high / low) if low else "not defined",
        f"{number(high)} divided by {number(low)}, late in life. Adam and sign-SGD: 1. Plain "
        "gradient descent: a million.",
    )
    yield (
        "Implied momentum, late in life",
        momentum(rule),
        "the share of the step that comes from gradients older than the newest. "
        f"Adam: {momentum(adam)}.",
    )
    hidden, moments = (
        np.sort(x.ravel()) for x in (inspection.scales.hidden, inspection.scales.moments)
    )
    yield (
        "The slowest part of its hidden state",
        forgets(hidden[-1]) if hidden.size else "it has none",
        f"The slowest of its running moments {forgets(moments[-1])}."
        if moments.size
        else "It keeps no running moments. Adam’s two forget in 9.5 and 999 updates.",
    )


def _sections(inspection: Inspection) -> Iterable[Section]:
    responses = inspection.responses
    yield Section(
        "size",
        "Step against gradient",
        "The step under a constant gradient, for each size and sign of the gradient.",
        tuple(_size_pictures(responses)),
    )
    yield Section(
        "surface",
        "Response surface",
        "The step under a constant positive gradient, at every age of the optimizer.",
        tuple(_surface_pictures(responses)),
    )
    yield Section(
        "history",
        "Step against history",
        f"The step under gradients of one size, {number(TYPICAL)}, with four histories.",
        tuple(_history_pictures(responses)),
    )
    yield Section(
        "life",
        "Over a life",
        f"Means over {NOISY_STREAMS} streams of noisy gradients and {WINDOW} updates each.",
        tuple(_life_pictures(responses)),
    )
    if inspection.phases is not None:
        yield Section(
            "phases",
            "By phase of training and use of the tensor",
            "The root mean square of the steps of a small network’s tensors under noisy gradients, "
            "while the rule is told how much of the training is done.",
            tuple(phase_pictures(inspection.phases)),
        )


def _size_pictures(responses: Mapping[str, Response]) -> Iterable[Picture]:
    rule = responses[RULE]
    decades = np.log10(SIZES)
    x = Decades(-10.0, 2.0, tuple(np.arange(-10.0, 3.0, 2.0).tolist()))
    every = [r.constant[:, age] for r in responses.values() for age in (0, -1)]
    y = steps_axis(every)
    odd = float(np.max(np.abs(rule.constant[0, -1] - rule.constant[1, -1])))
    for age, title in ((0, "The first update"), (-1, f"Update {LIFE}")):
        series = [
            Series(name, _STYLES[name], decades, drawn_steps(responses[name].constant[0, age]))
            for name in (SIGN_SGD, ADAM)
        ]
        series += [
            Series(label, style, decades, drawn_steps(rule.constant[sign, age]))
            for sign, label, style in ((1, "rule, g < 0", "run-2"), (0, "rule, g > 0", "variant"))
        ]
        words = (
            "A flat line means that only the sign counts. A slope of one decade per decade is "
            "plain gradient descent."
            if age == 0
            else "If the lines of the two signs differ, the rule treats them differently. Here "
            f"they differ by at most {number(odd)}."
        )
        drawing = figures.line_chart(
            series, x, y, x_label="|g|", label=f"{title}: step against the gradient’s size"
        )
        yield Picture(title, UNIT, drawing, words)


def _surface_pictures(responses: Mapping[str, Response]) -> Iterable[Picture]:
    words = {
        RULE: "Horizontal stripes mean that the size decides the step, vertical stripes that the "
        "age does. Grey: the step goes against the gradient.",
        ADAM: "One colour: under a constant gradient Adam’s step is one learning rate at any age, "
        "for any size above its epsilon of 10⁻⁸.",
    }
    for name, sentence in words.items():
        drawing = as_svg(
            partial(surface_figure, {"": responses[name]}),
            f"Step of {name} by size of the gradient and age",
        )
        title = name[0].upper() + name[1:]
        yield Picture(title, UNIT, drawing, sentence)


def _history_picture(
    title: str,
    words: str,
    until: int,
    steps: Mapping[str, np.ndarray],
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
) -> Picture:
    """Draw the steps under gradients of one history.

    Args:
        title: the gradients in a few words.
        words: the explanation.
        until: number of updates drawn.
        steps: optimizer -> its step at each age.
        bands: optimizer -> lower and upper edge around its steps.
    """
    shown = np.unique(np.linspace(0, until - 1, 128).astype(int))
    drawing = _chart(
        shown + 1.0,
        {name: drawn_steps(x[shown]) for name, x in steps.items()},
        figures.axis([0.0, float(until)], ticks=4, margin=0.0),
        steps_axis([*steps.values()]),
        x_label="update",
        label=f"Step under {title}",
        bands={
            name: (drawn_steps(low[shown]), drawn_steps(high[shown]))
            for name, (low, high) in bands.items()
        },
    )
    return Picture(title, UNIT, drawing, words)


def _history_pictures(responses: Mapping[str, Response]) -> Iterable[Picture]:
    rule, adam = responses[RULE], responses[ADAM]
    column = index(TYPICAL)
    yield _history_picture(
        "A constant gradient",
        f"This rule’s step {change(at_size(rule, 0), at_size(rule, -1))}. Adam’s and sign-SGD’s "
        "stay at 1.",
        LIFE,
        {name: r.constant[0, :, column] for name, r in responses.items()},
    )
    yield _history_picture(
        "A gradient that changes its sign each time",
        "The step along the newest gradient. An optimizer that averages gradients hardly steps "
        f"at all: Adam’s last step is {number(float(adam.alternating[-1]))}, this rule’s "
        f"{number(float(rule.alternating[-1]))}.",
        64,
        {name: r.alternating for name, r in responses.items()},
    )
    mean, others, drift = (
        number(float(x[-1])) for x in (rule.effective_step, adam.effective_step, rule.drift)
    )
    low, middle, high = (
        {name: np.quantile(r.noisy, q, axis=1) for name, r in responses.items()}
        for q in (0.25, 0.5, 0.75)
    )
    yield _history_picture(
        f"A noisy gradient, mean over deviation {SIGNAL_TO_NOISE}",
        "The step along the mean gradient: median and middle half of the streams. On average "
        f"this rule advances by {mean} with each update, and Adam by {others}. This rule drifts "
        f"by {drift}, whatever the gradient’s sign.",
        LIFE,
        middle,
        {name: (low[name], high[name]) for name in (ADAM, RULE)},
    )
    yield _history_picture(
        f"A gradient that vanishes after update {VANISHES_AT}",
        f"{after_the_end(rule)} Adam’s step falls to a tenth in {tenth_after(adam)} updates; "
        "sign-SGD’s is 0 at once.",
        2 * VANISHES_AT,
        {name: r.vanishing for name, r in responses.items()},
    )


def _life_pictures(responses: Mapping[str, Response]) -> Iterable[Picture]:
    middles = np.arange(WINDOW / 2, LIFE, WINDOW)
    life = figures.axis([0.0, float(LIFE)], ticks=4, margin=0.0)
    over_life = partial(_chart, middles, x=life, x_label="update", dots=True)
    effective = {name: r.effective_step for name, r in responses.items()}
    yield Picture(
        "Effective step",
        UNIT,
        over_life(
            {name: drawn_steps(steps) for name, steps in effective.items()},
            y=steps_axis([*effective.values()]),
            label="Effective step over a life",
        ),
        "The mean step along the mean of a noisy gradient. This rule’s "
        f"{change(float(effective[RULE][0]), float(effective[RULE][-1]))}.",
    )
    momenta = {name: r.implied_momentum for name, r in responses.items()}
    yield Picture(
        "Implied momentum",
        "share of the step",
        over_life(
            momenta,
            y=figures.axis([0.0, 1.0, *np.concatenate([*momenta.values()])], ticks=5),
            label="Implied momentum over a life",
        ),
        "0: only the newest gradient makes the step. 0.9: nine tenths of the step come from "
        "older gradients, as with Adam. A gap: no linear response stands out from chance.",
    )
    lags = np.arange(24)
    kernels = {name: relative(r.kernel[-1])[lags] for name, r in responses.items()}
    yield Picture(
        "Memory of one gradient",
        "share of its largest effect",
        _chart(
            lags.astype(float),
            kernels,
            figures.axis([0.0, 24.0], ticks=4, margin=0.0),
            figures.axis([0.0, 1.0, *kernels[RULE]], ticks=5),
            x_label="updates since",
            label="Effect of one gradient on later steps",
        ),
        "The effect of one gradient on later steps, late in life. With Adam it fades by a tenth "
        "with each update; with sign-SGD it ends with its own update.",
    )


def _chart(
    at: Float[np.ndarray, " points"],
    curves: Mapping[str, np.ndarray],
    x: Axis,
    y: Axis,
    *,
    x_label: str,
    label: str,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
    dots: bool = False,
) -> Markup:
    """Draw sign-SGD, Adam on top of it, and the rule on top of both."""
    series = []
    for name in (SIGN_SGD, ADAM, RULE):
        low, high = bands.get(name, (None, None))
        series.append(Series(name, _STYLES[name], at, curves[name], low, high, dots))
    return figures.line_chart(series, x, y, x_label=x_label, label=label)


def _time_strips(scales: TimeScales) -> tuple[Markup, list[tuple[str, Markup, str]]]:
    """Draw time constants as strips: their axis, and a label, a strip and words for each."""
    longest = 4.0
    x = Decades(-1.0, longest, (-1.0, 0.0, 1.0, 2.0, 3.0, longest))
    guides = [("adam", math.log10(-1.0 / math.log(beta))) for beta in (0.9, 0.999)]

    def row(label: str, constants: Float[np.ndarray, " n"]) -> tuple[str, Markup, str]:
        places = [math.log10(min(max(float(c), 0.1), 10.0**longest)) for c in constants]
        words = ", ".join(brief(float(c)) for c in constants) or "none"
        strip = figures.dot_strip(x, places, guides, f"{label}: {words} updates")
        return label, strip, words

    rows = [
        row(f"hidden state at |g| = {number(size)}", hidden)
        for size, hidden in zip(scales.sizes, scales.hidden, strict=True)
    ]
    return figures.scale_strip(x), [*rows, row("running moments", scales.moments[0])]
