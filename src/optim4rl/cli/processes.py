"""Join several processes to one run: by hand, under Slurm or Open MPI, or as a Kubernetes Job.

Each process waits for the others at every collective, so the loss of one ends all. JAX then aborts
the others from its own thread, without a message for users. So the run is a child process, and its
parent says what happened.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

COORDINATOR, PROCESSES, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "OPTIM4RL_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
)


@dataclass(frozen=True)
class ProcessOptions:
    """Several processes that share one run; each gets the same command line.

    Attributes:
        distributed: find the others through Slurm's or Open MPI's variables, or in a Kubernetes
            indexed Job through JAX_COORDINATOR_ADDRESS, OPTIM4RL_NUM_PROCESSES and its index.
        coordinator: by hand: HOST:PORT of process 0.
        num_processes: by hand: how many processes there are.
        process_id: by hand: the number of this process, from 0.
    """

    distributed: bool = False
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1


# Seconds after which a silent process counts as lost, and seconds to wait for others at the end.
SILENCE, FAREWELL = 60, 120
# The child's exit code when it has noticed that another process is lost.
_LOST = 75
# Errors of a lost process name one of these channels between processes.
_CHANNELS = ("Gloo", "NCCL", "coordination service", "CoordinationService")


class LostProcessError(RuntimeError):
    """The run has lost one of its processes."""


def join(options: ProcessOptions) -> None:
    """Connect to the other processes, if there are any.

    The caller goes on in a child process; the parent ends with it.

    Raises:
        ValueError: an option or a variable is missing or wrong; the message names it.
        LostProcessError: in the parent, when the run has lost a process.
        SystemExit: in the parent, when the run is over.
    """
    found = membership(options, os.environ)
    if found is None:
        return
    _go_on_in_a_child()
    import jax

    jax.distributed.initialize(
        *found, heartbeat_timeout_seconds=SILENCE, shutdown_timeout_seconds=FAREWELL
    )


def _go_on_in_a_child() -> None:
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # Ctrl-C is for the parent, which passes it on: once, not twice.
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent.
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (_LOST, -signal.SIGABRT):
        raise LostProcessError(
            "the run has lost another process, so all processes end. The last checkpoint is kept: "
            "continue with --resume, on any number of processes"
        )
    sys.exit(code if code >= 0 else 128 - code)


@contextmanager
def noticing_losses() -> Iterator[None]:
    """End this process at once when an error says that another one is lost."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        from jax import process_count

        if process_count() == 1 or not any(name in str(error) for name in _CHANNELS):
            raise
        # Not an orderly exit, in which JAX would wait for the lost process.
        print(f"\n{str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        os._exit(_LOST)


def membership(
    options: ProcessOptions, environment: Mapping[str, str]
) -> tuple[str | None, int | None, int | None] | None:
    """Return coordinator, number of processes and index.

    None: one process. A tuple of None: detect automatically.

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
            "distributed = True: no variables of Slurm, Open MPI or a Kubernetes indexed Job are "
            "set; give --coordinator, --num-processes and --process-id"
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
