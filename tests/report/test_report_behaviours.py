"""What purification found, on the page, in the terminal and in the twin: by hand, and safe against any text."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from densepath.records.behaviours import Behaviour, Mixture, Purification
from densepath.records.codec import from_json, to_json
from densepath.records.completion import ScoredRow, completion_of
from densepath.records.estimates import Interval
from densepath.report.behaviours import purification_parts, purification_section
from densepath.report.build import write_report
from densepath.report.console import print_parts
from densepath.report.html import part_html


def row_of(number: int, text: str = "ab") -> ScoredRow:
    tokens = list(text)
    offsets = [(at, at + 1) for at in range(len(tokens))]
    turn = completion_of((text, range(len(tokens)), tokens, offsets), [0.5, *[-1.0] * (len(tokens) - 1)])
    return ScoredRow(number, f"id-{number}", f"<b>prompt</b> {number}", "count", (turn,))


TWO = Mixture(
    (
        Behaviour(1, 0.4, 0.8, -0.693, -0.5, Interval(0.1, 0.05, 0.2, 64), (3,)),
        Behaviour(2, 0.6, 0.2, 1.099, 0.7, Interval(0.8, 0.7, 0.9, 64), (7, 8)),
    ),
    -12.5,
)
THREE = Mixture(
    (
        Behaviour(1, 0.3, 0.7, -0.8, -0.5, None, (3,)),
        Behaviour(2, 0.3, 0.3, 0.0, 0.1, None, (8,)),
        Behaviour(3, 0.4, 0.0, None, 0.9, None, (9,)),
    ),
    -11.5,
)
FOUND = Purification(
    mixtures=(TWO, THREE),
    behaviour=2,
    of=2,
    reason="behaviour 2 of 2 is the largest that SFT raised",
    kept=50,
    dropped=51,
    worst=(4, 3),
    kinds=(("count", 0.75, 0.7), ("name", 0.25, 0.3)),
    rows=tuple(row_of(number) for number in (3, 4, 7, 8, 9)),
)


def html_of(record: Purification) -> str:
    return "\n".join(part_html(part) for part in purification_section(record).parts)


def text_of(record: Purification, width: int = 80) -> str:
    out = io.StringIO()
    print_parts(Console(file=out, width=width), *purification_parts(record))
    return out.getvalue()


def test_the_record_goes_through_json():
    assert from_json(Purification, json.loads(json.dumps(to_json(FOUND)))) == FOUND


def test_older_records_are_read():
    old = to_json(FOUND)
    del old["drawn"]
    for mixture in old["mixtures"]:
        for behaviour in mixture["behaviours"]:
            del behaviour["lift_error"]
    assert from_json(Purification, old) == FOUND


def test_the_page_says_what_was_drawn_and_how_sure_a_lift_is():
    first, second = TWO.behaviours
    mixture = dataclasses.replace(TWO, behaviours=(first, dataclasses.replace(second, lift_error=0.123)))
    page = html_of(dataclasses.replace(FOUND, drawn=16, mixtures=(mixture,)))
    assert "on 16 rows drawn from the 50 of 101 demonstrations that are kept." in page
    assert "+1.10 ± 0.12" in page
    assert "on 50 of 101 demonstrations." in html_of(dataclasses.replace(FOUND, drawn=50))


def test_the_page_shows_every_behaviour_with_its_figures_and_examples():
    page = html_of(FOUND)
    assert "The SFT model was trained again, on 50 of 101 demonstrations." in page
    for figure in ("40.0 %", "80.0 %", "−0.69", "+1.10", "+0.70", "0.800", "[0.700, 0.900]", ">new<"):
        assert figure in page, figure
    assert page.count("✓") == 2  # in the table and below it
    for title in (
        *("behaviour 1 of 2: row 3, id-3", "behaviour 2 of 2, trained on: row 7, id-7", "set aside: row 4, id-4"),
        *("Examples of the 3 behaviours", "behaviour 3 of 3: row 9, id-9"),
    ):
        assert title in page, title
    assert page.index("set aside: row 4") < page.index("set aside: row 3") < page.index("Examples of the 3")
    assert "75.0 %" in page
    assert "70.0 %" in page
    assert "<b>prompt</b>" not in page
    assert "&lt;b&gt;prompt&lt;/b&gt;" in page
    assert 'class="n10"' in page  # a token of -1 nat at the full colour
    assert 'id="filters"' not in page


def test_the_terminal_shows_the_same_in_80_columns():
    text = text_of(FOUND)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("2 of 2 ✓", "-0.69", "+1.10", "new", ".800 [.700, .900]", "set aside", "<b>prompt</b>␣7", "70.0 %"):
        assert words.replace("<b>prompt</b>␣7", "prompt") in text, words
    assert text.rstrip().endswith("- behaviour 2 of 2 is the largest that SFT raised")


def test_the_terminal_shows_every_example_and_the_worst_rows_on_a_line_each():
    """Three of each behaviour, of every number of behaviours, however long they are."""
    behaviours = [dataclasses.replace(each, examples=(7, 8, 9)) for each in TWO.behaviours]
    long = tuple(dataclasses.replace(row_of(number, "y" * 90), prompt="x" * 90) for number in (3, 4, 7, 8, 9))
    record = dataclasses.replace(FOUND, mixtures=(THREE, Mixture(tuple(behaviours), -12.5)), rows=long)
    lines = text_of(record).split("what they look like")[1].splitlines()
    shown = [line.split()[:4] for line in lines if "xxx" in line]
    two = [[str(k), "of", "2", str(row)] for k in (1, 2) for row in (7, 8, 9)]
    three = [[str(k), "of", "3", str(row)] for k, row in ((1, 3), (2, 8), (3, 9))]
    assert [words[:4] for words in shown[:9]] == [*two, *three]  # those of the chosen one first
    assert [words[:3] for words in shown[9:]] == [["set", "aside", "4"], ["set", "aside", "3"]]
    assert all("x…" in line and "y…" in line and len(line) <= 80 for line in lines if "xxx" in line)
    assert sum("yyy" in line for line in lines) == len(shown)


def test_where_sft_is_kept_it_says_so_first():
    kept = dataclasses.replace(FOUND, trained=False, behaviour=None, of=None, reason="all new", worst=(), dropped=0)
    page = html_of(kept)
    assert "The SFT model is kept." in page
    assert "all new" in page
    assert "set aside" not in page.split("Rows that are a behaviour", 1)[1].split("</p>", 1)[1]
    assert "of those kept" not in page
    assert page.index("behaviour 3 of 3") < page.index("Examples of the 2 behaviours")  # the best explained first
    assert text_of(kept).rstrip().endswith("- all new")


def test_without_behaviours_there_is_no_table_of_them():
    cheap = dataclasses.replace(FOUND, mixtures=(), behaviour=None, of=None)
    page = html_of(cheap)
    assert "was trained again" in page
    assert "before SFT</th>" not in page
    assert "set aside: row 4" in page
    assert "2 of 2" not in text_of(dataclasses.replace(cheap, reason=""))


@pytest.mark.parametrize("arm", [True, False], ids=["with-the-arm", "without"])
def test_the_page_of_a_run_has_it_right_after_the_verdict(tmp_path, arm):
    (tmp_path / "config.yaml").write_text("model_name_or_path: mine\n")
    if arm:
        (tmp_path / "purified_sft").mkdir()
        (tmp_path / "purified_sft/purification.json").write_text(json.dumps(to_json(FOUND)))
    paths = write_report(tmp_path)
    page, twin = paths.html.read_text(), json.loads(paths.json.read_text())
    sections = [part.split('"')[1] for part in page.split("<section")[1:]]
    assert ("behaviours" in sections) == arm
    if arm:
        assert sections[:2] == ["summary", "behaviours"]
        assert from_json(Purification, twin["purification"]) == FOUND
        assert page.count('id="token"') <= 1
    else:
        assert twin["purification"] is None


def test_a_broken_file_is_a_warning(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name_or_path: mine\n")
    (tmp_path / "purified_sft").mkdir()
    (tmp_path / "purified_sft/purification.json").write_text('{"mixtures": 3}')
    paths = write_report(tmp_path)
    assert "purification.json is left out" in paths.html.read_text()
