"""Measurements, each in one run with its baseline: `make bench`."""
