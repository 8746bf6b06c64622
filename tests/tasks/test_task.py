"""Tasks: sizes, gradients of recorded rollouts, what is reported, scaling."""

import dataclasses
import itertools
from functools import lru_cache, partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.wrappers.purerl import LogWrapper
from test_a2c import Probe, probe_task

from by_hand import answer, transitions, unpack
from optim4rl.tasks import (
    A2CConfig,
    PPOConfig,
    TaskConfig,
    default_config,
    make_task,
    task_from_environment,
)
from optim4rl.tasks.a2c import a2c_loss, lambda_returns
from optim4rl.tasks.distributions import TanhNormal
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.gridworld import GridWorld
from optim4rl.tasks.environments.worlds import GridWorldConfig
from optim4rl.tasks.normalisation import normalise
from optim4rl.tasks.task import Task

SMALL = TaskConfig("catch", num_envs=4, width=8, learner=A2CConfig(rollout=11))


def count_parameters(task: Task) -> int:
    """Of a fresh agent network."""
    params = jax.eval_shape(task.init_params, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameter_counts_are_the_paper_s() -> None:
    """Catch, and big_dense_long with the maps in the release's order and as channels."""
    assert count_parameters(make_task(default_config("catch"))) == 14_084
    big = default_config("big_dense_long")
    assert count_parameters(make_task(dataclasses.replace(big, maps="rows"))) == 39_482
    assert count_parameters(make_task(big)) == pytest.approx(85_000, rel=0.02)


@pytest.mark.parametrize(
    ("environment", "torso", "width"),
    [("catch", "dense", 256), ("small_dense_long", "dense", 32), ("big_sparse_short", "conv", 32)],
)
def test_default_networks(environment: str, torso: str, width: int) -> None:
    """The paper's, for A2C."""
    config = default_config(environment)
    assert (config.environment, config.torso, config.width) == (environment, torso, width)
    assert config.learner == A2CConfig()


@pytest.mark.parametrize(
    ("environment", "torso", "updates"),
    [("CartPole-v1", "mlp", 16), ("Pendulum-v1", "mlp", 16), ("Freeway-MinAtar", "dense", 32)],
)
def test_default_networks_of_gymnax(environment: str, torso: str, updates: int) -> None:
    """PPO; by the names alone, and always for a task that can be made."""
    config = default_config(f"gymnax:{environment}")
    assert isinstance(config.learner, PPOConfig)
    assert config.torso == torso
    task = make_task(config)
    assert task.updates_per_rollout == updates
    assert count_parameters(task) > 4_000


def test_equal_configs_share_one_task() -> None:
    """So that programs compile once; another config is another task."""
    assert make_task(SMALL) is make_task(dataclasses.replace(SMALL))
    assert make_task(SMALL) is not make_task(dataclasses.replace(SMALL, width=9))
    assert make_task(SMALL).env_steps_per_rollout == 44


def play(task: Task, key: int = 2) -> Any:
    """A fresh agent, its gradient and the recorded rollout of the same key."""
    return player(task)(jax.random.key(key))


@lru_cache
def player(task: Task) -> Any:
    """The program of `play`, compiled once for each task."""

    @jax.jit
    def run(key: jax.Array) -> Any:
        params = task.init_params(jax.random.key(0))
        actor = task.init_actor(jax.random.key(0))
        return params, learn(task, params, actor, key), transitions(task, params, actor, key)

    return run


def learn(task: Task, params: Any, actor: Any, key: jax.Array) -> Any:
    """A rollout's gradient, the actor after it and its stats."""
    batch, actor, stats = task.rollout(params, actor, key)
    return task.gradient(params, batch), actor, stats


@pytest.fixture(scope="module")
def catch() -> Any:
    """Catch, played for eleven steps in four environments."""
    return play(make_task(SMALL))


def assert_is_the_gradient_of_the_loss(task: Task, played: Any) -> None:
    """Plain autodiff of the A2C loss on the recorded rollout gives the same.

    With targets from the rollout's own values, as constants.
    """
    params, (gradient, actor, stats), (actor_again, data, stats_again) = played
    config = task.config.learner
    assert isinstance(config, A2CConfig)

    @jax.jit
    def expected(params: Any) -> Any:
        target = lambda_returns(
            data.reward, data.terminated, data.truncated, data.next_value, config.gamma, config.lam
        )

        def loss(params: Any) -> Any:
            by_hand = partial(answer, params, maps=task.config.maps)
            logits, value = jax.vmap(jax.vmap(by_hand))(data.observation)
            outputs, values, actions = (
                x.reshape(-1, *x.shape[2:]) for x in (logits, value, data.action)
            )
            unused = jnp.zeros((1, target.size), jnp.float32)
            returns = target.reshape(-1)
            return a2c_loss(task.distribution, config, outputs, values, actions, unused, returns)

        return jax.grad(loss)(params)

    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert scale > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale),
        gradient,
        expected(params),
    )
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (actor, stats), (actor_again, stats_again))


def test_the_gradient_is_that_of_the_loss_in_catch(catch: Any) -> None:
    """Ones looked up; gradient and record are of one rollout, bit for bit."""
    assert_is_the_gradient_of_the_loss(make_task(SMALL), catch)
    _, (_, actor, stats), (actor_again, _, stats_again) = catch
    jax.tree.map(np.testing.assert_array_equal, (actor, stats), (actor_again, stats_again))


@pytest.mark.parametrize(
    ("environment", "torso", "maps", "num_envs"),
    [
        ("small_dense_short", "dense", "channels", 3),
        ("big_dense_long", "conv", "rows", 1),
        ("big_dense_short", "conv", "channels", 2),
        ("gymnax:CartPole-v1", "dense", "channels", 3),
        ("gymnax:Breakout-MinAtar", "conv", "rows", 2),
        ("small_dense_short", "mlp", "channels", 3),
    ],
)
def test_the_gradient_is_that_of_the_loss(
    environment: str, torso: Any, maps: Any, num_envs: int
) -> None:
    """Ones looked up by both torsos, and observations of which nothing is known."""
    learner = A2CConfig(rollout=60 // num_envs)
    config = TaskConfig(environment, num_envs, torso, 8, maps, learner)
    task = make_task(dataclasses.replace(config, policy_layers=(4, 5), value_layers=()))
    assert_is_the_gradient_of_the_loss(task, play(task))


MIXED = dataclasses.replace(SMALL, width=(3, 5, 8))


@jax.jit
def mixed_agents() -> Any:
    """Three hundred agents of three widths: keys, parameters, actors."""
    keys = jax.random.split(jax.random.key(7), 300)
    task = make_task(MIXED)
    return keys, jax.vmap(task.init_params)(keys), jax.vmap(task.init_actor)(keys)


def test_agents_draw_their_width() -> None:
    """Each alike; the heads start with the variance of their true fan-in, the torso as ever."""
    keys, params, actors = mixed_agents()
    widths = np.asarray(actors.live).sum(axis=1).astype(int)
    np.testing.assert_array_equal(actors.live, np.arange(8) < widths[:, None])
    found, counts = np.unique(widths, return_counts=True)
    np.testing.assert_array_equal(found, [3, 5, 8])
    assert counts.min() > 70  # 100 expected, 8.2 standard deviation
    widest = jax.jit(jax.vmap(make_task(dataclasses.replace(SMALL, width=8)).init_params))(keys)
    scale = np.sqrt(8 / widths)[:, None, None]
    for head in ("policy", "value"):
        kernel = getattr(params, head).kernel
        np.testing.assert_allclose(kernel, scale * getattr(widest, head).kernel, rtol=1e-6)
    np.testing.assert_array_equal(params.dense.kernel, widest.dense.kernel)


def test_one_width_needs_no_mask() -> None:
    """Also as a tuple of one."""
    for width in (8, (8,)):
        task = make_task(dataclasses.replace(SMALL, width=width))
        assert jax.eval_shape(task.init_actor, jax.random.key(0)).live is None


def test_a_padded_agent_is_the_narrow_agent() -> None:
    """Same play, same values, same gradient, and exactly no gradient on what fills the arrays."""
    _, many, actors = mixed_agents()
    index = int(np.argmax(np.asarray(actors.live).sum(axis=1) == 5))
    params, actor = jax.tree.map(lambda leaf: leaf[index], (many, actors))
    # Also where the optimizer has moved the padding.
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)

    def narrow(tree: Any) -> Any:
        def parts(net: Any) -> Any:
            return net.dense.kernel, net.dense.bias, net.policy.kernel, net.value.kernel

        kernel, bias, policy, value = parts(tree)
        return eqx.tree_at(parts, tree, (kernel[:, :5], bias[:5], policy[:5], value[:5]))

    wide_task, narrow_task = make_task(MIXED), make_task(dataclasses.replace(SMALL, width=5))

    @jax.jit
    def both(key: jax.Array) -> Any:
        small = narrow(params), actor._replace(live=None)
        return [
            (learn(task, *agent, key), transitions(task, *agent, key))
            for task, agent in ((wide_task, (params, actor)), (narrow_task, small))
        ]

    (wide, played), (small, played_small) = both(jax.random.key(1))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, narrow(wide[0]), small[0])
    jax.tree.map(close, played[1:], played_small[1:])
    assert np.abs(small[0].dense.kernel).max() > 1e-3
    padding = wide[0].dense.kernel[:, 5:], wide[0].dense.bias[5:], wide[0].policy.kernel[5:]
    assert not any(np.any(leaf) for leaf in (*padding, wide[0].value.kernel[5:]))


def test_scaled_rewards_are_what_the_agent_learns_from_and_nothing_else(catch: Any) -> None:
    """The same games and reports; targets from the rewards over the deviation of their sums."""
    task = make_task(dataclasses.replace(SMALL, normalise_rewards=True))
    _, (_, actor, stats), (_, data, _) = play(task)
    _, (_, plain_actor, plain_stats), (_, plain, _) = catch
    jax.tree.map(np.testing.assert_array_equal, stats, plain_stats)
    jax.tree.map(np.testing.assert_array_equal, actor.episodes, plain_actor.episodes)
    assert plain_actor.returns is None
    scale = np.sqrt(actor.returns.moments.variance)
    assert 0 < scale < 1
    np.testing.assert_allclose(data.reward * scale, plain.reward, rtol=1e-5)


def test_continuous_actions_are_learned_by_a2c() -> None:
    """The gradient, through probabilities of actions before they are squashed."""
    learner = A2CConfig(rollout=20, entropy_weight=0.0)
    task = make_task(TaskConfig("gymnax:Pendulum-v1", 3, "dense", 8, learner=learner))
    played = play(task)
    assert_is_the_gradient_of_the_loss(task, played)
    _, _, (_, data, _) = played
    assert data.action.shape == (20, 3, 1)
    assert len(np.unique(data.action)) == 60


def test_observations_are_normalised_by_what_was_seen_before() -> None:
    """The first rollout as it is, the next by the moments of the first; grid worlds, too."""
    config = dataclasses.replace(SMALL, environment="small_dense_short")
    task = make_task(dataclasses.replace(config, normalise_observations=True))

    @jax.jit
    def run() -> Any:
        key = jax.random.key(0)
        params, actor = task.init_params(key), task.init_actor(key)
        middle, first, _ = transitions(task, params, actor, key)
        after, second, _ = transitions(task, params, middle, jax.random.key(1))
        return params, middle, first, after, second

    params, middle, first, after, second = run()
    raw = np.asarray(first.observation).reshape(44, -1)
    assert set(np.unique(raw)) == {0.0, 1.0}
    assert middle.seen.seen == 44
    np.testing.assert_allclose(middle.seen.mean.ravel(), raw.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(middle.seen.variance.ravel(), raw.var(axis=0), rtol=1e-4, atol=1e-7)
    mean, variance = np.asarray(middle.seen.mean), np.asarray(middle.seen.variance)
    expected = (np.asarray(middle.episodes.observation) - mean) / np.sqrt(variance + 1e-8)
    np.testing.assert_allclose(
        second.observation[0], np.clip(expected, -10, 10), rtol=1e-4, atol=1e-4
    )
    assert after.seen.seen == 88
    # Also the value of what came after the rollout.
    last = normalise(middle.seen, after.episodes.observation[0])
    going_on = ~(second.terminated | second.truncated)[-1, 0]
    assert going_on
    assert float(second.next_value[-1, 0]) == pytest.approx(
        float(answer(params, last)[1]), abs=1e-4
    )


def test_bounds_of_actions_may_be_arrays_made_on_the_spot() -> None:
    """Asked for first within a compiled function, where they would be traced."""
    task = make_task(TaskConfig("gymnax:Reacher-misc", 2, "dense", 8))
    params = jax.jit(task.init_params)(jax.random.key(0))
    assert task.distribution.outputs == params.policy.bias.size
    assert isinstance(task.distribution, TanhNormal)
    assert (task.distribution.low, task.distribution.high) == ((-1.0, -1.0), (1.0, 1.0))


def test_any_observation_becomes_floats() -> None:
    """Integers and booleans alike."""
    task = make_task(TaskConfig("gymnax:FourRooms-misc", 2, width=8, learner=A2CConfig(rollout=3)))
    _, (gradient, _, _), (_, data, _) = play(task)
    assert data.observation.dtype == jnp.float32
    assert len(np.unique(data.observation)) > 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_recorded_rollout_is_consistent(catch: Any) -> None:
    """Values are those of what was seen, next values those of what came next, games end at nine."""
    params, _, (actor, data, stats) = catch
    values = jax.jit(jax.vmap(jax.vmap(lambda x: answer(params, x)[1])))
    np.testing.assert_allclose(data.value, values(data.observation), rtol=1e-5, atol=1e-6)
    observation = unpack(make_task(SMALL).vector, actor.episodes.observation)
    after = jnp.concatenate([data.observation[1:], observation[None]])
    going_on = ~np.asarray(data.terminated)
    expected = np.asarray(values(after))
    np.testing.assert_allclose(data.next_value[going_on], expected[going_on], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.terminated, np.arange(11)[:, None] % 9 == [[8] * 4] * 11)
    assert not data.truncated.any()
    assert stats.return_sum == data.reward.sum()
    assert stats.episode_count == 4


def test_same_key_same_rollout_other_key_another(catch: Any) -> None:
    """Bit for bit."""
    task = make_task(SMALL)
    again, other = play(task), play(task, key=3)
    jax.tree.map(np.testing.assert_array_equal, catch, again)
    assert (catch[2][1].action != other[2][1].action).any()


def counting(time: Any, seen: Any, action: Any) -> tuple[Any, Any]:
    """Rewards 1, 2, 3, and over: an episode returns 6."""
    return time + 1.0, time == 2


def test_stats_count_the_episodes_that_ended() -> None:
    """Eight environments, five steps: each ends one episode of return 6."""
    _, (_, actor, stats), (_, data, _) = play(probe_task(Probe(counting)))
    np.testing.assert_array_equal(data.reward, np.array([[1, 2, 3, 1, 2.0]] * 8).T)
    assert stats.return_sum == 8 * 6
    assert stats.episode_count == 8
    np.testing.assert_array_equal(actor.episodes.episode_return, [3.0] * 8)


def test_reward_scale_is_for_learning_alone() -> None:
    """The learner sees ten times the reward, the report does not; the play is the same."""
    _, plain, (_, data, _) = play(probe_task(Probe(counting)))
    _, scaled, (_, scaled_data, _) = play(probe_task(Probe(counting), reward_scale=10.0))
    np.testing.assert_allclose(scaled_data.reward, 10.0 * data.reward)
    np.testing.assert_array_equal(scaled_data.action, data.action)
    jax.tree.map(np.testing.assert_array_equal, scaled[1:], plain[1:])
    bias, scaled_bias = plain[0].value.bias, scaled[0].value.bias
    # d loss / d bias = -mean TD error: the rewards' share of it grows tenfold.
    assert abs(scaled_bias[0]) > 3 * abs(bias[0])


def test_a_time_limit_bootstraps_from_the_state_before_the_reset() -> None:
    """The probe shows 1 at the start and 0 later: the truncated step leads to 0."""
    probe = Probe(lambda time, seen, action: (1.0, False), limit=2)
    params, _, (_, data, _) = play(probe_task(probe))
    zero, one = (answer(params, jnp.array([x]))[1] for x in (0.0, 1.0))
    assert zero != one
    np.testing.assert_array_equal(data.truncated[:, 0], [False, True, False, True, False])
    np.testing.assert_allclose(data.next_value, np.full((5, 8), zero), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.value[::2], np.full((3, 8), one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("environment", "wanted", "found"),
    [
        ("small_dense_short", None, "terminal"),
        ("small_dense_short/free", None, "bootstrap"),
        ("small_dense_short", "bootstrap", "bootstrap"),
        ("catch", None, "bootstrap"),
        ("gymnax:CartPole-v1", None, "bootstrap"),
        ("gymnax:CartPole-v1", "terminal", "terminal"),
    ],
)
def test_the_time_limit_is_the_config_s_or_the_environment_s(
    environment: str, wanted: Any, found: str
) -> None:
    """The paper's worlds take it for a terminal state; a wrapper hands that on."""
    config = TaskConfig(environment, num_envs=2, width=4, time_limit=wanted)
    task = make_task(config)
    assert task.time_limit == found
    assert task_from_environment(LogWrapper(task.environment), config).time_limit == found


@pytest.mark.parametrize("time_limit", ["terminal", "bootstrap"])
def test_an_episode_that_the_limit_cuts_is_truncated_or_terminated(time_limit: Any) -> None:
    """And counts all the same."""
    world = GridWorld(GridWorldConfig(2, 2, (), max_steps=2, time_limit=time_limit))
    config = TaskConfig("empty", num_envs=3, width=4, learner=A2CConfig(rollout=5))
    task = task_from_environment(world, config)

    @jax.jit
    def run(key: jax.Array) -> Any:
        return transitions(task, task.init_params(key), task.init_actor(key), key)

    _, data, stats = run(jax.random.key(0))
    cut = np.array([[False, True, False, True, False]] * 3).T
    np.testing.assert_array_equal(data.terminated, cut & (time_limit == "terminal"))
    np.testing.assert_array_equal(data.truncated, cut & (time_limit == "bootstrap"))
    assert stats.episode_count == 6


def test_a_shortened_catch_bootstraps_too() -> None:
    """A time limit below a game's length truncates it, and the board before the reset counts."""
    environment = Catch()
    limit = environment.default_params.replace(max_steps_in_episode=4)
    task = task_from_environment(environment, SMALL, limit)
    params, _, (_, data, _) = play(task)
    np.testing.assert_array_equal(data.truncated[:, 0], np.arange(11) % 4 == 3)
    # By hand, the boards that the fourth and the eighth step led to, in every environment.
    for step, env in itertools.product((3, 7), range(4)):
        (row, column), (_, paddle) = np.argwhere(data.observation[step, env])
        led_to = np.zeros((10, 5), np.float32)
        moved = np.clip(paddle + int(data.action[step, env]) - 1, 0, 4)
        led_to[row + 1, column] = led_to[9, moved] = 1.0
        expected = float(answer(params, jnp.asarray(led_to))[1])
        assert float(data.next_value[step, env]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [(), (8, 0), (8, True)])
def test_bad_widths_are_named(width: Any) -> None:
    """A whole number or a tuple of some."""
    with pytest.raises(ValueError, match=r"^width = .*: a whole number of at least 1"):
        TaskConfig(width=width)


@pytest.mark.parametrize("field", ["policy_layers", "value_layers"])
def test_bad_layers_are_named(field: str) -> None:
    """A tuple of whole numbers; an empty one is a linear map."""
    with pytest.raises(ValueError, match=rf"^{field} = \(4, 0\): each value must be a whole"):
        TaskConfig(**cast(Any, {field: (4, 0)}))


@pytest.mark.parametrize("field", ["num_envs", "width"])
def test_config_errors_name_field_and_value(field: str) -> None:
    """Sizes are whole numbers of at least 1."""
    with pytest.raises(ValueError, match=rf"^{field} = 0: a whole number of at least 1"):
        TaskConfig(**cast(Any, {field: 0}))


def test_an_unknown_environment_is_refused() -> None:
    """With the known ones, when the task is made."""
    with pytest.raises(ValueError, match="unknown environment 'cach'"):
        make_task(TaskConfig("cach"))


def test_a_reward_factor_is_a_reward_scale() -> None:
    """Also where rewards are normalised first."""
    config = dataclasses.replace(SMALL, normalise_rewards=True)
    scaled = dataclasses.replace(config, learner=A2CConfig(rollout=11, reward_scale=3.0))
    _, (gradient, *_), (_, data, _) = play(make_task(scaled))
    _, (found, *_), (_, found_data, _) = play(
        make_task(config).with_reward_factor(jnp.float32(3.0))
    )
    np.testing.assert_allclose(found_data.reward, data.reward, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, gradient)


@pytest.mark.parametrize(("limit", "expected"), [(12, 4.0), (3, 3.0)])
def test_a_greedy_agent_plays_one_episode_without_chance(limit: int, expected: float) -> None:
    """Logits of 0 and 0.1 are nearly a coin to the policy; greedy is always the better action.

    An episode has four steps or ends at the limit, and later ones do not count.
    """
    probe = Probe(lambda time, seen, action: (action, time == 3), limit=limit)
    config = TaskConfig("probe", num_envs=2, width=4, greedy_episodes=5)
    task = task_from_environment(probe, config)
    params = jax.tree.map(jnp.zeros_like, task.init_params(jax.random.key(0)))
    params = eqx.tree_at(lambda tree: tree.policy.bias, params, jnp.array([0.0, 0.1]))
    actor = task.init_actor(jax.random.key(0))
    found = jax.jit(task.greedy_return)(params, actor, jax.random.key(1))
    assert float(found) == expected


def test_orthogonal_kernels_are_for_separate_networks() -> None:
    """A shared torso has none."""
    with pytest.raises(ValueError, match=r"initialisation = 'orthogonal': this is for torso 'mlp'"):
        TaskConfig(initialisation="orthogonal")
