"""Learned optimizers for PyTorch: the weights and the rules of `optim4rl.optimizers`, without JAX.

    optimizer = optim4rl.torch.Optim4RL(model.named_parameters())

`processing`, `networks`, `structures` and `rule` say in torch what the modules of these names in
`optim4rl.optimizers` say in JAX; their updates agree to rounding.
"""

from optim4rl.torch.optimizer import Optim4RL as Optim4RL
