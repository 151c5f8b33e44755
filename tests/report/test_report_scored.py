"""Scored files: both formats, bounds, order and search, against plain Python over all rows."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report.scored_files import END, ROWS, row, span, turn, write_jsonl, write_parquet

from densepath.errors import DataError, MissingFileError, UsageError
from densepath.report.scored import RowQuery, ScoredFile
from densepath.report.scored_row import scored_row, searched_text, summary


@pytest.fixture(params=["jsonl", "parquet"])
def written(request, tmp_path):
    def write(rows=ROWS):
        if request.param == "jsonl":
            return write_jsonl(tmp_path / "scores.jsonl", rows)
        return write_parquet(tmp_path / "scores.parquet", rows, row_group_size=7)

    return write


def many(count, seed=0):
    """Rows whose rewards are multiples of 1/4, so that there are ties."""
    draw = random.Random(seed)
    return [
        row(f"id-{number}", turn(*(span(f" w{number}", draw.randint(-8, 8) / 4) for _ in range(draw.randint(1, 9)))))
        for number in range(1, count + 1)
    ]


def test_a_row_comes_back_as_it_was_written(written):
    first, _, third = ScoredFile(written()).find(RowQuery()).rows
    assert (first.id, first.number, first.prompt) == ("right", 1, "What does it cost?")
    assert first.turns[0].text == "It costs 45 dollars"
    assert (first.reward, first.num_tokens) == (2.0, 6)  # 0.25 + 0.5 + 0 + 0.25 + 0.5 + 0.5
    assert (third.label, third.category, third.prompt) == ("row 3", None, None)
    # -0.25 + 0.5 - 1 + 0.5, then -2 + 0.5
    assert [completion.sum for completion in third.turns] == [-0.25, -1.5]
    assert third.lowest == -2.0
    assert third.reward_per_token == -1.75 / 6


def test_aligned_lists_become_runs_of_whole_characters():
    """What densepath score writes: "Jaé", whose last character is two tokens, and EOS."""
    turn_of_lists = {
        "text": "Jaé",
        "tokens": ["Ja", "é", "é", "<|im_end|>"],
        "offsets": [[0, 2], [2, 3], [2, 3], [3, 3]],
        "token_ids": [10, 11, 12, 2],
        "rewards": [-0.25, 0.5, -1.0, 0.5],
        "sft_logprobs": [-1.0, -2.0, -3.0, -4.0],
        "sum": -0.25,
        "mean": -0.0625,
    }
    messages = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Jaé"}]
    found = scored_row({"id": 3, "messages": messages, "turns": [turn_of_lists]}, 1, "scores.jsonl")
    assert [(s.text, s.token_ids, s.rewards, s.logprobs) for s in found.spans] == [
        ("Ja", (10,), (-0.25,), (-1.0,)),
        ("é", (11, 12), (0.5, -1.0), (-2.0, -3.0)),
        ("<|im_end|>", (2,), (0.5,), (-4.0,)),
    ]
    assert found.turns[0].text == "Jaé"
    assert found.prompt == "Yes?"
    with pytest.raises(DataError, match="row 1: not a scored row"):
        scored_row({"turns": [{**turn_of_lists, "rewards": [1.0]}]}, 1, "scores.jsonl")


SPAN = st.lists(st.integers(-8, 8).map(lambda n: n / 8), min_size=1, max_size=3).map(lambda each: span("ab", *each))


@given(st.lists(st.lists(SPAN, min_size=1, max_size=4), max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_numbers_of_the_index_are_those_of_the_row(turns):
    """Eighths have exact sums."""
    value = {"id": 1, "turns": [turn(*spans) for spans in turns]}
    record = scored_row(value, 1, "file")
    assert summary(value, 1, "file") == (record.reward, record.reward_per_token, record.num_tokens, record.lowest)


def test_a_search_looks_through_what_is_shown():
    for value in (ROWS[1], {**ROWS[1], "turns": ROWS[1]["turns"][:1]}):
        record = scored_row(value, 1, "file")
        for part in (record.id, record.category, record.prompt, record.turns[0].text):
            assert part.casefold() in searched_text(value)


@pytest.mark.parametrize("sort", ["row", "reward", "reward_per_token", "tokens", "lowest"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_one_after_the_other_give_every_row_once_in_order(written, sort, descending):
    rows = many(40)
    file = ScoredFile(written(rows))
    keys = {
        "row": lambda number: number,
        "reward": lambda number: rows[number - 1]["reward"],
        "reward_per_token": lambda number: rows[number - 1]["reward_per_token"],
        "tokens": lambda number: len(rows[number - 1]["turns"][0]["rewards"]),
        "lowest": lambda number: min(rows[number - 1]["turns"][0]["rewards"]),
    }
    sign = -1 if descending else 1
    expected = sorted(range(1, 41), key=lambda number: (sign * keys[sort](number), number))
    seen, start = [], 0
    while start is not None:
        page = file.find(RowQuery(sort=sort, descending=descending, start=start, limit=7))
        assert len(page.rows) <= 7
        seen += [item.number for item in page.rows]
        start = page.next
    assert seen == expected


def test_bounds_are_on_what_is_sorted_by(written):
    rows = many(40)
    page = ScoredFile(written(rows)).find(RowQuery(sort="reward", low=-1.0, high=0.5, limit=40))
    expected = sorted((r["reward"], number) for number, r in enumerate(rows, 1) if -1.0 <= r["reward"] <= 0.5)
    assert [item.number for item in page.rows] == [number for _, number in expected]
    assert page.candidates == len(expected)


def test_a_search_finds_what_stands_across_tokens_in_any_case(written):
    file = ScoredFile(written())
    for words, numbers in (("COSTS 45", [1]), ("what does", [1, 2]), ("altered", [2]), ("zwei", [3]), ("nothing", [])):
        page = file.find(RowQuery(words=words))
        assert [item.number for item in page.rows] == numbers
        assert (page.next, page.searched) == (None, 3)


def test_a_search_out_of_time_says_how_far_it_came(written):
    file = ScoredFile(written(many(200)))
    page = file.find(RowQuery(words="id-200", seconds=0.0))
    assert (page.rows, page.next, page.searched) == ([], 64, 64)
    seen = []
    while page.next is not None:
        page = file.find(RowQuery(words="id-200", seconds=0.0, start=page.next))
        seen += [item.number for item in page.rows]
    assert seen == [200]


def test_a_page_ends_at_its_tokens_but_shows_one_row_at_least(written):
    rows = [row(str(size), turn(*(span("x", 0.5) for _ in range(size)))) for size in (5, 5, 5, 50, 5)]
    file = ScoredFile(written(rows))
    counts, start = [], 0
    while start is not None:
        page = file.find(RowQuery(start=start, max_tokens=12))
        counts.append(len(page.rows))
        start = page.next
    assert counts == [2, 1, 1, 1]


def test_a_row_by_number_or_id(written):
    file = ScoredFile(written())
    assert file.row("3").number == 3
    assert file.row("wrong").number == 2
    with pytest.raises(UsageError, match="no row '9'; give a number from 1 to 3, or an id"):
        file.row("9")


def test_both_formats_give_the_same_rows(tmp_path):
    rows = many(30)
    files = (
        ScoredFile(write_jsonl(tmp_path / "a.jsonl", rows)),
        ScoredFile(write_parquet(tmp_path / "a.parquet", rows)),
    )
    one, other = (file.find(RowQuery(sort="lowest", limit=30)).rows for file in files)
    assert one == other
    assert files[0].scale == files[1].scale


def test_memory_holds_numbers_and_not_rows(tmp_path):
    text = "x" * 20_000
    path = write_jsonl(tmp_path / "large.jsonl", [row(str(n), turn(span(text, 0.5))) for n in range(300)])
    import tracemalloc

    tracemalloc.start()
    ScoredFile(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 6_000_000
    assert held < 300_000


# --- wrong input ----------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_shown(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.jsonl: no such file; give one that densepath score wrote"):
        ScoredFile(tmp_path / "none.jsonl")
    for content, message in (
        ("", "no rows; give a file that densepath score wrote"),
        ('{"prompt": "a", "completion": "b"}\n', r'row 1: not a scored row, it has no "turns"'),
        (json.dumps(ROWS[0]) + "\n[]\n", "row 2: not a scored row"),
        (json.dumps(ROWS[0]) + "\n{oops\n" + json.dumps(ROWS[1]) + "\n", "line 2: not valid JSON"),
    ):
        path = tmp_path / "file.jsonl"
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            ScoredFile(path)
    path = tmp_path / "file.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="not a Parquet file"):
        ScoredFile(path)


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:40])
    assert len(ScoredFile(path)) == 1


def test_a_file_that_changed_is_told(tmp_path):
    path = write_jsonl(tmp_path / "scores.jsonl")
    file = ScoredFile(path)
    write_jsonl(path, ROWS[:1])
    with pytest.raises(DataError, match="has changed since it was opened"):
        file.find(RowQuery())


def test_an_order_that_does_not_exist(tmp_path):
    file = ScoredFile(write_jsonl(tmp_path / "scores.jsonl"))
    with pytest.raises(UsageError, match="sort='size' does not exist; choose one of: row, reward"):
        file.find(RowQuery(sort="size"))


WHOLE = turn(span("a", 0.5), END)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [0.5]}, r"lists of \[2, 2, 2, 1\] entries; give one entry a token"),
        ({"rewards": [0.5, None]}, r"rewards\[1\]: None is not a number"),
        ({"rewards": [0.5, math.nan]}, r"rewards\[1\] is nan"),
        ({"tokens": None}, "tokens: None is not a list"),
        ({"spans": []}, r"unknown \['spans'\]"),
        ({name: [] for name in ("token_ids", "tokens", "offsets", "rewards")}, "at least one"),
    ],
)
def test_a_turn_that_is_not_whole_is_named(change, message):
    value = {"turns": [{**WHOLE, **change}]}
    with pytest.raises(DataError, match=f"file, row 3: not a scored row, .*{message}"):
        scored_row(value, 3, "file")
    if "tokens" not in change and "spans" not in change:  # the index reads the numbers alone
        with pytest.raises(DataError, match="file, row 3"):
            summary(value, 3, "file")


def test_several_turns_of_a_prompt_become_text():
    prompt = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x"}]
    known = scored_row({"id": 7, "prompt": prompt, "turns": [WHOLE]}, 1, "file")
    assert (known.id, known.prompt, known.reward) == ("7", "user: Hi\n\ntool: x", 1.0)
