"""A study of thousands of jobs: none costs more than one of a few hundred."""

import dataclasses
import time

import pytest

from optim4rl.pages.summary import summarise
from optim4rl.study import runner
from optim4rl.study.layout import lay_out
from optim4rl.study.opening import open_own
from optim4rl.study.runner import run_study
from optim4rl.study.schedule import expected_jobs
from optim4rl.study.settings import EvaluationSettings, StudySettings, TrainingSettings
from pretended import PretendedPool

PLAN = b"- **Ablated Part**: Pipeline training\n- **Replacement**: Synchronous resets\n"
SETTINGS = StudySettings(
    training=TrainingSettings(width=8, iterations=3),
    evaluation=EvaluationSettings(
        updates=6, seeds=2, stress_scales=(2.0,), stress_updates=4, stress_seeds=2
    ),
)


def seconds_a_job(folder, meta_seeds):
    study = lay_out(
        PLAN, open_own("pretended", dataclasses.replace(SETTINGS, meta_seeds=meta_seeds))
    )
    count, started = len(expected_jobs(study)), time.process_time()
    for _ in range(2):  # The second time finds all of them done.
        results = run_study(study, folder, command="")
    between = time.process_time()
    summarise(results)
    taken, summing = between - started, time.process_time() - between
    print(
        f"jobs: {count}, milliseconds of each: {1e3 * taken / count:.2f}, "
        f"of its summary: {1e3 * summing / count:.2f}"
    )
    return taken / count, summing / count


@pytest.mark.slow
def test_a_job_costs_the_same_among_thousands(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "open_pool", PretendedPool().open)
    few, many = (seconds_a_job(tmp_path / str(n), n) for n in (60, 600))
    assert many[0] < 2 * few[0]
    assert many[1] < 3 * few[1] + 1e-3
