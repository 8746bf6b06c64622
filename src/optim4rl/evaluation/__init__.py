"""Evaluation: learning curves, tuning, statistics of return and stability, the identity test."""
