"""A PPO in PureJaxRL's manner: the whole training run is one function of a key, on gymnax 1.x.

The optimizer is the `tx` of a TrainState, as Adam would be.

    pip install 'optim4rl[examples]'
    python examples/jax_purejaxrl_ppo.py
"""

from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax
from common import WEIGHTS, steps
from flax import linen as nn
from flax.training.train_state import TrainState

import optim4rl

ENVS, LENGTH, EPOCHS, MINIBATCHES = 8, 128, 4, 4
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5
LEARNING_RATE = 1e-3


class ActorCritic(nn.Module):
    """Separate policy and value networks, two hidden layers of 64 each."""

    actions: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def mlp(outputs: int, scale: float, name: str) -> jax.Array:
            y = x
            for layer in range(2):
                dense = nn.Dense(
                    64, kernel_init=nn.initializers.orthogonal(2**0.5), name=f"{name}_{layer}"
                )
                y = nn.tanh(dense(y))
            return nn.Dense(
                outputs, kernel_init=nn.initializers.orthogonal(scale), name=f"{name}_2"
            )(y)

        return mlp(self.actions, 0.01, "actor"), mlp(1, 1.0, "critic")[..., 0]


class Step(NamedTuple):
    """What one step of all environments leaves behind."""

    observation: Any
    action: Any
    log_prob: Any
    value: Any
    reward: Any
    done: Any
    episode_return: Any


def loss(params: Any, apply: Any, batch: Step, advantage: Any, target: Any) -> jax.Array:
    """Clipped surrogate, squared value error and entropy."""
    logits, value = apply(params, batch.observation)
    log_probs = jax.nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_probs, batch.action[:, None], axis=1)[:, 0]
    ratio = jnp.exp(log_prob - batch.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)
    error = jnp.square(value - target)
    return jnp.mean(-surrogate + 0.5 * VALUE * error - ENTROPY * entropy)


def make_train(iterations: int) -> Any:
    """A function of a key to the mean return of the episodes that ended in each iteration."""
    env, env_params = gymnax.make("CartPole-v1")
    reset, step = jax.vmap(env.reset, (0, None)), jax.vmap(env.step, (0, 0, 0, None))
    network = ActorCritic(env.action_space(env_params).n)
    updates = iterations * EPOCHS * MINIBATCHES
    tx = optax.chain(
        optax.clip_by_global_norm(MAX_NORM),
        optim4rl.load(WEIGHTS, optax.linear_schedule(LEARNING_RATE, 0.0, updates)),
    )

    def env_step(carry: Any, key: Any) -> Any:
        state, env_state, observation, so_far = carry
        key_action, key_env = jax.random.split(key)
        logits, value = state.apply_fn(state.params, observation)
        action = jax.random.categorical(key_action, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=1)[:, 0]
        following, env_state, reward, terminated, truncated, _ = step(
            jax.random.split(key_env, ENVS), env_state, action, env_params
        )
        done = terminated | truncated
        so_far = so_far + reward
        row = Step(observation, action, log_prob, value, reward, done, so_far)
        return (state, env_state, following, so_far * (1.0 - done)), row

    def advantages(rows: Step, last_value: Any) -> Any:
        def body(carry: Any, row: Step) -> Any:
            advantage, following = carry
            going = 1.0 - row.done
            delta = row.reward + GAMMA * going * following - row.value
            advantage = delta + GAMMA * LAMBDA * going * advantage
            return (advantage, row.value), advantage

        start = (jnp.zeros_like(last_value), last_value)
        return jax.lax.scan(body, start, rows, reverse=True)[1]

    def iteration(carry: Any, key: Any) -> Any:
        key_rollout, key_epochs = jax.random.split(key)
        carry, rows = jax.lax.scan(env_step, carry, jax.random.split(key_rollout, LENGTH))
        state, env_state, observation, so_far = carry
        advantage = advantages(rows, state.apply_fn(state.params, observation)[1])
        batch = (rows, advantage, advantage + rows.value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def epoch(state: TrainState, key: Any) -> Any:
            order = jax.random.permutation(key, ENVS * LENGTH).reshape(MINIBATCHES, -1)

            def minibatch(state: TrainState, index: Any) -> Any:
                part = jax.tree.map(lambda x: x[index], batch)
                gradient = jax.grad(loss)(state.params, state.apply_fn, *part)
                return state.apply_gradients(grads=gradient), None

            return jax.lax.scan(minibatch, state, order)[0], None

        state, _ = jax.lax.scan(epoch, state, jax.random.split(key_epochs, EPOCHS))
        ended = jnp.sum(rows.episode_return * rows.done) / jnp.sum(rows.done)
        return (state, env_state, observation, so_far), ended

    def train(key: Any) -> Any:
        key_init, key_reset, key_run = jax.random.split(key, 3)
        observation, env_state = reset(jax.random.split(key_reset, ENVS), env_params)
        params = network.init(key_init, observation)
        state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
        keys = jax.random.split(key_run, iterations)
        carry = (state, env_state, observation, jnp.zeros(ENVS))
        return jax.lax.scan(iteration, carry, keys)[1]

    return train


def train(total_steps: int, seed: int = 0) -> float:
    """The mean return of the episodes that ended in the last tenth of training."""
    iterations = max(1, total_steps // (ENVS * LENGTH))
    returns = jax.jit(make_train(iterations))(jax.random.key(seed))
    return float(jnp.nanmean(returns[-max(1, iterations // 10) :]))


if __name__ == "__main__":
    print(f"return: {train(steps(250_000)):.1f}")
