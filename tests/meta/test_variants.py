"""Variants of tasks: within their limits, and as long as their tasks."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.meta import variants
from optim4rl.meta.config import MetaConfig
from optim4rl.meta.recipe import Recipe, build, task_configs
from optim4rl.meta.recipes import RECIPES
from optim4rl.meta.variants import draw_variants
from optim4rl.tasks import PPOConfig, default_config

RECIPE = Recipe(
    tasks=("catch", "gymnax:CartPole-v1", "gymnax:Reacher-misc"),
    learners=("ppo",) * 3,
    learning_rate=(1e-2, 2e-2, 3e-2),
    observations=("raw", "raw", "normalised"),
    reward_scale=(2.0,),
    envs_per_agent=16,
    meta=MetaConfig(estimator="es", inner_updates=320, tasks_per_iteration=3),
)
# 20 rollouts of 16 environments and 32 steps, with 16 updates.
STEPS = 20 * 16 * 32


@settings(max_examples=30, deadline=None)
@given(number=st.integers(3, 40), seed=st.integers(0, 2**31))
def test_variants_keep_to_their_limits_and_their_tasks_length(number, seed):
    recipe = draw_variants(RECIPE, number, seed)
    assert recipe == draw_variants(RECIPE, number, seed)
    counts = Counter(recipe.tasks)
    assert sum(counts.values()) == number
    assert max(counts.values()) - min(counts.values()) <= 1
    configs = task_configs(recipe)
    for name, config, window in zip(recipe.tasks, configs, recipe.windows, strict=True):
        learner = config.learner
        assert isinstance(learner, PPOConfig)
        samples, updates = config.num_envs * learner.rollout, learner.epochs * learner.minibatches
        assert variants.STEPS[0] <= samples <= variants.STEPS[1]
        assert samples // learner.minibatches >= variants.SAMPLES
        assert variants.UPDATES[0] <= updates <= variants.UPDATES[1]
        assert window % updates == 0
        assert abs(window // updates * samples - STEPS) <= samples / 2
        usual = default_config(name)
        if usual.torso == "mlp":
            assert config.policy_layers == config.value_layers
        kept = RECIPE.tasks.index(name)
        assert config.normalise_observations == (RECIPE.observations[kept] == "normalised")
        assert learner.reward_scale == 2.0


def test_variants_differ_and_keep_what_is_their_tasks():
    recipe = draw_variants(RECIPE, 30, seed=0)
    drawn = ("num_envs", "horizons", "minibatches", "epochs", "layers", "activations")
    assert all(len(set(getattr(recipe, name))) > 2 for name in drawn)
    assert recipe.learning_rate == (1e-2, 2e-2, 3e-2) * 10
    assert recipe.reward_scale == (2.0,)
    own = {*drawn, "tasks", "learners", "learning_rate", "observations", "windows"}
    rest = {x.name: getattr(RECIPE, x.name) for x in dataclasses.fields(Recipe)}
    rest = {name: value for name, value in rest.items() if name not in own}
    assert rest == {name: getattr(recipe, name) for name in rest}
    assert draw_variants(RECIPE, 30, seed=1) != recipe


def test_tasks_that_share_a_layer_have_no_layers_of_their_own():
    recipe = dataclasses.replace(RECIPE, tasks=("catch",) * 3, learning_rate=(1e-2,))
    recipe = draw_variants(recipe, 6, seed=0)
    assert recipe.layers == recipe.activations == ()
    _, tasks = build(recipe)
    assert len(tasks) == 6


def test_what_has_no_variants_is_refused():
    with pytest.raises(ValueError, match=r"^variants = 2: at least one for each of 3 tasks"):
        draw_variants(RECIPE, 2, seed=0)
    a2c = dataclasses.replace(RECIPE, learners=("a2c", "ppo", "ppo"))
    with pytest.raises(ValueError, match=r"^learners: variants are of PPO, and catch has A2C"):
        draw_variants(a2c, 6, seed=0)


def test_the_varied_recipe_trains_on_no_task_that_judges_it():
    """Those of `mixed`, of the ladder's validation, and DiscoBench's Asterix and Breakout."""
    recipe = RECIPES["ppo/varied"]
    assert len(recipe.tasks) == 18
    judging = ("Acrobot", "Pendulum", "Breakout", "Asterix", "brax", "FourRooms", "PointRobot")
    assert not [x for x in recipe.tasks if any(word in x for word in (*judging, "sparse"))]
