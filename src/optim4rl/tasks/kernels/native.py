"""The convolutional torso in C++ for CPUs: `conv.cc` through XLA's foreign function interface.

An observation with few ones leaves most of the image at relu(bias). We compute that part once for
all observations; for each observation we compute only the positions that its ones touch. XLA's
own threads share the agents (`jax.vmap`) and chunks of the work; results do not depend on the
number of threads. `optim4rl.cpp.library` loads the library for this machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optim4rl.cpp.library import Library
from optim4rl.tasks.inputs import SparseInputs
from optim4rl.tasks.networks import Conv2x2

_FORWARD, _BACKWARD = "optim4rl_conv_forward", "optim4rl_conv_backward"
LIBRARY = Library(Path(__file__).with_name("conv.so"), (_FORWARD, _BACKWARD))


@dataclass(frozen=True)
class NativeConvLayers:
    """Layers computed only at positions that the observations' ones touch."""

    inputs: SparseInputs

    def forward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Int[Array, "ones batch"],
    ) -> Float[Array, "batch units"]:
        """Return the result of `XlaConvLayers.forward`."""
        out = jax.ShapeDtypeStruct((observation.shape[1], kernel.shape[1]), jnp.float32)
        call = jax.ffi.ffi_call(LIBRARY.target(_FORWARD), out, vmap_method="expand_dims")
        result: Array = call(observation, conv.kernel, conv.bias, kernel, **self._attributes)
        return result

    def backward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Int[Array, "ones batch"],
        cotangent: Float[Array, "batch units"],
    ) -> tuple[Conv2x2, Float[Array, "features units"]]:
        """Return the result of `XlaConvLayers.backward`."""
        parameters = (conv.kernel, conv.bias, kernel)
        call = jax.ffi.ffi_call(
            LIBRARY.target(_BACKWARD),
            [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in parameters],
            vmap_method="expand_dims",
        )
        conv_kernel, conv_bias, dense_kernel = call(
            observation, *parameters, cotangent, **self._attributes
        )
        return Conv2x2(conv_kernel, conv_bias), dense_kernel

    @property
    def _attributes(self) -> dict[str, Any]:
        """Return the observations' attributes as `ffi.cc` reads them."""
        return {
            "shape": np.array(self.inputs.shape, np.int64),
            "channels_first": np.bool_(self.inputs.maps == "channels"),
        }
