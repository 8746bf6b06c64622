"""A population of agents, sharded over devices and advanced in chunks that fit into memory.

A meta-gradient is a mean over agents, which share only the rule. So every device advances its share
of the agents, a chunk at a time, and adds up their meta-gradients; one collective adds up the sums
of the devices. This changes nothing in the result: an agent's random numbers depend on neither
chunk nor device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Key

from optim4rl.meta.agents import Agents, init_agents
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.rule import OptimizerSpec
from optim4rl.tasks.interface import InnerTask

AXIS = "agents"
SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()

Shared = TypeVar("Shared")
Units = TypeVar("Units")
Given = TypeVar("Given")
Sums = TypeVar("Sums")


@dataclass(frozen=True)
class Execution:
    """The devices, chunks and kernel of a run. Results do not depend on them, to float tolerance.

    Attributes:
        mesh: devices that the agents are sharded over, along one axis; None is the first device.
        agents_per_chunk: the most agents of a task that a device advances side by side; None: all.
        kernel: the implementation of the rule.
    """

    mesh: Mesh | None = None
    agents_per_chunk: int | None = None
    kernel: KernelName = "auto"

    def __post_init__(self) -> None:
        size = self.agents_per_chunk
        if size is not None and (isinstance(size, bool) or size < 1):
            raise ValueError(f"agents_per_chunk = {size!r}: at least 1 agent, or None for all")
        if self.mesh is not None and self.mesh.axis_names != (AXIS,):
            raise ValueError(f"mesh = {self.mesh!r}: a mesh with the one axis {AXIS!r} is needed")

    @property
    def devices(self) -> Mesh:
        """Return the mesh; without one, a mesh of the first device."""
        return self.mesh if self.mesh is not None else agents_mesh(1)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Return the sharding with this partition on these devices."""
        return NamedSharding(self.devices, spec)

    def chunk(self, num_agents: int) -> int:
        """Return how many agents a device advances at once: the largest equal share in the limit.

        Raises:
            ValueError: the agents cannot be shared out evenly over the devices.
        """
        devices = self.devices.size
        if num_agents % devices:
            raise ValueError(
                f"agents = {num_agents!r}: {devices} devices need a multiple of {devices}"
            )
        share = num_agents // devices
        limit = min(self.agents_per_chunk or share, share)
        return max(size for size in range(1, limit + 1) if share % size == 0)


def agents_mesh(num_devices: int | None = None) -> Mesh:
    """Return a mesh of this many devices, over all processes; None: all devices.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise ValueError(f"devices = {num_devices!r}: a number from 1 to {len(devices)} is needed")
    return Mesh(np.asarray(devices[:num_devices]), (AXIS,))


def share_out(
    work: Callable[[Shared, Units, Given], tuple[Sums, Units]],
    shared: Shared,
    units: Units,
    given: Given,
    execution: Execution,
) -> tuple[Sums, Units]:
    """Do the work for all agents, chunk by chunk on every device.

    Args:
        work: `(shared, units, given) -> (sums, units)` of some agents.
        shared: values that the work reads for all agents.
        units: the agents, or values with one entry for each agent; every array has a leading axis
            for them. The work's results replace them.
        given: further arrays with one entry for each agent; they are only read.
        execution: devices and chunks.

    Returns:
        The sums over all agents, and the units afterwards.

    Raises:
        ValueError: the agents cannot be shared out evenly over the devices.
    """
    chunk = execution.chunk(_count(units))

    def work_share(shared: Shared, units: Units, given: Given) -> tuple[Sums, Units]:
        """Advance one device's agents, and write each back to its place."""

        def add(index: Array, total: tuple[Sums, Units]) -> tuple[Sums, Units]:
            def read(x: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk)

            def write(whole: Array, part: Array) -> Array:
                return jax.lax.dynamic_update_slice_in_dim(whole, part, index * chunk, 0)

            sums, units = total
            more, part = work(shared, *jax.tree.map(read, (units, given)))
            return jax.tree.map(jnp.add, sums, more), jax.tree.map(write, units, part)

        first = jax.tree.map(lambda x: x[:chunk], (units, given))
        shapes, _ = jax.eval_shape(work, shared, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, units = jax.lax.fori_loop(0, _count(units) // chunk, add, (zeros, units))
        return jax.lax.psum(sums, AXIS), units

    return jax.shard_map(
        work_share,
        mesh=execution.devices,
        in_specs=(REPLICATED, SHARDED, SHARDED),
        out_specs=(REPLICATED, SHARDED),
        # The check of values that vary over devices cannot see into kernels.
        check_vma=False,
    )(shared, units, given)


def _count(units: Any) -> int:
    return int(jax.tree.leaves(units)[0].shape[0])


def reset_agents(
    spec: OptimizerSpec,
    task: InnerTask,
    agents: Agents,
    fresh: Bool[Array, " M"],
    keys: Key[Array, " M"],
) -> Agents:
    """Replace the agents under the mask by fresh ones; compute nothing for the others."""

    def restart(agent: tuple[Any, Array, Agents]) -> Agents:
        fresh, key, agent_now = agent

        def init() -> Agents:
            return jax.tree.map(lambda x: x[0], init_agents(spec, task, key[None]))

        return jax.lax.cond(fresh, init, lambda: agent_now)

    return jax.lax.cond(
        jnp.any(fresh),
        lambda agents: jax.lax.map(restart, (fresh, keys, agents)),
        lambda agents: agents,
        agents,
    )
