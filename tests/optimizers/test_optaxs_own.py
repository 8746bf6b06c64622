"""Optax's own tests, which ship in its wheel, run on every learned optimizer that has a name.

How ours are registered into theirs: a name becomes a function of `optax._src.alias`, where their
tests look names up, and their parametrisations, which list optimizers in tables, list ours instead
when a test module is imported. Nothing else of theirs is changed. Left out are the two tests that
ask for a known quality of optimization (`test_optimization` and `test_optimizers`), those that
list no optimizers, and complex parameters, which we refuse.

They run in a process of their own: they switch 64-bit numbers on, and shard over eight devices.
"""

import importlib
import os
import subprocess
import sys
import types
import unittest
from typing import Any

import pytest

# The tests of optax that list optimizers.
TESTS = {
    "optax._src.alias_test": (
        "AliasTest.test_optimizers_accept_extra_args",
        "AliasTest.test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "AliasTest.test_preserve_dtype",
        "AliasTest.test_state_shape_dtype_shard_stability",
        "AliasTest.test_gradient_accumulation",
    ),
    "optax.contrib._common_test": (
        "ContribTest.test_optimizers_accept_extra_args",
        "ContribTest.test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "ContribTest.test_preserve_dtype",
        "ContribTest.test_gradient_accumulation",
        "ContribTest.test_state_shape_dtype_shard_stability",
        "ContribTest.test_optimizers_accept_learning_rate_schedule",
    ),
    "optax._src.float64_test": ("Float64Test.test_mixed_dtype_input_outputs",),
    "optax._src.sharding_test": (
        "ShardingTest.test_init_with_abstract_input",
        "ShardingTest.test_state_sharding_type_init_match_update",
        "ShardingTest.test_state_sharding_type_preserved_with_jit",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("module", TESTS)
def test_optaxs_own_tests_hold(module):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    result = subprocess.run(
        [sys.executable, __file__, module],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failures" in result.stdout, result.stdout


def main(module):
    """Run the tests of one of optax's modules; exits with 1 if one fails."""
    import jax

    names = _register()
    theirs = _import_with(module, names)
    # They compare versions as text, by which 0.10 is older than 0.7, and skip what that lacked.
    jax.__version__ = "1.0"
    loader, suite = unittest.TestLoader(), unittest.TestSuite()
    for test in TESTS[module]:
        cls, prefix = test.split(".")
        loader.testMethodPrefix = prefix
        found = loader.loadTestsFromTestCase(getattr(theirs, cls))
        assert found.countTestCases() >= len(names), f"{test}: {found.countTestCases()} tests"
        suite.addTests(found)
    outcome = unittest.TextTestRunner(verbosity=1).run(suite)
    failures = len(outcome.failures) + len(outcome.errors)
    print(f"{outcome.testsRun} tests, {len(outcome.skipped)} skipped, {failures} failures")
    sys.exit(failures > 0 or len(outcome.skipped) > 0)


def _register():
    """Our optimizers by name, as functions of a learning rate in `optax._src.alias`."""
    from optax._src import alias, base
    from test_transform import NAMES, learned

    from optim4rl import load
    from optim4rl.optimizers import LEARNED

    def ours(name):
        def make(learning_rate: base.ScalarOrSchedule, step_scale: base.ScalarOrSchedule = 1.0):
            if name in LEARNED:
                return learned(name).transformation(learning_rate, step_scale=step_scale)
            return load(name, learning_rate, step_scale=step_scale)

        return make

    for name in NAMES:
        setattr(alias, name, ours(name))
    return NAMES


def _import_with(module, names):
    """One of optax's test modules, imported anew with our names in its tables."""
    from absl.testing import parameterized
    from optax._src import alias

    # What every kind of table says of an optimizer.
    listed = [{"opt_name": name, "opt_kwargs": {"learning_rate": 1e-3}} for name in names]
    unwrapped = [{**row, "wrapper_name": None, "wrapper_kwargs": None} for row in listed]
    product, named_parameters = parameterized.product, parameterized.named_parameters

    def our_product(*given, **grid):
        tables = list(given)
        if tables and "opt_name" in tables[0][0]:
            tables = [unwrapped if "wrapper_name" in tables[0][0] else listed]
            if "dtype" in grid:
                grid["dtype"] = [x for x in grid["dtype"] if "complex" not in str(x)]
        return product(*tables, **grid)

    def our_named_parameters(*given):
        rows: list[Any] = list(given)
        if "float64" in module:
            rows = [(name, getattr(alias, name), {"learning_rate": 1e-3}) for name in names]
        elif len(rows) == 1:  # the table of finished optimizers
            rows = [(name, getattr(alias, name)(learning_rate=1.0)) for name in names]
        return named_parameters(*rows)

    # Their tests of L-BFGS, which are not run, compare it with scikit-learn's models.
    for name in ("sklearn", "sklearn.datasets", "sklearn.linear_model"):
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules["sklearn"]).update(datasets=None, linear_model=None)
    parameterized.product = our_product
    parameterized.named_parameters = our_named_parameters
    return importlib.import_module(module)


if __name__ == "__main__":
    main(sys.argv[1])
