"""Chunks of meta-training are as long as a few seconds, whatever an iteration takes."""

import pytest

from optim4rl.cli.pace import MOST_ITERATIONS, Pace


class Clock:
    """A clock that goes as it is told to."""

    def __init__(self):
        self.now = self.compiled = 0.0


def chunks(each, count, *, saving=0.0, compiling=0.0, fixed=None):
    """The sizes of the first chunks of iterations that take so many seconds, and the pace."""
    clock = Clock()
    pace = Pace(fixed, lambda: clock.compiled, lambda: clock.now)
    sizes = []
    for chunk in range(count):
        sizes.append(pace.start())
        clock.compiled += compiling * (chunk == 0)
        seconds = sizes[-1] * each + compiling * (chunk == 0)
        clock.now += seconds + saving
        pace.note(sizes[-1], seconds)
    pace.start()
    return sizes, pace, clock


@pytest.mark.parametrize(
    ("each", "sizes"),
    [
        (0.001, [1, 4, 16, 64, MOST_ITERATIONS, MOST_ITERATIONS]),
        (0.1, [1, 4, 16, 50, 50, 50]),
        (2.0, [1, 2, 2, 2, 2, 2]),
        (600.0, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_chunk_takes_about_five_seconds(each, sizes):
    assert chunks(each, 6, compiling=40.0)[0] == sizes


def test_a_checkpoint_that_is_slow_to_write_is_written_less_often():
    assert chunks(0.1, 6, saving=2.0)[0][-1] == 80
    assert chunks(0.1, 6, saving=60.0)[0][-1] == MOST_ITERATIONS  # of fifteen seconds 150 would do


def test_a_size_that_is_given_stays():
    sizes, pace, _ = chunks(3.0, 4, fixed=7)
    assert sizes == [7] * 4
    assert pace.most == 7


def test_it_says_how_long_the_chunk_in_flight_takes():
    assert "its time is not known yet" in chunks(2.0, 0)[1].ending()
    _, pace, clock = chunks(2.0, 3, saving=1.0)
    assert pace.ending() == "the chunk in flight is finished and saved (about 5 s)"
    clock.now += 3.0
    assert pace.ending().endswith("(about 2 s)")
    clock.now += 60.0
    assert pace.ending().endswith("(about 1 s)")


def test_it_says_what_is_left():
    assert chunks(2.0, 1)[1].left(10) is None
    assert chunks(0.01, 3)[1].left(10) is None
    assert chunks(0.001, 4)[1].left(1000) == pytest.approx(1.0)
    assert chunks(2.0, 3, saving=1.0)[1].left(10) == pytest.approx(10 * (2.0 + 0.5))
