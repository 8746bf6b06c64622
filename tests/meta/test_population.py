"""Chunks and devices change nothing that is computed; what does not fit is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from test_meta_gradient import factor_rule

from optim4rl.meta.checkpoint import load_checkpoint, save_checkpoint
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, train
from optim4rl.tasks import A2CConfig, TaskConfig, make_task

SPEC, _ = factor_rule()
CATCH = TaskConfig("catch", num_envs=2, width=4, learner=A2CConfig(rollout=5))
TASKS = (MetaTask(make_task(CATCH), 0.05),)
CONFIG = MetaConfig(
    iterations=6, agents=8, inner_updates=2, reset_interval=3, meta_learning_rate=3e-2
)


def assert_close(one, other):
    """Equal to float tolerance, whole numbers and random keys exactly."""

    def compare(a, b):
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, one, other)


@pytest.fixture(scope="module")
def alone():
    """Six iterations on one device, all agents side by side."""
    return train(SPEC, TASKS, CONFIG, chunk=6)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("num_devices", "agents_per_chunk"),
    [
        (2, 1),
        pytest.param(1, 3, marks=slow),
        pytest.param(2, None, marks=slow),
        pytest.param(4, 1, marks=slow),
        pytest.param(1, 1, marks=slow),
        pytest.param(4, None, marks=slow),
    ],
)
def test_devices_and_chunks_change_nothing(alone, num_devices, agents_per_chunk):
    """Agents, weights, meta-gradients and episode counts, through resets and all."""
    execution = Execution(agents_mesh(num_devices), agents_per_chunk)
    state, progress = train(SPEC, TASKS, CONFIG, chunk=6, execution=execution)
    assert_close((state, progress), alone)
    assert state.estimators[0].agents.params.sharding.num_devices == num_devices
    assert state.key.sharding.is_fully_replicated


def test_a_checkpoint_goes_on_with_another_number_of_devices(alone, tmp_path):
    """Three iterations on four devices, three on two."""
    path = tmp_path / "checkpoint"
    four, two = (Execution(agents_mesh(n)) for n in (4, 2))
    state, _ = train(
        SPEC, TASKS, dataclasses.replace(CONFIG, iterations=3), chunk=3, execution=four
    )
    save_checkpoint(path, state, {})
    like = jax.eval_shape(lambda: init(SPEC, TASKS, CONFIG))
    state = load_checkpoint(path, like, {}, two).state
    assert state.estimators[0].agents.params.sharding.num_devices == 2
    state, _ = train(SPEC, TASKS, CONFIG, chunk=3, state=state, execution=two)
    assert_close(state, alone[0])


@pytest.mark.parametrize(
    ("agents", "devices", "limit", "expected"),
    [(8, 1, None, 8), (8, 1, 3, 2), (8, 1, 100, 8), (12, 2, 4, 3), (512, 4, 100, 64), (7, 1, 5, 1)],
)
def test_a_chunk_is_the_largest_equal_share_within_the_limit(agents, devices, limit, expected):
    assert Execution(agents_mesh(devices), limit).chunk(agents) == expected


def test_what_cannot_be_shared_out_is_refused():
    """Before anything is compiled, naming the field, the value and what would be right."""
    with pytest.raises(ValueError, match=r"^agents = 7: 2 devices need a multiple of 2"):
        init(SPEC, TASKS, dataclasses.replace(CONFIG, agents=7), None, Execution(agents_mesh(2)))
    with pytest.raises(ValueError, match=r"^agents_per_chunk = 0: at least 1"):
        Execution(agents_per_chunk=0)
    with pytest.raises(ValueError, match=r"^devices = 99: a number from 1 to 4 is needed"):
        agents_mesh(99)
    with pytest.raises(ValueError, match=r"a mesh with the one axis 'agents' is needed"):
        Execution(Mesh(np.asarray(jax.devices()[:1]), ("batch",)))
