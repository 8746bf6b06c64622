"""Learned optimizers for PyTorch: the weights and the rules of `optim4rl.optimizers`, without JAX.

    optimizer = optim4rl.torch.Optim4RL(model.named_parameters())

The formulae come from `optim4rl.optimizers` (`spec`, `processing`, `structures`, `cells`,
`tensors`); `rule` applies them to flattened tensors. Updates equal JAX's up to rounding.
"""

from optim4rl.torch.optimizer import Optim4RL as Optim4RL
from optim4rl.torch.sb3 import sb3_settings as sb3_settings
