"""Time left: from the first jobs on, with compilation told from work."""

import pytest

from optim4rl.jobs.forecast import Forecast, kinds_first
from optim4rl.jobs.job import Job


def jobs(kind, programs, each, work=1.0):
    """As many jobs of each program."""
    return [
        Job("optim4rl.none:none", {}, f"{index}", (kind, program), (), kind, work)
        for program in range(programs)
        for index in range(each)
    ]


def took(job, seen, rates, compiling):
    """What a worker takes for a job."""
    seconds = rates[job.kind] * job.work + compiling * (job.program not in seen)
    seen.add(job.program)
    return seconds


def test_nothing_is_known_before_a_job_is_done():
    assert Forecast(jobs("a", 1, 3)).left() is None


def test_the_second_job_of_a_program_says_how_long_the_others_take():
    first, *others = jobs("a", 1, 5, work=2.0)
    forecast = Forecast([first, *others])
    forecast.note(first, 60.0)  # It was compilation, mostly.
    assert forecast.left() == pytest.approx(4 * 2.0)
    forecast.note(others[0], 6.0)
    assert forecast.left() == pytest.approx(3 * 6.0)


def test_a_long_first_job_was_not_compilation_alone():
    """Nobody is told minutes when jobs take a quarter of an hour."""
    first, *others = jobs("a", 1, 5, work=2.0)
    forecast = Forecast([first, *others])
    forecast.note(first, 900.0)
    assert forecast.left() == pytest.approx(4 * 840.0)
    forecast.note(others[0], 850.0)
    assert forecast.left() == pytest.approx(3 * 850.0)


def test_a_kind_that_has_run_again_tells_more_than_another_kinds_first_job():
    (long, *_), (short, *rest) = jobs("a", 1, 3), jobs("b", 1, 3)
    forecast = Forecast([*jobs("a", 1, 3), short, *rest])
    for job, seconds in ((long, 160.0), (short, 3.0), (rest[0], 2.0)):
        forecast.note(job, seconds)
    assert forecast.left() == pytest.approx(2 * 100.0 + 2.0)


def test_programs_that_are_still_to_be_compiled_count():
    wanted = jobs("a", 4, 3)
    forecast, seen = Forecast(wanted), set()
    for job in wanted[:3]:
        forecast.note(job, took(job, seen, {"a": 1.0}, compiling=10.0))
    assert forecast.left() == pytest.approx(9 * 1.0 + 3 * 10.0)


def test_jobs_that_were_done_before_are_not_left():
    wanted = jobs("a", 1, 4)
    forecast = Forecast(wanted)
    forecast.skip(wanted[0])
    forecast.note(wanted[1], 3.0)
    forecast.note(wanted[2], 3.0)
    assert forecast.left() == pytest.approx(3.0)
    forecast.expect(wanted[2:])
    assert forecast.left() == pytest.approx(2 * 3.0)


@pytest.mark.parametrize("compiling", [0.0, 5.0, 60.0])
def test_after_a_tenth_of_the_jobs_the_time_left_is_right_within_a_factor_of_two(compiling):
    """Two kinds, one of which takes three times what it says, in the order of the programs."""
    wanted = kinds_first(jobs("a", 20, 6, work=2.0) + jobs("b", 20, 6, work=1.0))
    rates = {"a": 1.0, "b": 3.0}
    forecast, seen, left = Forecast(wanted), set(), []
    for job in wanted:
        seconds = took(job, seen, rates, compiling)
        forecast.note(job, seconds)
        left.append((seconds, forecast.left()))
    for done in range(len(wanted) // 10, len(wanted)):
        actual = sum(seconds for seconds, _ in left[done + 1 :])
        assert left[done][1] == pytest.approx(actual, abs=1e-6) or 0.5 < left[done][1] / actual < 2
