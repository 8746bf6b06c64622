"""The convolutional torso in C++ for CPUs: `conv.cc` through XLA's foreign function interface.

An observation of few ones leaves most of the image at relu(bias). What that gives is computed once
for all observations, and only the positions that a one touches are computed for each. Agents
(`jax.vmap`) and chunks of the work are shared out to XLA's own threads; results do not depend on
the number of threads.

As with the optimizers' kernel, the best instruction set that the machine has is taken when the
library is loaded, OPTIM4RL_NATIVE_ISA = avx512, avx2 or sse2 asks for another, and after a change
of the C++ files `pip install -e .` builds it again.
"""

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optim4rl.tasks.inputs import SparseInputs
from optim4rl.tasks.kernels.interface import ConvGradient
from optim4rl.tasks.networks import Conv2x2

LIBRARY = Path(__file__).with_name("conv.so")
ISA_VARIABLE = "OPTIM4RL_NATIVE_ISA"
_FORWARD, _BACKWARD = "optim4rl_conv_forward", "optim4rl_conv_backward"


class _Library(NamedTuple):
    """The loaded library's instruction set, or why there is none."""

    instruction_set: str = ""
    problem: str | None = None

    def target(self, symbol: str) -> str:
        """The name under which XLA knows one of its handlers."""
        return f"{symbol}_{self.instruction_set}"


@functools.cache
def _load() -> _Library:
    if not LIBRARY.exists():
        return _Library(
            problem="not built: no C++ compiler worked when the package was installed; "
            "install g++ or clang++ and reinstall"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.optim4rl_instruction_set.restype = ctypes.c_char_p
        chosen = library.optim4rl_instruction_set()
        if chosen is None:
            wanted = os.environ.get(ISA_VARIABLE)
            return _Library(problem=f"{ISA_VARIABLE} = {wanted!r}: this machine has no such set")
        loaded = _Library(instruction_set=chosen.decode())
        for symbol in (_FORWARD, _BACKWARD):
            capsule = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(loaded.target(symbol), capsule, platform="cpu")
    except Exception as error:  # whatever is wrong with it, XLA's layers work
        reason = " ".join(str(error).split())
        return _Library(problem=f"{LIBRARY.name} cannot be used here, reinstall: {reason}")
    return loaded


def status() -> str:
    """Which instruction set is in use, or why none is: one line."""
    library = _load()
    return library.problem or f"instruction set {library.instruction_set}"


def refusal() -> str | None:
    """Why these layers do not run here, in one line; None where they do."""
    if jax.default_backend() != "cpu":
        return f"runs on CPUs, and the default device is a {jax.default_backend()}"
    return _load().problem


@dataclass(frozen=True)
class NativeConvLayers:
    """Only what the ones touch."""

    inputs: SparseInputs

    def forward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Int[Array, "ones batch"],
    ) -> Float[Array, "batch units"]:
        """As `XlaConvLayers`."""
        out = jax.ShapeDtypeStruct((observation.shape[1], kernel.shape[1]), jnp.float32)
        call = jax.ffi.ffi_call(_load().target(_FORWARD), out, vmap_method="expand_dims")
        result: Array = call(observation, conv.kernel, conv.bias, kernel, **self._attributes)
        return result

    def backward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Int[Array, "ones batch"],
        cotangent: Float[Array, "batch units"],
    ) -> ConvGradient:
        """As `XlaConvLayers`."""
        parameters = (conv.kernel, conv.bias, kernel)
        call = jax.ffi.ffi_call(
            _load().target(_BACKWARD),
            [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in parameters],
            vmap_method="expand_dims",
        )
        return ConvGradient(*call(observation, *parameters, cotangent, **self._attributes))

    @property
    def _attributes(self) -> dict[str, Any]:
        """The observations as `ffi.cc` reads them."""
        return {
            "shape": np.array(self.inputs.shape, np.int64),
            "channels_first": np.bool_(self.inputs.maps == "channels"),
        }
