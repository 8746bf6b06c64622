"""The report says what the statistics say, shows everything, and loads and runs nothing."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from optim4rl.evaluation import stability
from optim4rl.evaluation.claims import holm
from optim4rl.evaluation.curves import HEALTHY, Curves, stack
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    compare,
    final_return,
    interquartile_mean,
)
from optim4rl.pages import figures
from optim4rl.pages.identity import identity_words
from optim4rl.pages.study import render_report, write_report
from optim4rl.pages.summary import OUTCOMES, summarise, summary_table
from optim4rl.pages.words import interval, number, p_value
from optim4rl.plans.components import Metric
from optim4rl.plans.mapping import map_plan
from optim4rl.plans.optim4rl import METRICS
from optim4rl.plans.plan import Ablation, Plan
from optim4rl.study.identity import ACCURACIES, Histogram, IdentityResult, IdentityRow
from optim4rl.study.results import Row, RowKind, StudyResults

FLOOR, CEILING = -0.6, 0.998
HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)>"


# --- Made-up studies ------------------------------------------------------------------------------


def make_curves(auc: float, final: float, key: tuple[int, ...], runs: int = 6) -> Curves:
    """Curves that rise to `final` about as fast as `auc` asks for."""
    rng = np.random.default_rng(key)
    time = np.linspace(0.0, 1.0, 160)
    speed = (final - FLOOR) / max(final - auc, 0.02)
    rise = 1 - np.exp(-speed * time)
    level = final + 0.008 * rng.standard_normal((runs, 1))
    returns = FLOOR + (level - FLOOR) * rise + 0.02 * rng.standard_normal((runs, time.size))
    return Curves(returns, np.full(runs, HEALTHY), np.arange(1, 161) * 3200)


def diverge(curves: Curves, run: int, at: int) -> Curves:
    returns, diverged_at = curves.returns.copy(), curves.diverged_at.copy()
    returns[run, at:], diverged_at[run] = np.nan, at
    return Curves(returns, diverged_at, curves.env_steps)


STRUCTURE, PROCESSING = "Ablation of Optimizer Structure", "Ablation of Gradient Processing"
# key, label, kind, change, ablation, AUC of each meta-seed, final return
ROWS: tuple[tuple[str, str, RowKind, str, str | None, tuple[float, ...], float], ...] = (
    (
        *("reference", "Optim4RL", "reference", "as published", None),
        *((0.900, 0.890, 0.910, 0.908), 0.973),
    ),
    (
        *("structure=linear", "Linear update function", "replacement"),
        *("structure: adaptive → linear", STRUCTURE, (0.748, 0.273, 0.950, 0.923), 0.970),
    ),
    (
        *("structure=non_adaptive", "Non-adaptive structure", "replacement"),
        *("structure: adaptive → non_adaptive", STRUCTURE, (0.922, 0.881, 0.935, 0.895), 0.980),
    ),
    (
        *("processing=raw", "No transformation", "replacement"),
        *("processing: sign_log → raw", PROCESSING, (0.800, 0.790, 0.780, 0.774), 0.981),
    ),
    (
        *("processing=symlog", "Symmetric logarithm", "replacement"),
        *("processing: sign_log → symlog", PROCESSING, (0.951, 0.958, 0.960, 0.956), 0.981),
    ),
    (
        *("resets=never", "Pipeline training off", "paper", "resets: staggered → never", None),
        *((0.100, 0.596, 0.229, 0.442), 0.824),
    ),
    (
        *("untrained", "Optim4RL, untrained", "control", "meta-training: yes → no", None),
        *((0.720, 0.660, 0.738, 0.700), 0.976),
    ),
    ("adam", "Tuned Adam", "baseline", "best of 9 learning rates", None, (0.945,), 0.998),
    ("sign_sgd", "Sign-SGD", "baseline", "best of 9 learning rates", None, (0.918,), 0.987),
)  # fmt: skip


def make_row(index: int) -> Row:
    key, label, kind, change, ablation, aucs, final = ROWS[index]
    stress = {
        scale: stack(
            [
                make_curves(0.7, final, (index, 8, int(scale)), runs=24 - 4 * int(scale)),
                make_curves(0.1, 0.3, (index, 9, int(scale)), runs=4 * int(scale)),
            ]
        )
        for scale in (1.0, 2.0, 4.0)
    }
    tuned = "learning rate" if kind == "baseline" else "meta-learning rate"
    return Row(
        key=key,
        label=label,
        kind=kind,
        change=change,
        ablation=ablation,
        curves=tuple(make_curves(auc, final, (index, i)) for i, auc in enumerate(aucs)),
        stress=stress,
        settings={"step scale": 1.0, tuned: 0.003},
        seconds=61.5 * (index + 1),
    )


def make_plan(hostile: bool = False) -> Plan:
    structure = Ablation(
        STRUCTURE,
        "Optimizer structure inspired by adaptive optimizers",
        "REPLACE",
        ("Linear update function", "Non-adaptive structure"),
        ("Return", "Training stability"),
    )
    processing = Ablation(
        PROCESSING,
        "Gradient processing transformation",
        "REPLACE",
        ("No transformation", "Alternative logarithmic scaling"),
        ("Return", "RNN accuracy in identity function approximation"),
    )
    unknown = Ablation(HOSTILE, HOSTILE, None, (HOSTILE,), (HOSTILE,))
    reasoning = "The paper names three obstacles.\n\nTwo parts were never ablated."
    if hostile:
        return Plan(HOSTILE, f"{HOSTILE}\ud800 {{{{ 7 * 7 }}}}", (structure, processing, unknown))
    return Plan("lm-planner/Learning_to_Optimize", reasoning, (structure, processing))


def make_identity(frozen: float = 0.4) -> IdentityResult:
    def row(input: str, output: str, schedule: str, online: float, held_out: float) -> IdentityRow:
        rng = np.random.default_rng(len(input + output))
        measures = {
            "online": online,
            "online_nonzero": max(0.0, online - 0.3),
            "frozen": (held_out + 1) / 2,
            "frozen_nonzero": held_out,
        }
        return IdentityRow(
            input,
            output,
            schedule,
            3e-3,
            **measures,
            by_decade={d: min(1.0, max(0.0, held_out + 0.08 * d + 0.4)) for d in range(-8, -1)},
            curve=online * (1 - np.exp(-np.arange(200) / 30)) + 0.004 * rng.random(200),
            seeds=3,
            spread={
                name: (max(0.0, value - 0.02), value + 0.02) for name, value in measures.items()
            },
        )

    rows = [
        row("raw", "linear", "constant", 0.44, 0.55),
        row("sign_log", "sign_exp", "constant", 0.87, 0.32),
        row("raw", "sign_exp", "constant", 0.61, 0.2),
        row("sign_log", "linear", "constant", 0.3, 0.25),
        row("symlog", "symexp", "constant", 0.7, 0.5),
        row("symlog", "sign_exp", "constant", 0.8, 0.45),
        row("raw", "linear", "annealed", 0.6, 0.92),
        row("sign_log", "sign_exp", "annealed", 0.9, frozen),
        row("raw", "sign_exp", "annealed", 0.7, 0.5),
        row("sign_log", "linear", "annealed", 0.4, 0.3),
        row("symlog", "symexp", "annealed", 0.75, 0.74),
    ]
    edges = np.linspace(-10.0, 0.0, 41)
    middle = (edges[:-1] + edges[1:]) / 2

    def histogram(label: str, at: float, width: float, zeros: float) -> Histogram:
        share = np.exp(-0.5 * ((middle - at) / width) ** 2)
        return Histogram(label, edges, share / share.sum(), zeros, 4 * width)

    return IdentityResult(
        "A2C with RMSProp on small_dense_long",
        tuple(rows),
        (
            histogram("agent-gradients", -5.0, 1.0, 0.488),
            histogram("supervised gradients", -3.5, 0.7, 0.02),
        ),
        {"hidden size": 8, "window": 5, "learning rates": (3e-3, 1e-3, 3e-4, 1e-4)},
    )


def make_results() -> StudyResults:
    """A study much like the one on Catch: symlog wins, linear is erratic, pipeline off loses."""
    plan = make_plan()
    rows = [make_row(index) for index in range(len(ROWS))]
    # One run of the linear structure diverges; so does meta-training of one of its meta-seeds.
    linear = (diverge(rows[1].curves[0], 2, 70), *rows[1].curves[1:3])
    rows[1] = replace(rows[1], curves=linear, failures={3: "no finite numbers at iteration 41"})
    return StudyResults(
        plan=plan,
        mapped=map_plan(plan),
        rows=tuple(rows),
        floor=FLOOR,
        ceiling=CEILING,
        identity=make_identity(),
        task="Catch",
        scale={"name": "quick", "meta_seeds": 4, "training": {"width": 32, "agents": 8}},
        command="optim4rl study plan.txt --task catch --scale quick",
        versions={"optim4rl": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6"},
        started="2025-01-31T12:00:00+00:00",
    )


def with_row(results: StudyResults, key: str, change: Callable[[Row], Row]) -> StudyResults:
    rows = tuple(change(row) if row.key == key else row for row in results.rows)
    return replace(results, rows=rows)


def with_aucs(results: StudyResults, key: str, aucs: tuple[float, ...]) -> StudyResults:
    points = results.rows[0].curves[0].env_steps.size
    curves = tuple(make_curves(auc, 0.97, (77, i)).thin(points) for i, auc in enumerate(aucs))
    return with_row(results, key, lambda row: replace(row, curves=curves))


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


@pytest.fixture(scope="module")
def small(results: StudyResults) -> StudyResults:
    """The same with fewer rows and points, for what needs no more."""
    keys = ("reference", "structure=linear", "processing=symlog", "untrained", "adam", "sign_sgd")
    rows = tuple(
        replace(row, curves=tuple(curves.thin(40) for curves in row.curves), stress={})
        for row in results.rows
        if row.key in keys
    )
    return replace(results, rows=rows, identity=None)


@pytest.fixture(scope="module")
def page(results: StudyResults) -> "Page":
    return Page(render_report(results))


# --- Reading a page -------------------------------------------------------------------------------

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """Everything that is written on the page, in one line."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# --- The page -------------------------------------------------------------------------------------


def test_page_has_every_part_in_order(page: Page) -> None:
    ids = [a["id"] for a in page.all("section")]
    assert ids == [
        *("glance", "plan", "changes", "curves", "return"),
        *("stability", "settings", "identity", "caveats", "provenance"),
    ]
    linked = [a["href"] for a in page.all("a")]
    assert linked == [f"#{name}" for name in ids]


def test_page_loads_and_runs_nothing(page: Page) -> None:
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "use"}
    for name, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes), (name, attributes)
        assert not {"src", "srcset", "action", "style", "xlink:href"} & set(attributes)
    assert all(href and href.startswith("#") for href in (a["href"] for a in page.all("a")))
    assert not re.search(r"@import|url\(|expression\(", page.html)


def test_page_shows_every_optimizer_everywhere(results: StudyResults, page: Page) -> None:
    for row in results.rows:
        # In the glance, the changes, two tables of scores, stability and settings.
        assert page.text.count(row.label) >= 6
        assert row.change in page.text
    assert len(page.all("figure")) == len(results.rows) - 1 + 2 + 2 + 1
    for metric in stability.METRICS:
        assert metric.label in page.text
    for told in ("meta-learning rate", "0.003", results.command, "jax 0.10.2", results.started):
        assert told in page.text


def test_page_is_accessible(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert all("scope" in attributes for attributes in page.all("th"))
    for attributes in page.all("svg"):
        # An outer svg is hidden or says what it shows; an inner one belongs to its outer one.
        assert (
            attributes.get("overflow")
            or attributes.get("aria-hidden")
            or (attributes["role"] == "img" and attributes["aria-label"])
        )
    for attributes in page.all("div"):
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_page_adapts_to_dark_narrow_and_print(page: Page) -> None:
    for rule in ("prefers-color-scheme: dark", "max-width: 920px", "@media print", "overflow-x"):
        assert rule in page.html
    fixed = re.compile(r'(?:fill|stroke|color)="(?:#|rgb)')
    assert not fixed.search(page.html)


def test_figures_follow_the_numbers_alone(results: StudyResults, page: Page) -> None:
    assert render_report(make_results()) == page.html
    assert len(page.html.encode()) < 1_500_000


def test_nothing_undefined_is_printed_as_a_number(page: Page) -> None:
    assert not re.search(r"\b(nan|inf|None|null)\b", page.text, re.IGNORECASE)
    assert not re.search(r'"(nan|inf)|\bnan[,"%]', page.html)


def test_hostile_plan_is_inert(small: StudyResults, tmp_path: Path) -> None:
    plan = make_plan(hostile=True)
    path = tmp_path / "report.html"
    write_report(replace(small, plan=plan, mapped=map_plan(plan)), path)
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "img"} & {name for name, _ in page.tags}
    assert page.text.count("<script>alert('x')</script>") >= 5
    assert "not mapped" in page.text
    # No template of its own is run, and what UTF-8 cannot hold is replaced.
    assert "onerror=alert(1)>? {{ 7 * 7 }}" in page.text


def test_hostile_labels_and_messages_are_inert(small: StudyResults) -> None:
    hostile = with_row(
        small,
        "structure=linear",
        lambda row: replace(
            row,
            label=HOSTILE,
            change=HOSTILE,
            failures={3: HOSTILE},
            settings={HOSTILE: HOSTILE},
        ),
    )
    page = Page(render_report(replace(hostile, task=HOSTILE, command=HOSTILE)))
    assert not {"script", "img"} & {name for name, _ in page.tags}


def test_long_reasoning_is_cut_and_says_so(small: StudyResults) -> None:
    plan = replace(small.plan, reasoning="x" * 60_000)
    assert "(10000 further characters left out)" in render_report(
        replace(small, plan=plan, rows=small.rows[:1])
    )


def test_identity_section_is_there_only_with_the_experiment(
    page: Page, small: StudyResults
) -> None:
    without = Page(render_report(small))
    assert "identity" not in [a["id"] for a in without.all("section")]
    assert "The identity experiment" not in without.text
    assert "49 % of the gradients are exactly zero" in page.text
    assert "the published picture reproduces" in page.text


@pytest.mark.parametrize(
    ("frozen", "told"),
    [(0.4, "raw gradients are ahead"), (0.99, "processed pair is ahead"), (0.93, "overlap")],
)
def test_identity_verdict_needs_every_seed(small: StudyResults, frozen: float, told: str) -> None:
    alone = replace(small, rows=small.rows[:1], identity=make_identity(frozen))
    page = Page(render_report(alone))
    assert told in page.text


def test_recordings_are_counted(small: StudyResults) -> None:
    recordings = [make_identity(0.4), make_identity(0.4), make_identity(0.99)]
    rows = [replace(x, recording=i) for i, made in enumerate(recordings) for x in made.rows]
    several = replace(make_identity(), rows=tuple(rows))
    page = Page(render_report(replace(small, rows=small.rows[:1], identity=several)))
    assert "3 agents were recorded" in page.text
    assert "the published picture reproduces in 3 of 3 recordings" in page.text
    assert "processed pair is ahead in 1 of 3 recordings, the raw pair in 2" in page.text


def test_a_diverged_run_of_the_identity_experiment_is_told() -> None:
    """It leaves the mean over recordings without a number, and no pair ahead in its recording."""
    made = make_identity()
    lost = replace(
        made.rows[1],
        **dict.fromkeys(ACCURACIES, math.nan),
        spread=dict.fromkeys(ACCURACIES, (math.nan, math.nan)),
    )
    second = (made.rows[0], lost, *made.rows[2:])
    rows = (*made.rows, *(replace(x, recording=1) for x in second))
    _, said, *_ = identity_words(replace(made, rows=rows))
    assert "(sgn · exp out) reaches no accuracy (a run diverged or had no targets)" in said
    assert said.endswith("reproduces in 1 of 2 recordings.")


# --- What it says ---------------------------------------------------------------------------------


def scores_of(row: Row, score: Callable[[Curves], np.ndarray]) -> np.ndarray:
    runs = [score(curves) for curves in row.curves]
    lost = [np.full(6, np.nan)] * (4 - len(runs) if row.failures else 0)
    return np.stack(runs + lost)[None]


def test_every_verdict_is_that_of_compare_after_correction(results: StudyResults) -> None:
    for name, score in (("auc", area_under_curve), ("final", final_return)):
        reference, *others = (scores_of(row, score) for row in results.rows)
        first, *told = (row[name] for row in summary_table(results))
        assert first["verdict"] == "reference"
        found = [compare(own, reference, "x", "y") for own in others]
        corrected = holm([each.test.p for each in found])
        assert [x["p"] for x in told] == [each.test.p for each in found]
        assert [x["p_corrected"] for x in told] == corrected
        for own, each, p, x in zip(others, found, corrected, told, strict=True):
            value = interquartile_mean(own)
            assert x["iqm"]["value"] == (None if math.isnan(value) else value)
            lost = any(each.diverged)
            interval, null = (each.improvement, 0.5) if lost else (each.difference, 0.0)
            excludes = interval.low > null or interval.high < null
            words = x["verdict"]
            assert words.startswith("clearly") == (excludes and p <= 0.05)
            if words == "no clear difference":
                assert (x["smallest_effect"] is None) == lost
            else:
                assert ("better" in words) == (each.improvement.value > 0.5)


def test_no_clear_difference_comes_with_what_these_seeds_can_find(
    results: StudyResults, page: Page
) -> None:
    for entry in summarise(results).rows[1:]:
        for score in entry.scores:
            assert score.claim is not None
            assert score.sentence in page.text
            if score.outcome != "unclear":
                assert "four times in five" not in score.sentence
            elif score.claim.smallest_effect is None:
                assert "not known, because a run diverged" in score.sentence
            else:
                effect = score.claim.smallest_effect
                assert f"find a difference of {effect:.2g} four times in five" in score.sentence
                assert f"would find ±{effect:.3f}" in page.text


def test_finding_of_the_made_up_study(results: StudyResults, page: Page) -> None:
    summary = summarise(results)
    control, adam, plan, paper = summary.findings
    assert control.headline == "Meta-training helps."
    assert control.answer == "Yes"
    assert adam.headline == "Tuned Adam clearly beats the reference."
    assert plan.headline == "Symmetric logarithm clearly beats the reference."
    assert plan.answer == "1 better, 1 worse, 2 unclear"
    assert "No transformation is clearly worse than the reference" in plan.detail
    assert "Linear update function and Non-adaptive structure do not differ clearly" in plan.detail
    assert (paper.answer, paper.tone) == ("Not clear", "open")
    for finding in (control, adam, plan, paper):
        assert finding.headline in page.text
        assert finding.detail in page.text
    assert any("one failed run does not decide it" in caveat for caveat in summary.caveats)


def test_six_meta_seeds_make_the_same_difference_clear(small: StudyResults) -> None:
    more = with_aucs(small, "reference", (0.90, 0.89, 0.91, 0.908, 0.905, 0.895))
    more = with_aucs(more, "untrained", (0.72, 0.66, 0.738, 0.7, 0.71, 0.69))
    control, _, plan, *_ = summarise(more).findings
    assert (control.headline, control.answer) == ("Meta-training helps.", "Yes")
    assert control.detail == "The trained reference clearly beats the untrained one."
    assert plan.headline == "Symmetric logarithm clearly beats the reference."
    assert "corrected p < 0.0001" in control.evidence[0].figures


@pytest.mark.parametrize(
    ("aucs", "headline", "tone"),
    [
        ((0.60, 0.61, 0.62, 0.63), "Meta-training helps.", "good"),
        ((0.88, 0.90, 0.91, 0.92), "It is not clear that meta-training did anything.", "open"),
        ((0.94, 0.95, 0.95, 0.96), "Meta-training hurts.", "bad"),
    ],
)
def test_control_decides_whether_meta_training_did_anything(
    small: StudyResults, aucs: tuple[float, ...], headline: str, tone: str
) -> None:
    finding = summarise(with_aucs(small, "untrained", aucs)).findings[0]
    assert (finding.headline, finding.tone) == (headline, tone)


@pytest.mark.parametrize(
    ("auc", "answer"),
    [
        (0.80, "Yes"),
        (0.90, "Not clear"),
        (0.95, "No, it loses"),
    ],
)
def test_adam_decides_whether_the_reference_is_worth_it(
    small: StudyResults, auc: float, answer: str
) -> None:
    finding = summarise(with_aucs(small, "adam", (auc,))).findings[1]
    assert finding.answer == answer
    loses = finding.headline == "Tuned Adam clearly beats the reference."
    assert loses == answer.startswith("No,")
    corrected = re.search(r"corrected p (?:= |< )([\d.]+)", finding.evidence[0].figures)
    assert corrected is not None
    assert (float(corrected[1]) < 0.001) == (answer != "Not clear")
    told = "these seeds find a difference of" in finding.evidence[0].figures
    assert told == (answer == "Not clear")


def with_loss(results: StudyResults, lost: int) -> StudyResults:
    """Two equal rows with a second metric; by this metric, runs of the reference diverged."""
    curves = results.rows[0].curves
    loss = tuple(replace(each, returns=-each.returns) for each in curves)
    damaged = loss[0]
    for run in range(lost):
        damaged = diverge(damaged, run, 20)
    first, other = (replace(row, curves=curves, failures={}) for row in results.rows[:2])
    rows = (
        replace(first, more={"loss": (damaged, *loss[1:])}),
        replace(other, more={"loss": loss}),
    )
    return replace(results, rows=rows, metrics=(METRICS[0], Metric("loss", "loss", better="lower")))


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (0, "every verdict is the same"),
        (1, "nothing is sure: 1 run of the reference diverged"),
        (2, "nothing is sure: 2 runs of the reference diverged"),
    ],
)
def test_by_a_score_on_which_the_reference_diverged_nothing_is_sure(
    small: StudyResults, lost: int, told: str
) -> None:
    summary = summarise(with_loss(small, lost))
    assert all(x.outcome == "unclear" for x in summary.rows[1].scores)
    assert summary.by_other_scores == (
        "These verdicts are by AUC; by final return, every verdict is the same; "
        f"by loss over the run, {told}; by final loss, {told}."
    )


def test_by_a_score_with_a_clear_verdict_it_is_told_though_the_reference_diverged(
    small: StudyResults,
) -> None:
    results = with_loss(small, 1)
    first, other = results.rows
    worse = tuple(replace(x, returns=x.returns + 100) for x in other.more["loss"])
    rows = (first, replace(other, more={"loss": worse}))
    summary = summarise(replace(results, rows=rows))
    assert summary.rows[1].scores[2].outcome == "worse"
    assert "nothing is sure" not in summary.by_other_scores
    assert "by final loss, " in summary.by_other_scores


def test_a_metric_named_like_a_column_does_not_replace_it(small: StudyResults) -> None:
    results = with_loss(small, 0)
    numbers = {
        row.key: tuple(
            replace(x, returns=x.returns[:, :1], env_steps=x.env_steps[:1])
            for x in row.more["loss"]
        )
        for row in results.rows
    }
    rows = tuple(replace(row, more={"runs": numbers[row.key]}) for row in results.rows)
    found = summary_table(replace(results, rows=rows, metrics=(METRICS[0], Metric("runs", "runs"))))
    runs = sum(len(x.returns) for x in numbers[rows[0].key])
    mean = np.concatenate([x.returns for x in numbers[rows[0].key]]).mean()
    assert found[0]["runs"] == runs
    assert found[0]["metric runs"]["mean"]["value"] == pytest.approx(mean)


def test_where_lower_is_better_a_rise_is_no_gain(small: StudyResults) -> None:
    """Stability is that of the negated metric, for which higher is better."""
    plain = replace(small, rows=small.rows[:1], floor=None, ceiling=None)
    row = plain.rows[0]
    negated = tuple(replace(each, returns=-each.returns) for each in row.curves)
    found = [
        summarise(replace(plain, rows=(replace(row, curves=curves),), metrics=(metric,)))
        for curves, metric in (
            (row.curves, Metric("loss", "loss", better="lower")),
            (negated, Metric("gain", "gain")),
        )
    ]
    assert found[0].rows[0].stability == found[1].rows[0].stability


def test_another_baseline_that_wins_is_named(small: StudyResults) -> None:
    finding = summarise(with_aucs(small, "sign_sgd", (0.96,))).findings[1]
    assert "Sign-SGD clearly beats the reference" in finding.detail


@pytest.mark.parametrize(
    ("aucs", "headline"),
    [
        ((0.5, 0.5, 0.51, 0.52), "The reference beats all of the plan’s replacements."),
        (
            (0.88, 0.90, 0.91, 0.92),
            "None of the plan’s replacements differs clearly from the reference.",
        ),
    ],
)
def test_replacements_that_agree_are_summed_up(
    small: StudyResults, aucs: tuple[float, ...], headline: str
) -> None:
    for row in small.rows:
        if row.kind == "replacement":
            small = with_aucs(small, row.key, aucs)
            small = with_row(small, row.key, lambda row: replace(row, failures={}))
    assert summarise(small).findings[2].headline == headline


def test_without_control_and_baselines_nothing_is_claimed(small: StudyResults) -> None:
    rows = tuple(row for row in small.rows if row.kind not in ("control", "baseline"))
    summary = summarise(replace(small, rows=rows))
    assert [finding.answer for finding in summary.findings[:2]] == ["Not tested", "Not tested"]
    Page(render_report(replace(small, rows=rows)))


# --- What is lost is never hidden -----------------------------------------------------------------


def test_diverged_runs_and_failed_meta_seeds_are_shown(results: StudyResults, page: Page) -> None:
    linear = next(row for row in summary_table(results) if row["key"] == "structure=linear")
    assert linear["auc"]["iqm"]["value"] is None
    assert linear["diverged_runs"] == 1
    assert linear["failed_meta_seeds"] == {"3": "no finite numbers at iteration 41"}
    assert (linear["meta_seeds"], linear["runs"]) == (4, 24)
    assert linear["auc"]["meta_seed_means"][-1] is None
    assert "“no finite numbers at iteration 41”" in page.text
    assert "1 of 18 evaluation runs of Linear update function diverged" in page.text
    assert "meta-training failed for 1 of 4 meta-seeds" in page.text
    assert "7 and 0 runs" in page.text


def test_failing_never_improves_a_score(small: StudyResults) -> None:
    key = "processing=symlog"
    fewer = with_row(
        small, key, lambda row: replace(row, curves=row.curves[1:], failures={0: "diverged"})
    )
    before, after = (summarise(r).rows[2].primary for r in (small, fewer))
    assert before.comparison is not None
    assert after.comparison is not None
    assert after.comparison.improvement.value < before.comparison.improvement.value
    assert math.isnan(after.iqm.low)


def test_row_that_lost_everything_is_reported(small: StudyResults) -> None:
    failures = dict.fromkeys(range(4), "no finite numbers")
    lost = with_row(
        small,
        "processing=symlog",
        lambda row: replace(row, curves=(), stress={}, failures=failures),
    )
    page = Page(render_report(lost))
    assert "diverged: meta-training left nothing to evaluate" in page.text
    row = next(row for row in summary_table(lost) if row["key"] == "processing=symlog")
    assert row["auc"]["verdict"] == "clearly worse"
    assert row["failure_rate"] is None


@pytest.mark.parametrize("ceiling", [FLOOR, FLOOR - 1, math.nan])
def test_without_a_scale_no_run_is_called_stuck(small: StudyResults, ceiling: float) -> None:
    with_stress = replace(small.rows[0], stress={1.0: small.rows[0].curves[0]})
    odd = replace(small, rows=(with_stress,), ceiling=ceiling)
    summary = summarise(odd)
    assert all(entry.stuck == {} for entry in summary.rows)
    assert any("no run can be called stuck" in caveat for caveat in summary.caveats)


def test_the_best_setting_at_an_end_of_its_grid_is_a_caveat(small: StudyResults) -> None:
    def told(study: StudyResults) -> list[str]:
        return [x for x in summarise(study).caveats if "end of its grid" in x]

    assert told(small) == []
    changed = with_row(small, "adam", lambda row: replace(row, at_edge=("learning rate",)))
    (caveat,) = told(with_row(changed, "untrained", lambda row: replace(row, at_edge=("a", "b"))))
    assert caveat.endswith("shown: Optim4RL, untrained (a, b); Tuned Adam (learning rate).")


@pytest.mark.parametrize("ceiling", [0.97, 5.0])
def test_short_runs_that_are_all_stuck_are_said_to_tell_nothing(
    small: StudyResults, ceiling: float
) -> None:
    """Each of them ends at 0.97."""
    stress = dict.fromkeys((1.0, 2.0), small.rows[0].curves[0])
    rows = tuple(replace(row, stress=stress) for row in small.rows)
    summary = summarise(replace(small, rows=rows, ceiling=ceiling))
    told = any("short runs tell nothing" in caveat for caveat in summary.caveats)
    assert told == (summary.rows[0].stuck[2.0].value == 1.0) == (ceiling == 5.0)


def test_curves_of_one_update_are_enough(small: StudyResults) -> None:
    def shorten(curves: Curves) -> Curves:
        return Curves(
            curves.returns[:, :1],
            np.full(curves.returns.shape[0], HEALTHY),
            curves.env_steps[:1],
        )

    rows = tuple(
        replace(row, curves=tuple(map(shorten, row.curves)), stress={}) for row in small.rows
    )
    page = Page(render_report(replace(small, rows=rows, floor=math.nan)))
    assert "no run can be called stuck" in page.text


def test_study_without_reference_or_curves_is_refused(small: StudyResults) -> None:
    with pytest.raises(ValueError, match="first row of a study must be its reference"):
        summarise(replace(small, rows=small.rows[1:]))
    with pytest.raises(ValueError, match="none has a curve"):
        summarise(replace(small, rows=(replace(small.rows[0], curves=()),)))


# --- Small parts ----------------------------------------------------------------------------------


def test_summary_table_is_strict_json(results: StudyResults) -> None:
    table = summary_table(results)
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert [row["key"] for row in table] == [row.key for row in results.rows]
    assert {row["auc"]["verdict"] for row in table} <= set(OUTCOMES.values())
    assert set(table[0]["stuck_rate"]) == {"1", "2", "4"}


def test_numbers_in_words() -> None:
    assert number(-0.0312, 2) == "−0.03"
    assert number(-0.0001, 2) == "0.00"
    assert number(0.5, 1, signed=True) == "+0.5"
    assert number(math.nan, 3) == "diverged"
    assert interval(Estimate(0.5, math.nan, 0.61), 1) == "diverged to 0.6"
    assert interval(Estimate(0.5, math.nan, math.nan), 1) == "no interval"
    assert [p_value(p) for p in (1.0, 0.2, 2 / 70, 0.00049, 1e-6)] == [
        *("1.00", "0.20", "0.029", "0.00049", "< 0.0001")
    ]


@pytest.mark.parametrize("values", [(0.0, 1.0), (-0.6, 0.998), (3.2e3, 5.12e5), (4.0, 4.0), ()])
def test_axis_holds_its_values_and_has_round_ticks(values: tuple[float, ...]) -> None:
    axis = figures.axis([*values, math.nan])
    assert 2 <= len(axis.ticks) <= 8
    assert all(axis.low <= x <= axis.high for x in (*values, *axis.ticks))
    assert all(0 <= axis.share(x) <= 1 for x in values)
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0])


def test_tag_escapes_text_and_attributes() -> None:
    drawn = figures.tag("text", "<b>", aria_label='"&', x=1.25)
    assert drawn == '<text aria-label="&#34;&amp;" x="1.2">&lt;b&gt;</text>'


def test_line_breaks_and_is_crossed_where_it_diverged() -> None:
    x = np.arange(5.0)
    y = np.array([0.0, 0.5, 0.7, np.nan, np.nan])
    axis = figures.axis([0.0, 5.0])
    chart = figures.line_chart(
        [figures.Series("a", "variant", x, y)], axis, axis, x_label="x", label="a chart"
    )
    (points,) = re.findall(r'<polyline points="([^"]*)"', chart)
    assert len(points.split()) == 3
    assert chart.count("cross variant") == 1


def test_labels_at_line_ends_do_not_collide() -> None:
    x = np.arange(3.0)
    series = [figures.Series(str(i), "variant", x, np.full(3, 1 + i / 1e3)) for i in range(4)]
    axis = figures.axis([0.0, 2.0])
    chart = figures.line_chart(series, axis, axis, x_label="x", label="a chart")
    places = sorted(float(y) for y in re.findall(r'y="([\d.]+)" class="name', chart))
    assert len(places) == 4
    assert np.diff(places).min() >= 14 - 0.2
