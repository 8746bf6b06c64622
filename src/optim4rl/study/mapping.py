"""Exports the mapping of plans under its name of 0.1.0, for programs that import it from here."""

from optim4rl.plans.mapping import (
    MappedAblation as MappedAblation,
    map_plan as map_plan,
    require_mapped as require_mapped,
)
