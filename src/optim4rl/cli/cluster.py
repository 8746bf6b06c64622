"""Several processes as one run: by hand, under Slurm or Open MPI, or as a Kubernetes Job."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

COORDINATOR, PROCESSES, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "OPTIM4RL_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
)


@dataclass(frozen=True)
class ClusterOptions:
    """Several processes that share one run; every one of them gets the same command line.

    Attributes:
        distributed: find the others through Slurm's or Open MPI's variables, or in a Kubernetes
            indexed Job through JAX_COORDINATOR_ADDRESS, OPTIM4RL_NUM_PROCESSES and its index.
        coordinator: by hand: HOST:PORT of process 0.
        num_processes: by hand: how many processes there are.
        process_id: by hand: which of them this is, from 0.
    """

    distributed: bool = False
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1


def join(options: ClusterOptions) -> None:
    """Connect to the other processes, where there are to be others.

    Raises:
        ValueError: an option or a variable is missing or wrong; the message names it.
    """
    found = membership(options, os.environ)
    if found is None:
        return
    import jax

    jax.distributed.initialize(*found)


def membership(
    options: ClusterOptions, environment: Mapping[str, str]
) -> tuple[str | None, int | None, int | None] | None:
    """Coordinator, number of processes and index; None where alone, Nones that JAX finds itself.

    Raises:
        ValueError: an option or a variable is missing or wrong; the message names it.
    """
    by_hand = options.coordinator or options.num_processes or options.process_id >= 0
    if by_hand:
        return _checked(
            ("coordinator", options.coordinator),
            ("num_processes", str(options.num_processes)),
            ("process_id", str(options.process_id)),
        )
    if not options.distributed:
        return None
    if INDEX in environment:
        return _checked(
            *((name, environment.get(name, "")) for name in (COORDINATOR, PROCESSES, INDEX))
        )
    if not {"SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"} & environment.keys():
        raise ValueError(
            "distributed = True: neither Slurm's, Open MPI's nor a Kubernetes indexed Job's "
            "variables are there; give --coordinator, --num-processes and --process-id"
        )
    return None, None, None


def _checked(
    coordinator: tuple[str, str], processes: tuple[str, str], index: tuple[str, str]
) -> tuple[str, int, int]:
    (name, address), (name_processes, count), (name_index, which) = coordinator, processes, index
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{name} = {address!r}: HOST:PORT of process 0 is needed")
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"{name_processes} = {count!r}: the number of processes is needed")
    if not which.isdigit() or int(which) >= int(count):
        raise ValueError(f"{name_index} = {which!r}: a number from 0 to {int(count) - 1} is needed")
    return address, int(count), int(which)
