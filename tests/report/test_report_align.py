"""The alignment of two answers against an enumeration of all common subsequences."""

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.report import align as module
from densepath.report.align import Edit, align

WORDS = st.lists(st.sampled_from("abc"), max_size=9)


def most_in_common(a, b):
    """Length of the longest common subsequence, by its definition: skip an item of either, or match the first ones."""

    @cache
    def best(i, j):
        if i == len(a) or j == len(b):
            return 0
        matched = 1 + best(i + 1, j + 1) if a[i] == b[j] else 0
        return max(matched, best(i + 1, j), best(i, j + 1))

    return best(0, 0)


@given(WORDS, WORDS)
@settings(max_examples=120, deadline=None)
def test_the_edits_turn_one_into_the_other_and_keep_as_much_as_can_be_kept(a, b):
    edits = align(a, b)
    rebuilt, kept = [], 0
    a_at = b_at = 0
    for edit in edits:
        assert (edit.a_start, edit.b_start) == (a_at, b_at)
        a_at, b_at = edit.a_end, edit.b_end
        sides = a[edit.a_start : edit.a_end], b[edit.b_start : edit.b_end]
        rebuilt += sides[0] if edit.tag == "equal" else sides[1]
        if edit.tag == "equal":
            assert sides[0] == sides[1] != []
            kept += len(sides[0])
        else:
            assert (
                edit.tag
                == {(True, True): "replace", (True, False): "delete", (False, True): "insert"}[
                    bool(sides[0]), bool(sides[1])
                ]
            )
    assert (a_at, b_at) == (len(a), len(b))
    assert rebuilt == b
    assert kept == most_in_common(tuple(a), tuple(b))
    assert all(one.tag == "equal" or other.tag == "equal" for one, other in itertools.pairwise(edits))


def test_one_altered_number_stands_alone():
    a = ["It", " costs", " 4", "5", " dollars", "."]
    b = ["It", " costs", " 4", "7", "2", " dollars", "."]
    assert align(a, b) == [Edit("equal", 0, 3, 0, 3), Edit("replace", 3, 4, 3, 5), Edit("equal", 4, 6, 5, 7)]


def test_repetitive_text_is_no_trap():
    assert align("ab" * 1500, "ba" * 1500) == [
        Edit("insert", 0, 0, 0, 1),
        Edit("equal", 0, 2999, 1, 3000),
        Edit("delete", 2999, 3000, 3000, 3000),
    ]


def test_where_the_table_would_be_too_large_the_differing_part_is_one_replacement(monkeypatch):
    monkeypatch.setattr(module, "MAX_CELLS", 8)
    assert align("xabcy", "xbadcy") == [
        Edit("equal", 0, 1, 0, 1),
        Edit("replace", 1, 3, 1, 4),
        Edit("equal", 3, 5, 4, 6),
    ]


@pytest.mark.parametrize(("a", "b"), [("", ""), ("a", ""), ("", "a"), ("a", "a")])
def test_the_smallest(a, b):
    expected = {("", ""): [], ("a", ""): ["delete"], ("", "a"): ["insert"], ("a", "a"): ["equal"]}[a, b]
    assert [edit.tag for edit in align(a, b)] == expected
