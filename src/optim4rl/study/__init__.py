"""Ablation studies: from a plan to variants, jobs and results."""
