"""`python -m bench`: run every section in a process of its own, then write the table and the plot.

`python -m bench SECTION [CASE]` runs one and prints its tables as JSON.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from optim4rl.cli.runtime import configure_jax

RESULTS = Path(__file__).parent / "results"
ONE_CORE = "OPTIM4RL_BENCH_ONE_CORE"
ONE_CORE_SECTIONS = ("rule", "torch_step")


def main() -> None:
    """All sections, or the one that is named."""
    if len(sys.argv) > 1:
        _run_section(*sys.argv[1:])
        return
    import jax

    from bench.meta import CASES
    from bench.report import write

    on_cpu = jax.default_backend() == "cpu"
    sections = [("rule",), *(("meta", case) for case in CASES), ("learning",), ("growth",)]
    sections += [("torch_step",)] if on_cpu else []
    tables: list[dict[str, Any]] = []
    started = time.perf_counter()
    for section in sections:
        print(f"{time.perf_counter() - started:6.0f} s  {' '.join(section)}", flush=True)
        tables += _in_own_process(section, one_core=on_cpu and section[0] in ONE_CORE_SECTIONS)
        write(RESULTS, _machine(), tables)
    print(f"written: {RESULTS}")


def _in_own_process(section: tuple[str, ...], one_core: bool) -> list[dict[str, Any]]:
    """Each section starts afresh, so that its memory is its own and nothing is compiled yet."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *section],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", ONE_CORE: str(int(one_core))},
    )
    return json.loads(done.stdout.splitlines()[-1])


def _run_section(name: str, *arguments: str) -> None:
    if os.environ.get(ONE_CORE) == "1":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    configure_jax()
    section = importlib.import_module(f"bench.{name}")
    print(json.dumps([table.to_json() for table in section.tables(*arguments)]))


def _machine() -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    return {
        "device": _cpu_name() if cpu else device.device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
