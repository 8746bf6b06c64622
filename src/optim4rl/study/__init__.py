"""Ablation studies: from a plan to components, variants, cells, results and a report."""
