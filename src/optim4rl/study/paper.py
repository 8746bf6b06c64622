"""The paper's experiments by name, with its grids and its lengths (Lan et al. 2024, appendix)."""

from dataclasses import replace
from typing import Any

from optim4rl.evaluation.learning import BATCH
from optim4rl.meta.recipe import Recipe
from optim4rl.meta.recipes import RECIPES
from optim4rl.study.replication import PROTOCOL, Arm, Replication


def _arms(recipe: Recipe, meta_seeds: int, others: int) -> tuple[Arm, ...]:
    """Return both versions, Version A without pipeline training, and section 6's optimizers."""

    def arm(name: str, seeds: int, **changes: Any) -> Arm:
        return Arm(name, replace(recipe, **changes), seeds)

    never = replace(recipe.meta, resets="never")
    return (
        arm("Version A", meta_seeds, optimizer="optim4rl"),
        arm("Version B", meta_seeds, optimizer="optim4rl-rlc"),
        replace(arm("A without pipeline", meta_seeds, meta=never), control=False),
        *(
            arm(label, others, optimizer=name)
            for label, name in (("LinearOptim", "linear"), ("L2LGD2", "l2lgd2"), ("STAR", "star"))
            if others
        ),
    )


_SMALL_DENSE_LONG = Replication(
    environment="small_dense_long",
    arms=_arms(RECIPES["paper/small_dense_long"], 5, 3),
    meta_learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    reset_intervals=(72, 144, 288, 576),
    rollouts=2_930,  # 3e7 steps
    num_envs=512,
)
EXPERIMENTS = {
    "catch": Replication(
        environment="catch",
        arms=_arms(RECIPES["paper/catch"], 5, 3),
        meta_learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        reset_intervals=(32, 64),
        rollouts=390,  # 5e5 steps
        num_envs=64,
        step_scales=(0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    ),
    "small_dense_long": _SMALL_DENSE_LONG,
    "big_dense_long": replace(
        _SMALL_DENSE_LONG,
        environment="big_dense_long",
        arms=_arms(RECIPES["paper/big_dense_long"], 3, 0),
        protocol=replace(PROTOCOL, seeds=BATCH),
    ),
}
