"""Settings of meta-training as plain values; nothing here needs JAX."""

from dataclasses import dataclass
from typing import Literal

from optim4rl.fields import AT_LEAST_1, COUNT, POSITIVE, SHARE, check_fields

TaskClip = Literal["value", "norm", "normalise", "none"]
MetaClip = Literal["value", "norm", "normalise", "none", "running"]
EstimatorName = Literal["truncated", "es", "pes"]
Fitness = Literal["returns", "ranks"]
ResetSchedule = Literal["staggered", "random", "synchronous", "never"]
Validation = Literal["last", "dense"]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of an agent's random scales: factors log-uniform in [1/x, x]; with 1 none.

    Attributes:
        rescale_parameters: x of the factors [1/x, x] on an agent's parameters; 1: none.
        rescale_gradients: x of the factor on an agent's loss, and so on its gradients and on its
            share in the meta-objective of a truncated meta-gradient; 1: none.
        rescale_rewards: x of the factor on the rewards that an agent learns from; reported returns
            do not change; 1: none.
        rescale_initial: x of the factors on an agent's first parameters; 1: none.
        rescale_tensors: whether every tensor of parameters has its own factors.
    """

    rescale_parameters: float = 1.0
    rescale_gradients: float = 1.0
    rescale_rewards: float = 1.0
    rescale_initial: float = 1.0
    rescale_tensors: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            rescale_parameters=AT_LEAST_1,
            rescale_gradients=AT_LEAST_1,
            rescale_rewards=AT_LEAST_1,
            rescale_initial=AT_LEAST_1,
        )


@dataclass(frozen=True)
class MetaConfig:
    """Settings of meta-training, apart from the rule and the tasks.

    Attributes:
        iterations: meta-iterations, each with one update of the rule.
        tasks_per_iteration: tasks drawn anew for each meta-iteration; the others wait. None: all.
        agents: agents M of each task; with "es" and "pes" they are M/2 antithetic pairs.
        inner_updates: K, the inner updates of a meta-iteration.
        estimator: estimator of the meta-gradient. "truncated" differentiates through the K updates.
            With "pes" agents live on under perturbed rules, K updates at a time (persistent
            evolution strategies). With "es" they live a whole life, `reset_interval` times K
            updates, in each iteration, and `resets` is not used.
        sigma: standard deviation of the perturbations of "es" and "pes".
        fitness: what "es" compares: "returns", or within each pair only their order, "ranks". With
            "ranks" a diverged life is the worse of its pair; with "returns" it ends the training.
        final_share: weight of the last tenth of a life ("es") or window ("pes") in its return; the
            rest is the weight of the whole of it.
        resets: reset schedule; "staggered" is pipeline training.
        reset_interval: I, in meta-iterations: one life is I * K inner updates.
        shortest_interval: gives lives of mixed length, with intervals from this to
            `reset_interval`. Each agent has its own, evenly spread in logarithm. With "es" a task
            draws one for all its agents in each iteration, uniformly in logarithm. None: all have
            `reset_interval`.
        validation: rollouts in the meta-objective of "truncated": "last" (the paper's) or "dense".
        meta_learning_rate: learning rate of Adam, the meta-optimizer.
        cosine_to: share of the meta-learning rate at the end of a cosine decay; 1 is constant.
        meta_clip: changes each task's meta-gradient. "value" clips it elementwise. "norm" caps its
            global norm. "normalise" scales it to the limit. "running" divides it by a running root
            mean square of its norm, so that the scale of a task's rewards does not matter, and caps
            the global norm of the mean over tasks. "none" does nothing.
        meta_clip_limit: the limit of `meta_clip`.
        seed: seed of everything random in meta-training.
    """

    iterations: int = 200
    tasks_per_iteration: int | None = None
    agents: int = 8
    inner_updates: int = 4
    estimator: EstimatorName = "truncated"
    sigma: float = 0.01
    fitness: Fitness = "returns"
    final_share: float = 0.0
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
            tasks_per_iteration=COUNT,
            agents=COUNT,
            inner_updates=COUNT,
            reset_interval=COUNT,
            meta_learning_rate=POSITIVE,
            meta_clip_limit=POSITIVE,
            sigma=POSITIVE,
            cosine_to=SHARE,
            final_share=SHARE,
        )
        shortest = self.shortest_interval
        if shortest is not None and not 1 <= shortest <= self.reset_interval:
            raise ValueError(
                f"shortest_interval = {shortest!r}: 1 to reset_interval = {self.reset_interval} is "
                "needed, or None"
            )
        if self.estimator != "es" and self.fitness == "ranks":
            raise ValueError(f"fitness = 'ranks': the estimator es is needed, not {self.estimator}")
        if self.estimator != "truncated" and self.agents % 2:
            raise ValueError(
                f"agents = {self.agents!r}: {self.estimator} has antithetic pairs of agents, so an "
                "even number is needed"
            )
