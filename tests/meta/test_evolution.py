"""Evolution strategies: unbiased where the gradient of the smoothed loss is known."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_meta_gradient import Quadratic, factor_rule
from test_population import assert_close

from optim4rl.meta import evolution
from optim4rl.meta.agents import extras_of, init_agents, play
from optim4rl.meta.augmentation import augment
from optim4rl.meta.checkpoint import load_checkpoint, save_checkpoint
from optim4rl.meta.config import Augmentation
from optim4rl.meta.population import Execution, agents_mesh
from optim4rl.meta.resets import reset_intervals
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, make_estimator, train
from optim4rl.optimizers import rule
from optim4rl.optimizers.kernels.select import KERNELS, choose
from optim4rl.optimizers.layout import Tensor
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.rule import init_meta_parameters, init_state
from optim4rl.optimizers.structures import NO_EXTRAS
from optim4rl.tasks import default_config, make_task

SPEC, _ = factor_rule()
ALPHA, CURVATURE, SIGMA = 0.1, 2.0, 0.5
# A rule with one meta-parameter: directions are the gradient times it.
FACTOR = {"network0": {"factor": jnp.array([1.5])}}
K, LIFE = 2, 4
CONFIG = MetaConfig(agents=512, inner_updates=K, estimator="pes", sigma=SIGMA, reset_interval=LIFE)


class Returns(NamedTuple):
    """What a rollout reports."""

    return_sum: jax.Array
    episode_count: jax.Array


@dataclass(frozen=True)
class Episodes(Quadratic):
    """A quadratic with returns: two episodes end in every rollout, and return minus the loss."""

    env_steps_per_rollout: int = 1

    def rollout(self, params, actor, key):
        _, actor, stats = super().rollout(params, actor, key)
        return None, actor, Returns(-2 * stats["loss"], jnp.asarray(2))


@dataclass(frozen=True)
class OneParameter(Episodes):
    """The loss is half the curvature times a square; every agent starts at 1."""

    curvatures: tuple[float, ...] = (CURVATURE,)

    def init_params(self, key):
        return jnp.ones(1)


def multiply(spec, meta_parameters, gradient, state, *, layout):
    """A step of the rule with one meta-parameter."""
    return meta_parameters["network0"]["factor"] * gradient, state


@pytest.fixture(scope="module", autouse=True)
def _factor_as_kernel():
    kernel = dataclasses.replace(choose(SPEC, "xla"), step=multiply)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolution, "choose", lambda spec, name: kernel if name == "auto" else None)
        yield


def estimator(config, task=OneParameter()):
    return make_estimator(SPEC, MetaTask(task, ALPHA), config, Execution())


def expected(function):
    """The mean of a function of a standard normal variable, and exactly so for polynomials."""
    x, weights = np.polynomial.hermite_e.hermegauss(40)
    return (function(x) * weights).sum() / weights.sum()


def slope(function, step=1e-5):
    at = float(FACTOR["network0"]["factor"][0])
    return (function(at + step) - function(at - step)) / (2 * step)


def shrink(factor, updates):
    """What that many updates with a perturbed factor do to the loss, on average."""
    return expected(lambda x: (1 - ALPHA * CURVATURE * (factor + SIGMA * x)) ** (2 * updates))


def assert_unbiased(estimates, gradient, relative_error=0.05):
    """The mean is within five standard errors of the gradient, which are small beside it."""
    estimates = np.asarray(estimates, np.float64)
    error = estimates.std(ddof=1) / np.sqrt(estimates.size)
    assert error < relative_error * abs(gradient)
    assert abs(estimates.mean() - gradient) < 5 * error


def test_es_is_unbiased_over_whole_lives():
    """One perturbation for the whole life: the loss is a polynomial in it."""
    es = estimator(dataclasses.replace(CONFIG, estimator="es"))
    assert es.rollouts == K * LIFE

    @jax.jit
    def run(keys):
        state = es.init(FACTOR, keys[0])
        return jax.lax.map(lambda key: es.estimate(FACTOR, state, key).gradient, keys)

    found = run(jax.random.split(jax.random.key(0), 32))["network0"]["factor"][:, 0]
    updates = np.arange(K * LIFE)
    gradient = slope(lambda at: np.mean([CURVATURE / 2 * shrink(at, n) for n in updates]))
    assert_unbiased(found, gradient)


@pytest.fixture(scope="module")
def pes():
    """Estimates of eight lives: a function of the offsets, and of whether to forget."""
    pes = estimator(CONFIG)
    assert pes.rollouts == K
    start = jax.jit(pes.init)(FACTOR, jax.random.key(0))

    @jax.jit
    def run(offsets, memory):
        def body(state, key):
            population = state.agents._replace(perturbation=memory * state.agents.perturbation)
            estimate = pes.estimate(FACTOR, state._replace(agents=population), key)
            return estimate.state, estimate.gradient["network0"]["factor"][0]

        keys = jax.random.split(jax.random.key(1), 24 * LIFE)
        return jax.lax.scan(body, start._replace(offsets=offsets), keys)[1]

    def estimates(schedule, memory=1.0):
        config = dataclasses.replace(CONFIG, resets=schedule)
        offsets = jax.jit(estimator(config).init)(FACTOR, jax.random.key(0)).offsets
        return np.asarray(run(offsets, memory)).reshape(-1, LIFE)

    return estimates


def window_loss(factors):
    """The mean smoothed loss in the last window of a life, with a factor for each window."""
    *before, now = factors
    start = np.prod([shrink(factor, K) for factor in before])
    return CURVATURE / 2 * start * np.mean([shrink(now, n) for n in range(K)])


def test_pes_is_unbiased_where_truncation_is_not(pes):
    """Window by window; without its memory it sees the last perturbation's share alone."""
    found, forgetful = pes("synchronous"), pes("synchronous", memory=0.0)
    at = float(FACTOR["network0"]["factor"][0])
    for window in range(LIFE):
        whole = slope(lambda factor, n=window: window_loss([factor] * (n + 1)))
        share = slope(lambda factor, n=window: window_loss([at] * n + [factor]))
        assert_unbiased(found[:, window], whole, relative_error=0.1)
        assert_unbiased(forgetful[:, window], share, relative_error=0.2)
        # Of the last window's loss hardly a tenth is due to the last window's updates.
        assert share / whole < (1.01, 0.35, 0.2, 0.15)[window]


def test_pes_is_unbiased_with_staggered_resets(pes):
    """Once lives are at all stages, every estimate is of the mean over windows."""
    found = pes("staggered")[1:]
    windows = [slope(lambda factor, n=n: window_loss([factor] * (n + 1))) for n in range(LIFE)]
    assert_unbiased(found, np.mean(windows))


def test_pairs_share_everything_but_the_perturbation():
    """Their first parameters, their lives, of mixed length, and their random numbers."""
    config = dataclasses.replace(CONFIG, agents=6, shortest_interval=2)
    pes = estimator(config, Episodes((1.0, 2.0)))

    @jax.jit
    def run():
        start = pes.init(FACTOR, jax.random.key(0))

        def body(state, key):
            state = pes.estimate(FACTOR, state, key).state
            return state, state.agents

        keys = jax.random.split(jax.random.key(1), LIFE)
        return start, jax.lax.scan(body, start, keys)[1]

    start, lives = run()
    first, second = start.agents.learners.agents.params.reshape(2, 3, 2)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 3
    np.testing.assert_array_equal(*start.offsets.reshape(2, 3))
    drawn = lives.perturbation.reshape(LIFE, 2, 3)
    np.testing.assert_array_equal(drawn[:, 0], -drawn[:, 1])
    assert len(np.unique(abs(drawn))) == LIFE * 3
    # Lives of 2, 4 and 3 estimates, reset at 2, at 1 and at 2. The actor counts rollouts.
    ages = lives.learners.agents.actor.reshape(LIFE, 2, 3)
    np.testing.assert_array_equal(ages[:, 0], ages[:, 1])
    np.testing.assert_array_equal(
        ages[:, 0], K * np.array([[1, 2, 1, 2], [1, 1, 2, 3], [1, 2, 1, 2]]).T
    )


@pytest.mark.parametrize(
    "kernel", [k.name for k in KERNELS if k.refusal(LEARNED["anchored"]) is None]
)
def test_kernels_step_agents_that_have_a_rule_each(kernel):
    """Batched over rules as well as agents, as one at a time."""
    spec = LEARNED["anchored"]
    layout = (Tensor((70,), "bias", 0.0),)
    step = jax.vmap(partial(choose(spec, kernel).step, spec, layout=layout))

    @jax.jit
    def both():
        keys = jax.random.split(jax.random.key(0), 3)
        rules = jax.vmap(partial(init_meta_parameters, spec))(keys)
        rules = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(keys[0], x.shape), rules)
        gradients = jax.random.normal(keys[1], (3, 70))
        state = jax.vmap(lambda _: init_state(spec, (70,)))(keys)
        expected = jax.vmap(partial(rule.step, spec))(rules, gradients, state)
        return step(rules, gradients, state), expected

    (directions, state), (expected, expected_state) = both()
    assert np.ptp(np.asarray(expected), axis=0).min() > 0
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, (directions, state), (expected, expected_state))


def test_a_curve_holds_its_value_where_no_episode_ends():
    """Losses are means over rollouts of the last known mean return."""

    @dataclass(frozen=True)
    class Rarely(Episodes):
        """Two episodes end in every third rollout; they return the number of the rollout."""

        def rollout(self, params, actor, key):
            ends = actor % 3 == 2
            stats = Returns(jnp.where(ends, 2.0 * actor, 0.0), 2 * ends)
            return None, actor + 1, stats

    task = Rarely((1.0, 2.0))
    pes = estimator(dataclasses.replace(CONFIG, agents=2, inner_updates=7), task)

    @jax.jit
    def run():
        keys = jax.random.split(jax.random.key(0), 2)
        rules = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), FACTOR)
        learners = evolution.Learners(init_agents(SPEC, task, keys), jnp.array([0.0, -1.0]))
        return learners, pes.live(rules, learners, keys, jnp.full(2, 7), 7)

    before, (after, losses, stats) = run()
    np.testing.assert_allclose(losses, -np.array([2 * 3 + 5 * 2, 2 * 3 + 5 * 2 - 2]) / 7, rtol=1e-6)
    np.testing.assert_array_equal(after.returns, [5.0, 5.0])
    assert (stats.return_sum, stats.episode_count) == (2 * 2 * (2 + 5), 2 * 2 * 2)
    # Each learned with a rule of its own.
    factor = 1 - ALPHA * 1.5 * np.outer([1, 2], task.curvatures)
    np.testing.assert_allclose(after.agents.params, before.agents.params * factor**7, rtol=1e-5)


@dataclass(frozen=True)
class Counting(OneParameter):
    """One episode ends in every rollout; it returns the number of the rollout."""

    def rollout(self, params, actor, key):
        return None, actor + 1, Returns(jnp.asarray(actor, jnp.float32), jnp.asarray(1))

    def init_actor(self, key):
        return jnp.int32(0)


@pytest.mark.parametrize(("final_share", "expected"), [(0.0, 9.5), (1.0, 18.5), (0.5, 14.0)])
def test_a_loss_mixes_the_whole_life_and_its_end(final_share, expected):
    """Returns 0 to 19 in twenty rollouts: the last tenth is 18 and 19."""
    config = dataclasses.replace(
        CONFIG, agents=2, estimator="es", reset_interval=20, inner_updates=1
    )
    config = dataclasses.replace(config, final_share=final_share)
    es = estimator(config, Counting())
    keys, most = jax.random.split(jax.random.key(0), 2), jnp.int32(20)
    rules = jax.tree.map(lambda x: jnp.stack([x, x]), FACTOR)
    _, losses = jax.jit(lambda rules: es._lives(most, jnp.zeros(2), (rules, keys)))(rules)
    np.testing.assert_allclose(losses, -expected)


def test_an_estimate_draws_the_length_of_its_lives(monkeypatch):
    """Intervals from 2 to 5, each as likely as its share of the logarithm, and losses of these."""
    config = dataclasses.replace(CONFIG, agents=2, estimator="es", reset_interval=5)
    es = estimator(dataclasses.replace(config, shortest_interval=2), Counting())
    assert es.rollouts == 5 * K
    told = []
    monkeypatch.setattr(evolution, "extras_of", lambda *x: told.append(x[-1]) or NO_EXTRAS)

    @jax.jit
    def run(keys):
        state = es.init(FACTOR, keys[0])

        def one(key):
            estimate = es.estimate(FACTOR, state, key)
            return estimate.rollouts, estimate.stats

        return jax.lax.map(one, keys)

    rollouts, stats = run(jax.random.split(jax.random.key(0), 2000))
    lengths, counts = np.unique(rollouts, return_counts=True)
    np.testing.assert_array_equal(lengths, K * np.array([2, 3, 4, 5]))
    shares = np.diff(np.log([2, 3, 4, 5, 6])) / np.log(3)
    np.testing.assert_allclose(counts / 2000, shares, atol=4 * np.sqrt(0.25 / 2000))
    # Two agents, each with an episode in every rollout.
    np.testing.assert_array_equal(stats.episode_count, 2 * rollouts)
    np.testing.assert_array_equal(stats.return_sum, rollouts * (rollouts - 1))
    assert all(lives.shape == (2,) for lives in told)


@pytest.mark.parametrize("rollouts", [4, 19, 20])
def test_a_shorter_life_has_an_end_of_its_own(rollouts):
    curves = jnp.outer(jnp.arange(20.0), jnp.array([1.0, 2.0]))
    found = evolution._score(curves, jnp.int32(rollouts), 0.25)
    lived = np.arange(rollouts)
    expected = 0.75 * lived.mean() + 0.25 * lived[-max(rollouts // 10, 1) :].mean()
    np.testing.assert_allclose(found, [expected, 2 * expected], rtol=1e-6)


def test_lives_end_when_all_agents_are_lost():
    """Parameters overflow after a while. With one agent that does not, all live on."""
    es = estimator(dataclasses.replace(CONFIG, agents=2, estimator="es", reset_interval=100))
    keys, most = jax.random.split(jax.random.key(0), 2), jnp.int32(200)
    run = jax.jit(lambda rules: es._lives(most, jnp.zeros(2), (rules, keys)))
    for factors, whole in (([1e6, 1e7], False), ([1.5, 1e7], True)):
        stats, losses = run({"network0": {"factor": jnp.array(factors)[:, None]}})
        assert 0 < stats.episode_count <= 2 * 2 * 200
        assert (stats.episode_count == 2 * 2 * 200) == whole
        np.testing.assert_array_equal(np.isnan(losses), [not whole, True])


def test_ranks_compare_the_two_lives_of_a_pair():
    """A lost life is the worse one; equal and two lost lives say nothing."""
    first, second = [1.0, 5.0, 2.0, np.nan, 3.0, np.nan], [2.0, -900.0, 2.0, 7.0, np.nan, np.nan]
    ranks = evolution.rank_pairs(jnp.asarray([*first, *second]))
    expected = [-0.5, 0.5, 0.0, 0.5, -0.5, 0.0]
    np.testing.assert_array_equal(ranks, [*expected, *(-x for x in expected)])


def test_ranks_go_down_where_returns_do():
    """The estimate from ranks has the sign of the gradient, whatever the scale of the loss."""
    found = []
    for scale in (1.0, 1e4):
        task = OneParameter((scale * CURVATURE,))
        config = dataclasses.replace(CONFIG, estimator="es", fitness="ranks", sigma=0.05)
        es = make_estimator(SPEC, MetaTask(task, ALPHA / scale), config, Execution())
        run = jax.jit(lambda key, es=es: es.estimate(FACTOR, es.init(FACTOR, key), key).gradient)
        found.append(float(run(jax.random.key(0))["network0"]["factor"][0]))
    assert found[0] < 0  # a larger factor is better: 1 - 0.2 x 1.5 has not reached 0
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_rules_are_told_how_far_an_agent_is():
    """Training from the agent's age, in rollouts of a life; epochs from the task."""
    spec, task = (
        LEARNED["modulated"],
        make_task(dataclasses.replace(default_config("gymnax:CartPole-v1"), num_envs=4)),
    )
    assert task.updates_per_rollout == 16  # four epochs of four minibatches
    keys = jax.random.split(jax.random.key(0), 3)
    agents = init_agents(spec, task, keys)
    ages = jnp.array([0, 16 * 5 + 3, 16 * 40], jnp.int32)
    agents = agents._replace(rule=agents.rule._replace(age=ages))
    batches, _, _ = play(task, agents, keys, jnp.int32(0))
    lives = jnp.array([11, 11, 11])
    told = extras_of(spec, task, agents, keys, batches, jnp.int32(9), lives)
    np.testing.assert_allclose(told.training_proportion, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(told.epoch_proportion, [2 / 3] * 3, rtol=1e-6)
    np.testing.assert_array_equal(told.params, agents.params)


def test_rules_are_told_the_epoch_of_a_rescaled_task():
    task = make_task(dataclasses.replace(default_config("gymnax:CartPole-v1"), num_envs=4))
    rescaled = augment(task, Augmentation(rescale_parameters=3.0))
    keys = jax.random.split(jax.random.key(0), 2)
    agents = init_agents(LEARNED["modulated"], rescaled, keys)
    batches, _, _ = play(rescaled, agents, keys, jnp.int32(0))
    lives = jnp.array([11, 11])
    told = extras_of(LEARNED["modulated"], rescaled, agents, keys, batches, jnp.int32(13), lives)
    np.testing.assert_allclose(told.epoch_proportion, [1.0, 1.0])


def test_lives_of_mixed_length_are_told_their_own_share(monkeypatch):
    """Pairs of pes have intervals from 1 to 4; each is told the share of its own."""

    class ToldError(Exception):
        pass

    def share_out(work, shared, units, given, execution):
        raise ToldError(given[-1])

    monkeypatch.setattr(evolution, "share_out", share_out)
    config = dataclasses.replace(CONFIG, estimator="pes", agents=6, reset_interval=4)
    config = dataclasses.replace(config, shortest_interval=1)
    pes = make_estimator(SPEC, MetaTask(OneParameter((CURVATURE,)), ALPHA), config, Execution())
    with pytest.raises(ToldError) as told:
        pes.estimate(FACTOR, pes.init(FACTOR, jax.random.key(0)), jax.random.key(0))
    np.testing.assert_array_equal(
        told.value.args[0], pes.rollouts * np.tile(reset_intervals(3, 4, 1), 2)
    )


@pytest.mark.parametrize("name", ["pes", pytest.param("es", marks=pytest.mark.slow)])
def test_training_goes_on_from_a_checkpoint_on_other_devices(name, tmp_path):
    """Four iterations on one device; two, a file, and two on two devices in chunks."""
    tasks = (MetaTask(Episodes((1.0, 2.0)), ALPHA),)
    config = dataclasses.replace(CONFIG, agents=8, estimator=name, iterations=4, reset_interval=2)
    weights = {"network0": {**FACTOR["network0"]}}

    def start(config):
        return init(SPEC, tasks, config, jax.tree.map(jnp.copy, weights))

    whole, progress = train(SPEC, tasks, config, state=start(config), chunk=4)
    assert (progress.meta_gradient_norm > 0).all()
    # Every agent's rollouts, with two episodes each.
    rollouts = {"es": K * 2, "pes": K}[name]
    np.testing.assert_array_equal(progress.stats[0].episode_count, [8 * 2 * rollouts] * 4)
    shorter = dataclasses.replace(config, iterations=2)
    half, _ = train(SPEC, tasks, shorter, state=start(shorter), chunk=4)
    save_checkpoint(tmp_path / "file", half, {})
    two = Execution(agents_mesh(2), agents_per_chunk=2)
    state = load_checkpoint(tmp_path / "file", half, {}, two).state
    state, _ = train(SPEC, tasks, config, state=state, chunk=4, execution=two)
    assert_close(state, whole)


def test_what_does_not_fit_an_estimator_is_refused():
    """Before anything is compiled, naming the field, the value and what would be right."""
    with pytest.raises(ValueError, match=r"^estimator = 'pes': it needs returns, so a task whose"):
        estimator(CONFIG, Quadratic())
    with pytest.raises(ValueError, match=r"^agents = 7: es has antithetic pairs of agents, so an"):
        MetaConfig(agents=7, estimator="es")
