"""What plans are worth before they are run: scores against a reference, lint, predicted cost."""

import json
import struct
from pathlib import Path

import pytest
from optim4rl.study.store import put_result

from optim4rl.plans.mapping import map_plan
from optim4rl.plans.plan import Ablation, Plan, PlanError, read_plan
from optim4rl.plans.planner.catalogue import catalogue_plan
from optim4rl.plans.planner.method import method_of
from optim4rl.plans.planner.render import normalise, render_plan
from optim4rl.plans.planner.score import Score, score_plan
from optim4rl.plans.planner.text import PlannerError
from optim4rl.study.cells import CellResult, LearnedCell, cell_to_dict
from optim4rl.study.cost import CELL_SECONDS, predict, read_measured
from optim4rl.study.lint import lint
from optim4rl.study.runner import lay_out, report_cells
from optim4rl.study.settings import SCALES

PUBLISHED = Path(__file__).parents[2] / "plans" / "optim4rl.md"
REFERENCE = read_plan(PUBLISHED)


def plan(*parts):
    """A plan of (part, replacements) pairs."""
    metrics = ("return",)
    ablations = (Ablation("", part, "REPLACE", values, metrics) for part, values in parts)
    return Plan("", "", tuple(ablations))


def score_of(found: Plan, reference: Plan) -> Score:
    return score_plan(map_plan(found), map_plan(reference))


# Scores


def test_the_catalogue_finds_both_ablations_of_the_published_plan():
    proposed = catalogue_plan(method_of("optim4rl"))
    score = score_of(proposed, REFERENCE)
    assert (score.complete, len(score.ablations)) == (2, 2)
    assert (score.hits, score.recall, score.unmapped) == (4, 1.0, 0)
    assert score.precision == 4 / len(proposed.ablations)


def test_a_plan_finds_itself():
    score = score_of(REFERENCE, REFERENCE)
    assert (score.precision, score.recall, score.f1, score.complete) == (1.0, 1.0, 1.0, 2)


def test_precision_recall_and_f1():
    found = plan(
        ("optimizer structure", ("linear", "star")),
        ("gradient processing", ("raw", "symlog")),
        ("pipeline training", ("never",)),
        ("cloud cover", ("rain",)),
        ("optimizer structure", ("linear update function",)),
    )
    score = score_of(found, REFERENCE)
    assert score.proposed == (
        ("structure", "linear"),
        ("structure", "star"),
        ("processing", "raw"),
        ("processing", "symlog"),
        ("resets", "never"),
    )
    assert (score.hits, len(score.wanted), score.unmapped) == (3, 4, 1)
    assert score.precision == pytest.approx(3 / 5)
    assert score.recall == pytest.approx(3 / 4)
    assert score.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert [len(entry.found) for entry in score.ablations] == [1, 2]
    assert score.complete == 1


@pytest.mark.parametrize("found", [plan(("rain", ())), plan(("validation rollout", ("dense",)))])
def test_a_plan_that_proposes_nothing_has_no_precision(found):
    score = score_of(found, REFERENCE)
    assert (score.precision, score.recall, score.f1, score.complete) == (0.0, 0.0, 0.0, 0)


def test_a_reference_of_nothing_known_is_refused():
    with pytest.raises(PlannerError, match="nothing of the reference"):
        score_of(REFERENCE, plan(("rain", ())))


# Lint


def findings(*ablations):
    return [(finding.ablation, finding.kind) for finding in lint(map_plan(Plan("", "", ablations)))]


@pytest.mark.parametrize("good", [REFERENCE, catalogue_plan(method_of("optim4rl"))])
def test_nothing_is_wrong_with_a_good_plan(good):
    assert lint(map_plan(good)) == ()


@pytest.mark.parametrize(
    ("ablation", "kinds"),
    [
        (Ablation("", "rain", "REMOVE", (), ("return",)), ["unmapped"]),
        (Ablation("", "gru", "REMOVE", (), ("return",)), ["unmapped"]),
        (Ablation("", "gru", "REPLACE", ("LSTM", "a poem"), ("beauty",)), ["unmapped"] * 2),
        (Ablation("", "gru", "REPLACE", ("LSTM", "GRU"), ("return",)), ["unmapped"]),
        (Ablation("", "validation rollout", "REPLACE", ("dense",), ("return",)), ["reference"]),
        (Ablation("", "gru", "REPLACE", ("LSTM",), ()), ["metric"]),
        (Ablation("", "gru", "REPLACE", (), ("return",)), ["replacement"]),
        (Ablation("", "gru", None, ("LSTM",), ("return",)), ["action"]),
        (Ablation("", "gru", "REPLACE", ("LSTM", "lstm cell"), ("return",)), ["duplicate"]),
        (Ablation("", "pipeline training", "REMOVE", (), ("return",)), []),
    ],
)
def test_what_is_wrong_is_found(ablation, kinds):
    assert findings(ablation) == [(1, kind) for kind in kinds]


def test_a_comparison_that_is_asked_for_twice_is_found():
    first = Ablation("", "pipeline training", "REMOVE", (), ("return",))
    again = Ablation("", "reset schedule", "REPLACE", ("never",), ("return",))
    assert findings(first, again) == [(2, "duplicate")]
    (finding,) = lint(map_plan(Plan("", "", (first, again))))
    assert "ablation 1" in finding.message


def test_the_reference_itself_is_named_as_such():
    asked = Ablation("", "optimizer structure", "REPLACE", ("adaptive",), ("return",))
    (finding,) = lint(map_plan(Plan("", "", (asked,))))
    assert "it names the reference itself" in finding.message


# Cost


def test_the_cost_counts_the_cells_of_the_study():
    source = PUBLISHED.read_bytes()
    for cost, (scale, settings) in zip(predict(source, 2), SCALES.items(), strict=True):
        # The reference, four replacements and the paper's own ablation are trained; the untrained
        # control, three classical optimizers and the identity experiment are not.
        tuned = settings.tuning_meta_seeds * len(settings.meta_learning_rates)
        tuning = 6 * tuned if len(settings.meta_learning_rates) > 1 else 0
        assert (cost.scale, cost.trained, cost.measured) == (scale, 6, 0)
        assert cost.cells == 7 * settings.meta_seeds + 3 + 1 + tuning


def test_the_predicted_time_is_that_of_the_table():
    (smoke, *_) = predict(PUBLISHED.read_bytes(), 1)
    table = CELL_SECONDS["smoke"]
    run = 12 * table["trained"] + 2 * table["untrained"] + 3 * table["classical"]
    programs = 6 + 3 + 1
    assert smoke.seconds == pytest.approx(run + table["identity"] + programs * table["compile"])
    assert predict(PUBLISHED.read_bytes(), 4)[0].seconds == pytest.approx(smoke.seconds / 4)


def test_the_table_has_every_kind_of_cell_of_every_scale():
    everything = render_plan(normalise(catalogue_plan(method_of("optim4rl")))).encode()
    assert [cost.scale for cost in predict(everything, 1)] == list(CELL_SECONDS)
    assert all(seconds > 0 for table in CELL_SECONDS.values() for seconds in table.values())


def test_finished_cells_take_the_place_of_the_table(tmp_path):
    study = lay_out(PUBLISHED.read_bytes(), "smoke", SCALES["smoke"])
    cells = report_cells(study, {comparison.key: 3e-3 for comparison in study.comparisons})
    trained = [cell for cell in cells if isinstance(cell, LearnedCell) and cell.trained]
    for seconds, cell in zip((10.0, 20.0, 90.0), trained[:3], strict=True):
        put_result(tmp_path, cell, CellResult({}, {"seconds": seconds}))
    measured = read_measured(tmp_path)
    (smoke, quick, *_) = predict(PUBLISHED.read_bytes(), 1, measured)
    table = CELL_SECONDS["smoke"]
    other = 2 * table["untrained"] + 3 * table["classical"] + table["identity"]
    programs = 1 + 3 + 1  # the untrained reference, the classical ones, the identity experiment
    assert smoke.measured == 12
    assert smoke.seconds == pytest.approx(12 * 40.0 + other + programs * table["compile"])
    assert quick.measured == 0
    assert cell_to_dict(trained[0])["training"] in [json.loads(key)["training"] for key in measured]


@pytest.mark.parametrize(
    "data", [b"", b"\x08", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**60) + b"{}"]
)
def test_a_damaged_result_is_named(data, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.safetensors").write_bytes(data)
    with pytest.raises(PlannerError, match=r"a\.safetensors: this result cannot be read"):
        read_measured(tmp_path)


def test_what_costs_nothing_is_refused(tmp_path):
    with pytest.raises(PlannerError, match="no finished cell"):
        read_measured(tmp_path)
    with pytest.raises(PlannerError, match="jobs = 0"):
        predict(PUBLISHED.read_bytes(), 0)
    with pytest.raises(PlanError, match="nothing of the plan can be run"):
        predict(b"- Ablated Part: rain\n- Action: REMOVE", 1)
