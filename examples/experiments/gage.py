"""Goal achievement guided exploration (GAGE), small: an experiment for its published plan.

Source: "Goal Achievement Guided Exploration: Mitigating Premature Convergence in Reinforcement
Learning" (submission 8046 to ICLR 2025). PPO with discrete actions, whose policy is smoothed: every
action keeps a probability that falls as the agent achieves its goal, the ratio of its return to the
best one, without auxiliary rewards. The task is a corridor with a small treasure near the start and
a large one at its far end: a policy that collapses early stays with the small one. The plan is
`plans/gage.md`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim4rl.study import Choice, Component, Control, Experiment, Metric

LENGTH, START, LIMIT = 18, 3, 60  # cells, where an agent begins, steps of an episode
SMALL, LARGE, NUDGE = 0.3, 1.0, 0.01  # rewards at either end, and the auxiliary one of a step left
ROLLOUTS, ENVIRONMENTS, STEPS, EPOCHS = 120, 16, 40, 4


@dataclass(frozen=True)
class Settings:
    """GAGE's choices.

    Attributes:
        smoothing: "achievement" mixes the policy with a uniform one, by how far the goal is;
            "entropy" pays a bonus for entropy; "label" mixes by a fixed share; "none".
        goal: what achievement is the ratio of: "return" without auxiliary rewards,
            "with_auxiliary", or "weighted", with half of them.
        strength: the share of the uniform policy, or the weight of the bonus; tuned for each.
        rate: Adam's learning rate.
    """

    smoothing: str = "achievement"
    goal: str = "return"
    strength: float = 0.1
    rate: float = 0.01


def share(settings: Settings, strength: Any, achievement: jax.Array) -> Any:
    """The share of the uniform policy."""
    if settings.smoothing == "achievement":
        return strength * (1 - achievement)
    return strength if settings.smoothing == "label" else 0.0


def log_policy(logits: jax.Array, mix: jax.Array) -> jax.Array:
    """Logarithms of the smoothed probabilities."""
    probabilities = jax.nn.softmax(logits)
    return jnp.log((1 - mix) * probabilities + mix / logits.shape[-1] + 1e-10)


def initialise(key: jax.Array) -> dict[str, jax.Array]:
    """Actor and critic, one table of features each, through a hidden layer."""
    a, b, c, d = jax.random.split(key, 4)
    return {
        "actor": jax.random.normal(a, (LENGTH, 32)),
        "logits": 0.01 * jax.random.normal(b, (32, 2)),
        "critic": jax.random.normal(c, (LENGTH, 32)),
        "value": 0.1 * jax.random.normal(d, (32,)),
    }


def outputs(weights: Any, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits and value of cells."""
    hidden = jnp.tanh(weights["actor"][cell])
    return hidden @ weights["logits"], jnp.tanh(weights["critic"][cell]) @ weights["value"]


def move(cell: jax.Array, time: jax.Array, action: jax.Array) -> Any:
    """A step of every environment: the next cell and time, rewards, and whether an episode ends."""
    there = cell + 2 * action - 1
    small, large = there <= 0, there >= LENGTH - 1
    main = SMALL * small + LARGE * large
    auxiliary = NUDGE * (action == 0)  # shaping that points to the near treasure
    done = small | large | (time + 1 >= LIMIT)
    return jnp.where(done, START, there), jnp.where(done, 0, time + 1), main, auxiliary, done


def rollout(weights: Any, state: Any, mix: jax.Array, key: jax.Array) -> Any:
    """Steps of all environments with the smoothed policy."""

    def one(carry: Any, key: jax.Array) -> Any:
        cell, time = carry
        logits, value = outputs(weights, cell)
        logs = log_policy(logits, mix)
        action = jax.random.categorical(key, logs)
        after, later, main, auxiliary, done = move(cell, time, action)
        log = jnp.take_along_axis(logs, action[:, None], 1)[:, 0]
        return (after, later), (cell, action, log, value, main, auxiliary, done, time + 1)

    return jax.lax.scan(one, state, jax.random.split(key, STEPS))


def advantages(
    rewards: jax.Array, values: jax.Array, done: jax.Array, last: jax.Array
) -> jax.Array:
    """Generalised advantage estimates (gamma 0.99, lambda 0.95)."""

    def back(carry: Any, x: Any) -> Any:
        ahead, following = carry
        reward, value, end = x
        live = 1.0 - end
        ahead = reward + 0.99 * live * following - value + 0.99 * 0.95 * live * ahead
        return (ahead, value), ahead

    start = (jnp.zeros_like(last), last)
    return jax.lax.scan(back, start, (rewards, values, done), reverse=True)[1]


def loss(weights: Any, batch: Any, mix: jax.Array, weight: Any) -> jax.Array:
    """PPO's clipped loss, and a bonus for entropy where that takes the place of smoothing."""
    cell, action, old, advantage, target = batch
    logits, value = outputs(weights, cell)
    logs = log_policy(logits, mix)
    ratio = jnp.exp(jnp.take_along_axis(logs, action[..., None], -1)[..., 0] - old)
    clipped = jnp.clip(ratio, 0.8, 1.2)
    gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
    return 0.5 * ((value - target) ** 2).mean() - gain - weight * entropy(logs)


def entropy(logs: jax.Array) -> jax.Array:
    """Mean entropy of policies, nats."""
    return -(jnp.exp(logs) * logs).sum(-1).mean()


def achieve(main: jax.Array, auxiliary: jax.Array, ends: jax.Array, settings: Settings) -> Any:
    """How much of the goal the episodes of a rollout reach, 0 to 1."""
    weight = {"return": 0.0, "with_auxiliary": 1.0, "weighted": 0.5}[settings.goal]
    best = LARGE + weight * NUDGE * LIMIT
    total = (main + weight * auxiliary).sum() / jnp.maximum(1, ends)
    return jnp.clip(total / best, 0.0, 1.0)


def iteration(carry: Any, key: jax.Array, strength: Any, rate: Any, settings: Settings) -> Any:
    """A rollout and the updates that it serves."""
    weights, moments, state, achievement = carry
    mix = share(settings, strength, achievement)
    bonus = strength if settings.smoothing == "entropy" else 0.0
    state, (cell, action, log, value, main, auxiliary, done, length) = rollout(
        weights, state, mix, key
    )
    rewards = main + auxiliary
    last = outputs(weights, state[0])[1]
    ahead = advantages(rewards, value, done, last)
    normal = (ahead - ahead.mean()) / (ahead.std() + 1e-8)
    batch = (cell, action, log, normal, ahead + value)

    def update(carry: Any, _: Any) -> Any:
        weights, (first, second, count) = carry
        gradients = jax.grad(loss)(weights, batch, mix, bonus)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradients)
        size = rate * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        weights = jax.tree.map(
            lambda w, m, v: w - size * m / (jnp.sqrt(v) + 1e-5), weights, first, second
        )
        return (weights, (first, second, count)), None

    (weights, moments), _ = jax.lax.scan(update, (weights, moments), None, EPOCHS)
    ends = done.sum()
    logs = log_policy(outputs(weights, cell)[0], mix)
    report = (
        main.sum() / jnp.maximum(1, ends),
        (length * done).sum() / jnp.maximum(1, ends),
        entropy(logs),
        jnp.clip(main.sum() / jnp.maximum(1, ends) / LARGE, 0, 1),
    )
    return (weights, moments, state, achieve(main, auxiliary, ends, settings)), report


@partial(jax.jit, static_argnames="settings")
def train(settings: Settings, strength: jax.Array, rate: jax.Array, key: jax.Array) -> Any:
    """Return, length, entropy and goal achievement by rollout."""
    first, key = jax.random.split(key)
    weights = initialise(first)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    cells = jnp.full(ENVIRONMENTS, START)
    start = (weights, (zeros, zeros, 0.0), (cells, jnp.zeros_like(cells)), jnp.float32(0.0))
    keys = jax.random.split(key, ROLLOUTS)
    return jax.lax.scan(lambda c, k: iteration(c, k, strength, rate, settings), start, keys)[1]


def run(settings: Settings, seed: int) -> dict[str, Any]:
    """Train an agent once."""
    kind = replace(settings, strength=0.0, rate=0.0)  # One compiled program for all of these.
    returns, lengths, entropies, achieved = train(
        kind, settings.strength, settings.rate, jax.random.key(seed)
    )
    return {
        "episode return": np.asarray(returns),
        "episode length": np.asarray(lengths),
        "entropy": np.asarray(entropies),
        "goal achievement": np.asarray(achieved),
        "steps": ENVIRONMENTS * STEPS * np.arange(1, ROLLOUTS + 1),
    }


# As many points as the others have, all for its one setting.
PPO_RATES = tuple(round(float(rate), 5) for rate in np.geomspace(1e-3, 0.3, 18))
experiment = Experiment(
    name="GAGE",
    about="PPO whose policy keeps as much chance as it is far from its goal",
    reference=Settings(),
    components=(
        Component(
            "smoothing",
            ("action smoothing", "action smoothing technique in discrete action spaces"),
            (
                Choice("achievement", ("goal achievement smoothing",), "By how far the goal is."),
                Choice("entropy", ("entropy maximization", "entropy bonus"), "PPO's usual bonus."),
                Choice("label", ("label smoothing", "fixed smoothing"), "A fixed share."),
                Choice("none", ("no smoothing",), "The policy as it is."),
            ),
            "Every action keeps a probability that falls as the goal is achieved.",
            remove="none",
            defaults=("entropy", "label", "none"),
        ),
        Component(
            "goal",
            ("goal achievement", "goal achievement metric", "goal achievement metric definition"),
            (
                Choice("return", ("return without auxiliary rewards",), "The task's own reward."),
                Choice("with_auxiliary", ("include auxiliary rewards",), "All rewards."),
                Choice("weighted", ("weighted sum of reward components",), "Half the auxiliary."),
            ),
            "Goal achievement is the ratio of the return to the best one.",
        ),
    ),
    metrics=(
        Metric(
            "episode return",
            ("episode return", "return"),
            "Sum of an episode's rewards without the auxiliary ones.",
        ),
        Metric("episode length", ("episode length",), "Steps of an episode.", "lower", "steps"),
        Metric(
            "entropy", ("entropy", "entropy loss", "policy entropy"), "Of the policy.", unit="nats"
        ),
        Metric("goal achievement", ("goal achievement",), "Return over the best return."),
    ),
    run=run,
    grid={"strength": (0.01, 0.03, 0.1, 0.3, 0.6, 0.9), "rate": (0.01, 0.03, 0.1)},
    controls=(
        Control(
            "ppo",
            "Tuned PPO without smoothing",
            Settings(smoothing="none"),
            "baseline",
            grid={"rate": PPO_RATES},
        ),
    ),
    seeds=40,
    tuning_seeds=10,
    task="a corridor with two treasures",
    steps="environment steps",
)
