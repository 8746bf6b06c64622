"""How a command stops when it is told to: in order at the first signal, at once at the second.

SIGINT is Ctrl-C; SIGTERM is what Slurm, Kubernetes and shutdowns send some seconds before SIGKILL.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignalError(Exception):
    """A command that a signal has stopped in order; `code` is what it exits with."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """Whether a signal has asked to stop, for loops to look at."""

    def __init__(self) -> None:
        self.number = 0

    def raise_if_asked(self) -> None:
        """Raise `StoppedBySignalError` if there was a signal; called where nothing is half done."""
        if self.number:
            raise StoppedBySignalError(self.number)


def stop_now(doing: str) -> AbstractContextManager[StopRequest]:
    """Raise `StoppedBySignalError` in the main thread, whatever it is at, at the first signal."""
    return stop_in_order(doing, StopRequest.raise_if_asked)


@contextmanager
def stop_in_order(
    doing: str, on_stop: Callable[[StopRequest], None] = lambda request: None
) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second one ends the process.

    Args:
        doing: what becomes of what is in flight, for the message.
        on_stop: called when the first signal comes, in the main thread; it may raise.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if request.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.number = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\nstopping: {doing}; once more stops at once\n".encode())
        on_stop(request)

    if threading.current_thread() is not threading.main_thread():
        yield request  # Signals are the main thread's.
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
