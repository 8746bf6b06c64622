"""What every result is kept with: the versions and the code that it was found by."""

import sys
from importlib import metadata
from typing import Any

from optim4rl.study.cells import code_hash


def package_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("optim4rl", "jax", "jaxlib", "numpy", "optax", "equinox", "gymnax", "scipy")
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: metadata.version(name) for name in names}}


def provenance() -> dict[str, Any]:
    """Versions, and a hash of the code, as JSON values."""
    return {"versions": package_versions(), "code": code_hash()}
