"""Inputs of a rule's networks beside the gradient, as arrays.

They are constants of a tensor (`tensors.tensor_inputs`), so their cost does not grow with the
agents: a kernel computes them when it needs them, or adds their effect to a bias.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from optim4rl.optimizers.structures import ExtraName, Extras
from optim4rl.optimizers.tensors import InputName, Layout, Tensor, num_rows, pieces, tensor_inputs


def tensor_rows(names: tuple[InputName, ...], tensor: Tensor) -> Float[Array, "rows ..."] | None:
    """Return the inputs of a tensor, with axes of length 1 for its own; None if there are none."""
    if not names:
        return None
    column = jnp.asarray(tensor_inputs(names, tensor), jnp.float32)
    return column.reshape(-1, *(1,) * len(tensor.shape))


def draw_noise(layout: Layout, key: PRNGKeyArray) -> list[Float[Array, "..."]]:
    """Draw standard normal noise for each tensor of the actor; the others get zeros."""
    return [
        jax.random.normal(jax.random.fold_in(key, index), tensor.shape)
        if tensor.actor
        else jnp.zeros(tensor.shape, jnp.float32)
        for index, tensor in enumerate(layout)
    ]


def flat_extras(
    reads: tuple[ExtraName, ...], layout: Layout, params: Float[Array, " n"], key: PRNGKeyArray
) -> Extras:
    """Return the extras that the structure reads, for flattened parameters."""
    noise = None
    if "noise" in reads:
        noise = jnp.concatenate([x.ravel() for x in draw_noise(layout, key)])
    return Extras(params if "params" in reads else None, noise)


class Segments(NamedTuple):
    """Runs of coordinates that share their inputs.

    Attributes:
        ends: where each run ends; the last end is the number of coordinates.
        values: the rows of inputs of each run.
    """

    ends: Int[np.ndarray, " runs"]
    values: Float[np.ndarray, "runs rows"]


@lru_cache(maxsize=256)
def segments(names: tuple[InputName, ...], layout: Layout, n: int) -> Segments:
    """Return the inputs of `n` coordinates: the layout's tensors, one after the other.

    Raises:
        ValueError: there are inputs, and the layout has another number of coordinates.
    """
    if not names:
        return Segments(np.array([n], np.int64), np.zeros((1, 0), np.float32))
    ends: list[int] = []
    values: list[list[float]] = []
    for tensor, where in pieces(layout, n):
        row = tensor_inputs(names, tensor)
        if values and values[-1] == row:
            ends[-1] = where.stop
        else:
            ends.append(where.stop)
            values.append(row)
    return Segments(
        np.array(ends, np.int64), np.array(values, np.float32).reshape(-1, num_rows(names))
    )


def rows_at(runs: Segments, coordinates: Int[Array, " c"]) -> Float[Array, "rows c"]:
    """Return the inputs of these coordinates."""
    rows = runs.values.shape[1]
    if len(runs.ends) <= 1:
        return jnp.broadcast_to(runs.values.reshape(rows, -1), (rows, *coordinates.shape))
    starts = jnp.asarray(runs.ends[:-1], jnp.int32)
    run = jnp.sum(coordinates[None] >= starts[:, None], axis=0)
    return jnp.asarray(runs.values.T)[:, run]
