"""Exports the mapping of plans under its old name, for programs written for 0.1.0."""

from optim4rl.plans.mapping import (
    MappedAblation as MappedAblation,
    map_plan as map_plan,
    require_mapped as require_mapped,
)
