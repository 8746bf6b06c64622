"""Named optimizers: the paper's, ours, and classical ones to compare with.

Names and specs need no JAX; only `classical` imports optax.
"""

import dataclasses
from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from optim4rl.optimizers.processing import Andrychowicz, Raw, RawAndSquare, SignLog
from optim4rl.optimizers.spec import OptimizerSpec
from optim4rl.optimizers.structures import (
    L2L,
    Adaptive,
    Anchored,
    Celo2,
    Linear,
    Mirrored,
    Modulated,
    Open,
    Star,
)

if TYPE_CHECKING:
    import optax

# The floor of 1e-8 on |g| puts a zero gradient at log = -18.4. Shift and scale map [1e-8, 1] to
# about [-0.9, 0.9].
CENTRED_SIGN_LOG = SignLog(epsilon=1e-8, shift=9.2, scale=0.1)

_ANCHORED = OptimizerSpec(
    processing=CENTRED_SIGN_LOG, structure=Anchored(), head_sizes=(), zero_head=True
)
# An odd rule, anchored at RMSProp: no momentum, and a short memory of sizes.
_MIRRORED = dataclasses.replace(
    _ANCHORED, structure=Mirrored(beta1=0.0, beta2=0.9, beta_slow=0.9), inputs=("kind",)
)

LEARNED: dict[str, OptimizerSpec] = {
    # Version A (arXiv version 2), the version of the ablation plan.
    "optim4rl": OptimizerSpec(),
    # Version B, the RLC release.
    "optim4rl-rlc": OptimizerSpec(
        processing=RawAndSquare(), structure=Adaptive(epsilon=1e-8, signed=False), head_sizes=()
    ),
    "linear": OptimizerSpec(structure=Linear()),
    "l2lgd2": OptimizerSpec(processing=Andrychowicz(), structure=L2L()),
    "anchored": _ANCHORED,
    # Anchored; it also reads what each parameter is for: one rule for many tasks.
    "generalist": dataclasses.replace(_ANCHORED, inputs=("kind",)),
    "mirrored": _MIRRORED,
    # Mirrored, with steps that are centred in wide layers. Steps are smaller in heads on wide
    # layers and in networks that see images, so that one step size serves more networks.
    "scaled": dataclasses.replace(_MIRRORED, normalise="layers"),
    # Mirrored around Adam, whose long memory suits the noise of small minibatches. Steps in kernels
    # are orthogonal. Without a cell the rule has few enough weights for evolution strategies.
    "orthogonal": dataclasses.replace(
        _MIRRORED, structure=Mirrored(), cell="none", normalise="orthogonal"
    ),
    # Muon, with a gain for each tensor and phase of training: one small network for each tensor.
    "modulated": OptimizerSpec(
        processing=Raw(),
        structure=Modulated(),
        cell="none",
        head_sizes=(8,),
        zero_head=True,
        inputs=("kind", "layer", "fan_in"),
        normalise="orthogonal",
    ),
    "celo2": OptimizerSpec(
        processing=Raw(),
        structure=Celo2(),
        cell="none",
        head_sizes=(8, 8),
        clip=1000.0,
        normalise="rms",
    ),
    "star": OptimizerSpec(
        processing=Raw(),
        structure=Star(),
        cell="none",
        head_sizes=(4, 4),
        clip=1000.0,
    ),
    "open": OptimizerSpec(
        processing=Raw(),
        structure=Open(),
        head_norm=True,
        clip_norm=0.5,
        clip=None,
        inputs=("layer",),
        zero_mean=True,
    ),
}

# A learning rate: a number, an array of one number, or a function of the update count.
ScalarOrSchedule: TypeAlias = Any


class Classical(NamedTuple):
    """A classical optimizer of optax.

    Attributes:
        function: its function, as a path below `optax`.
        state_floats: floats of state for each parameter of a kernel, without counts.
        has_epsilon: whether it adds an epsilon to the root of the second moment.
        settings: settings that differ from optax's defaults.
    """

    function: str
    state_floats: int
    has_epsilon: bool = True
    settings: Mapping[str, Any] = MappingProxyType({})


CLASSICAL = {
    "adam": Classical("adam", 2),
    "rmsprop": Classical("rmsprop", 1),
    "sgd": Classical("sgd", 0, has_epsilon=False),
    "sign_sgd": Classical("sign_sgd", 0, has_epsilon=False),
    "muon": Classical("contrib.muon", 1),
    # Updates are as large as Adam's, so that one rate suits both ("Muon is Scalable for LLM
    # Training", arXiv 2502.16982). The memory is shorter, for RL.
    "muon_rms": Classical("contrib.muon", 1, settings={"beta": 0.9, "consistent_rms": 0.2}),
    # Optimizers for noisy gradients.
    "schedule_free": Classical("contrib.schedule_free_adamw", 2),
    "ademamix": Classical("contrib.ademamix", 3),
    "adopt": Classical("contrib.adopt", 2),
}


def optimizer_names() -> tuple[str, ...]:
    """Return the names of all named optimizers."""
    return (*LEARNED, *CLASSICAL)


def learned_spec(name: str) -> OptimizerSpec:
    """Return the spec of a learned preset.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in LEARNED:
        raise ValueError(f"optimizer = {name!r}: learned optimizers are {', '.join(LEARNED)}")
    return LEARNED[name]


def classical(
    name: str, learning_rate: ScalarOrSchedule, epsilon: float | None = None
) -> "optax.GradientTransformationExtraArgs":
    """Return a classical optimizer with optax's own defaults.

    Args:
        name: one of `CLASSICAL`.
        learning_rate: a number or a schedule.
        epsilon: added to the root of the second moment, in place of optax's default.

    Raises:
        ValueError: the name is unknown, or the optimizer has no epsilon.
    """
    if name not in CLASSICAL:
        raise ValueError(f"optimizer = {name!r}: classical optimizers are {', '.join(CLASSICAL)}")
    import optax.contrib

    function, _, has_epsilon, settings = CLASSICAL[name]
    if epsilon is not None:
        if not has_epsilon:
            raise ValueError(f"epsilon = {epsilon!r}: optimizer {name!r} has none")
        settings = {**settings, "eps": epsilon}
    return attrgetter(function)(optax)(learning_rate, **settings)
