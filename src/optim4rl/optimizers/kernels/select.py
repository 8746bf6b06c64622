"""Chooses the kernel of a rule: the fastest that can run it, or the one that you name."""

import dataclasses

from jaxtyping import Array, Float

from optim4rl.optimizers.kernels import native, pallas, plain, xla
from optim4rl.optimizers.kernels.interface import KERNEL_NAMES, Kernel, KernelName
from optim4rl.optimizers.kernels.normalise import normalise_flat, raw
from optim4rl.optimizers.layout import Layout
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, RuleState
from optim4rl.optimizers.tensors import WHOLE_TENSOR


def _normalised(kernel: Kernel) -> Kernel:
    """Return the kernel with `spec.normalise`."""

    def step(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradient: Float[Array, " n"],
        state: RuleState,
        *,
        layout: Layout = (),
    ) -> tuple[Float[Array, " n"], RuleState]:
        if spec.normalise == "none":
            return kernel.step(spec, meta_parameters, gradient, state, layout=layout)
        direction, state = kernel.step(raw(spec), meta_parameters, gradient, state, layout=layout)
        return normalise_flat(spec, layout, direction), state

    def replay_vjp(
        spec: OptimizerSpec,
        meta_parameters: MetaParameters,
        gradients: Float[Array, "K n"],
        state: RuleState,
        cotangents: Float[Array, "K n"],
        *,
        layout: Layout = (),
    ) -> MetaParameters:
        given = (meta_parameters, gradients, state)
        if spec.normalise in WHOLE_TENSOR:
            return plain.KERNEL.replay_vjp(spec, *given, cotangents, layout=layout)
        if spec.normalise == "layers":  # its own transpose
            spec, cotangents = raw(spec), normalise_flat(spec, layout, cotangents)
        return kernel.replay_vjp(spec, *given, cotangents, layout=layout)

    return dataclasses.replace(kernel, step=step, replay_vjp=replay_vjp)


# The kernels that "auto" tries, in this order; the last one runs everything.
AUTOMATIC: tuple[Kernel, ...] = (_normalised(native.KERNEL), _normalised(xla.KERNEL), plain.KERNEL)
# We have not measured Pallas on a GPU yet, so it runs only if asked for.
KERNELS = (*AUTOMATIC, _normalised(pallas.KERNEL))


def choose(spec: OptimizerSpec, name: KernelName = "auto") -> Kernel:
    """Return the named kernel, or with "auto" the first that can run the rule on this machine.

    Raises:
        ValueError: the name is unknown, or that kernel cannot run the rule; the message says why.
    """
    if name == "auto":
        return next(kernel for kernel in AUTOMATIC if kernel.refusal(spec) is None)
    named = {kernel.name: kernel for kernel in KERNELS}
    if name not in named:
        raise ValueError(f"kernel = {name!r}: known kernels are {', '.join(KERNEL_NAMES)}")
    reason = named[name].refusal(spec)
    if reason is not None:
        raise ValueError(f"kernel = {name!r}: {reason}")
    return named[name]
