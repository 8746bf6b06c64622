"""The interface of all implementations of the convolutional torso."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Num

from optim4rl.tasks.networks import Conv2x2


class ConvGradient(NamedTuple):
    """Gradients of both layers' parameters."""

    conv_kernel: Float[Array, "2 2 channels filters"]
    conv_bias: Float[Array, "filters"]
    kernel: Float[Array, "features units"]


@runtime_checkable
class ConvLayers(Protocol):
    """A 2 x 2 convolution with ReLU, flattened, times the kernel of a dense layer.

    The functions take one agent; `jax.vmap` over agents is efficient.
    """

    def forward(
        self, conv: Conv2x2, kernel: Float[Array, "features units"], observation: Num[Array, "..."]
    ) -> Float[Array, "batch units"]:
        """Return the dense layer's output, before its bias."""

    def backward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Num[Array, "..."],
        cotangent: Float[Array, "batch units"],
    ) -> ConvGradient:
        """Return the gradients, from the cotangent of `forward`'s output."""
