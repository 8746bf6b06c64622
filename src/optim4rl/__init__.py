"""optim4rl: learned optimizers for reinforcement learning.

    optimizer = optim4rl.load("anchored-catch")     # an optax optimizer

The names below need the core install alone; `optim4rl.tasks`, `optim4rl.meta`,
`optim4rl.evaluation` and `optim4rl.study` come with the extra `lab`.
"""

from optim4rl.optimizers import (
    LearnedOptimizer as LearnedOptimizer,
    OptimizerSpec as OptimizerSpec,
    WeightsError as WeightsError,
    load as load,
    load_weights as load_weights,
    save_weights as save_weights,
    shipped_names as shipped_names,
)

__version__ = "0.1.0"
