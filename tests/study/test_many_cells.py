"""A study of thousands of cells: none costs more than one of a few hundred."""

import dataclasses
import time

import numpy as np
import pytest
from optim4rl.study.store import put_result

from optim4rl.benchmark.protocol import EvaluationSettings
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.pages.summary import summarise
from optim4rl.study import runner
from optim4rl.study.cells import CellResult, LearnedCell, cell_from_dict, pack_curves
from optim4rl.study.runner import lay_out, run_study
from optim4rl.study.settings import StudySettings, TrainingSettings

PLAN = b"- **Ablated Part**: Pipeline training\n- **Replacement**: Synchronous resets\n"
SETTINGS = StudySettings(
    training=TrainingSettings(width=8, iterations=3),
    evaluation=EvaluationSettings(
        updates=6, seeds=2, stress_scales=(2.0,), stress_updates=4, stress_seeds=2
    ),
)


class PretendedPool:
    """Makes results up, here and now."""

    def __init__(self, module, folder, workers):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, jobs, on_job):
        chance = np.random.default_rng(0)

        def curves(time):
            return Curves(
                chance.normal(size=(2, time)), np.full(2, HEALTHY), np.arange(1, time + 1)
            )

        for done, job in enumerate(jobs, 1):
            cell = cell_from_dict(job.question["cell"])
            arrays = pack_curves("curves", curves(6)) | pack_curves("stress/2", curves(4))
            info = {"seconds": 1.0, "rate": 1e-3, "rates": [1e-3], "scores": [0.0]}
            if isinstance(cell, LearnedCell):
                arrays["weights/network0.input"] = np.zeros((8, 24), np.float32)
            put_result(self.folder, cell, CellResult(arrays, info))
            on_job(done, job.what)


def seconds_a_cell(folder, meta_seeds):
    study = lay_out(PLAN, "pretended", dataclasses.replace(SETTINGS, meta_seeds=meta_seeds))
    count, started = meta_seeds * len(study.comparisons), time.process_time()
    for _ in range(2):  # The second time finds all of them done.
        results = run_study(study, folder, command="")
    between = time.process_time()
    summarise(results)
    taken, summing = between - started, time.process_time() - between
    print(
        f"cells: {count}, milliseconds of each: {1e3 * taken / count:.2f}, "
        f"of its summary: {1e3 * summing / count:.2f}"
    )
    return taken / count, summing / count


@pytest.mark.slow
def test_a_cell_costs_the_same_among_thousands(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "open_pool", PretendedPool)
    few, many = (seconds_a_cell(tmp_path / str(n), n) for n in (125, 1_250))
    assert many[0] < 2 * few[0]
    assert many[1] < 3 * few[1] + 1e-3
