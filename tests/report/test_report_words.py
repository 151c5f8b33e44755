"""Figures in words: small rewards keep their significant digits."""

from __future__ import annotations

import pytest

from densepath.records.estimates import Interval
from densepath.report.words import nats, nats_interval


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (1.234, "+.2f", "+1.23"),
        (-0.1, "+.2f", "−0.10"),
        (0.0234, "+.2f", "+0.023"),
        (-0.00042, "+.3f", "−0.00042"),
        (3e-7, "+.2f", "+3e−07"),
        (0.0, "+.2f", "+0.00"),
        (None, "+.2f", "–"),
    ],
)
def test_a_small_reward_is_not_none(value, form, shown):
    assert nats(value, form) == shown


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((0.5, 0.25, 0.75), "+0.500 [+0.250, +0.750]"),
        ((0.0004, -0.0001, 0.0007), "+0.00040 [−0.00010, +0.00070]"),
        ((0.0, 0.0, 0.0), "+0.000 [+0.000, +0.000]"),
        ((12.0, 11.0, 13.0), "+12.000 [+11.000, +13.000]"),
    ],
)
def test_an_interval_shows_two_digits_of_its_larger_end(ends, shown):
    assert nats_interval(Interval(*ends, 10)) == shown
