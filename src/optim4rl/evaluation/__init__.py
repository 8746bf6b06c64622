"""Evaluation: learning curves, tuning, statistics of returns and stability, the identity experiment."""
