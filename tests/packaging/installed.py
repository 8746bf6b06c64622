"""Is an installed optim4rl whole? `python installed.py native`, or `pure`, says so or fails.

Run by the release and by the tests in environments that have the package and no repository.
"""

import sys
from pathlib import Path

import jax.numpy as jnp

import optim4rl
from optim4rl.optimizers.kernels.native import LIBRARY


def check(expected: str) -> None:
    """Load all weights, take a step, and look for the libraries.

    Args:
        expected: native if the libraries are there and run; pure if there is none.
    """
    package = Path(optim4rl.__file__).parent
    libraries = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.so"))
    if expected == "pure":
        assert libraries == [], libraries
        assert LIBRARY.status().startswith("not built"), LIBRARY.status()
    else:
        assert libraries == ["optimizers/kernels/rule.so", "tasks/kernels/conv.so"], libraries
        assert LIBRARY.status().startswith("instruction set "), LIBRARY.status()
    for name in optim4rl.shipped_names():
        optim4rl.load(name)
    params = {"kernel": jnp.ones((2, 3))}
    optimizer = optim4rl.load("anchored-catch")
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert (updates["kernel"] < 0).all(), updates  # against the gradient
    print(f"optim4rl {optim4rl.__version__} in {package}: {LIBRARY.status()}")


if __name__ == "__main__":
    check(*sys.argv[1:])
