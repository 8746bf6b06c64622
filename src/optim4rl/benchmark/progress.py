"""The progress of a batch of runs on disk, so that a stopped batch goes on, bit for bit."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim4rl.files.sealed import (
    SECONDS_BETWEEN_SAVES,
    DamagedFileError,
    as_bytes,
    read_sealed,
    write_sealed,
)


@dataclass
class SavedProgress:
    """Save a batch's progress in a sealed file now and then (see `evaluation.learning.Keeper`).

    Attributes:
        path: the file. Its name must tell everything that shapes the batch.
        saved: when it was saved last.
    """

    path: Path
    saved: float = field(default_factory=time.monotonic)

    def restore(self, fresh: Any) -> Any:
        """Return the saved progress; `fresh` if there is none or it is damaged."""
        leaves, structure = jax.tree.flatten(fresh)
        try:
            arrays, _ = read_sealed(self.path)
        except (FileNotFoundError, DamagedFileError):
            return fresh
        read = [_from_bytes(arrays[str(index)], like) for index, like in enumerate(leaves)]
        return jax.tree.unflatten(structure, read)

    def keep(self, progress: Any) -> None:
        """Save the progress, unless the last save was a short time ago."""
        if time.monotonic() - self.saved < SECONDS_BETWEEN_SAVES:
            return
        leaves = enumerate(jax.tree.leaves(progress))
        write_sealed(self.path, {str(index): _to_bytes(x) for index, x in leaves}, {})
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a batch that has ended."""
        self.path.unlink(missing_ok=True)


def _to_bytes(leaf: Any) -> np.ndarray:
    """Return an array's bytes, of any dtype; of random keys, their key data."""
    return np.frombuffer(as_bytes(np.asarray(_data(leaf))), np.uint8)


def _from_bytes(data: np.ndarray, like: Any) -> Any:
    """Return the array with these bytes, a JAX array or NumPy array like the other one."""
    plain = _data(like)
    # A copy can be written to, and donated to a program.
    array = data.view(plain.dtype).reshape(plain.shape).copy()
    if isinstance(like, np.ndarray):
        return array
    restored = jnp.array(array)
    if plain is like:
        return restored
    return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(like))


def _data(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
