"""Altered numbers: one digit, one token, the same shape, fixed by the seed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tiny_tokenizer

from densepath.data.encode import encode_pairs
from densepath.evals.alter import alterations, numbers_in
from densepath.evals.altered_numbers import AlteredAnswer, alter_answer, answer_of, with_answer

TOKENIZER = tiny_tokenizer()
TURNS = [{"role": "user", "content": "16 eggs, 3 eaten?"}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Janet sells 16 - 3 = <<16-3=13>>13 eggs.", ["16", "3", "16", "3", "13", "13"]),
        ("$1,250.50 or 12.5%.", ["1,250.50", "12.5"]),
        ("#### 18", ["18"]),
        ("the 3rd mp3 of v1.2.3 costs 1,2,3", []),  # words, versions and lists are no numbers
        ("no digits", []),
        ("007", ["007"]),
        ("٣ and ３", []),  # other scripts' digits
    ],
)
def test_numbers_by_hand(text, found):
    assert [text[start:end] for start, end in numbers_in(text)] == found


texts = st.lists(
    st.one_of(
        st.integers(0, 99_999).map(str), st.sampled_from(["=", " ", "$", ".", ",", "<<", ">>", "eggs", "1,200.5"])
    ),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=150)
@given(texts, st.integers(0, 3))
def test_an_alteration_replaces_one_digit_and_keeps_the_shape(text, seed):
    for altered in alterations(text, random.Random(seed)):
        different = [index for index, (a, b) in enumerate(zip(text, altered.text, strict=True)) if a != b]
        assert different == [altered.at]
        assert altered.text[altered.at] in "0123456789"
        assert (altered.start, altered.end) in numbers_in(altered.text)  # it is still one number
        assert altered.text[altered.start : altered.end] == altered.after != altered.before
        assert re.sub(r"\d", "d", altered.after) == re.sub(r"\d", "d", altered.before)
        assert altered.at != altered.start or altered.after[0] != "0"


def test_every_alteration_comes_once_and_the_seed_decides_the_order():
    text = "7 and 42"
    found = list(alterations(text, random.Random(0)))
    # "7": 8 others but 0; "42": 8 for the first digit, 9 for the second.
    assert len({altered.text for altered in found}) == len(found) == 8 + 8 + 9
    assert found == list(alterations(text, random.Random(0)))
    firsts = {next(alterations(text, random.Random(seed))).text for seed in range(40)}
    assert len(firsts) > 15


ROWS = {
    "standard": {"prompt": "16 eggs, 3 eaten?", "completion": "16 - 3 = 13"},
    "chat": {"prompt": TURNS, "completion": [{"role": "assistant", "content": "16 - 3 = 13"}]},
    "messages": {"messages": [*TURNS, {"role": "assistant", "content": "16 - 3 = 13"}]},
    "text": {"text": "16 - 3 = 13"},
}


@pytest.mark.parametrize("kind", ROWS)
def test_the_twin_differs_in_one_token(kind):
    row = ROWS[kind]
    numbers = set()
    for seed in range(25):
        found = alter_answer(row, TOKENIZER, random.Random(seed))
        assert isinstance(found, AlteredAnswer)
        original, twin = found.completions
        assert original == encode_pairs(row, TOKENIZER)[-1]
        assert twin.prompt_ids == original.prompt_ids
        pairs = zip(original.completion_ids, twin.completion_ids, strict=True)
        assert [i for i, (a, b) in enumerate(pairs) if a != b] == [found.at]
        assert twin == encode_pairs(with_answer(row, found.altered.text), TOKENIZER)[-1]
        assert found.number == ("new" if kind == "text" or found.altered.before == "13" else "copied")
        assert found == alter_answer(row, TOKENIZER, random.Random(seed))
        numbers.add(found.altered.before)
    assert numbers == {"16", "3", "13"}


def test_a_number_that_stands_earlier_in_the_answer_is_copied():
    row = {"prompt": "How many?", "completion": "5 = 5"}
    found = {
        alter_answer(row, TOKENIZER, random.Random(seed)).altered.start: alter_answer(
            row, TOKENIZER, random.Random(seed)
        ).number
        for seed in range(20)
    }
    assert found == {0: "new", 4: "copied"}


def test_rows_without_a_fitting_alteration_say_why():
    assert alter_answer({"prompt": "a", "completion": "two"}, TOKENIZER, random.Random(0)) == (
        "the answer holds no number"
    )
    words = tiny_tokenizer(byte_level=False)  # every unknown number is the same <|unk|>
    assert alter_answer({"prompt": "a", "completion": "777"}, words, random.Random(0)) == (
        "no alteration of a digit changes one token alone"
    )


def test_the_last_assistant_turn_is_the_answer():
    turns = [*TURNS, {"role": "assistant", "content": "1"}, *TURNS, {"role": "assistant", "content": "2"}]
    row = {"messages": turns, "id": 7}
    assert answer_of(row) == "2"
    changed = with_answer(row, "9")
    assert [turn["content"] for turn in changed["messages"]] == [TURNS[0]["content"], "1", TURNS[0]["content"], "9"]
    assert turns[-1]["content"] == "2"
    assert changed["id"] == 7
