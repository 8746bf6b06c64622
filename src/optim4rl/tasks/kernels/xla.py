"""The convolutional torso in XLA, for all kinds of inputs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from optim4rl.tasks.inputs import Inputs
from optim4rl.tasks.networks import Conv2x2


@dataclass(frozen=True)
class XlaConvLayers:
    """Layers computed on whole images, for any observations."""

    inputs: Inputs

    def forward(
        self, conv: Conv2x2, kernel: Float[Array, "features units"], observation: Num[Array, "..."]
    ) -> Float[Array, "batch units"]:
        """Return the dense layer's output: a matrix product on the convolution's images."""
        return self._features(conv, observation) @ kernel

    def backward(
        self,
        conv: Conv2x2,
        kernel: Float[Array, "features units"],
        observation: Num[Array, "..."],
        cotangent: Float[Array, "batch units"],
    ) -> tuple[Conv2x2, Float[Array, "features units"]]:
        """Return the gradients of both layers' parameters: the transpose of `forward`.

        The convolution runs again, for all observations at once. Its images are large, so storing
        them in each step of a rollout would take longer.
        """
        features = self._features(conv, observation)
        images = jnp.where(features > 0, cotangent @ kernel.T, 0.0)
        images = images.reshape(len(images), -1, conv.bias.size)
        kernel_gradient = self.inputs.conv_gradient(observation, images)
        return Conv2x2(kernel_gradient, jnp.sum(images, axis=(0, 1))), features.T @ cotangent

    def _features(
        self, conv: Conv2x2, observation: Num[Array, "..."]
    ) -> Float[Array, "batch features"]:
        """Return the convolution's output, flattened."""
        images = jax.nn.relu(self.inputs.conv(conv.kernel, observation) + conv.bias[None, None])
        return images.reshape(len(images), -1)
