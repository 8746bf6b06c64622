"""What a plan would cost to run, from a table and from finished jobs."""

import json
import struct
from pathlib import Path

import pytest

from optim4rl.jobs.job import Result
from optim4rl.jobs.store import StoreError, put_result
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.plan import PlanError
from optim4rl.plans.planner.catalogue import catalogue_plan
from optim4rl.plans.planner.method import method_of
from optim4rl.plans.planner.render import normalise, render_plan
from optim4rl.plans.planner.text import PlannerError
from optim4rl.study.cost import JOB_SECONDS, predict, read_measured
from optim4rl.study.layout import lay_out
from optim4rl.study.opening import open_own
from optim4rl.study.schedule import expected_jobs
from optim4rl.study.settings import SCALES

PUBLISHED = (Path(__file__).parents[2] / "plans" / "optim4rl.md").read_bytes()
SMOKE = SCALES["smoke"]


def jobs_by_kind(study):
    """Trainings, fresh weights, and batches of runs of a study."""
    jobs = [job.arguments for job in expected_jobs(study)]
    trainings = [x for x in jobs if x.get("trained")]
    fresh = [x for x in jobs if x.get("trained") is False]
    return trainings, fresh, [x for x in jobs if "runs" in x]


def test_the_cost_counts_the_jobs_of_the_study():
    for cost, (scale, settings) in zip(predict(PUBLISHED, 2), SCALES.items(), strict=True):
        study = lay_out(PUBLISHED, open_own(scale, settings))
        trainings, fresh, batches = jobs_by_kind(study)
        # The reference, four replacements and the paper's own ablation are trained; the untrained
        # control, which is one rule, is not.
        tuned = settings.tuning_meta_seeds * len(settings.meta_learning_rates)
        tuning = 6 * tuned if len(settings.meta_learning_rates) > 1 else 0
        assert len(trainings) == 6 * settings.meta_seeds + tuning
        assert len(fresh) == 1
        assert (cost.scale, cost.trained, cost.measured) == (scale, 6, 0)
        assert cost.jobs == len(trainings) + 1 + len(batches) + 1  # and the identity experiment


def test_the_predicted_time_is_that_of_the_table():
    (smoke, *_) = predict(PUBLISHED, 1)
    trainings, fresh, batches = jobs_by_kind(lay_out(PUBLISHED, open_own("smoke", SMOKE)))
    table = JOB_SECONDS["smoke"]
    rollouts = sum(batch["rollouts"] for batch in batches)
    run = len(trainings) * table["training"] + len(fresh) * table["untrained"]
    run += rollouts * table["batch"] / 1000 + table["identity"]
    programs = len(
        {job.program for job in expected_jobs(lay_out(PUBLISHED, open_own("smoke", SMOKE)))}
    )
    assert smoke.seconds == pytest.approx(run + programs * table["compile"])
    assert predict(PUBLISHED, 4)[0].seconds == pytest.approx(smoke.seconds / 4)


def test_the_table_has_every_scale():
    everything = render_plan(normalise(catalogue_plan(method_of(OPTIM4RL)))).encode()
    assert [cost.scale for cost in predict(everything, 1)] == list(JOB_SECONDS)
    assert all(seconds > 0 for table in JOB_SECONDS.values() for seconds in table.values())


def test_finished_jobs_take_the_place_of_the_table(tmp_path):
    study = lay_out(PUBLISHED, open_own("smoke", SMOKE))
    trained = [job for job in expected_jobs(study) if job.arguments.get("trained")]
    for seconds, job in zip((10.0, 20.0, 90.0), trained[:3], strict=True):
        put_result(tmp_path, job, Result({}, {"seconds": seconds}))
    measured = read_measured(tmp_path)
    (before, *_), (smoke, quick, *_) = predict(PUBLISHED, 1), predict(PUBLISHED, 1, measured)
    assert (smoke.measured, quick.measured) == (len(trained), 0)
    # 40 seconds each, compilation in it, in place of the table's.
    programs = len({job.program for job in trained})
    table = JOB_SECONDS["smoke"]
    saved = len(trained) * table["training"] + programs * table["compile"]
    assert smoke.seconds == pytest.approx(before.seconds - saved + 40.0 * len(trained))
    (key,) = measured
    assert json.loads(key)[1]["training"] == trained[0].arguments["training"]


@pytest.mark.parametrize(
    "data", [b"", b"\x08", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**60) + b"{}"]
)
def test_a_damaged_result_is_named(data, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match=r"a\.safetensors: this result cannot be read"):
        read_measured(tmp_path)


def test_what_costs_nothing_is_refused(tmp_path):
    with pytest.raises(PlannerError, match="no finished job"):
        read_measured(tmp_path)
    with pytest.raises(PlannerError, match="jobs = 0"):
        predict(PUBLISHED, 0)
    with pytest.raises(PlanError, match="can run no part of the plan"):
        predict(b"- Ablated Part: rain\n- Action: REMOVE", 1)
