"""A2C: returns against rlax and by hand, the loss against its formulae, known probes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.spaces import Discrete

from by_hand import answer
from optim4rl.tasks import A2CConfig, Task, TaskConfig, task_from_environment
from optim4rl.tasks.a2c import a2c_loss, lambda_returns
from optim4rl.tasks.distributions import Categorical

GAMMA, LAM = 0.9, 0.8

with warnings.catch_warnings():
    # Its dependencies use names of JAX that are deprecated.
    warnings.simplefilter("ignore")
    import rlax


def column(*values: Any) -> jax.Array:
    """One environment's rollout."""
    return jnp.array(values)[:, None]


def random_rollout(seed: int, steps: int = 30, envs: int = 4) -> tuple[jax.Array, ...]:
    """Rewards, terminations, truncations and next values, with many ends and some double ones."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (steps, envs)
    return (
        jax.random.normal(keys[0], shape),
        jax.random.bernoulli(keys[1], 0.2, shape),
        jax.random.bernoulli(keys[2], 0.2, shape),
        jax.random.normal(keys[3], shape),
    )


@pytest.mark.parametrize(("gamma", "lam"), [(0.995, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 0.5)])
def test_lambda_returns_are_rlax_s(gamma: float, lam: float) -> None:
    """Where lambda is 0 at every end and the discount is 0 at a termination."""
    reward, terminated, truncated, next_value = random_rollout(0)
    found = lambda_returns(reward, terminated, truncated, next_value, gamma, lam)
    expected = jax.jit(jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1))(
        reward, gamma * (1.0 - terminated), next_value, lam * (1.0 - (terminated | truncated))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_termination_has_no_future() -> None:
    """Its target is its reward, even where the time limit falls on the same step."""
    for truncated in (False, True):
        found = lambda_returns(
            column(1.0), column(True), column(truncated), column(100.0), GAMMA, LAM
        )
        np.testing.assert_allclose(found, [[1.0]])


def test_a_truncation_bootstraps_from_where_it_led() -> None:
    """Its target is the reward and the discounted value of the state before the reset."""
    found = lambda_returns(
        column(1.0, 5.0),
        column(False, False),
        column(True, False),
        column(10.0, 20.0),
        GAMMA,
        LAM,
    )
    np.testing.assert_allclose(found, [[1.0 + GAMMA * 10.0], [5.0 + GAMMA * 20.0]], rtol=1e-6)


def test_returns_of_three_steps_by_hand() -> None:
    """The lambda mix of the next value and the next return."""
    no = column(False, False, False)
    found = lambda_returns(
        column(1.0, 2.0, 3.0), no, no, column(10.0, 20.0, 30.0), gamma=0.5, lam=0.5
    )
    third = 3.0 + 0.5 * 30.0
    second = 2.0 + 0.5 * (0.5 * 20.0 + 0.5 * third)
    first = 1.0 + 0.5 * (0.5 * 10.0 + 0.5 * second)
    np.testing.assert_allclose(found[:, 0], [first, second, third], rtol=1e-6)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_leaks_over_a_reset(end: str) -> None:
    """What happens after an end leaves the targets before it as they are."""
    reward, terminated, truncated, next_value = random_rollout(1)
    cut = jnp.arange(30)[:, None] == 14
    if end == "terminated":
        terminated = terminated | cut
    else:
        truncated = truncated | cut
    other, _, _, other_value = random_rollout(2)
    after = jnp.arange(30)[:, None] > 14
    a = lambda_returns(reward, terminated, truncated, next_value, 0.99, 0.95)
    b = lambda_returns(
        jnp.where(after, other, reward),
        terminated,
        truncated,
        jnp.where(after, other_value, next_value),
        0.99,
        0.95,
    )
    np.testing.assert_array_equal(a[:15], b[:15])
    assert (a[15:] != b[15:]).any()


def test_loss_and_gradient_are_the_softmax_formulae() -> None:
    """d/dlogits: policy gradient (pi - onehot) A, entropy pi (log pi + H); d/dvalue: TD errors."""
    N, A = 15, 4
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (N, A))
    value, target = jax.random.normal(keys[1], (2, N))
    action = jax.random.randint(keys[2], (N,), 0, A)
    config = A2CConfig(value_weight=0.7, entropy_weight=0.03)

    loss, gradients = jax.jit(
        jax.value_and_grad(a2c_loss, argnums=(2, 3, 6)), static_argnums=(0, 1)
    )(Categorical(A), config, logits, value, action, jnp.zeros((1, N), jnp.float32), target)

    x, v, g = (np.asarray(a, np.float64) for a in (logits, value, target))
    pi = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    log_pi, onehot = np.log(pi), np.eye(A)[np.asarray(action)]
    advantage, entropy = g - v, -(pi * log_pi).sum(axis=-1)
    expected = (
        -(advantage * (onehot * log_pi).sum(axis=-1)).mean()
        + 0.7 * (advantage**2).mean()
        - 0.03 * entropy.mean()
    )
    by_logits = advantage[..., None] * (pi - onehot) + 0.03 * pi * (log_pi + entropy[..., None])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], by_logits / N, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1], -2 * 0.7 * advantage / N, rtol=1e-4, atol=1e-6)
    assert not gradients[2].any()


@pytest.mark.parametrize(
    ("field", "value"), [("rollout", 0), ("gamma", 1.5), ("gamma", -0.1), ("lam", 2.0)]
)
def test_config_errors_name_field_and_value(field: str, value: float) -> None:
    """And the range that would be right."""
    with pytest.raises(ValueError, match=rf"^{field} = {value!r}: "):
        A2CConfig(**cast(Any, {field: value}))


class ProbeState(NamedTuple):
    """Steps since the reset, and what is seen."""

    time: Any
    seen: Any


@dataclass(frozen=True)
class Probe(Environment[ProbeState, EnvParams]):
    """An environment small enough that the true values are known.

    `outcome(time, seen, action)` gives a step's reward and whether it ends the episode. With
    `binary` the observation is -1 or +1, drawn anew every step, else 1 at the start and 0 later.
    """

    outcome: Callable[[Any, Any, Any], tuple[Any, Any]]
    binary: bool = False
    limit: int = 1000

    @property
    def default_params(self) -> EnvParams:
        """The time limit."""
        return EnvParams(max_steps_in_episode=self.limit)

    def action_space(self, params: EnvParams) -> Discrete:
        """Two actions."""
        return Discrete(2)

    def reset_env(self, key: Any, params: EnvParams) -> Any:
        """At time 0."""
        state = self.state_at(key, jnp.int32(0))
        return state.seen, state

    def step_env(self, key: Any, state: Any, action: Any, params: EnvParams) -> Any:
        """One step on."""
        reward, over = self.outcome(state.time, state.seen[0], action)
        after = self.state_at(key, state.time + 1)
        return after.seen, after, jnp.asarray(reward, jnp.float32), jnp.asarray(over), {}

    def state_at(self, key: Any, time: Any) -> ProbeState:
        """What is seen at that time."""
        if self.binary:
            return ProbeState(time, jax.random.rademacher(key, (1,), jnp.float32))
        return ProbeState(time, jnp.where(time == 0, 1.0, 0.0)[None])


def probe_task(environment: Probe, **a2c: Any) -> Task:
    """A small agent on a probe."""
    learner = A2CConfig(rollout=5, **{"gamma": 0.5, **a2c})
    return task_from_environment(
        environment, TaskConfig("probe", num_envs=8, width=8, learner=learner)
    )


def learn(task: Task, updates: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Train with Adam; the action probabilities and values at observations -1, 0 and 1."""
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run() -> Any:
        def update(carry: Any, key: jax.Array) -> Any:
            params, state, actor = carry
            batch, actor, _ = task.rollout(params, actor, key)
            gradient = task.gradient(params, batch)
            steps, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, steps), state, actor), None

        params = task.init_params(jax.random.key(0))
        start = (params, optimizer.init(params), task.init_actor(jax.random.key(0)))
        keys = jax.random.split(jax.random.key(2), updates)
        params = jax.lax.scan(update, start, keys)[0][0]
        logits, values = jax.vmap(partial(answer, params))(jnp.array([[-1.0], [0.0], [1.0]]))
        return jax.nn.softmax(logits), values

    return run()


def test_probe_delayed_reward() -> None:
    """Reward 1 on the second step: worth gamma at the first observation, 1 at the second."""
    _, values = learn(probe_task(Probe(lambda time, seen, action: (time == 1, time == 1))))
    assert values[2] == pytest.approx(0.5, abs=0.1)
    assert values[1] == pytest.approx(1.0, abs=0.1)


def test_probe_reward_depends_on_the_observation() -> None:
    """One step, the reward is what was seen."""
    _, values = learn(probe_task(Probe(lambda time, seen, action: (seen, True), binary=True)))
    assert values[0] == pytest.approx(-1.0, abs=0.1)
    assert values[2] == pytest.approx(1.0, abs=0.1)


def test_probe_reward_depends_on_observation_and_action() -> None:
    """One step, reward 1 for the action that matches what is seen, else -1: policy and value."""
    matching = Probe(
        lambda time, seen, action: (jnp.where((action == 1) == (seen > 0), 1.0, -1.0), True),
        binary=True,
    )
    policy, values = learn(probe_task(matching))
    assert policy[0, 0] > 0.9
    assert policy[2, 1] > 0.9
    assert values[0] == pytest.approx(1.0, abs=0.1)
    assert values[2] == pytest.approx(1.0, abs=0.1)
