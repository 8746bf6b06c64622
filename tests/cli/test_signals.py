"""Signals: the first one asks, the second one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from optim4rl.cli.signals import StoppedBySignalError, stop_in_order, stop_now

BUSY = """
import os, signal, time
from optim4rl.cli.signals import stop_in_order
with stop_in_order("never") as stop:
    for number in ({numbers}):
        os.kill(os.getpid(), number)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks(number, code, capfd):
    before = signal.getsignal(number)
    with stop_in_order("the chunk is finished") as stop:
        stop.raise_if_asked()
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedBySignalError, match=number.name) as error:
            stop.raise_if_asked()
    assert error.value.code == code
    assert "stopping: the chunk is finished; once more stops at once" in capfd.readouterr().err
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
def test_the_second_signal_ends_the_process(second):
    program = BUSY.format(numbers=f"{int(signal.SIGTERM)}, {int(second)}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == -second
    assert b"Traceback" not in done.stderr


def test_other_threads_leave_signals_alone():
    asked = []

    def work():
        with stop_in_order("never") as stop:
            asked.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [0]
