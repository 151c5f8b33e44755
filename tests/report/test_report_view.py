"""The view: page, twin, file, notebook; what is escaped, what is shown, and what the numbers are."""

import base64
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
from tests.report.scored_files import END, RIGHT, ROWS, row, span, turn, write_jsonl
from tests.report.test_report_page import HOSTILE, Page, poison

from densepath.errors import UsageError
from densepath.records.completion import completion_of
from densepath.report.compare import compare
from densepath.report.html import page_html
from densepath.report.scored import RowQuery, ScoredFile
from densepath.report.scored_row import scored_row
from densepath.report.text import visible
from densepath.report.view import ScoreView, live_page_html, view_page, view_scores
from densepath.report.view_parts import LONGEST_WORST, worst_runs

RECORDS = [scored_row(value, number, "scores.jsonl") for number, value in enumerate(ROWS, 1)]


def a_view(rows=RECORDS):
    return ScoreView(rows=tuple(rows), comparison=compare(rows[0], rows[1]), title="scores.jsonl", total=9)


# --- the comparison -------------------------------------------------------------------------------------------------


def test_shared_tokens_stand_under_one_another():
    columns = compare(*RECORDS[:2]).columns()
    assert [(c.a and c.a.text, c.b and c.b.text, c.shared) for c in columns] == [
        ("It", "It", True),
        (" costs", " costs", True),
        (" 4", " 4", True),
        ("5", "7", False),
        (" dollars", " dollars", True),
        ("<|im_end|>", "<|im_end|>", True),
    ]


def test_rewards_are_split_into_shared_and_changed_tokens():
    comparison = compare(*RECORDS[:2])
    # A: 0.25 + 0.5 + 0 + 0.5 + 0.5 and 0.25; B: 0.25 + 0.25 + 0 + 0.25 + 0.5 and -4
    assert [comparison.rewards(side, shared) for side in "ab" for shared in (True, False)] == [1.75, 0.25, 1.25, -4.0]


def test_an_answer_with_more_tokens_leaves_a_gap():
    longer = scored_row(row("longer", turn(*RIGHT[:3], span("5", 0.5), span("0", -1.0), RIGHT[4], END)), 1, "file")
    columns = compare(RECORDS[0], longer).columns()
    assert [column.a is None for column in columns] == [False, False, False, False, True, False, False]
    html = page_html(view_page(a_view([RECORDS[0], longer])))
    assert html.count('class="dp-gap"') == 1


def test_a_line_breaks_after_a_column_that_ends_one():
    rows = [scored_row(row(name, turn(span("a\n", 0.5), span(end, 0.5))), 1, "file") for name, end in ("xb", "yc")]
    html = page_html(view_page(a_view(rows)))
    assert html.count('class="dp-break"') == 1
    assert "a↵" in html


# --- the worst spans ------------------------------------------------------------------------------------------------


def test_the_worst_span_is_the_altered_token_and_leads_to_its_place():
    html = page_html(view_page(a_view()))
    links = re.findall(r'<a href="#([^"]+)"><b>([^<]+)</b> <q>([^<]*)</q> <small>([^<]+)</small>', html)
    assert ("r1-0-0", "−4.00", "7", "token 4") in links
    for target, *_ in links:
        assert html.count(f'<span class="dp-run" id="{target}">') == 1
    assert re.search(r'id="r1-0-0"><b class="n\d+"[^>]*>7</b></span>', html)


def test_faint_neighbours_do_not_widen_a_worst_span():
    spans = scored_row(row("x", turn(span("a", -0.1), span("b", -4.0), span("c", -0.1))), 1, "file").spans
    # At a scale of 4 nats half a step of colour is 0.2: a and c are not coloured, and stay out.
    assert [(found.start, found.end) for found in worst_runs(spans, 4.0, 1)] == [(1, 2)]
    assert [(found.start, found.end) for found in worst_runs(spans, 1.0, 1)] == [(0, 3)]
    long = scored_row(row("x", turn(*(span("a", -1.0) for _ in range(40)))), 1, "file").spans
    assert [found.end - found.start for found in worst_runs(long, 1.0)] == [LONGEST_WORST] * 3


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: page_html(view_page(a_view())), live_page_html], ids=["file", "live"])
def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(make):
    html = make()
    page = Page(html)
    assert (page.faults, page.stack) == ([], [])
    for _, name, value in page.attributes:
        assert name not in ("src", "action", "srcset", "onclick")
        if name == "href":
            assert value.startswith("#") or value == "data:,"
    assert re.findall(r"https?://", html) == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")} <= set(ids)
    labels = [value for _, name, value in page.attributes if name == "for"]
    assert set(labels) <= set(ids)


def test_the_policy_allows_exactly_the_one_script_and_only_a_live_page_asks_its_server():
    for live, html in ((False, page_html(view_page(a_view()))), (True, live_page_html())):
        [script] = re.findall(r"<script>(.*?)</script>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
        assert policy.startswith("default-src 'none';")
        assert f"script-src 'sha256-{digest}'" in policy
        assert ("connect-src 'self'" in policy) == live


def test_hostile_strings_change_no_tag():
    clean = Page(page_html(view_page(a_view())))
    rows = [scored_row(poison(value, HOSTILE), 1, "scores") for value in ROWS]
    facts = ((HOSTILE, HOSTILE),)
    view = ScoreView(rows=tuple(rows), comparison=compare(*rows[:2]), title=HOSTILE, facts=facts)
    html = page_html(view_page(view))
    page = Page(html)
    assert page.faults == []
    assert page.tags.count("script") == 1
    assert set(page.tags) <= {*clean.tags, "dt", "dd", "i"}
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert visible("What does it cost?" + HOSTILE) in page.text
    assert "\x00" not in html
    assert "\u202e" not in html


def test_the_page_says_what_matters(tmp_path):
    file = ScoredFile(write_jsonl(tmp_path / "scores.jsonl"))
    rows = tuple(file.find(RowQuery(limit=2)).rows)
    view = ScoreView(rows=rows, facts=(("SFT model", "my/model"),), total=len(file), scale=file.scale)
    html = page_html(view_page(view))
    text = " ".join(Page(html).text.split())
    for words in (
        "SFT model my/model",
        "2 of 3 rows.",
        "right 6 tokens, +2.00 nats, +0.333 per token, row 1",
        "altered",
        "No token has a reward below zero.",
        "cumulative reward, nats, over 6 tokens",
        "−4.00 7 token 4",
    ):
        assert words in text, words


# --- the files ------------------------------------------------------------------------------------------------------


def test_page_and_twin_are_written_from_one_view(tmp_path):
    paths = a_view().save(tmp_path / "view.html")
    assert paths.json == tmp_path / "view.json"
    twin = json.loads(paths.json.read_text(encoding="utf-8"))
    assert [item["id"] for item in twin["rows"]] == ["right", "wrong", None]
    assert twin["rows"][1]["turns"][0]["worst_spans"] == [{"start": 3, "end": 4, "reward": -4.0}]
    assert [edit["tag"] for edit in twin["comparison"]["edits"]] == ["equal", "replace", "equal"]
    assert twin["total"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["view.html", "view.json"]
    with pytest.raises(UsageError, match=r"a name that ends in \.html"):
        a_view().save(tmp_path / "view.json")


def test_a_lone_surrogate_can_be_written(tmp_path):
    rows = [scored_row(row("\ud800", turn(span("\ud800", 0.5))), 1, "file")] * 2
    paths = ScoreView(rows=tuple(rows)).save(tmp_path / "view.html")
    assert json.loads(paths.json.read_text(encoding="utf-8"))["rows"][0]["id"] == "\ufffd"


# --- notebooks ------------------------------------------------------------------------------------------------------


COMPLETIONS = [
    completion_of(
        ("Oé", [7, 8, 9, 2], ["O", "é", "é", "<|im_end|>"], [(0, 1), (1, 2), (1, 2), (2, 2)]),
        [0.5, -1.0, 0.25, 0.0],
        sft_logprobs=[-0.5, -2.0, -1.0, -0.1],
    ),
    completion_of(("O", [7], ["O"], [(0, 1)]), [0.5]),
]
SCORES = SimpleNamespace(rewards=[None, None], completion=lambda index, tokenizer: COMPLETIONS[index])


def test_scores_become_runs_of_whole_characters():
    first, second = view_scores(SCORES, prompts=["Say it.", [{"role": "user", "content": "Say it."}]]).rows
    assert [(s.text, s.token_ids, s.rewards) for s in first.spans] == [
        ("O", (7,), (0.5,)),
        ("é", (8, 9), (-1.0, 0.25)),
        ("<|im_end|>", (2,), (0.0,)),
    ]
    assert first.spans[1].logprobs == (-2.0, -1.0)
    assert (first.label, first.prompt, second.prompt) == ("completion 1", "Say it.", "Say it.")


def test_a_notebook_shows_the_same_fragments_twice_with_ids_of_their_own():
    view = view_scores(SCORES, labels=["one", "two"], pair=(0, 1))
    outputs = [view._repr_html_(), view._repr_html_()]
    ids = [value for html in outputs for _, name, value in Page(html).attributes if name == "id"]
    assert ids
    assert len(ids) == len(set(ids))
    for html in outputs:
        page = Page(html)
        assert (page.faults, page.stack) == ([], [])
        assert "script" not in page.tags
        assert "<style>" in html
        assert "http" not in html
    heats = [
        [re.sub(r' id="[^"]+"', "", heat) for heat in re.findall(r'<div class="dp-heat.*?</div>', html, re.S)]
        for html in (*outputs, page_html(view_page(view)))
    ]
    assert heats[0] == heats[1] == heats[2]
    assert len(heats[0]) == 3  # aligned, A, B


def test_scores_that_cannot_be_shown():
    with pytest.raises(UsageError, match=r"pair=\(0, 5\): there are completions 0 to 1"):
        view_scores(SCORES, pair=(0, 5))
