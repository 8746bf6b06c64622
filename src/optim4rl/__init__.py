"""optim4rl: learned optimizers for reinforcement learning."""
