"""Which kernel runs a rule: the fastest that can, or the one that is asked for."""

from optim4rl.optimizers.kernels import native, pallas, plain, xla
from optim4rl.optimizers.kernels.interface import KERNEL_NAMES, Kernel, KernelName
from optim4rl.optimizers.kernels.normalise import normalised
from optim4rl.optimizers.rule import OptimizerSpec

# Those that "auto" tries, in this order: the last one runs everything.
AUTOMATIC: tuple[Kernel, ...] = (normalised(native.KERNEL), normalised(xla.KERNEL), plain.KERNEL)
# Nobody has measured Pallas on a GPU yet, so it runs where it is asked for.
KERNELS = (*AUTOMATIC, normalised(pallas.KERNEL))


def choose(spec: OptimizerSpec, name: KernelName = "auto") -> Kernel:
    """The kernel of that name, or with "auto" the first that can run the rule on this machine.

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
