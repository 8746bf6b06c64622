"""Settings of meta-training: what is trained on, how, and what estimates the meta-gradient."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from optim4rl.fields import COUNT, POSITIVE, SHARE, check_fields
from optim4rl.meta.meta_gradient import Validation
from optim4rl.meta.resets import ResetSchedule
from optim4rl.tasks.interface import InnerTask

TaskClip = Literal["value", "norm", "normalise", "none"]
MetaClip = Literal["value", "norm", "normalise", "none", "running"]
EstimatorName = Literal["truncated", "es", "pes"]


@dataclass(frozen=True)
class MetaConfig:
    """Settings of meta-training, apart from the rule and the tasks.

    Attributes:
        iterations: meta-iterations, each with one update of the rule.
        agents: agents M of each task; with "es" and "pes" they are M/2 antithetic pairs.
        inner_updates: K, the inner updates of a meta-iteration.
        estimator: of the meta-gradient. "truncated" differentiates through the K updates. "pes" has
            agents live on under perturbed rules, K updates at a time (persistent evolution
            strategies). "es" has them live a whole life, `reset_interval` times K updates, in each
            iteration; resets play no part.
        sigma: standard deviation of the perturbations of "es" and "pes".
        resets: reset schedule; "staggered" is pipeline training.
        reset_interval: I, in meta-iterations: one life is I * K inner updates.
        shortest_interval: lives of mixed length: each agent has an interval of its own, spread from
            this to `reset_interval` evenly in logarithm; None: all have `reset_interval`.
        validation: of "truncated": "last" (the paper's) or "dense".
        meta_learning_rate: of Adam, the meta-optimizer.
        cosine_to: share of the meta-learning rate that a cosine decay ends at; 1 is constant.
        meta_clip: what happens to each task's meta-gradient: "value" clips it elementwise, "norm"
            caps its global norm, "normalise" scales it to the limit, "running" divides it by a
            running root mean square of its norm, so that the scale of a task's rewards drops out,
            and caps the global norm of the mean over tasks; "none" leaves it.
        meta_clip_limit: the limit of that.
        seed: of everything random in meta-training.
    """

    iterations: int = 200
    agents: int = 8
    inner_updates: int = 4
    estimator: EstimatorName = "truncated"
    sigma: float = 0.01
    resets: ResetSchedule = "staggered"
    reset_interval: int = 98
    shortest_interval: int | None = None
    validation: Validation = "dense"
    meta_learning_rate: float = 3e-3
    cosine_to: float = 1.0
    meta_clip: MetaClip = "value"
    meta_clip_limit: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            iterations=COUNT,
            agents=COUNT,
            inner_updates=COUNT,
            reset_interval=COUNT,
            meta_learning_rate=POSITIVE,
            meta_clip_limit=POSITIVE,
            sigma=POSITIVE,
            cosine_to=SHARE,
        )
        self._check_lives()

    def _check_lives(self) -> None:
        shortest = self.shortest_interval
        if shortest is not None and not 1 <= shortest <= self.reset_interval:
            raise ValueError(
                f"shortest_interval = {shortest!r}: 1 to reset_interval = {self.reset_interval} is "
                "needed, or None"
            )
        if self.estimator == "es" and shortest is not None:
            raise ValueError(
                f"shortest_interval = {shortest!r}: lives of mixed length need the estimator "
                "truncated or pes; with es all agents live reset_interval"
            )
        if self.estimator != "truncated" and self.agents % 2:
            raise ValueError(
                f"agents = {self.agents!r}: {self.estimator} has antithetic pairs of agents, so an "
                "even number is needed"
            )


@dataclass(frozen=True)
class MetaTask:
    """One task of meta-training.

    Attributes:
        task: the task.
        learning_rate: alpha, the inner learning rate that the rule is used with there.
        window: K of this task; None is the config's. A learner that makes many updates of a rollout
            wants a longer one than a learner that makes one: a window sees as far as its rollouts.
        estimator: of this task's meta-gradient; None is the config's.
        agents: M of this task; None is the config's.
    """

    task: InnerTask
    learning_rate: float
    window: int | None = None
    estimator: EstimatorName | None = None
    agents: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, learning_rate=POSITIVE, window=COUNT, agents=COUNT)

    def settings(self, config: MetaConfig) -> MetaConfig:
        """The config as this task has it.

        With "es" all agents live `reset_interval`: lives of mixed length are the other tasks'.

        Raises:
            ValueError: its estimator cannot do with its agents.
        """
        estimator = self.estimator or config.estimator
        return dataclasses.replace(
            config,
            inner_updates=self.window or config.inner_updates,
            estimator=estimator,
            agents=self.agents or config.agents,
            shortest_interval=None if estimator == "es" else config.shortest_interval,
        )
