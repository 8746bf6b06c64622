"""The test suite's switches: shapes checked, ranks never promoted, four devices simulated.

And what fault tests count: a test asks the fixture `tally` for a row, counts outcomes, and fails
if one is bad. With `--faults-table FILE` the rows go into a table; rows of tests that were not run
stay as they were.
"""

import os
from importlib import metadata
from pathlib import Path

# Tests spend their time compiling small programs, not running them: optimize less, with the older
# emitters where there is a choice (as the command does). Programs are not kept on disk: processes
# side by side would read what another has half written.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
if metadata.version("jaxlib") == "0.11.2":  # as the command does: see `cli.runtime`
    os.environ.setdefault("JAX_USE_SHARDY_PARTITIONER", "0")
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402

# Every annotated shape in the package is checked while the tests run, and only then.
install_import_hook("optim4rl", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

from tally import BAD, GOOD, Tally, write_table  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """A file's programs are its own: together those of all files take gigabytes."""
    yield
    jax.clear_caches()


def pytest_addoption(parser):
    parser.addoption("--faults-table", metavar="FILE", help="write the counts of fault tests there")


_ROWS = []


@pytest.fixture
def tally(request):
    """Makes a row of the table, which is written when the test ends: others may be stopped."""
    rows = []

    def start(kind, fault):
        rows.append(Tally(kind, fault))
        return rows[-1]

    yield start
    found = [row.values() for row in rows]
    _ROWS.extend(found)
    if path := request.config.getoption("faults_table"):
        write_table(Path(path), found)


def pytest_terminal_summary(terminalreporter):
    for row in _ROWS:
        shown = ", ".join(f"{row[name]} {name}" for name in (*GOOD, *BAD))
        terminalreporter.write_line(f"{row['fault']}: {row['tried']} tried: {shown}")
