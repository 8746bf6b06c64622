"""Environments alone, agents' gradients, and training with the learned optimizer against Adam."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bench.measure import Table, median_seconds, rounded
from optim4rl.evaluation.learning import CHUNK, Classical, Family, Learned, _advance, _start
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.rule import init_meta_parameters
from optim4rl.tasks import default_config, make_task
from optim4rl.tasks.task import Task

TASKS = ("catch", "small_dense_long", "big_dense_short", "big_dense_long")
NUM_ENVS = 64
STEPS = 500


def tables() -> list[Table]:
    """All of them."""
    a2c = f"A2C on Catch, {NUM_ENVS} environments x 20 steps an update, width 256."
    ppo = (
        f"PPO on CartPole, {NUM_ENVS} environments x 32 steps, 16 updates each, two small networks."
    )
    return [
        _environments(),
        _agents("A2C with the learned optimizer", "catch", a2c),
        _agents("PPO with the learned optimizer", "gymnax:CartPole-v1", ppo),
    ]


def _environments() -> Table:
    rows = []
    for name in TASKS:
        task = make_task(default_config(name))
        seconds = median_seconds({"play": _play(task), "gradient": _gradient(task)}, repeats=7)
        rows.append(
            {
                "task": name,
                "environment alone, M steps/s": rounded(NUM_ENVS * STEPS / seconds["play"] / 1e6),
                "agent's gradient, M steps/s": rounded(
                    task.env_steps_per_rollout / seconds["gradient"] / 1e6
                ),
            }
        )
    note = (
        f"{NUM_ENVS} environments side by side, random actions, {STEPS} steps; and one rollout of "
        "20 steps with the gradient of the A2C loss, the paper's network. One device."
    )
    return Table("Environments and agents", note, rows)


def _play(task: Task) -> Any:
    """Random actions in all environments."""
    actions = task.environment.action_space(task.env_params).n

    @jax.jit
    def play(key: Any) -> Any:
        def one(state: Any, key: Any) -> tuple[Any, Any]:
            key_action, key_step = jax.random.split(key)
            action = jax.random.randint(key_action, (NUM_ENVS,), 0, actions)
            keys = jax.random.split(key_step, NUM_ENVS)
            step = jax.vmap(task.environment.step, in_axes=(0, 0, 0, None))
            _, state, reward, *_ = step(keys, state, action, task.env_params)
            return state, jnp.sum(reward)

        reset = jax.vmap(task.environment.reset, in_axes=(0, None))
        _, state = reset(jax.random.split(key, NUM_ENVS), task.env_params)
        return jax.lax.scan(one, state, jax.random.split(key, STEPS))

    return partial(play, jax.random.key(0))


def _gradient(task: Task) -> Any:
    key = jax.random.key(0)
    params, actor = task.init_params(key), task.init_actor(key)

    @jax.jit
    def gradient(params: Any, actor: Any, key: Any) -> Any:
        batch, actor, _ = task.rollout(params, actor, key)
        return task.gradient(params, batch), actor

    return partial(gradient, params, actor, key)


def _agents(title: str, environment: str, note: str) -> Table:
    """Evaluation as `optim4rl evaluate` runs it: one agent, and eight side by side."""
    task = make_task(default_config(environment))
    families: dict[str, Family] = {"adam": Classical("adam")}
    learned = ("optim4rl-rlc", "optim4rl", "anchored", "generalist")
    families |= {name: Learned(LEARNED[name]) for name in learned}
    rows = []
    for runs in (1, 8):
        cases = {name: _train(task, family, runs) for name, family in families.items()}
        seconds = median_seconds(cases, repeats=9)
        for name, each in seconds.items():
            rows.append(
                {
                    "optimizer": name,
                    "agents side by side": runs,
                    "ms a rollout": rounded(each / CHUNK * 1e3),
                    "x Adam's time": rounded(each / seconds["adam"]),
                }
            )
    return Table(title, f"{note} {CHUNK} rollouts a run, each with its updates.", rows)


def _train(task: Task, family: Family, runs: int) -> Any:
    parameters = None
    if isinstance(family, Learned):
        parameters = init_meta_parameters(family.spec, jax.random.key(0))
    rates = jnp.full((runs,), 1e-3)
    keys = jax.random.split(jax.random.key(0), runs)
    held = [_start(task, family, parameters, rates, keys)]

    def train() -> Any:
        held[0], outcome = _advance(task, family, parameters, rates, keys, held[0], 0, CHUNK)
        return outcome

    return train
