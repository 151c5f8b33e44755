"""What a reply says: the last verdict, one on the menu, or why none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.errors import DataError
from densepath.judging.templates import load_template
from densepath.judging.verdicts import Letters, Marks, Rating, Reply

FIVE = Marks({"A>>B": ">>", "A>B": ">", "A=B": "=", "B>A": "<", "B>>A": "<<"})
THREE = Marks({"A": ">", "B": "<", "C": "="})
TEN = Rating(1, 10, first=True)


@pytest.mark.parametrize(
    ("marks", "text", "verdict"),
    [
        (FIVE, "My verdict: [[A>>B]]", ">>"),
        (FIVE, "First I thought [[A>B]], but no: [[B>A]]", "<"),
        (FIVE, "tie [[ a=b ]].", "="),
        (FIVE, "my verdict is [B>>A]", "<<"),
        (FIVE, "see x[0] and [link](url), verdict [A>B]", ">"),
        (FIVE, "the matrix [[1, 2]] ... [[A=B]]", "="),
        (THREE, "[[C]]", "="),
        (THREE, "<think>surely [[A]]</think>\n[[B]]", "<"),
        (THREE, "surely [[A]], or not </think>\n[[B]], I say", "<"),
        (THREE, "[[A]]</think>[[B]]: I <think> so", "<"),
        (THREE, "Answer A opens <think> and never ends it. [[B]]", "<"),
    ],
)
def test_the_last_verdict_wins(marks, text, verdict):
    found = marks.read(Reply(text))
    assert (found.verdict, found.preference) == (verdict, {">": 1, "=": 0.5, "<": 0}[verdict[0]])
    assert found.reply == text


@pytest.mark.parametrize(
    ("reading", "reply", "reason"),
    [
        (FIVE, Reply(""), "empty reply"),
        (FIVE, Reply("  \n", finish="content_filter"), "empty reply (it ended with 'content_filter')"),
        (FIVE, Reply("A is better"), "no verdict in the reply, which ends in 'A is better'"),
        (FIVE, Reply("let me think", finish="length"), "the reply was cut off before its end"),
        (FIVE, Reply("[[A>B]] at first, but", finish="length"), "the reply was cut off before its end"),
        (TEN, Reply("not yet [[7]]", finish="length"), "the reply was cut off before its end"),
        (THREE, Reply("surely [[A]]</think>"), "empty reply"),
        (FIVE, Reply("[[A>B]] or rather [[A]]"), "its verdict [[A]] is not one of A>>B"),
        (THREE, Reply("[[D]]"), "its verdict [[D]] is not one of A, B, C"),
        (THREE, Reply("<think>[[A]] perhaps"), "empty reply"),
        (TEN, Reply("Rating: [[11]]"), "its rating 11 is not between 1 and 10"),
        (TEN, Reply("Rating: 7"), "no verdict"),
        (TEN, Reply("Rating: [[seven]]"), "no verdict"),
    ],
)
def test_what_says_nothing_is_invalid_with_its_reason(reading, reply, reason):
    found = reading.read(reply)
    assert reason in found.invalid
    assert (found.preference, found.grade, found.reply) == (None, None, reply.text)


@pytest.mark.parametrize(
    ("rating", "text", "grade"),
    [
        (TEN, "Rating: [[7]]", 7),
        (TEN, "[[7.5]] and later [[2]]", 7.5),
        (Rating(1, 10), "[[7.5]] and later [[2]]", 2),
        (TEN, "I say [3]", 3),
        (TEN, "not [4] but [[5]]", 5),
    ],
)
def test_a_rating_is_the_number_in_brackets(rating, text, grade):
    assert rating.read(Reply(text)).grade == grade


def test_letters_are_read_by_their_probabilities():
    two = Letters({"A": 1.0, "B": 0.0})
    assert two.read(Reply("A", (("A", math.log(0.3)), ("B", math.log(0.1)))), 2).preference == pytest.approx(0.75)
    assert two.read(Reply("A", (("▁A", math.log(0.3)), ("B", math.log(0.1)))), 2).preference == pytest.approx(0.75)
    grades = Letters({str(n): float(n) for n in range(1, 6)})
    told = (("2", math.log(0.2)), ("4", math.log(0.6)), ("x", math.log(0.2)))
    assert grades.read(Reply("4", told), 1).grade == pytest.approx(3.5)
    assert "none of the letters" in two.read(Reply("x", (("x", -1.0),)), 2).invalid
    assert "none of the letters" in two.read(Reply("", ()), 2).invalid


@given(st.lists(st.floats(-2000, 0), min_size=2, max_size=2))
def test_a_preference_stays_between_its_letters_whatever_the_probabilities(logprobs):
    two = Letters({"A": 1.0, "B": 0.0})
    there = two.worth(dict(zip("AB", logprobs, strict=True)))
    back = two.worth(dict(zip("AB", logprobs[::-1], strict=True)))
    assert 0 <= there <= 1
    assert there + back == pytest.approx(1)


@pytest.mark.parametrize(
    "make", [lambda: Marks({}), lambda: Marks({"A": "better"}), lambda: Rating(5, 5), lambda: Letters({"A": 1.0})]
)
def test_a_reading_that_says_nothing_is_refused(make):
    with pytest.raises(DataError):
        make()


@pytest.mark.parametrize("mark", ["Answer A", "ASSISTANT_B", "Antwort-B-besser", "süß", ""])
def test_a_mark_that_no_reply_can_say_is_refused(mark):
    with pytest.raises(DataError, match="is never read; write up to 12 of the letters"):
        Marks({mark: ">", "B": "<"})


@pytest.mark.parametrize(
    ("verdict", "marks"),
    {">>": "A>>B B<<A", ">": "A>B B<A", "=": "A=B B=A", "<": "B>A A<B", "<<": "B>>A A<<B"}.items(),
)
def test_arena_hard_reads_each_verdict_of_its_own_table(verdict, marks):
    """The labels of `label_to_score` in arena-hard-auto, and what each says."""
    for mark in marks.split():
        assert load_template("arena_hard").read(Reply(f"My verdict: [[{mark}]]")).verdict == verdict
