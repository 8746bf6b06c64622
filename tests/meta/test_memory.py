"""Memory is known beforehand: by hand on small programs, against XLA's own plan on real ones."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from test_meta_gradient import Quadratic, factor_rule

from optim4rl.meta import trainer
from optim4rl.meta.memory import (
    PROCESS_BYTES,
    OutOfMemoryError,
    available_bytes,
    choose_chunk,
    peak_bytes,
    predict,
)
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.trainer import MetaConfig, MetaTask
from optim4rl.optimizers.presets import LEARNED
from optim4rl.tasks import TaskConfig, make_task

MATRIX = jax.ShapeDtypeStruct((100, 100), jnp.float32)
BYTES = 4 * 100 * 100


def peak(function, *shapes, donated=False):
    return peak_bytes(jax.make_jaxpr(function)(*shapes).jaxpr, donated=donated) / BYTES


def test_a_product_of_products_holds_two_at_once():
    """A product is gone when the next has read it; both terms of a sum are there at once."""
    assert peak(lambda x: x @ x, MATRIX) == 1
    assert peak(lambda x: ((x @ x) @ x) @ x, MATRIX) == 2
    assert peak(lambda x: (x @ x) + (x @ jnp.exp(x)), MATRIX) == 3


def test_elementwise_chains_take_only_their_result():
    assert peak(lambda x: jnp.exp(jnp.sin(x) * 2.0) + x, MATRIX) == 1
    assert peak(lambda x: jnp.sum(jnp.exp(x)), MATRIX) == pytest.approx(0, abs=1e-3)


def write(x):
    return jax.lax.dynamic_update_slice(x, jnp.zeros((1, 100)), (0, 0))


def test_writing_in_place_is_free_where_the_input_is_given_up():
    assert peak(write, MATRIX) == pytest.approx(1, abs=0.02)
    assert peak(write, MATRIX, donated=True) == pytest.approx(0, abs=0.02)


def test_a_loop_holds_its_results_and_one_pass_of_its_body():
    """Ten stacked products, and in a pass a product beside the carry that it will replace."""

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ x, c @ x), x, length=10)

    assert 11 <= peak(loop, MATRIX) <= 13
    assert peak(lambda x: jax.lax.fori_loop(0, 10, lambda _, c: write(c), x), MATRIX) <= 1.02


SPEC, _ = factor_rule()


@pytest.mark.parametrize(
    ("preset", "agents", "chunk", "kernel"),
    [
        ("optim4rl-rlc", 16, 4, "auto"),
        pytest.param("optim4rl-rlc", 16, 16, "xla", marks=pytest.mark.slow),
    ],
)
def test_the_prediction_is_near_xlas_own_plan(preset, agents, chunk, kernel):
    spec, config = LEARNED[preset], MetaConfig(agents=agents)
    tasks = (MetaTask(make_task(TaskConfig("catch", num_envs=8, width=64)), 1e-2),)
    execution = Execution(agents_per_chunk=chunk, kernel=kernel)
    plan = predict(spec, tasks, config, execution)
    state = jax.eval_shape(partial(trainer.init, spec, tasks, config))
    run = trainer._run.lower(spec, tasks, trainer._program(config), execution, 4, state, 2)
    found = run.compile().memory_analysis()
    assert plan.state == pytest.approx(found.argument_size_in_bytes, rel=0.01)
    assert found.alias_size_in_bytes == pytest.approx(found.argument_size_in_bytes, rel=0.01)
    assert 0.6 < plan.work / found.temp_size_in_bytes < 2.5
    assert plan.peak == PROCESS_BYTES + plan.state + plan.work


def test_the_largest_chunk_that_fits_is_chosen():
    """Free memory decides; what is asked for is a limit; one agent at a time is the last resort."""
    tasks = (MetaTask(Quadratic((1.0,) * 1000), 0.1),)
    config = MetaConfig(agents=16)
    sizes = [1, 4, 16]
    plans = [predict(SPEC, tasks, config, Execution(agents_per_chunk=size)) for size in sizes]
    peaks = [plan.peak for plan in plans]
    assert peaks == sorted(peaks)
    choose = partial(choose_chunk, SPEC, tasks, config)
    for plan in plans:
        assert choose(Execution(), plan.peak) == plan
    assert choose(Execution(agents_per_chunk=4), peaks[-1]) == plans[1]
    message = re.escape("agents = 16: one at a time still needs")
    with pytest.raises(OutOfMemoryError, match=message):
        choose(Execution(), peaks[0] - 1)


def test_a_tasks_own_agents_count():
    """What is predicted, and what may be chosen, is that of the task with the most agents."""
    few, own = MetaConfig(agents=4), (MetaTask(Quadratic((1.0,) * 1000), 0.1, agents=16),)
    usual = (MetaTask(Quadratic((1.0,) * 1000), 0.1),)
    expected = predict(SPEC, usual, MetaConfig(agents=16), Execution())
    assert predict(SPEC, own, few, Execution()) == expected
    assert choose_chunk(SPEC, own, few, Execution(), expected.peak) == expected
    with pytest.raises(ValueError, match=r"^agents = 16: 3 devices"):
        predict(SPEC, own, MetaConfig(agents=3), Execution(agents_mesh(3)))


def test_devices_of_one_process_hold_all_agents_together():
    """Two devices with half of the agents each: the same state, the work of both chunks."""
    tasks = (MetaTask(Quadratic((1.0,) * 1000), 0.1),)
    config = MetaConfig(agents=16)
    one = predict(SPEC, tasks, config, Execution(agents_per_chunk=4))
    two = predict(SPEC, tasks, config, Execution(agents_mesh(2), agents_per_chunk=4))
    assert two.state == pytest.approx(one.state, rel=0.02)
    assert two.work == pytest.approx(2 * one.work, rel=0.02)
    assert two.agents_per_chunk == 4
    with pytest.raises(ValueError, match=r"^agents = 15: 2 devices"):
        predict(SPEC, tasks, dataclasses.replace(config, agents=15), Execution(agents_mesh(2)))


def test_some_memory_is_free():
    assert 2**28 < available_bytes() < 2**45
