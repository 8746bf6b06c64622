"""The floor of every comparison, and what the loop will run."""

import numpy as np
import pytest

from optim4rl.benchmark import runs
from optim4rl.benchmark.contender import Contender, Maker, baseline
from optim4rl.benchmark.loop import (
    Benchmark,
    Stages,
    expected_jobs,
    first_jobs,
    read,
    run_stages,
)
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.tasks import TaskConfig
from pretended import PretendedPool, curves
from probes import LATE, LongEpisodes, untouched_area

PROTOCOL = Protocol(seeds=2, tuning_seeds=1, stress_scales=(1.0,), stress_seeds=1)
CATCH = SuiteTask(TaskConfig(), 30, 10)


def test_the_floor_is_agents_that_never_update_over_whole_runs(tmp_path, monkeypatch):
    """Episodes that end in the first rollout are failures here, at -0.9 where the truth is 0.1."""
    monkeypatch.setattr(runs, "make_task", lambda config: LongEpisodes())
    pool = PretendedPool(lambda folder, job: job.run(folder)).open(tmp_path, None)
    suite = Suite("long", (CATCH,), (1e-3,), (1.0,))
    b = Benchmark(suite, (baseline("sgd", (1e-3,)),), tmp_path, PROTOCOL)
    results = read(run_stages(b, Stages(pool, tmp_path)))
    np.testing.assert_allclose(results.auc_scale.low, untouched_area(30), rtol=1e-5)
    np.testing.assert_allclose(results.final_scale.low, LATE, rtol=1e-5)
    assert results.auc_scale.resolved.all()


@pytest.mark.parametrize("tasks", [1, 2])
def test_all_that_may_be_run_is_counted_beforehand(tasks, tmp_path):
    """As many jobs are run, or fewer where both readings come to one setting."""
    contenders = (
        Contender("rule", "learned", (Maker(None, "a"), Maker(None, "b")), (1.0, 3.0), 0.02),
        baseline("adam", (0.01, 0.1)),
        baseline("sgd", (0.5,)),
    )
    both = (CATCH, SuiteTask(TaskConfig("small_dense_short"), 25))
    suite = Suite("some", both[:tasks], (0.1,), (0.1,))
    b = Benchmark(suite, contenders, tmp_path, PROTOCOL)

    def conflict(folder, job):
        """Each task likes an end of the grid: on two tasks the one setting is another for one."""
        catch = job.arguments["config"]["environment"] == "catch"
        return curves(
            runs.from_json(runs.Batch, job.arguments),
            lambda batch, rate, seed: (np.log(rate) if catch else -2 * np.log(rate)) if rate else 0,
        )

    pool = PretendedPool(conflict).open(tmp_path, None)
    said = []
    jobs = expected_jobs(b)
    expected = {job.address for job in jobs}
    found = run_stages(b, Stages(pool, tmp_path, jobs, lambda *x, **_: said.append(x[:2])))
    ran = [job.address for job in pool.ran]
    assert len(set(ran)) == len(ran)
    # The one setting of Adam and of both members of the rule is also one task's own.
    assert len(ran) == len(expected) - (3 if tasks == 2 else 0)
    assert {job.address for job in first_jobs(b)} <= expected
    assert said[-1] == (len(ran), len(ran))
    assert found.benchmark.readings == ("tuned", "one")[:tasks]
    pool.ran.clear()
    run_stages(b, Stages(pool, tmp_path, jobs))
    assert pool.ran == []
