"""Variants of tasks: the same environments with networks and learners drawn at random.

A rule that meets many networks, batches and lengths cannot fit itself to one of each. Each variant
is a program of its own, so a recipe lists a fixed number of them, and `tasks_per_iteration` draws
some for each iteration.
"""

import dataclasses
import random
from typing import Any

from optim4rl.meta.recipe import Recipe, task_configs
from optim4rl.tasks.config import PPOConfig

# What a variant may have. A grid world or MinAtar keeps its torso; agents draw its width.
LAYERS = ("32-32", "64-64", "128-128", "64", "128", "32-32-32", "64-64-64")
ACTIVATIONS = ("tanh", "relu", "swish")
NUM_ENVS = (8, 16, 32)
HORIZONS = (16, 32, 64, 128)
MINIBATCHES = (1, 2, 4, 8, 16)
EPOCHS = (1, 2, 4, 8)
# Limits beside these: environment steps of a rollout, samples of a minibatch, updates of a rollout.
STEPS = (256, 1024)
SAMPLES = 32
UPDATES = (4, 32)
# What a variant has from its task.
_KEPT = (
    *("tasks", "learning_rate", "step_scale", "reward_scale"),
    *("estimators", "populations", "learners", "observations"),
)


def draw_variants(recipe: Recipe, number: int, seed: int) -> Recipe:
    """Return the recipe with variants of its tasks in place of the tasks.

    Every task has equally many variants, or one more than another. A variant has its own layers,
    activation, environments, horizon, minibatches and epochs, and its task's other settings. Its
    window has about as many environment steps as its task's.

    Args:
        recipe: the recipe; all of its learners are PPO.
        number: how many variants.
        seed: seed of the draw. Equal arguments give equal variants.

    Raises:
        ValueError: a field is wrong, or a task's learner is A2C; the message names it.
    """
    if number < len(recipe.tasks):
        raise ValueError(f"variants = {number}: at least one for each of {len(recipe.tasks)} tasks")
    meta = dataclasses.replace(recipe.meta, tasks_per_iteration=None)
    configs = task_configs(dataclasses.replace(recipe, meta=meta))
    windows = recipe.windows or (recipe.meta.inner_updates,) * len(configs)
    steps = []
    for name, config, window in zip(recipe.tasks, configs, windows, strict=True):
        learner = config.learner
        if not isinstance(learner, PPOConfig):
            raise ValueError(f"learners: variants are of PPO, and {name} has A2C; give it ppo")
        updates = learner.epochs * learner.minibatches
        steps.append(window / updates * config.num_envs * learner.rollout)
    rng, which = random.Random(seed), [index % len(configs) for index in range(number)]
    drawn = [_draw(rng, steps[index]) for index in which]
    fields: dict[str, Any] = {x: tuple(one[x] for one in drawn) for x in drawn[0]}
    if not any(config.torso == "mlp" for config in configs):
        fields |= {"layers": (), "activations": ()}
    for name in _KEPT:
        values = getattr(recipe, name)
        of_each = len(values) == len(configs)
        fields[name] = tuple(values[index] for index in which) if of_each else values
    return dataclasses.replace(recipe, **fields)


def _draw(rng: random.Random, steps: float) -> dict[str, Any]:
    """Draw what a variant has of its own; its window has about this many environment steps."""
    while True:
        num_envs, horizon = rng.choice(NUM_ENVS), rng.choice(HORIZONS)
        minibatches, epochs = rng.choice(MINIBATCHES), rng.choice(EPOCHS)
        samples, updates = num_envs * horizon, minibatches * epochs
        if (
            STEPS[0] <= samples <= STEPS[1]
            and samples >= SAMPLES * minibatches
            and UPDATES[0] <= updates <= UPDATES[1]
        ):
            break
    return {
        "num_envs": num_envs,
        "horizons": horizon,
        "minibatches": minibatches,
        "epochs": epochs,
        "windows": updates * max(1, round(steps / samples)),
        "layers": rng.choice(LAYERS),
        "activations": rng.choice(ACTIVATIONS),
    }
