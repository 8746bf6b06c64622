"""Predict the memory of meta-training before anything is compiled or run.

The program of one meta-iteration is traced, and the arrays that are alive at once are added up
equation by equation. Tracing takes a second or two and allocates nothing.
"""

import contextlib
import dataclasses
import math
import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from optim4rl.meta.population import Execution
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, iterate
from optim4rl.optimizers.rule import OptimizerSpec

# Memory of a process on a CPU beside the program: Python, JAX, and XLA while it compiles.
PROCESS_BYTES = 700 * 2**20

# On a CPU, chunks with more work than this are no faster, and smaller ones use its cache better:
# big_dense_long took 3.3 to 3.6 s an iteration with 1, 8 and 32 agents to a chunk.
USEFUL_WORK_BYTES = 512 * 2**20

# The trace does not know how XLA fuses and lays out. On Catch and grid worlds, from few agents side
# by side to all of them, XLA's own figure was 0.7 to 1.4 times the trace's.
SLACK = 1.3

# If the next equation reads these results element by element, XLA gives them no memory.
_ELEMENTWISE = frozenset(
    """abs add add_any and atan2 broadcast_in_dim ceil clamp convert_element_type copy cos div eq
    erf_inv exp exp2 expm1 floor ge gt integer_pow iota is_finite le log log1p logistic lt max min
    mul ne neg nextafter not or pow random_bits random_fold_in random_unwrap random_wrap rem
    reshape round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin
    sqrt square squeeze stop_gradient sub tanh threefry2x32 transpose xor""".split()  # noqa: SIM905
)
_READS_ELEMENTWISE = _ELEMENTWISE | frozenset(
    """argmax argmin concatenate reduce_and reduce_max reduce_min reduce_or reduce_sum
    slice""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of a process in meta-training, in bytes.

    Attributes:
        process: Python, JAX and the compiler; none of it on a GPU.
        state: agents, their optimizers and environments, and the rule.
        work: memory of one meta-iteration beside the state, at its peak.
        agents_per_chunk: agents side by side on each device.
    """

    process: int
    state: int
    work: int
    agents_per_chunk: int

    @property
    def peak(self) -> int:
        """Return the total."""
        return self.process + self.state + self.work


class OutOfMemoryError(ValueError):
    """The run would not fit; the message says by how much, and how to make it fit."""


def predict(
    spec: OptimizerSpec, tasks: tuple[MetaTask, ...], config: MetaConfig, execution: Execution
) -> MemoryPlan:
    """Return the memory that this process needs, for all of its local devices together."""
    local = sum(d.process_index == jax.process_index() for d in execution.devices.devices.flat)
    share = tuple(_one_device(task, config, execution) for task in tasks)
    chunk = dataclasses.replace(execution, mesh=None)
    state = jax.eval_shape(partial(init, spec, share, config))
    program = jax.make_jaxpr(partial(iterate, spec, share, config, execution=chunk))(state)
    work = round(SLACK * peak_bytes(program.jaxpr, donated=True))
    on_cpu = jax.default_backend() == "cpu"
    return MemoryPlan(
        process=PROCESS_BYTES if on_cpu else 0,
        state=local * sum(map(_array_bytes, jax.tree.leaves(state))),
        work=local * work,
        agents_per_chunk=execution.chunk(_most_agents(tasks, config)),
    )


def choose_chunk(
    spec: OptimizerSpec,
    tasks: tuple[MetaTask, ...],
    config: MetaConfig,
    execution: Execution,
    available: int,
) -> MemoryPlan:
    """Return the plan with the largest chunk of agents that fits and, on a CPU, is still useful.

    Args:
        execution: its `agents_per_chunk`, if given, is the largest chunk, and on a CPU no smaller
            one is chosen for speed.
        available: bytes that the process may use.

    Raises:
        OutOfMemoryError: not even one agent at a time fits.
    """
    most = _most_agents(tasks, config)
    limit = min(execution.agents_per_chunk or most, most)
    halves = [limit >> n for n in range(limit.bit_length())]
    sizes = sorted({_limited(execution, size).chunk(most) for size in halves})

    @cache
    def plan(index: int) -> MemoryPlan:
        return predict(spec, tasks, config, _limited(execution, sizes[index]))

    useful = math.inf
    if execution.agents_per_chunk is None and jax.default_backend() == "cpu":
        useful = USEFUL_WORK_BYTES

    def too_large(index: int) -> bool:
        return plan(index).peak > available or plan(index).work > useful

    last = len(sizes) - 1
    if not too_large(last):
        return plan(last)
    if plan(0).peak > available:
        raise OutOfMemoryError(
            f"agents = {most}: one at a time still needs {gib(plan(0).peak)}, of which "
            f"{gib(plan(0).state)} is the agents' own state, but {gib(available)} are free. Fewer "
            "agents, a narrower network (width) or a smaller rule (hidden_size) need less; more "
            "processes share it."
        )
    return plan(max(bisect_left(range(last), True, key=too_large) - 1, 0))


def available_bytes() -> int:
    """Return the free memory for this process: on its devices, or on the machine with a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return len(jax.local_devices()) * int(stats["bytes_limit"])
    free = [_meminfo("MemAvailable") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = Path("/sys/fs/cgroup")
    # A container may have a limit of its own.
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used)
    return int(min(free))


def _meminfo(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def gib(number: int) -> str:
    """Return bytes in words."""
    return f"{number / 2**30:.2f} GiB"


def peak_bytes(jaxpr: Jaxpr, donated: bool = False) -> int:
    """Return the most bytes alive at once while a program runs, beside its inputs.

    Args:
        jaxpr: the program.
        donated: whether the program may write results over its inputs.
    """
    last_use = _last_uses(jaxpr)
    materialised = _materialised(jaxpr)
    owned: dict[Var, int] = {v: _array_bytes(v.aval) for v in jaxpr.invars} if donated else {}
    held = sum(owned.values())
    inputs, peak = held, held
    for index, equation in enumerate(jaxpr.eqns):
        dying = {v for v in _variables(equation) if v in owned and last_use[v] == index}
        produced = {v: _array_bytes(v.aval) for v in equation.outvars if v in materialised}
        reused = _reused(equation, [owned[v] for v in dying], list(produced.values()))
        peak = max(peak, held + sum(produced.values()) - reused + _inner_peak(equation))
        held += sum(produced.values()) - sum(owned.pop(v) for v in dying)
        owned |= {v: size for v, size in produced.items() if last_use.get(v, index) > index}
        held -= sum(size for v, size in produced.items() if v not in owned)
    return peak - inputs


def _one_device(task: MetaTask, config: MetaConfig, execution: Execution) -> MetaTask:
    """Return the task with one device's share of its agents."""
    settings = task.settings(config)
    execution.chunk(settings.agents)
    share = settings.agents // execution.devices.size
    if settings.estimator != "truncated":
        share += share % 2  # the two agents of a pair may lie on two devices
    return dataclasses.replace(task, agents=share)


def _most_agents(tasks: tuple[MetaTask, ...], config: MetaConfig) -> int:
    return max(task.settings(config).agents for task in tasks)


def _limited(execution: Execution, size: int) -> Execution:
    return Execution(execution.mesh, size, execution.kernel)


def _array_bytes(array: Any) -> int:
    if not hasattr(array, "shape"):
        return 0
    return math.prod(array.shape) * array.dtype.itemsize


def _variables(equation: JaxprEqn) -> set[Var]:
    return {v for v in equation.invars if not isinstance(v, Literal)}


def _last_uses(jaxpr: Jaxpr) -> dict[Any, int]:
    """Return the last equation that reads each variable; results are read at the end."""
    last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in _variables(equation)}
    return last | {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}


def _materialised(jaxpr: Jaxpr) -> set[Any]:
    """Return the variables that take memory, without those that XLA fuses away."""
    readers: dict[Any, list[str]] = {}
    for equation in jaxpr.eqns:
        for v in _variables(equation):
            readers.setdefault(v, []).append(equation.primitive.name)
    results = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    fused = {
        v
        for equation in jaxpr.eqns
        if equation.primitive.name in _ELEMENTWISE
        for v in equation.outvars
        if v not in results and all(name in _READS_ELEMENTWISE for name in readers.get(v, []))
    }
    return {v for equation in jaxpr.eqns for v in equation.outvars} - fused


def _reused(equation: JaxprEqn, dying: list[int], produced: list[int]) -> int:
    """Return the bytes of results that can overwrite operands which are not read again."""
    if equation.primitive.name in ("dot_general", "gather", "concatenate", "transpose"):
        return 0
    reused = 0
    for size in produced:
        if size in dying:
            dying.remove(size)
            reused += size
    return reused


def _inner_peak(equation: JaxprEqn) -> int:
    """Return the bytes that bodies of loops, branches and calls need beside their inputs."""
    # A loop or a branch owns its operands, so it may overwrite them.
    return max((peak_bytes(inner, donated=True) for inner in _inner_programs(equation)), default=0)


def _inner_programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if isinstance(inner, Jaxpr):
                yield inner
