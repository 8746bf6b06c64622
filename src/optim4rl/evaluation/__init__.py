"""Evaluation: learning curves, statistics of return and stability, an optimizer's response."""
