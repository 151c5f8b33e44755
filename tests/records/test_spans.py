"""The worst spans against an enumeration of all spans."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.records.spans import RewardSpan, worst_spans

# Eighths are exact in binary, so that sums have no rounding and ties are ties.
EIGHTHS = st.integers(-24, 24).map(lambda n: n / 8)


def enumerated(rewards, count, margin, max_tokens):
    """Every span, sorted as the docstring says; the first one is taken and all that touch it are struck out."""
    size = len(rewards)
    spans = [
        (sum(Fraction(r) + Fraction(margin) for r in rewards[a:b]), b - a, a, b)
        for a in range(size)
        for b in range(a + 1, size + 1)
        if max_tokens is None or b - a <= max_tokens
    ]
    left = sorted(span for span in spans if span[0] < 0)
    taken = []
    while left and len(taken) < count:
        _, _, start, end = left[0]
        taken.append((start, end))
        left = [span for span in left if span[3] <= start or span[2] >= end]
    return taken


@given(
    st.lists(EIGHTHS, max_size=14),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.125, 1.0]),
    st.one_of(st.none(), st.integers(1, 6)),
)
@settings(max_examples=120, deadline=None)
def test_they_are_those_of_an_enumeration(rewards, count, margin, max_tokens):
    found = worst_spans(rewards, count, margin=margin, max_tokens=max_tokens)
    assert [(span.start, span.end) for span in found] == enumerated(rewards, count, margin, max_tokens)
    assert [span.reward for span in found] == [sum(rewards[span.start : span.end]) for span in found]


@given(st.lists(st.floats(-30, 30), max_size=40), st.integers(1, 6))
@settings(deadline=None)
def test_the_first_is_the_lowest_of_all_and_none_overlap(rewards, count):
    found = worst_spans(rewards, count)
    lowest = min(
        (math.fsum(rewards[a:b]) for a in range(len(rewards)) for b in range(a + 1, len(rewards) + 1)), default=0
    )
    assert (found[0].reward if found else 0.0) == pytest.approx(min(lowest, 0.0), abs=1e-9)
    taken = [index for span in found for index in range(span.start, span.end)]
    assert len(taken) == len(set(taken))
    assert all(span.reward < 0 for span in found)


def test_by_hand():
    # The lowest sum is -2 - 1 = -3; +3 parts it from the rest, of which only -0.5 is below zero.
    assert worst_spans([1.0, -2.0, -1.0, 3.0, -0.5], 5) == [RewardSpan(1, 3, -3.0), RewardSpan(4, 5, -0.5)]
    # A faint neighbour belongs to the lowest sum, and not with a margin of 0.1.
    assert worst_spans([-0.01, -4.0, -0.01], 1) == [RewardSpan(0, 3, pytest.approx(-4.02))]
    assert worst_spans([-0.01, -4.0, -0.01], 1, margin=0.1) == [RewardSpan(1, 2, -4.0)]
    # A weak positive between two strong negatives is bridged; with at most one token it is not.
    assert worst_spans([-2.0, 0.5, -2.0], 1) == [RewardSpan(0, 3, -3.5)]
    assert worst_spans([-2.0, 0.5, -2.0], 2, max_tokens=1) == [RewardSpan(0, 1, -2.0), RewardSpan(2, 3, -2.0)]


def test_nothing_is_worst_where_nothing_is_below_zero():
    assert worst_spans([], 3) == worst_spans([0.0, 1.0], 3) == worst_spans([-1.0], 0) == []


@pytest.mark.parametrize("bad", [{"margin": -1.0}, {"max_tokens": 0}])
def test_wrong_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="margin="):
        worst_spans([-1.0], 1, **bad)
    with pytest.raises(ValueError, match="finite"):
        worst_spans([math.nan], 1)
