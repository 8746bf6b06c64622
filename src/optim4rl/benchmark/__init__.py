"""The benchmark: optimizers on tasks, tuned and reported by one protocol.

from optim4rl import benchmark

suite = benchmark.load_suite("classic")
mine = benchmark.function_contender(my_file.make, suite.rates, folder)
adam = benchmark.baseline("adam_ppo", suite.rates)
results = benchmark.run(benchmark.Benchmark(suite, (mine, adam), folder, benchmark.Protocol()))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim4rl.benchmark.contender import (
        Contender as Contender,
        baseline as baseline,
        function_contender as function_contender,
        given_contender as given_contender,
        learned_contenders as learned_contenders,
    )
    from optim4rl.benchmark.loop import Benchmark as Benchmark, Results as Results, run as run
    from optim4rl.benchmark.protocol import Protocol as Protocol
    from optim4rl.benchmark.suites import load_suite as load_suite, task_suite as task_suite

_MODULES = {
    **dict.fromkeys(
        ("Contender", "baseline", "function_contender", "given_contender", "learned_contenders"),
        "contender",
    ),
    **dict.fromkeys(("Benchmark", "Results", "run"), "loop"),
    "Protocol": "protocol",
    **dict.fromkeys(("load_suite", "task_suite"), "suites"),
}


def __getattr__(name: str) -> Any:
    # PEP 562: code that only reads a table of runs does not import the code that makes runs.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
