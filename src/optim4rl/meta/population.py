"""A population of agents: in chunks that fit into memory, sharded over the devices of a mesh.

The meta-gradient is a mean over agents, which share nothing but the rule. So they are advanced a
chunk at a time, each chunk's meta-gradient added to the sum, and every device has its own share of
them; one collective averages the meta-gradients. None of it changes what is computed: an agent's
random numbers are its own, whatever the chunk and the device.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Key, PRNGKeyArray

from optim4rl.meta.meta_gradient import (
    Agents,
    MetaGradient,
    Validation,
    init_agents,
    truncated_meta_gradient,
)
from optim4rl.optimizers.kernels.interface import KernelName
from optim4rl.optimizers.kernels.select import choose
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec
from optim4rl.tasks.interface import InnerTask

AXIS = "agents"
SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


@dataclass(frozen=True)
class Execution:
    """How meta-training runs; what it computes is the same, to float tolerance.

    Attributes:
        mesh: devices that the agents are sharded over, along one axis; None is the first device.
        agents_per_chunk: agents of a task that a device advances side by side, at most; None: all.
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
        """The mesh, of one device where none is given."""
        return self.mesh if self.mesh is not None else agents_mesh(1)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """That partition on these devices."""
        return NamedSharding(self.devices, spec)

    def chunk(self, num_agents: int) -> int:
        """Agents side by side on one device: the largest equal share within `agents_per_chunk`.

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
    """A mesh of that many devices, of all processes; None: all there are.

    Raises:
        ValueError: there are not as many.
    """
    devices = jax.devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise ValueError(f"devices = {num_devices!r}: 1 to {len(devices)} are there")
    return Mesh(np.asarray(devices[:num_devices]), (AXIS,))


def advance(
    spec: OptimizerSpec,
    meta_parameters: MetaParameters,
    task: InnerTask,
    agents: Agents,
    fresh: Bool[Array, " M"],
    key: PRNGKeyArray,
    *,
    learning_rate: float,
    inner_updates: int,
    validation: Validation,
    execution: Execution,
) -> MetaGradient:
    """Reset the agents that are to be `fresh`, then `truncated_meta_gradient` of all.

    Returns:
        The mean meta-gradient, the agents after it, and stats summed over rollouts and agents.

    Raises:
        ValueError: the agents cannot be shared out evenly over the devices, or the kernel cannot
            run the rule.
    """
    num_agents = fresh.shape[0]
    chunk = execution.chunk(num_agents)
    window = partial(
        truncated_meta_gradient,
        learning_rate=learning_rate,
        inner_updates=inner_updates,
        validation=validation,
        kernel=choose(spec, execution.kernel),
    )

    def advance_chunk(
        meta_parameters: MetaParameters, agents: Agents, fresh: Array, keys: Array
    ) -> MetaGradient:
        key_init, key_rollouts = jax.vmap(jax.random.split, out_axes=1)(keys)
        agents = _reset(spec, task, agents, fresh, key_init)
        result = window(spec, meta_parameters, task, agents, key_rollouts)
        share = chunk / num_agents
        return MetaGradient(
            jax.tree.map(lambda x: share * x, result.gradient),
            result.agents,
            jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), result.stats),
        )

    def advance_share(
        meta_parameters: MetaParameters, agents: Agents, fresh: Array, keys: Array
    ) -> MetaGradient:
        """A device's own agents, chunk by chunk, each written back where it was read."""

        def add(index: Array, total: MetaGradient) -> MetaGradient:
            def read(x: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk)

            def write(whole: Array, part: Array) -> Array:
                return jax.lax.dynamic_update_slice_in_dim(whole, part, index * chunk, 0)

            part = advance_chunk(meta_parameters, *jax.tree.map(read, (total.agents, fresh, keys)))
            return MetaGradient(
                jax.tree.map(jnp.add, total.gradient, part.gradient),
                jax.tree.map(write, total.agents, part.agents),
                jax.tree.map(jnp.add, total.stats, part.stats),
            )

        first = jax.tree.map(lambda x: x[:chunk], (agents, fresh, keys))
        sums = jax.eval_shape(advance_chunk, meta_parameters, *first)
        gradient, stats = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), (sums.gradient, sums.stats)
        )
        total = MetaGradient(gradient, agents, stats)
        total = jax.lax.fori_loop(0, fresh.shape[0] // chunk, add, total)
        return total._replace(
            gradient=jax.lax.psum(total.gradient, AXIS), stats=jax.lax.psum(total.stats, AXIS)
        )

    sharded = jax.shard_map(
        advance_share,
        mesh=execution.devices,
        in_specs=(REPLICATED, SHARDED, SHARDED, SHARDED),
        out_specs=MetaGradient(REPLICATED, SHARDED, REPLICATED),  # type: ignore[arg-type]
        # The kernels are opaque to the check of what varies over devices.
        check_vma=False,
    )
    return sharded(meta_parameters, agents, fresh, jax.random.split(key, num_agents))


def _reset(
    spec: OptimizerSpec,
    task: InnerTask,
    agents: Agents,
    fresh: Bool[Array, " M"],
    keys: Key[Array, " M"],
) -> Agents:
    """Start the agents under the mask anew; nothing is computed for the others."""

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
