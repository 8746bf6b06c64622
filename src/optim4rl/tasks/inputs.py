"""Linear maps that read observations, and their transposes, for dense and sparse observations.

Both kinds of `Inputs` map a batch of observations to the first layer of a network. `DenseInputs`
multiplies arrays of floats. `SparseInputs` stores observations with few ones among zeros as the
places of the ones, and looks up rows of the kernel. A place equal to the observation's size stands
for an absent one. Each map comes with the gradient of its kernel:

- `full(kernel, x)`: the flattened observation times a kernel `[inputs, outputs]`;
- `conv(kernel, x)`: the 2 x 2 convolution of `networks.Conv2x2` without its bias, the positions
  flattened, with a kernel `[2, 2, channels, filters]`.
"""

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optim4rl.tasks.config import MapOrder


@dataclass(frozen=True)
class DenseInputs:
    """Observations `[batch, *shape]` of any floats.

    Attributes:
        shape: shape of one observation.
        maps: order of its axes in a convolution.
    """

    shape: tuple[int, ...]
    maps: MapOrder

    def join(self, x: Float[Array, "steps batch *observation"]) -> Float[Array, "..."]:
        """Join the batches of several steps into one, step after step."""
        return x.reshape(-1, *self.shape)

    def select(
        self, x: Float[Array, "steps batch *observation"], step: Int[Array, "some batch"]
    ) -> Float[Array, "some batch *observation"]:
        """Select steps, for each member of the batch separately."""
        return x[step, jnp.arange(x.shape[1])[None]]

    def take(
        self, x: Float[Array, "batch *observation"], members: Int[Array, "some"]
    ) -> Float[Array, "some *observation"]:
        """Select members of a batch."""
        return x[members]

    def full(
        self, kernel: Float[Array, "inputs outputs"], x: Float[Array, "batch *observation"]
    ) -> Float[Array, "batch outputs"]:
        """Return a matrix product."""
        return x.reshape(len(x), -1) @ kernel

    def full_gradient(
        self, x: Float[Array, "batch *observation"], cotangent: Float[Array, "batch outputs"]
    ) -> Float[Array, "inputs outputs"]:
        """Return a matrix product."""
        return x.reshape(len(x), -1).T @ cotangent

    def conv(
        self,
        kernel: Float[Array, "2 2 channels filters"],
        x: Float[Array, "batch *observation"],
    ) -> Float[Array, "batch positions filters"]:
        """Return a matrix product over the four shifted images."""
        return self._shifted(x) @ kernel.reshape(-1, kernel.shape[-1])

    def conv_gradient(
        self,
        x: Float[Array, "batch *observation"],
        cotangent: Float[Array, "batch positions filters"],
    ) -> Float[Array, "2 2 channels filters"]:
        """Return a matrix product over the four shifted images."""
        shifted = self._shifted(x)
        flat = shifted.reshape(-1, shifted.shape[-1]).T @ cotangent.reshape(-1, cotangent.shape[-1])
        return flat.reshape(2, 2, -1, cotangent.shape[-1])

    def _shifted(self, x: Float[Array, "batch *observation"]) -> Array:
        shifted = shifted_images(jnp.moveaxis(x, 1, -1) if self.maps == "channels" else x)
        return shifted.reshape(len(x), -1, shifted.shape[-1])


def shifted_images(
    images: Float[Array, "*batch height width channels"],
) -> Float[Array, "*batch height width shifted"]:
    """Concatenate the inputs of a 2 x 2 kernel's four taps; zeros beyond the far edges."""
    height, width = images.shape[-3:-1]
    padded = jnp.pad(images, [(0, 0)] * (images.ndim - 3) + [(0, 1), (0, 1), (0, 0)])
    shifts = [padded[..., i : i + height, j : j + width, :] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(shifts, axis=-1)


@dataclass(frozen=True)
class SparseInputs:
    """Observations given by the places of their ones, `[ones, batch]`; see `DenseInputs`."""

    shape: tuple[int, ...]
    maps: MapOrder

    def join(self, x: Int[Array, "steps ones batch"]) -> Int[Array, "ones joined"]:
        """Join steps; the batch is the last axis."""
        return x.swapaxes(0, 1).reshape(x.shape[1], -1)

    def select(
        self, x: Int[Array, "steps ones batch"], step: Int[Array, "some batch"]
    ) -> Int[Array, "some ones batch"]:
        """Select steps; the batch is the last axis."""
        return jnp.take_along_axis(x, step[:, None], axis=0)

    def take(
        self, x: Int[Array, "ones batch"], members: Int[Array, "some"]
    ) -> Int[Array, "ones some"]:
        """Select members; the batch is the last axis."""
        return x[:, members]

    def full(
        self, kernel: Float[Array, "inputs outputs"], x: Int[Array, "ones batch"]
    ) -> Float[Array, "batch outputs"]:
        """Return the sum of the ones' rows of the kernel."""
        return functools.reduce(jnp.add, [_rows(kernel, place) for place in x])

    def full_gradient(
        self, x: Int[Array, "ones batch"], cotangent: Float[Array, "batch outputs"]
    ) -> Float[Array, "inputs outputs"]:
        """Add to each one's row the cotangent of its observation."""
        kernel = jnp.zeros((math.prod(self.shape), cotangent.shape[-1]), jnp.float32)
        for place in x:
            kernel = kernel.at[place].add(cotangent, mode="drop")
        return kernel

    def conv(
        self, kernel: Float[Array, "2 2 channels filters"], x: Int[Array, "ones batch"]
    ) -> Float[Array, "batch positions filters"]:
        """Add, for each one, the four taps of its channel around its position."""
        position, tap = self._touched(x)
        rows = _rows(kernel.reshape(-1, kernel.shape[-1]), tap)
        height, width, _ = self._image_shape
        image = jnp.zeros((x.shape[1], height * width, kernel.shape[-1]), jnp.float32)
        return image.at[jnp.arange(x.shape[1])[None], position].add(rows, mode="drop")

    def conv_gradient(
        self, x: Int[Array, "ones batch"], cotangent: Float[Array, "batch positions filters"]
    ) -> Float[Array, "2 2 channels filters"]:
        """Add, for each one, the cotangents around its position to the taps of its channel."""
        position, tap = self._touched(x)
        around = cotangent.at[jnp.arange(x.shape[1])[None], position].get(mode="clip")
        channels, filters = self._image_shape[2], cotangent.shape[-1]
        kernel = jnp.zeros((4 * channels, filters), jnp.float32)
        return kernel.at[tap].add(around, mode="drop").reshape(2, 2, channels, filters)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        a, b, c = self.shape
        return (b, c, a) if self.maps == "channels" else (a, b, c)

    def _touched(
        self, x: Int[Array, "ones batch"]
    ) -> tuple[Int[Array, "touched batch"], Int[Array, "touched batch"]]:
        """Return the positions that the ones reach, and the rows of the flattened kernel.

        Tap (i, j) of the kernel carries a one at (row, column) to position (row - i, column - j).
        If this position is outside, or the one is absent, both numbers are out of bounds.
        """
        height, width, channels = self._image_shape
        a, b, c = jnp.unravel_index(x, self.shape)
        row, column, channel = (b, c, a) if self.maps == "channels" else (a, b, c)
        absent = x >= math.prod(self.shape)
        positions, taps = [], []
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            outside = absent | (row < i) | (column < j)
            position = (row - i) * width + column - j
            positions.append(jnp.where(outside, height * width, position))
            taps.append(jnp.where(outside, 4 * channels, (2 * i + j) * channels + channel))
        return jnp.concatenate(positions), jnp.concatenate(taps)


def _rows(
    kernel: Float[Array, "inputs outputs"], places: Int[Array, "*batch"]
) -> Float[Array, "*batch outputs"]:
    """Return rows of the kernel; zero out of bounds."""
    return kernel.at[places].get(mode="fill", fill_value=0.0)


Inputs: TypeAlias = DenseInputs | SparseInputs
