import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.records.completion import Span
from densepath.report import heatmap_html
from densepath.report.heatmap import LEVELS, color_level, heat_scale, legend_html
from densepath.report.text import visible

HOSTILE = [
    "<script>alert(1)</script>",
    "</b></div></script>",
    '" onmouseover="x',
    "'",
    "&lt;",
    "&amp;",
    "\u2028",
    "\x00",
]
HOSTILE += [
    "👩‍🚀",
    "שלום",
    "\u202e",
    "\ud800",
    "\r\n",
    "\t",
    " ",
    "",
    "]]>",
    "<!--",
    "{{ 7*7 }}",
    "{% raw %}",
    "$x$",
    "\ufffe",
]
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(), st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join))


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.titles, self.text = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.titles += [value for name, value in attributes if name == "title"]

    def handle_data(self, data):
        self.text += data


def one(text, rewards=(0.5,)):
    return Span(text, tuple(range(len(rewards))), tuple(rewards), tuple(-1.0 for _ in rewards))


@given(st.lists(TEXT, max_size=6))
@settings(deadline=None)
def test_a_parser_gets_every_text_back_and_no_tag_that_is_not_ours(texts):
    page = Reader(heatmap_html([one(text) for text in texts], label="".join(texts), standalone=False))
    assert page.text == "".join(visible(text) for text in texts)
    assert set(page.tags) <= {
        ("div", ("class", "dir", "role", "aria-label")),
        ("b", ("class", "title")),
        ("i", ("data-m",)),
    }
    assert len(page.titles) == len(texts)


def test_ordinary_text_and_line_ends_are_shown_as_they_are():
    text = "Zwei Wörter,\n\teine Zeile – שלום 👩‍🚀"
    assert Reader(heatmap_html([one(text)], standalone=False)).text == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x00", "␀"),
        ("\r", "␍"),
        ("\x7f", "␡"),
        ("\u202e", "⟨U+202E⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_what_cannot_be_seen_is_named(text, shown):
    assert visible(text) == shown


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.01, 20))
def test_colour_is_symmetric_and_monotone(one_reward, other, scale):
    low, high = sorted((one_reward, other))
    assert color_level(low, scale) <= color_level(high, scale)
    assert color_level(-low, scale) == -color_level(low, scale)
    assert abs(color_level(low, scale)) <= LEVELS


def test_colour_levels_by_hand():
    # scale 2: 0.09/2*10 = 0.45 -> 0; 0.1/2*10 = 0.5 -> 1; 1/2*10 = 5; beyond the scale -> 10
    assert [color_level(reward, 2.0) for reward in (0.0, 0.09, 0.1, 1.0, 2.0, 9.0, -9.0)] == [0, 0, 1, 5, 10, 10, -10]
    assert color_level(math.nan, 2.0) == 0


@given(st.floats(1e-6, 1e6))
def test_scale_covers_its_percentile_and_is_not_far_above(size):
    scale = heat_scale([one("x", (size,))])
    assert size * (1 - 1e-6) <= scale <= 2 * size


def test_scale_ignores_the_largest_two_percent():
    assert heat_scale([one("x", (0.9,))] * 98 + [one("x", (50.0,))] * 2) == 1.0
    assert heat_scale([]) == heat_scale([one("x", (0.0,))]) == 1.0


def test_tooltip_lists_each_token_their_sum_and_the_running_sum():
    page = Reader(heatmap_html([one("a", (1.0,)), one("é\n", (0.5, -2.0))], scale=1.0, standalone=False))
    assert page.titles[1].split("\n") == [
        "“é↵”",
        "id 0 · reward +0.500 · logprob −1.000",
        "id 1 · reward −2.000 · logprob −1.000",
        "together −1.500",
        "sum so far −0.500 nats",
    ]


def test_a_run_of_tokens_is_coloured_by_its_sum():
    html = heatmap_html([one("é", (3.0, -2.0)), one("x", (-0.5,))], scale=2.0, standalone=False)
    assert '<b class="p5"' in html
    assert '<b class="n3"' in html  # 0.5/2*10 = 2.5 -> 3


def test_standalone_map_brings_style_and_a_legend_with_numbers():
    html = heatmap_html([one("x", (1.0,))])
    assert "<style>" in html
    assert "http" not in html
    for number in ("≤ −1", "≥ +1", "+0.5", "−0.5", "nats"):
        assert number in html
    assert legend_html(1.0) in html
