"""Numbers in words: nothing is rounded to a share that it is not."""

import pytest

from optim4rl.pages.words import percent, percent_range, plain


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (0.0003, "< 0.1 %"),
        (0.004, "0.4 %"),
        (0.5, "50 %"),
        (0.996, "99.6 %"),
        (0.9997, "> 99.9 %"),
        (1.0, "100 %"),
        (float("nan"), "–"),
    ],
)
def test_only_exact_shares_are_0_and_100_percent(share, shown):
    assert percent(share) == shown


def test_a_range_has_one_sign():
    assert percent_range(0.25, 0.5) == "25 to 50 %"


def test_negative_settings_have_a_minus():
    assert [plain(x) for x in (-1.5, -0.5, 1e-5)] == ["−1.5", "−0.5", "1e−05"]
