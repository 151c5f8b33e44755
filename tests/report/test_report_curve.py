"""The drawn curve holds the running sums, whatever they are."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.report.curve import Line, curve_html

REWARDS = st.lists(st.floats(-50, 50), max_size=30)


def drawn(html):
    """[(x, y), ...] of each curve, in the drawing's units."""
    paths = re.findall(r'<path class="dp-line [ab]" d="M([^"]*)"', html)
    numbers = [[float(word) for word in path.split()] for path in paths]
    return [list(zip(path[::2], path[1::2], strict=True)) for path in numbers]


@given(REWARDS)
@settings(deadline=None)
def test_the_curve_is_the_running_sum_on_its_axis(rewards):
    sums = [sum(rewards[:count]) for count in range(len(rewards) + 1)]
    low, high = min(sums), max(sums)  # the first one is 0, so the axis holds zero
    if low == high:
        low, high = -1.0, 1.0
    ((points),) = drawn(curve_html([Line("reward", rewards)]))
    assert len(points) == len(sums)
    for step, ((x, y), total) in enumerate(zip(points, sums, strict=True)):
        assert abs(x - 1000 * step / max(len(rewards), 1)) <= 0.051
        assert abs(y - 100 * (high - total) / (high - low)) <= 0.051


def test_two_curves_share_their_axes():
    html = curve_html([Line("A", [1.0, 1.0]), Line("B", [-1.0, -1.0])], steps="aligned tokens")
    # The axis goes from +2 to -2: zero is in the middle.
    assert drawn(html) == [[(0, 50), (500, 25), (1000, 0)], [(0, 50), (500, 75), (1000, 100)]]
    assert re.findall(r'style="top:([\d.]+)%">([^<]+)<', html) == [("0.0", "+2.0"), ("50.0", "0"), ("100.0", "−2.0")]
    assert "at the end: A +2.00, B −2.00 nats" in html
    assert "2 aligned tokens" in html


def test_bands_stand_where_their_steps_are():
    html = curve_html([Line("reward", [1.0, -1.0, -1.0, 1.0])], bands=[(1, 3)])
    assert '<rect class="dp-band" x="250.0" y="0" width="500.0"' in html


def test_a_label_that_would_touch_another_is_left_out():
    # From 0 to -10: the axis ends in zero, which is named once.
    html = curve_html([Line("reward", [-10.0])])
    assert re.findall(r'style="top:[\d.]+%">([^<]+)<', html) == ["0", "−10.0"]


def test_names_are_escaped():
    html = curve_html([Line("<i>\u202e", [1.0]), Line("B", [1.0])])
    assert "<i>\u202e" not in html
    assert "&lt;i&gt;⟨U+202E⟩" in html
