"""What all implementations of the convolutional torso return."""

from typing import NamedTuple

from jaxtyping import Array, Float


class ConvGradient(NamedTuple):
    """Gradients of both layers' parameters."""

    conv_kernel: Float[Array, "2 2 channels filters"]
    conv_bias: Float[Array, "filters"]
    kernel: Float[Array, "features units"]
