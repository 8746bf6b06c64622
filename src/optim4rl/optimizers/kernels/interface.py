"""What every implementation of the rule offers: a step, and the replay of K steps with its VJP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Array, Float

from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState

KernelName = Literal["auto", "native", "pallas", "xla"]
KERNEL_NAMES: tuple[KernelName, ...] = get_args(KernelName)

Step = Callable[
    [OptimizerSpec, MetaParameters, Float[Array, " n"], RuleState],
    tuple[Float[Array, " n"], RuleState],
]
ReplayVjp = Callable[
    [OptimizerSpec, MetaParameters, Float[Array, "K n"], RuleState, Float[Array, "K n"]],
    MetaParameters,
]


@dataclass(frozen=True)
class Kernel:
    """One implementation of the rule on flattened coordinates.

    On CPUs it streams over them in constant memory; a replay on a GPU keeps K steps' activations.
    The functions are unbatched; `jax.vmap` over agents is efficient in all of them. Gradients,
    state and cotangents are constants: the only derivative is the one that `replay_vjp` gives.

    Attributes:
        name: its name as an option.
        refusal: why it cannot run a rule on this machine, in one line; None where it can.
        step: `rule.step` on gradients `[n]`.
        replay_vjp: the meta-gradient of `sum(cotangents * directions)`, all `[K, n]`, where the
            directions are K steps over recorded gradients from the state before them.
        status: what it is on this machine, in one line.
    """

    name: KernelName
    refusal: Callable[[OptimizerSpec], str | None]
    step: Step
    replay_vjp: ReplayVjp
    status: Callable[[], str]
