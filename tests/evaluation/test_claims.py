"""The one rule of claims: interval and corrected test, and what so few runs could have found."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.evaluation.claims import holm, judge, smallest_effect
from optim4rl.evaluation.returns import SIGNIFICANCE, Comparison, Estimate, compare

# Holm's correction


def test_holm_by_hand() -> None:
    """Sorted, 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which is raised to the one before."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


P_VALUES = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), max_size=8)


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_procedure_rejects(ps: list[float], level: float) -> None:
    """From the smallest p on, each is held against level / (how many are left), until one fails."""
    rejected: set[int] = set()
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    for rank, index in enumerate(order):
        if ps[index] * (len(ps) - rank) > level:
            break
        rejected.add(index)
    corrected = holm(ps)
    assert {i for i, p in enumerate(corrected) if p <= level} == rejected


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order(ps: list[float], random: Any) -> None:
    """Nor is any p corrected downwards."""
    order = list(range(len(ps)))
    random.shuffle(order)
    corrected = holm(ps)
    assert holm([ps[i] for i in order]) == [corrected[i] for i in order]
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True))


# Verdicts


def scores(center: float, meta_seeds: int, *, spread: float = 0.01, seed: int = 0) -> np.ndarray:
    """Of one task and six seeds, which every optimizer shares."""
    rng = np.random.default_rng(seed)
    luck = spread * rng.normal(size=(1, meta_seeds, 1))
    return np.asarray(center + luck + 0.01 * np.arange(6)[None, None, :])


def compared(x: np.ndarray, y: np.ndarray) -> Comparison:
    """One comparison by itself."""
    return compare(x, y, "X", "Y")


CLEAR = compared(scores(1.0, 6), scores(0.5, 6, seed=1))
EQUAL = compared(scores(0.5, 6, spread=0.3), scores(0.5, 6, spread=0.3, seed=1))


@given(st.floats(-0.5, 0.5), st.sampled_from([1, 3, 4, 6]), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_one_comparison_is_judged_as_it_is_alone(gap: float, meta_seeds: int, seed: int) -> None:
    """There is nothing to correct for."""
    one = compared(scores(gap, meta_seeds, spread=0.1, seed=seed), scores(0.0, 4, seed=9))
    (claim,) = judge([one], [None])
    assert (claim.verdict, claim.p, claim.interval) == (one.verdict, one.test.p, one.difference)


def test_a_p_in_the_middle_is_corrected_away() -> None:
    """0.03 is clear, and twice that is not."""
    rng = np.random.default_rng(2)
    gap = 1.0
    while True:
        x, y = (rng.normal(size=(1, 6, 6)) * 0.3 for _ in range(2))
        one = compared(x + 0.3 * gap, y)
        if one.verdict == "clear" and one.test.p > SIGNIFICANCE / 2:
            break
    found, other = judge([one, EQUAL], [0.1, None])
    assert found.p == pytest.approx(2 * one.test.p)
    assert found.verdict == "not clear"
    assert (found.smallest_effect, other.smallest_effect) == (0.1, None)
    again, _ = judge([one, CLEAR], [None, None])  # Of two, the larger p is not corrected.
    assert (again.p, again.verdict) == (one.test.p, "clear")


def test_an_interval_that_holds_zero_is_never_clear() -> None:
    """Whatever the test says; where intervals are given, those are used."""
    around = Estimate(0.5, -0.1, 1.1)
    (claim,) = judge([CLEAR], [None], [around])
    assert (claim.verdict, claim.interval) == ("not clear", around)
    (claim,) = judge([CLEAR], [None], [Estimate(0.5, 0.1, 1.1)])
    assert claim.verdict == "clear"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_that_is_ahead_is_told(sign: int) -> None:
    """By the difference of means, and where a run diverged by who wins more often."""
    x, y = scores(1.0, 6), scores(0.5, 6, seed=1)
    (claim,) = judge([compared(*(x, y)[::sign])], [None])
    assert claim.is_higher is (sign == 1)
    x[0, 0, 0] = np.nan
    one = compared(*(x, y)[::sign])
    (claim,) = judge([one], [None], [Estimate(math.nan, math.nan, math.nan)])
    assert claim.interval == one.improvement
    assert claim.verdict == "clear"
    assert claim.is_higher is (sign == 1)


# The smallest effect


@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_the_smallest_effect_has_a_closed_form_where_there_are_many(spread: float) -> None:
    """(1.96 + 0.84) sd sqrt(1.2 x 2 / n), for n meta-seeds a side and nothing else by chance.

    1.2 is what cutting quarters costs where scores are normal.
    """
    n = 400
    rng = np.random.default_rng(0)
    x, y = (spread * rng.normal(size=(1, n, 1)) + np.zeros((1, 1, 4)) for _ in range(2))
    assert smallest_effect(x, y) == pytest.approx(2.8 * spread * math.sqrt(2.4 / n), rel=0.05)


def test_few_meta_seeds_cost_more_than_the_normal_distribution_says() -> None:
    """With three on each side Student's t has four degrees of freedom: 2.78 + 0.94 errors."""
    x, y = (np.array([0.0, 1.0, 2.0]).reshape(1, 3, 1) for _ in range(2))
    error = math.sqrt(1 / 3 + 1 / 3)
    assert smallest_effect(x, y) == pytest.approx((2.7764 + 0.9410) * error, rel=1e-4)


def test_without_chance_there_is_no_smallest_effect() -> None:
    """A diverged run, one run on each side, runs that are all the same."""
    one, many = np.zeros((1, 1, 1)), scores(0.0, 3)
    assert smallest_effect(one, one) is None
    assert smallest_effect(np.zeros((2, 3, 4)), np.zeros((2, 1, 4))) is None
    assert smallest_effect(scores(0.0, 2), many) is None
    diverged = many.copy()
    diverged[0, 0, 0] = np.nan
    assert smallest_effect(diverged, many) is None
    assert smallest_effect(many, diverged) is None


def drawn(rng: np.random.Generator, meta_seeds: int, shared: np.ndarray) -> np.ndarray:
    """Normal scores: luck of the meta-seed, of the seed, which all share, and of the run."""
    luck = rng.normal(size=(1, meta_seeds, 1))
    return np.asarray(luck + shared + 0.2 * rng.normal(size=(1, meta_seeds, shared.size)))


@pytest.mark.parametrize("sides", [(6, 6), (4, 8), (10, 1)])
def test_an_effect_of_that_size_is_found_four_times_in_five(sides: tuple[int, int]) -> None:
    """The study's own rule on simulated studies with the effect that another such study tells."""
    rng = np.random.default_rng(1)
    shared = [0.5 * rng.normal(size=8) for _ in range(400)]
    pairs = [tuple(drawn(rng, n, seeds) for n in sides) for seeds in shared]
    if sides[1] == 1:  # A classical optimizer has no luck of a meta-training.
        pairs = [
            (x, x.mean(axis=1, keepdims=True) * 0 + s)
            for (x, _), s in zip(pairs, shared, strict=True)
        ]
    told = np.array([smallest_effect(x, y) for x, y in pairs], float)
    effect = float(np.sqrt(np.mean(np.square(told))))
    found = [
        compare(x + effect, y, "X", "Y", resamples=300).verdict == "clear" for x, y in pairs[:200]
    ]
    assert 0.7 < np.mean(found) < 0.92
