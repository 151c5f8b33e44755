import io
import json

import pytest
from rich.console import Console
from tests.report.made_results import record, row

from densepath.report import results_table
from densepath.report.console import part_text
from densepath.report.records import Estimate
from densepath.report.words import interval_text


def shown(results, width=200):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(part_text(results_table(results)))
    return out.getvalue()


@pytest.mark.parametrize(
    ("estimate", "options", "text"),
    [
        (Estimate(0.5, 0.25, 0.75), {}, "0.500 [0.250, 0.750]"),
        (Estimate(0.5, 0.25, 0.75), {"digits": 1, "signed": True}, "+0.5 [+0.2, +0.8]"),
        (Estimate(-0.5, None, 0.75), {"digits": 2}, "−0.50"),
        (None, {}, "–"),
        (None, {"missing": "?"}, "?"),
    ],
)
def test_an_interval_in_words(estimate, options, text):
    assert interval_text(estimate, **options) == text


def test_table_shows_the_numbers(run_dir):
    text = shown(json.loads((run_dir / "results.json").read_text()))
    for words in (
        "exact_match",
        "0.562 [0.500, 0.625]",
        "13.5",
        "continued SFT",
        "greedy",
    ):
        assert words in text
    assert text.count("\n") < 14
    assert max(map(len, shown(json.loads((run_dir / "results.json").read_text()), width=80).splitlines())) <= 80


def test_table_survives_markup_nan_and_nothing():
    text = shown(record([row("x", "[bold]a[/bold]", "[/]", value={"mean": float("nan")})]))
    assert "[bold]a[/bold]" in text
    assert "nan" not in text
    assert "arm" in shown({})
