"""The benchmark: optimizers on tasks, tuned and reported by one protocol."""
