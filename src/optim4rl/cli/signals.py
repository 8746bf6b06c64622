"""Stop a command: in order at the first signal, at once at the second.

SIGINT is Ctrl-C; SIGTERM is what Slurm, Kubernetes and shutdowns send some seconds before SIGKILL.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A note on an error: finished work is in files, and the same command continues from there.
_KEPT = "finished work is kept"


class StoppedBySignalError(Exception):
    """A signal has stopped the command in order; `code` is its exit code."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """Hold the signal that asked to stop, for loops to check; 0 for none."""

    def __init__(self) -> None:
        self.number = 0

    def raise_if_asked(self) -> None:
        """Raise `StoppedBySignalError` if there was a signal; call it when nothing is half done."""
        if self.number:
            raise StoppedBySignalError(self.number)


@contextmanager
def keeping(is_kept: Callable[[], bool]) -> Iterator[None]:
    """Note on any error that stops the block that finished work is kept, if so.

    Args:
        is_kept: returns whether the command's folder has finished work.
    """
    try:
        yield
    except BaseException as error:
        if is_kept():
            error.add_note(_KEPT)
        raise


def keeps_work(error: BaseException) -> bool:
    """Return whether a command that this error stopped can continue from finished work."""
    return _KEPT in getattr(error, "__notes__", ())


def stop_now(doing: str) -> AbstractContextManager[StopRequest]:
    """Raise `StoppedBySignalError` in the main thread at the first signal, whatever it is doing."""
    return stop_in_order(lambda: doing, StopRequest.raise_if_asked)


@contextmanager
def stop_in_order(
    doing: Callable[[], str], on_stop: Callable[[StopRequest], None] = lambda request: None
) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second one ends the process.

    Python's handlers wait until the main thread has finished JAX's computation. So another thread,
    which learns of signals at once, answers them.

    Args:
        doing: returns what happens to work in flight, for the message.
        on_stop: called in the main thread when the first signal comes; it may raise.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Only the main thread gets signals.
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        request.number = request.number or number
        on_stop(request)

    def answer(pipe: int) -> None:
        heard = (number for (number,) in iter(lambda: os.read(pipe, 1), b"") if number in SIGNALS)
        for number in heard:
            request.number = request.number or number
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\nstopping: {doing()}; a second signal stops at once\n".encode())
            break
        for number in heard:
            os._exit(128 + number)

    pipe, bell = os.pipe()
    os.set_blocking(bell, False)
    thread = threading.Thread(target=answer, args=(pipe,), daemon=True)
    thread.start()
    bell_before = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(bell_before)
        os.close(bell)
        thread.join()
        os.close(pipe)
