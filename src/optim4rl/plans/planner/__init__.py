"""The planner: from a method's text to an ablation plan, by a model or by the catalogue."""
