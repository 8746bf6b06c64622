"""Ablation studies: from a plan to variants, jobs and results, of any method.

To study your own method, make an `Experiment` of `Component`, `Choice`, `Metric` and `Control`.
"""

from optim4rl.plans.components import (
    Choice as Choice,
    Component as Component,
    Metric as Metric,
)
from optim4rl.study.experiment import (
    Control as Control,
    Divergence as Divergence,
    Experiment as Experiment,
)
