"""Signals: the first one asks, the second one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from optim4rl.cli.signals import (
    StoppedBySignalError,
    keeping,
    keeps_work,
    stop_in_order,
    stop_now,
)

# Busy as JAX is: outside of Python, where no handler of Python's is called before the work is done.
BUSY = """
import hashlib
from optim4rl.cli.signals import stop_in_order
with stop_in_order(lambda: "never") as stop:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks(number, code, capfd):
    before = signal.getsignal(number)
    with stop_in_order(lambda: "the chunk is finished") as stop:
        stop.raise_if_asked()
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedBySignalError, match=number.name) as error:
            stop.raise_if_asked()
    assert error.value.code == code
    assert (
        "stopping: the chunk is finished; a second signal stops at once" in capfd.readouterr().err
    )
    assert signal.getsignal(number) is before


def test_what_can_be_abandoned_stops_where_it_is():
    went_on = []

    def work():
        with stop_now("abandoned"):
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(True)

    with pytest.raises(StoppedBySignalError):
        work()
    assert went_on == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_busy_process_answers_the_first_signal_and_ends_at_the_second(second):
    with subprocess.Popen(
        [sys.executable, "-u", "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "stopping: never; a second signal stops at once\n"
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=30) == 128 + second
        assert process.stderr.read() == ""


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, lambda: StoppedBySignalError(15), OSError])
def test_what_stops_a_command_tells_whether_it_can_go_on(kind, kept):
    kinds = (KeyboardInterrupt, StoppedBySignalError, OSError)
    with pytest.raises(kinds) as stopped, keeping(lambda: kept):
        raise kind()
    assert keeps_work(stopped.value) == kept
    assert not keeps_work(kind())


def test_other_threads_leave_signals_alone():
    asked = []

    def work():
        with stop_in_order(lambda: "never") as stop:
            asked.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [0]
