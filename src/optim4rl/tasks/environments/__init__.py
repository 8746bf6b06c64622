"""Environments to learn in, all of them gymnax environments."""
