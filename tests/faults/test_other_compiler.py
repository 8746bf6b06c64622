"""Another compiler, or another processor: other bits, and the same statistics."""

import os
import subprocess
import sys

import numpy as np
import pytest

# A pendulum's episode takes 200 steps and is chaotic: what was rounding may be another return.
RUNS = """
import dataclasses, sys
import numpy as np
from optim4rl.evaluation.learning import Classical, learning_curves
from optim4rl.tasks import default_config, make_task

config = dataclasses.replace(default_config("gymnax:Pendulum-v1"), num_envs=4, width=16)
(found,) = learning_curves(
    make_task(config), Classical("adam"), None, rates=(1e-3,), seeds=range(32), updates=12
)
np.save(sys.argv[1], found.returns)
"""


@pytest.mark.slow
def test_what_rounds_otherwise_gives_the_same_statistics(tmp_path):
    """As XLA compiles here, without its optimizations, and for a processor of 2008."""
    found = []
    for flags in ("", "--xla_backend_optimization_level=0", "--xla_cpu_max_isa=SSE4_2"):
        path, env = tmp_path / "returns.npy", os.environ | {"XLA_FLAGS": flags}
        subprocess.run([sys.executable, "-c", RUNS, str(path)], env=env, check=True)
        found.append(np.load(path).mean(axis=1))
    here, *others = found
    for other in others:
        assert not np.array_equal(here, other)
        assert np.median(np.abs(here - other)) < 1e-3 * here.std()
        assert abs((here - other).mean()) < 0.1 * here.std()
