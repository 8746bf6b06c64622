"""Recipes by name: for the shipped weights ("zoo/...") and the paper's experiments."""

from dataclasses import replace

from optim4rl.meta.config import Augmentation, MetaConfig
from optim4rl.meta.recipe import Recipe
from optim4rl.meta.variants import draw_variants

# The paper's settings: one environment for each agent, K + 1 rollouts of 20 steps in an iteration.
_PAPER = MetaConfig(
    agents=512,
    reset_interval=72,
    validation="last",
    meta_learning_rate=1e-4,
    meta_clip="value",
    iterations=586,  # 3e7 environment steps
)
_CATCH = Recipe(
    optimizer="optim4rl",
    learning_rate=(1e-3,),
    width=(256,),
    envs_per_agent=1,
    meta=replace(
        _PAPER,
        agents=64,
        reset_interval=64,
        meta_learning_rate=1e-3,
        iterations=78,  # 5e5 environment steps
    ),
)
_SMALL = Recipe(
    optimizer="optim4rl",
    tasks=("small_dense_long",),
    learning_rate=(3e-2,),
    width=(0,),
    envs_per_agent=1,
    clip=1.0,
    meta=_PAPER,
)
_BIG = replace(_SMALL, tasks=("big_dense_long",), learning_rate=(3e-3,))
_SIX = replace(
    _SMALL,
    tasks=(
        "small_dense_long",
        "small_dense_short",
        "big_sparse_short",
        "big_dense_short",
        "big_sparse_long",
        "big_dense_long",
    ),
    learning_rate=(1e-3, 3e-3, 3e-3, 3e-3, 1e-3, 3e-3),
    reward_scale=(1e3, 1e2, 1e2, 1e1, 1e1, 1.0),
    meta=replace(_PAPER, meta_clip="normalise", meta_clip_limit=0.5),
)
# Catch and three grid worlds. The big one keeps a rule from being greedy.
_FOUR_GRIDS = Recipe(
    optimizer="generalist",
    tasks=("catch", "small_dense_long/free", "big_dense_short/free", "small_sparse_short/free"),
    learning_rate=(2e-2,),
    normalise_rewards=True,
    width=(16, 32),
    meta=MetaConfig(
        iterations=200,
        inner_updates=16,
        reset_interval=25,  # lives of 64 to 400 updates
        shortest_interval=4,
        meta_learning_rate=1e-2,
        cosine_to=0.1,
        meta_clip="running",
    ),
)
_PPO = Recipe(
    optimizer="orthogonal",
    tasks=(
        "catch",
        "small_dense_long/free",
        "gymnax:CartPole-v1",
        "gymnax:Reacher-misc",
        "gymnax:Swimmer-misc",
        "gymnax:Reacher-misc",
    ),
    learners=("ppo",) * 6,
    # The last task makes many small updates for each rollout, as is usual in locomotion.
    minibatches=(4, 4, 4, 4, 4, 16),
    observations=("raw", "raw", "raw", "normalised", "normalised", "normalised"),
    windows=(128, 128, 128, 128, 128, 256),
    learning_rate=(1e-2,),
    normalise_rewards=True,
    width=(64,),
    envs_per_agent=32,
    # Lives of 128 rollouts, 64 of the last task.
    meta=MetaConfig(
        iterations=12,
        agents=16,
        inner_updates=128,
        reset_interval=16,
        estimator="es",
        sigma=0.2,
        meta_learning_rate=0.1,
        cosine_to=0.1,
        meta_clip="running",
    ),
)
# Lives of many lengths: else a rule cannot tell its age from the share of training that is done.
_MODULATED = Recipe(
    optimizer="modulated",
    tasks=(
        "catch",
        "small_dense_long/free",
        "small_dense_short/free",
        "gymnax:CartPole-v1",
        "gymnax:CartPole-v1",
        "gymnax:Reacher-misc",
        "gymnax:Swimmer-misc",
    ),
    learners=("ppo",) * 7,
    minibatches=(4, 8, 4, 4, 8, 8, 4),
    epochs=(4, 2, 4, 4, 2, 2, 4),
    windows=(512, 2048, 1024, 1024, 1536, 512, 1024),
    layers=("64-64", "64-64", "64-64", "64-64", "32-32", "64-64", "32-32-32"),
    activations=("tanh", "tanh", "tanh", "tanh", "relu", "tanh", "relu"),
    # Swimmer hardly learns from normalised observations (docs/tasks.md).
    observations=("raw", "raw", "raw", "raw", "raw", "normalised", "raw"),
    normalise_rewards=True,
    width=(32, 64),
    envs_per_agent=16,
    clip=1.0,
    meta=MetaConfig(
        iterations=400,
        reset_interval=1,
        estimator="es",
        sigma=0.3,
        fitness="ranks",
        final_share=0.5,
        meta_learning_rate=0.02,
        cosine_to=0.1,
        meta_clip="running",
    ),
)
# Six environments with three networks and learners each, six of the eighteen in an iteration, at
# scales and lengths drawn anew for each life: a quarter of the longest one, or more. Five have a
# clear signal (docs/meta-training.md); CartPole hardly has one, so its lives are longer.
_VARIED = draw_variants(
    replace(
        _MODULATED,
        tasks=(
            "catch",
            "small_dense_long/free",
            "small_dense_short/free",
            "gymnax:Catch-bsuite",
            "gymnax:DiscountingChain-bsuite",
            "gymnax:CartPole-v1",
        ),
        learners=("ppo",) * 6,
        minibatches=(4,) * 6,
        epochs=(4,) * 6,
        # An eighth of the longest life; 16 updates are 512 environment steps.
        windows=(128, 512, 256, 128, 128, 512),
        layers=("64-64",) * 6,
        activations=("tanh",) * 6,
        observations=("raw",) * 6,
        augmentation=Augmentation(rescale_rewards=2.0, rescale_initial=2.0),
        meta=replace(
            _MODULATED.meta,
            iterations=200,
            tasks_per_iteration=6,
            agents=16,
            reset_interval=8,
            shortest_interval=2,
        ),
    ),
    18,
    seed=0,
)
# Our recipe for the paper's rules on Catch.
_OURS = Recipe(
    optimizer="optim4rl",
    zero_head=True,
    learning_rate=(3e-3,),
    meta=MetaConfig(meta_learning_rate=3e-3),
)

RECIPES: dict[str, Recipe] = {
    "zoo/mirrored-grid": replace(_FOUR_GRIDS, optimizer="mirrored"),
    "zoo/scaled-generalist": replace(
        _FOUR_GRIDS,
        optimizer="scaled",
        tasks=(*_FOUR_GRIDS.tasks, "gymnax:CartPole-v1"),
        learning_rate=(2e-2, 2e-2, 2e-2, 2e-2, 2e-3),
        windows=(16, 16, 16, 16, 64),  # four rollouts of PPO
    ),
    "zoo/ppo-generalist": _PPO,
    "zoo/grid-generalist": _FOUR_GRIDS,
    "zoo/anchored-catch": Recipe(
        learning_rate=(2e-2,), meta=MetaConfig(meta_learning_rate=1e-2, cosine_to=0.1)
    ),
    "zoo/optim4rl-catch": _OURS,
    "zoo/optim4rl-rlc-catch": replace(_OURS, optimizer="optim4rl-rlc"),
    "ppo/modulated": _MODULATED,
    "ppo/varied": _VARIED,
    "paper/catch": _CATCH,
    "paper/small_dense_long": _SMALL,
    "paper/big_dense_long": _BIG,
    "paper/six": _SIX,
    # The paper's release: Version B, and its smaller network on the big grid world.
    "release/catch": replace(_CATCH, optimizer="optim4rl-rlc"),
    "release/big_dense_long": replace(_BIG, optimizer="optim4rl-rlc", maps="rows"),
}
# Names that the cards of the shipped weights use for two of these.
RECIPES["zoo/optim4rl-paper-catch"] = RECIPES["paper/catch"]
RECIPES["zoo/optim4rl-rlc-paper-catch"] = RECIPES["release/catch"]
