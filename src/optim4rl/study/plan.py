"""Exports the plan reader under its name of 0.1.0, for programs that import it from here."""

from optim4rl.plans.plan import (
    Ablation as Ablation,
    Plan as Plan,
    PlanError as PlanError,
    parse_plan as parse_plan,
    read_plan as read_plan,
)
