"""The interface of all kernels: one step of a rule, and the replay of K steps with its VJP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from jaxtyping import Array, Float

from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.structures import Extras

KernelName = Literal["auto", "native", "xla", "plain", "pallas"]
KERNEL_NAMES: tuple[KernelName, ...] = get_args(KernelName)


class Met(NamedTuple):
    """Inputs of a rule that reads more than gradients; only `plain` runs such rules.

    Attributes:
        gradient: the gradient, or K of them.
        extras: further inputs of the structure, in the same shape.
    """

    gradient: Float[Array, "*K n"]
    extras: Extras


# `(spec, meta_parameters, gradient, state, *, layout=())`: a gradient is `[n]`, or a `Met`.
Step = Callable[..., tuple[Float[Array, " n"], RuleState]]
# `(spec, meta_parameters, gradients, state, cotangents, *, layout=())`, both `[K, n]`.
ReplayVjp = Callable[..., MetaParameters]


@dataclass(frozen=True)
class Kernel:
    """One implementation of the rule on flattened coordinates.

    On CPUs it streams over coordinates in constant memory. On a GPU, a replay keeps the activations
    of K steps. The functions take one agent; `jax.vmap` over agents is efficient. Gradients, state
    and cotangents are constants: `replay_vjp` gives the only derivative. `layout` maps coordinates
    to tensors. Only `plain` always needs one; the others need none for a rule that reads single
    coordinates, has no further inputs and is not normalised.

    Attributes:
        name: its name as an option.
        refusal: returns one line on why it cannot run a rule on this machine; None if it can.
        step: `rule.step` on a gradient `[n]`: the direction and the new state.
        replay_vjp: the meta-gradient of `sum(cotangents * directions)`, all `[K, n]`, where the
            directions are K steps over recorded gradients from the state before them.
        status: describes it on this machine, in one line.
    """

    name: KernelName
    refusal: Callable[[OptimizerSpec], str | None]
    step: Step
    replay_vjp: ReplayVjp
    status: Callable[[], str]


def structure_refusal(spec: OptimizerSpec, *fields: str) -> str | None:
    """Return why a kernel of single coordinates cannot run the rule, in one line, or None.

    Args:
        spec: the rule.
        fields: further fields of the spec that the kernel does not know.
    """
    structure = spec.structure
    if structure.tensorwise or structure.reads:
        return (
            f"structure = {structure.name!r}: it runs only structures that read single coordinates"
        )
    for field in ("clip_norm", "zero_mean", *fields):
        if getattr(spec, field):
            return f"{field} = {getattr(spec, field)!r}: it runs only rules without {field}"
    return None
