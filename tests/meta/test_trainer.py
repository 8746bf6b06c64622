"""Meta-training: determinism, learning, divergence, clipping, schedules."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_meta_gradient import Minibatches, Quadratic, factor_rule, meta_gradient

from optim4rl.meta import trainer
from optim4rl.meta.agents import init_agents
from optim4rl.meta.config import EstimatorName, MetaClip, ResetSchedule, Validation
from optim4rl.meta.trainer import (
    MetaConfig,
    MetaDivergenceError,
    MetaTask,
    clip_meta_gradient,
    combine_meta_gradients,
    meta_optimizer,
    train,
)

SPEC, WEIGHTS = factor_rule()
TASKS = (MetaTask(Quadratic(), 0.05),)
CONFIG = MetaConfig(
    iterations=40, agents=4, inner_updates=4, reset_interval=5, meta_learning_rate=3e-2
)


def assert_identical(a, b):
    """Equal bit for bit, random keys included."""
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        (a, b),
    )
    jax.tree.map(np.testing.assert_array_equal, *plain)


@pytest.fixture(scope="module")
def trained():
    return train(SPEC, TASKS, CONFIG, chunk=30)


def test_same_seed_same_result_other_seed_another(trained):
    """Bit for bit, progress included; a seed changes agents and weights."""
    again = train(SPEC, TASKS, CONFIG, chunk=30)
    assert_identical(trained, again)
    other, _ = train(SPEC, TASKS, dataclasses.replace(CONFIG, seed=1), chunk=30)
    for name in ("input", "head0_bias"):
        a, b = (s.meta_parameters["network0"][name] for s in (trained[0], other))
        assert (a != b).any()
    assert (trained[0].estimators[0].agents.params != other.estimators[0].agents.params).all()


def test_what_a_task_has_of_its_own_takes_the_configs_place(trained):
    """Window, estimator and agents."""
    own = dataclasses.replace(TASKS[0], window=4, estimator="truncated", agents=4)
    other = dataclasses.replace(CONFIG, inner_updates=2, estimator="pes", agents=2)
    assert_identical(train(SPEC, (own,), other, chunk=30), trained)
    assert TASKS[0].settings(CONFIG) == CONFIG
    with pytest.raises(ValueError, match="agents = 3: pes has antithetic pairs"):
        dataclasses.replace(own, estimator="pes", agents=3).settings(CONFIG)


def test_chunks_do_not_change_the_result(trained):
    """Chunks of 10, and of 30 with a shorter last one; reports add up to the whole progress."""
    reports = []
    state, kept = train(
        SPEC, TASKS, CONFIG, chunk=10, report=lambda s, p: reports.append((int(s.iteration), p))
    )
    assert [iteration for iteration, _ in reports] == [10, 20, 30, 40]
    progress = jax.tree.map(lambda *x: np.concatenate(x), *(p for _, p in reports))
    assert_identical((state, progress), trained)
    assert kept is None  # Else a long run would take more and more memory.


def test_progress_reports_every_iteration(trained):
    """Losses of all K + 1 rollouts of all agents, and a norm above zero."""
    _, progress = trained
    assert progress.meta_gradient_norm.shape == (40,)
    assert (progress.meta_gradient_norm > 0).all()
    (stats,) = progress.stats
    assert stats["loss"].shape == (40,)
    # The actor's age counts rollouts: 0 + 1 + 2 + 3 + 4 for each of four fresh agents.
    assert stats["age"][0] == 4 * 10


def test_a_finished_run_has_nothing_left_to_do(trained):
    """Going on from the end returns the state as it is, and no progress."""
    state, progress = train(SPEC, TASKS, CONFIG, state=trained[0])
    assert progress is None
    assert_identical(state, trained[0])


def test_meta_training_lowers_the_loss_of_a_fresh_agent(trained):
    """A golden run: after ten updates from fresh starts, trained against untrained weights."""

    @jax.jit
    def final_loss(weights):
        keys = jax.random.split(jax.random.key(99), 16)
        agents = init_agents(SPEC, TASKS[0].task, keys)
        result = meta_gradient(
            SPEC,
            weights,
            TASKS[0].task,
            agents,
            jax.random.key(0),
            learning_rate=TASKS[0].learning_rate,
            inner_updates=10,
            validation="last",
        )
        return result.stats["loss"].mean(axis=1)

    start = trainer.init(SPEC, TASKS, CONFIG).meta_parameters
    untrained, learned = (final_loss(w) for w in (start, trained[0].meta_parameters))
    assert untrained[0] == learned[0]
    assert learned[-1] < 0.5 * untrained[-1]
    np.testing.assert_allclose([untrained[-1], learned[-1]], [0.625, 0.0429], rtol=0.05)


@dataclass(frozen=True)
class Breaking(Quadratic):
    """A quadratic whose gradient is NaN from the given rollout of an agent's life on."""

    at: int = 15

    def rollout(self, params, actor, key):
        _, after, stats = super().rollout(params, actor, key)
        return actor, after, stats

    def gradient(self, params, batch):
        gradient = super().gradient(params, None)
        return jax.tree.map(lambda g: jnp.where(batch >= self.at, jnp.nan, g), gradient)


def test_divergence_stops_with_the_last_good_rule():
    """Each iteration is five rollouts; the sixteenth is NaN, so three iterations are good."""
    tasks = (MetaTask(Breaking(), 0.05),)
    config = dataclasses.replace(CONFIG, resets="never", iterations=8)
    reports = []
    where = r"at iteration 3: task 0 \(loss, meta-gradient, params of 4 of 4 agents.*\)\. The"
    with pytest.raises(MetaDivergenceError, match=where) as error:
        train(SPEC, tasks, config, chunk=4, report=lambda state, rows: reports.append(rows))
    state = error.value.state
    assert int(state.iteration) == 3
    assert bool(state.stopped)
    good, _ = train(SPEC, tasks, dataclasses.replace(config, iterations=3), chunk=4)
    for name in ("meta_parameters", "meta_optimizer"):
        assert_identical(getattr(state, name), getattr(good, name))
    # Three good iterations and the one that was not.
    assert np.isfinite(reports[0].meta_gradient_norm).tolist() == [True] * 3 + [False]
    # A stopped state stays as it is, and nothing more is done.
    stopped = jax.tree.map(jnp.copy, state)
    with pytest.raises(MetaDivergenceError, match="iteration 3") as again:
        train(SPEC, tasks, config, chunk=4, state=state)
    assert_identical(again.value.state, stopped)


def test_meta_gradients_of_several_tasks_are_clipped_one_by_one_then_averaged():
    """The quadratic's gradient needs no key, so each task's own meta-gradient is known.

    Adam's first moment after one iteration is a tenth of the gradient that it was given. The second
    task has a window of its own.
    """
    tasks = (MetaTask(Quadratic((1.0, 2.0)), 0.05), MetaTask(Quadratic((3.0, 6.0)), 0.1, window=5))
    config = dataclasses.replace(CONFIG, meta_clip="norm", meta_clip_limit=0.1)

    @jax.jit
    def run():
        start = trainer.init(SPEC, tasks, config, WEIGHTS)
        gradients = [
            meta_gradient(
                SPEC,
                WEIGHTS,
                meta_task.task,
                estimator.agents,
                jax.random.key(0),
                learning_rate=meta_task.learning_rate,
                inner_updates=updates,
                validation=config.validation,
            ).gradient
            for updates, meta_task, estimator in zip(
                (config.inner_updates, 5), tasks, start.estimators, strict=True
            )
        ]
        return trainer.iterate(SPEC, tasks, config, start), gradients

    (state, progress), gradients = run()
    norms = [float(optax.tree.norm(g)) for g in gradients]
    assert min(norms) > 0.1
    np.testing.assert_allclose(progress.meta_gradient_norm, np.mean(norms), rtol=1e-5)
    expected = jax.tree.map(lambda a, b: 0.1 * (a / norms[0] + b / norms[1]) * 0.1 / 2, *gradients)
    jax.tree.map(
        lambda m, e: np.testing.assert_allclose(m, e, rtol=1e-4, atol=1e-8),
        state.meta_optimizer[0].mu,
        expected,
    )


GRADIENT = {"network0": {"a": jnp.array([3.0, -0.2]), "b": jnp.array([[-4.0]])}}
SMALL = jax.tree.map(lambda x: 0.01 * x, GRADIENT)


@pytest.mark.parametrize(
    ("clip", "gradient", "expected"),
    [
        ("none", GRADIENT, [3.0, -0.2, -4.0]),
        ("value", GRADIENT, [1.0, -0.2, -1.0]),
        ("norm", GRADIENT, np.array([3.0, -0.2, -4.0]) / np.sqrt(25.04)),
        ("norm", SMALL, [0.03, -0.002, -0.04]),
        ("normalise", GRADIENT, np.array([3.0, -0.2, -4.0]) / np.sqrt(25.04)),
        ("normalise", SMALL, np.array([3.0, -0.2, -4.0]) / np.sqrt(25.04)),
    ],
)
def test_meta_clips(clip, gradient, expected):
    """With limit 1: elementwise, a cap on the global norm, a fixed global norm, nothing."""
    found = clip_meta_gradient(gradient, clip, 1.0)["network0"]
    np.testing.assert_allclose([*found["a"], found["b"][0, 0]], expected, rtol=1e-6)


def combined(gradients, clip, limit, *, squared_norms=None, estimates=(1, 1), drawn=(True, True)):
    tasks = len(gradients)
    norms = jnp.zeros(tasks) if squared_norms is None else squared_norms
    estimates, drawn = jnp.array(estimates[:tasks]), jnp.array(drawn[:tasks])
    return combine_meta_gradients(gradients, norms, estimates, drawn, clip, limit)


@pytest.mark.parametrize("clip", get_args(MetaClip))
def test_meta_clips_leave_zero_at_zero_and_nan_visible(clip):
    """No division by a zero norm; a NaN is never turned into a number."""
    zero = jax.tree.map(jnp.zeros_like, GRADIENT)
    assert not any(x.any() for x in jax.tree.leaves(combined([zero], clip, 1.0)[0]))
    broken = {"network0": {"a": jnp.array([jnp.nan, 1.0])}}
    assert np.isnan(combined([broken], clip, 1.0)[0]["network0"]["a"][0])


def test_running_normalisation_divides_by_the_usual_norm():
    """Against a plain loop: two tasks, five iterations, the limit out of reach and within it."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(5, 2, 3)) * np.array([1e-3, 1e4])[:, None]
    for limit in (100.0, 0.1):
        norms, history = jnp.zeros(2), np.zeros(2)
        for t, gradients in enumerate(drawn):
            history = 0.9 * history + 0.1 * np.square(gradients).sum(axis=1)
            usual = np.sqrt(history / (1 - 0.9 ** (t + 1)))
            expected = (gradients / usual[:, None]).mean(axis=0)
            expected *= min(1, limit / np.linalg.norm(expected))
            trees = [{"network0": {"a": jnp.asarray(g, jnp.float32)}} for g in gradients]
            estimates = (t + 1, t + 1)
            found, norms = combined(
                trees, "running", limit, squared_norms=norms, estimates=estimates
            )
            np.testing.assert_allclose(found["network0"]["a"], expected, rtol=1e-5)


@pytest.mark.parametrize("clip", get_args(MetaClip))
def test_a_task_that_is_not_drawn_counts_for_nothing(clip):
    """The mean is over the drawn task; the other keeps its running norm, even if it has none."""
    zero = jax.tree.map(jnp.zeros_like, GRADIENT)
    for norm, estimates in ((4.0, (1, 7)), (0.0, (1, 0))):
        norms = jnp.array([0.0, norm])
        found, after = combined(
            [GRADIENT, zero],
            clip,
            1.0,
            squared_norms=norms,
            estimates=estimates,
            drawn=(True, False),
        )
        alone, expected = combined([GRADIENT], clip, 1.0)
        assert_identical(found, alone)
        np.testing.assert_array_equal(after, [expected[0], norm])


def test_every_iteration_draws_some_of_the_tasks():
    """Two of four: all pairs come, and the agents of the others wait."""
    tasks = tuple(MetaTask(Quadratic(), rate) for rate in (0.05, 0.04, 0.03, 0.02))
    config = dataclasses.replace(CONFIG, iterations=30, tasks_per_iteration=2, agents=2)
    states, rows = [trainer.init(SPEC, tasks, config).estimators], []

    def keep(state, progress):
        states.append(jax.tree.map(jnp.copy, state.estimators))
        rows.append(progress)

    start = trainer.init(SPEC, tasks, config)
    train(SPEC, tasks, config, state=start, chunk=1, report=keep)
    progress = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    drawn = progress.rollouts > 0
    assert len(np.unique(drawn, axis=0)) == 6
    np.testing.assert_array_equal(progress.rollouts, 5 * drawn)  # K and the validation
    np.testing.assert_array_equal(drawn.sum(axis=1), 2)
    np.testing.assert_array_equal(progress.task_norms > 0, drawn)
    mean = progress.task_norms.sum(axis=1) / 2
    np.testing.assert_allclose(progress.meta_gradient_norm, mean, rtol=1e-6)
    for before, after, now in zip(states[:-1], states[1:], drawn, strict=True):
        for index in np.flatnonzero(~now):
            assert_identical(before[index], after[index])
        for index in np.flatnonzero(now):
            assert after[index].iteration == before[index].iteration + 1


def test_the_scale_of_a_tasks_meta_objective_drops_out():
    """One of two tasks with a meta-objective a thousand times as large: the same training."""

    @dataclass(frozen=True)
    class Scaled(Minibatches):
        """Of the gradients only that of the whole loss, which the meta-objective has, is scaled."""

        scale: Any = field(default=1.0, compare=False)

        def gradient(self, params, batch):
            return jax.tree.map(lambda g: self.scale * g, super().gradient(params, batch))

        def minibatch_gradient(self, params, batch, index):
            return Minibatches().minibatch_gradient(params, batch, index)

    config = dataclasses.replace(CONFIG, agents=2, meta_clip="running")
    tasks = (MetaTask(Minibatches(), 0.05), MetaTask(Quadratic(), 0.05))
    start = trainer.init(SPEC, tasks, config)

    @jax.jit
    def run(scale):
        scaled = (MetaTask(Scaled(scale=scale), 0.05), tasks[1])

        def body(state, _):
            return trainer.iterate(SPEC, scaled, config, state)[0], None

        return jax.lax.scan(body, start, length=8)[0]

    states = [run(scale) for scale in (1.0, 1000.0)]
    one, other = (s.squared_norms for s in states)
    np.testing.assert_allclose(other / one, [1e6, 1.0], rtol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *[state.meta_parameters for state in states],
    )


@pytest.mark.parametrize("share", [1.0, 0.1, 0.0])
def test_cosine_decay(share):
    """With a constant gradient Adam's step is the meta-learning rate, whose course is known."""
    config = dataclasses.replace(CONFIG, iterations=10, meta_learning_rate=0.1, cosine_to=share)
    optimizer = meta_optimizer(config)
    weights = {"w": jnp.zeros(1)}

    @jax.jit
    def steps():
        def body(state, _):
            updates, state = optimizer.update({"w": jnp.ones(1)}, state, weights)
            return state, updates["w"][0]

        return jax.lax.scan(body, optimizer.init(weights), length=10)[1]

    t = np.arange(10) / 10
    expected = -0.1 * (share + (1 - share) * (1 + np.cos(np.pi * t)) / 2)
    np.testing.assert_allclose(steps(), expected, rtol=1e-4)


def test_given_weights_are_where_it_starts():
    """Weights can be handed in; everything else follows the seed."""
    fresh, given = trainer.init(SPEC, TASKS, CONFIG), trainer.init(SPEC, TASKS, CONFIG, WEIGHTS)
    assert_identical(given.meta_parameters, WEIGHTS)
    assert_identical(given._replace(meta_parameters=fresh.meta_parameters), fresh)


SIZES = ("iterations", "agents", "inner_updates", "reset_interval")
POSITIVE = ("meta_learning_rate", "meta_clip_limit", "sigma")
CHOICES = {
    "estimator": get_args(EstimatorName),
    "resets": get_args(ResetSchedule),
    "validation": get_args(Validation),
    "meta_clip": get_args(MetaClip),
}
BAD = [
    ("tasks_per_iteration", 0, "a whole number of at least 1 or None is needed"),
    ("shortest_interval", 0, "1 to reset_interval = 5 is needed"),
    ("shortest_interval", 6, "1 to reset_interval = 5 is needed"),
    *[(field, 0, "a whole number of at least 1 is needed") for field in SIZES],
    *[(field, x, "a positive finite number") for field in POSITIVE for x in (0.0, -1.0, np.inf)],
    ("meta_learning_rate", float("nan"), "a positive finite number"),
    ("cosine_to", 1.5, r"a number in \[0, 1\]"),
    *[(field, "odd", f"known values are {', '.join(x)}$") for field, x in CHOICES.items()],
]


@pytest.mark.parametrize(("field", "value", "right"), BAD)
def test_config_errors_name_field_and_value(field, value, right):
    """What a user meets, who has no type checker in front of the checks."""
    unchecked = object.__new__(MetaConfig)
    for name, each in {**dataclasses.asdict(CONFIG), field: value}.items():
        object.__setattr__(unchecked, name, each)
    with pytest.raises(ValueError, match=rf"^{field} = {value!r}: .*{right}"):
        unchecked.__post_init__()
