"""What every implementation of the rule offers: a step, and the replay of K steps with its VJP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Array, Float

from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import NO_EXTRAS, Extras

KernelName = Literal["auto", "native", "pallas", "xla"]
KERNEL_NAMES: tuple[KernelName, ...] = get_args(KernelName)


@runtime_checkable
class Step(Protocol):
    """`rule.step` on the coordinates of a layout."""

    def __call__(
        self,
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradient: Float[Array, " n"],
        state: RuleState,
        extras: Extras = NO_EXTRAS,
        /,
        *,
        layout: Layout = (),
    ) -> tuple[Float[Array, " n"], RuleState]:
        """The direction and the new state."""


@runtime_checkable
class ReplayVjp(Protocol):
    """The VJP of K steps on the coordinates of a layout."""

    def __call__(
        self,
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradients: Float[Array, "K n"],
        state: RuleState,
        cotangents: Float[Array, "K n"],
        extras: Extras = NO_EXTRAS,
        /,
        *,
        layout: Layout = (),
    ) -> MetaParameters:
        """The meta-gradient of `sum(cotangents * directions)`."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of the rule on flattened coordinates.

    On CPUs it streams over them in constant memory; a replay on a GPU keeps K steps' activations.
    The functions are unbatched; `jax.vmap` over agents is efficient in all of them. Gradients,
    state and cotangents are constants: the only derivative is the one that `replay_vjp` gives.
    `layout` says what the coordinates belong to; a rule that reads each by itself needs none.
    `extras` hold what a structure reads beside gradients, `[n]` for a step and `[K, n]` for a
    replay.

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
