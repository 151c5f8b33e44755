"""The benchmarks' own figures: an interval wherever a figure is shown, on a terminal of 80 columns and on the page."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from densepath.records.estimates import Interval
from densepath.records.judge_report import JudgeReport
from densepath.records.judged import (
    AdjustedWinRate,
    AlpacaEval,
    ArenaHard,
    Judged,
    LengthControlled,
    MtBench,
    StyleControlled,
)
from densepath.records.judging import Spending
from densepath.report.console import parts_text
from densepath.report.html import page_html
from densepath.report.judged import judged_page, judged_parts

MODEL, BASELINE = "smollm2-135m-instruct", "gemini-2.0-flash-001"
WIDE = Interval(0.5589, 0.0000078, 0.99999, 100)
SURE = Interval(0.5, 0.25, 0.75, 100)
GRADE = Interval(9.12, 8.5, 10.0, 80)
STYLES = (
    StyleControlled(("length",), WIDE, SURE, {"length": 1.0}),
    StyleControlled(("headers", "lists", "bold"), SURE, None, {}),
    StyleControlled(("length", "headers", "lists", "bold"), None, None, {}),
)
FOUND = Judged(
    "bench",
    "alpaca_eval",
    "judge",
    100,
    alpaca_eval=(
        AlpacaEval(MODEL, 0.55, 0.0175, 0.5, 100, LengthControlled("length_controlled", WIDE, 0.01, {})),
        AlpacaEval("b", 0.55, 0.0175, 0.5, 100, LengthControlled("length_adjusted", SURE, 0.01, {})),
    ),
    arena_hard=(ArenaHard(MODEL, BASELINE, WIDE, 0.3, 0.7, SURE, 12, STYLES),),
    mt_bench=(MtBench(MODEL, GRADE, (GRADE, replace(GRADE, mean=8.75)), {}, 160),),
    mt_bench_pairs=(AdjustedWinRate(MODEL, BASELINE, SURE, 1000, 1000, 1000, 1000),),
)
"""Figures as wide as they can be."""


@pytest.fixture(scope="module")
def printed():
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(parts_text(judged_parts(FOUND)))
    return console.export_text()


@pytest.fixture(scope="module")
def page():
    report = JudgeReport(FOUND, "q.jsonl", {MODEL: "m.jsonl"}, 100, 0, Spending(), {}, ())
    return " ".join(re.sub(r"<[^>]+>", " ", page_html(judged_page(report))).split())


CELLS = [
    "controlled 55.89 [0.00, 100.00]",
    "adjusted 50.00 [25.00, 75.00]",
    "55.9 [0.0, 100.0]",  # Arena-Hard's score, and with length held fixed
    "50.0 [25.0, 75.0]",
    "9.12 [8.50, 10.00]",
    "8.75 [8.50, 10.00]",
    "0.500 [0.250, 0.750]",  # MT-Bench in pairs
]


@pytest.mark.parametrize("cell", CELLS)
def test_every_figure_has_its_interval(printed, page, cell):
    assert cell in printed
    assert cell in page


def test_a_terminal_is_wide_enough(printed):
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert "…" not in printed


def test_each_control_of_style_is_told_and_one_without_a_rate_is_a_dash(printed, page):
    for control, cells in (
        ("length", r"55.9 \[0.0, 100.0\] +50.0 \[25.0, 75.0\]"),
        ("Markdown", r"50.0 \[.*\] +[-–]"),
    ):
        assert re.search(rf"{control} +{cells}", printed), control
        assert re.search(rf"{control} +{cells}", page), control
    assert re.search(r"length, Markdown – –", page)


def test_what_stands_beside_a_leaderboard_is_said(page):
    assert "only with its judge, its published judge prompt, its order of the answers and all its prompts" in page
