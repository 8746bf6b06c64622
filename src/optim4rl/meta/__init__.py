"""Meta-training: the trainer, the meta-gradient, reset schedules and checkpoints."""
