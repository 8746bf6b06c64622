"""The truncated meta-gradient against closed forms and against autodiff through everything."""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from by_hand import answer, transitions
from optim4rl.meta.agents import Agents, init_agents, num_rollouts
from optim4rl.meta.meta_gradient import truncated_meta_gradient
from optim4rl.meta.resets import reset_intervals, reset_mask, reset_offsets
from optim4rl.optimizers import rule
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.presets import LEARNED
from optim4rl.tasks import A2CConfig, TaskConfig, make_task
from optim4rl.tasks.a2c import a2c_loss, lambda_returns

CURVATURES = (0.1, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Quadratic:
    """Loss `0.5 sum(a x^2)` with its exact gradient; the stats are the loss and the actor's age."""

    curvatures: tuple[float, ...] = CURVATURES
    updates_per_rollout: int = 1
    env_steps_per_rollout: int = 1

    def init_params(self, key):
        n = len(self.curvatures)
        return {"x": jax.random.normal(key, (n - 1,)), "y": jax.random.normal(key, ())}

    def init_actor(self, key):
        return jnp.zeros((), jnp.int32)

    def loss(self, params):
        flat = ravel_pytree(params)[0]
        return 0.5 * jnp.sum(jnp.array(self.curvatures) * jnp.square(flat))

    def rollout(self, params, actor, key):
        return None, actor + 1, {"loss": self.loss(params), "age": actor}

    def gradient(self, params, batch):
        return jax.grad(self.loss)(params)

    def rollout_loss(self, params, actor, key):
        return self.loss(params)


class DifferentiableCatch:
    """Catch on a small network, with the loss of a rollout as a function of the parameters."""

    def __init__(self, num_envs=2, width=4):
        learner = A2CConfig(rollout=6)
        self.task = make_task(TaskConfig("catch", num_envs=num_envs, width=width, learner=learner))
        self.init_params, self.init_actor = self.task.init_params, self.task.init_actor
        self.rollout, self.gradient = self.task.rollout, self.task.gradient
        self.updates_per_rollout = 1
        self.env_steps_per_rollout = self.task.env_steps_per_rollout

    def rollout_loss(self, params, actor, key):
        """The A2C loss; the rollout's data are constants."""
        a2c = self.task.config.learner
        assert isinstance(a2c, A2CConfig)
        _, data, _ = jax.lax.stop_gradient(transitions(self.task, params, actor, key))
        target = lambda_returns(
            data.reward, data.terminated, data.truncated, data.next_value, a2c.gamma, a2c.lam
        )
        logits, value = jax.vmap(jax.vmap(partial(answer, params)))(data.observation)
        outputs, values, actions = (
            x.reshape(-1, *x.shape[2:]) for x in (logits, value, data.action)
        )
        unused = jnp.zeros((1, target.size), jnp.float32)
        returns = target.reshape(-1)
        return a2c_loss(self.task.distribution, a2c, outputs, values, actions, unused, returns)


TASKS = {"quadratic": Quadratic(), "catch": DifferentiableCatch()}
ALPHA = 0.01
INTERVAL = 3


@partial(jax.jit, static_argnums=0)
def live_weights(spec):
    """Weights that are nowhere zero, so that every path through the rule is live."""
    weights, unravel = ravel_pytree(rule.init_meta_parameters(spec, jax.random.key(0)))
    return unravel(weights + 0.1 * jax.random.normal(jax.random.key(1), weights.shape))


def meta_gradient(spec, weights, task, agents, key, **settings):
    """`truncated_meta_gradient` by the oracle, every agent with a key split off the one given."""
    keys = jax.random.split(key, agents.params.shape[0])
    settings |= {"lives": jnp.full(len(keys), 100), "kernel": choose(spec, "xla")}
    return truncated_meta_gradient(spec, weights, task, agents, keys, **settings)


def meta_loss(spec, weights, task, agents, key, inner_updates, validation):
    """The meta-objective in one differentiable piece: autodiff sees all of the K updates."""
    _, unravel = ravel_pytree(task.init_params(key))
    num_agents = agents.params.shape[0]
    keys = jax.vmap(
        lambda k: jax.vmap(jax.random.fold_in, (0, None))(jax.random.split(key, num_agents), k)
    )(jnp.arange(inner_updates + 1))

    def update(agent, keys):
        params, state, actor = agent
        batch, after, _ = task.rollout(unravel(params), actor, keys[0])
        gradient = task.gradient(unravel(params), batch)
        gradient, actor = jax.lax.stop_gradient((ravel_pytree(gradient)[0], after))
        direction, state = rule.step(spec, weights, gradient, state)
        params = params - ALPHA * direction
        loss = task.rollout_loss(unravel(params), actor, keys[1])
        return Agents(params, state, actor), loss

    pairs = jnp.stack([keys[:-1], keys[1:]], axis=1).transpose(2, 0, 1)
    losses = jax.vmap(lambda agent, keys: jax.lax.scan(update, agent, keys)[1])(agents, pairs)
    return jnp.mean(losses[:, -1] if validation == "last" else losses)


def with_resets(spec, task, agents, mask, key):
    """Agents of which those under the mask are fresh."""
    fresh = init_agents(spec, task, jax.random.split(key, mask.shape[0]))
    pick = jax.vmap(lambda m, new, old: jax.tree.map(lambda x, y: jnp.where(m, x, y), new, old))
    return pick(mask, fresh, agents)


@lru_cache
def meta_gradients(preset, task, num_agents, validation, inner_updates=2, iterations=5):
    """A function of the reset offsets: (found, expected, ages) of successive iterations."""
    spec = LEARNED[preset]
    weights = live_weights(spec)

    def iterate(agents, mask_and_key):
        mask, key = mask_and_key
        agents = with_resets(spec, task, agents, mask, key)
        found = meta_gradient(
            spec,
            weights,
            task,
            agents,
            key,
            learning_rate=ALPHA,
            inner_updates=inner_updates,
            validation=validation,
        )
        expected = jax.grad(
            lambda w: meta_loss(spec, w, task, agents, key, inner_updates, validation)
        )(weights)
        return found.agents, (found.gradient, expected, agents.rule.age)

    @jax.jit
    def run(offsets):
        intervals = reset_intervals(num_agents, INTERVAL)
        masks = jax.vmap(lambda t: reset_mask(t, offsets, intervals))(jnp.arange(iterations))
        keys = jax.random.split(jax.random.key(6), iterations)
        agents = init_agents(spec, task, jax.random.split(jax.random.key(7), num_agents))
        return jax.lax.scan(iterate, agents, (masks, keys))[1]

    return run


def assert_equal_gradients(found, expected, tolerance=1e-5):
    """Equal to `tolerance` of the largest entry of each iteration's meta-gradient."""
    for f, e in zip(jax.vmap(flat)(found), jax.vmap(flat)(expected), strict=True):
        scale = float(jnp.abs(e).max())
        assert 0 < scale < float("inf")
        np.testing.assert_allclose(f, e, rtol=0, atol=tolerance * scale)


def flat(tree):
    return ravel_pytree(tree)[0]


def assert_ages(ages, schedule, inner_updates=2):
    """Never reset: all equally old. Staggered: ages differ, and none outlives its interval."""
    if schedule == "never":
        np.testing.assert_array_equal(
            ages.T, [inner_updates * np.arange(len(ages))] * ages.shape[1]
        )
    else:
        assert ages[1:].max() == inner_updates * (INTERVAL - 1)
        assert ages.shape[1] == 1 or len(np.unique(ages[-1])) > 1


PRESETS = ("optim4rl", "optim4rl-rlc", "anchored", "linear", "l2lgd2")
# Compiling is what takes time, so the full product is slow and these stand for it.
QUICK = [
    ("optim4rl-rlc", "quadratic", 1, "dense"),
    ("anchored", "quadratic", 8, "last"),
    ("optim4rl", "catch", 3, "dense"),
]


def parity_cases():
    return [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(PRESETS, TASKS, (1, 3, 8), ("last", "dense"))
    ]


@pytest.mark.parametrize(("preset", "task", "agents", "validation"), parity_cases())
def test_meta_gradient_is_that_of_autodiff_through_everything(preset, task, agents, validation):
    """Over five meta-iterations, with agents of all ages and with agents never reset."""
    run = meta_gradients(preset, TASKS[task], agents, validation)
    for schedule in ("staggered", "never"):
        offsets = reset_offsets(schedule, reset_intervals(agents, INTERVAL), jax.random.key(0))
        found, expected, ages = run(offsets)
        assert_ages(np.asarray(ages), schedule)
        assert_equal_gradients(found, expected)


def factor_rule():
    """L2L with zero heads: every direction is `exp(o) g`, with o the head's bias."""
    spec = dataclasses.replace(
        LEARNED["l2lgd2"], hidden_size=2, head_sizes=(), zero_head=True, clip=None
    )
    weights = jax.jit(lambda: rule.init_meta_parameters(spec, jax.random.key(0)))()
    return spec, {"network0": {**weights["network0"], "head0_bias": jnp.array([0.3])}}


@pytest.mark.parametrize(
    "inner_updates", [1, 4, *(pytest.param(K, marks=pytest.mark.slow) for K in (2, 3, 5))]
)
def test_meta_gradient_of_a_factor_has_a_closed_form(inner_updates):
    """On a quadratic `theta_k = (1 - alpha e^o a)^k theta_0`, and each `g_k` is a constant.

    So `dL(theta_m)/do = -alpha e^o sum_{k < m} g_k . a theta_m`. "last" is `m = K`, "dense" the
    mean over `m = 1..K`.
    """
    spec, weights = factor_rule()
    task, rate, num_agents = Quadratic(), 0.1, 3
    agents = jax.jit(
        lambda: init_agents(spec, task, jax.random.split(jax.random.key(1), num_agents))
    )()

    @jax.jit
    def found():
        return {
            validation: meta_gradient(
                spec,
                weights,
                task,
                agents,
                jax.random.key(2),
                learning_rate=rate,
                inner_updates=inner_updates,
                validation=validation,
            )
            for validation in ("last", "dense")
        }

    a, start = np.array(CURVATURES), np.asarray(agents.params, np.float64)
    factor = np.exp(0.3)
    gradients = [a * (1 - rate * factor * a) ** k * start for k in range(inner_updates + 1)]
    after = [
        -rate * factor * sum(gradients[k] * gradients[m] for k in range(m)).sum(axis=1).mean()
        for m in range(1, inner_updates + 1)
    ]
    result = found()
    for validation, expected in {"last": after[-1], "dense": np.mean(after)}.items():
        bias = result[validation].gradient["network0"]["head0_bias"]
        np.testing.assert_allclose(bias, [expected], rtol=1e-5)
        end = (1 - rate * factor * a) ** inner_updates * start
        np.testing.assert_allclose(result[validation].agents.params, end, rtol=1e-5)


def test_what_it_reports_of_the_rollouts():
    """K inner rollouts and the validation rollout, in order, for every agent; all go on."""
    spec, weights = factor_rule()
    task = Quadratic()

    @jax.jit
    def run():
        agents = init_agents(spec, task, jax.random.split(jax.random.key(1), 2))
        return meta_gradient(
            spec,
            weights,
            task,
            agents,
            jax.random.key(2),
            learning_rate=0.1,
            inner_updates=3,
            validation="last",
        )

    result = run()
    np.testing.assert_array_equal(result.stats["age"], [[k, k] for k in range(4)])
    np.testing.assert_array_equal(result.agents.actor, [4, 4])
    np.testing.assert_array_equal(result.agents.rule.age, [3, 3])
    assert (np.diff(result.stats["loss"], axis=0) < 0).all()


@dataclass(frozen=True)
class Minibatches(Quadratic):
    """A rollout serves two updates, each on one half of the coordinates."""

    updates_per_rollout: int = 2

    def minibatch_gradient(self, params, batch, index):
        flat, unravel = ravel_pytree(self.gradient(params, batch))
        return unravel(jnp.where(jnp.arange(flat.size) % 2 == index, flat, 0.0))


@pytest.mark.parametrize("validation", ["dense", pytest.param("last", marks=pytest.mark.slow)])
def test_a_rollout_may_serve_several_updates(validation):
    """As autodiff has it; the losses count after each rollout's updates, not in between."""
    spec = dataclasses.replace(LEARNED["linear"], hidden_size=2, head_sizes=())
    weights, task = live_weights(spec), Minibatches()
    agents = init_agents(spec, task, jax.random.split(jax.random.key(1), 2))
    _, unravel = ravel_pytree(task.init_params(jax.random.key(0)))

    def objective(weights, agent):
        losses = []
        for _ in range(3):
            for index in range(2):
                gradient = task.minibatch_gradient(unravel(agent.params), None, index)
                gradient = jax.lax.stop_gradient(ravel_pytree(gradient)[0])
                direction, state = rule.step(spec, weights, gradient, agent.rule)
                agent = agent._replace(params=agent.params - ALPHA * direction, rule=state)
            losses.append(task.loss(unravel(agent.params)))
        return losses[-1] if validation == "last" else sum(losses) / 3

    @jax.jit
    def both():
        found = meta_gradient(
            spec,
            weights,
            task,
            agents,
            jax.random.key(2),
            learning_rate=ALPHA,
            inner_updates=6,
            validation=validation,
        )
        each = jax.vmap(jax.grad(objective), in_axes=(None, 0))(weights, agents)
        return found, jax.tree.map(partial(jnp.mean, axis=0), each)

    found, expected = both()
    assert found.stats["age"].shape == (4, 2)
    np.testing.assert_array_equal(found.agents.rule.age, [6, 6])
    scale = float(jnp.abs(flat(expected)).max())
    np.testing.assert_allclose(flat(found.gradient), flat(expected), rtol=0, atol=1e-5 * scale)


def test_updates_of_a_rollout_are_not_cut_short():
    assert num_rollouts(Minibatches(), 6) == 3
    with pytest.raises(ValueError, match="inner_updates = 3: a rollout serves 2 updates"):
        num_rollouts(Minibatches(), 3)


def test_meta_gradient_is_linear_over_agents():
    """The meta-gradient of three agents is the mean of the meta-gradients of each."""
    spec = dataclasses.replace(LEARNED["linear"], hidden_size=2, head_sizes=())
    weights, task, num_agents = live_weights(spec), Quadratic(), 3

    def gradient(agents):
        return meta_gradient(
            spec,
            weights,
            task,
            agents,
            jax.random.key(2),
            learning_rate=ALPHA,
            inner_updates=2,
            validation="last",
        ).gradient

    # The quadratic's gradient needs no key, so that each agent may go its way alone.
    agents = jax.jit(
        lambda: init_agents(spec, task, jax.random.split(jax.random.key(1), num_agents))
    )()
    gradient = jax.jit(gradient)
    found = gradient(agents)
    each = [gradient(jax.tree.map(lambda x, i=i: x[i : i + 1], agents)) for i in range(num_agents)]
    expected = flat(jax.tree.map(lambda *x: sum(x) / num_agents, *each))
    assert np.ptp([float(flat(e)[0]) for e in each]) > 0
    np.testing.assert_allclose(
        flat(found), expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max())
    )
