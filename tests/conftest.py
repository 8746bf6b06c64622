"""The test suite's switches: shapes checked, ranks never promoted, four devices simulated."""

import os

# Tests spend their time compiling small programs, not running them: optimize less.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Every annotated shape in the package is checked while the tests run, and only then.
install_import_hook("optim4rl", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
