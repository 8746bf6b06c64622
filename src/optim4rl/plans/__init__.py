"""Reads ablation plans, and maps them to a method's components."""
