"""Constraints that a program checks: hand-written answers that meet them and that do not, and rows made with them."""

from __future__ import annotations

import builtins
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.data import constraints
from densepath.data.constraints import Kind, constrained_rows, instruction_of, is_met, words
from densepath.errors import ConfigError, DataError

YES, NO = True, False
CASES = [
    ({"kind": "max_words", "count": 3}, "one two three", YES),
    ({"kind": "max_words", "count": 3}, "", YES),
    ({"kind": "max_words", "count": 3}, "one, two - three: four!", NO),
    ({"kind": "max_words", "count": 3}, "it's well-known here", YES),  # three words
    ({"kind": "max_words", "count": 1}, "naïveté", YES),
    ({"kind": "min_words", "count": 2}, "one two", YES),
    ({"kind": "min_words", "count": 2}, "one ... !!! ---", NO),
    ({"kind": "json", "keys": ["answer"]}, ' {"answer": "a", "more": [1]}\n', YES),
    ({"kind": "json", "keys": ["answer"]}, '{"answer": null}', YES),
    ({"kind": "json", "keys": ["answer"]}, '{"Answer": 1}', NO),
    ({"kind": "json", "keys": ["answer"]}, '["answer"]', NO),
    ({"kind": "json", "keys": ["answer"]}, '{"answer": NaN}', NO),
    ({"kind": "json", "keys": ["answer"]}, 'Sure: {"answer": 1}', NO),
    ({"kind": "json", "keys": ["answer"]}, '```json\n{"answer": 1}\n```', NO),
    ({"kind": "json", "keys": ["answer"]}, '{"answer": 1', NO),
    ({"kind": "json", "keys": ["answer"]}, "[" * 100_000, NO),
    ({"kind": "include_words", "words": ["sun", "Rain"]}, "RAIN, then Sun.", YES),
    ({"kind": "include_words", "words": ["sun", "rain"]}, "rain on Sunday", NO),
    ({"kind": "include_words", "words": ["c++"]}, "I like C++!", YES),
    ({"kind": "exclude_words", "words": ["sun"]}, "Sunday", YES),
    ({"kind": "exclude_words", "words": ["sun", "rain"]}, "the sun", NO),
    ({"kind": "language", "language": "en"}, "The cat sat on the mat and looked at the dog.", YES),
    ({"kind": "language", "language": "en"}, "Die Katze saß auf der Matte und sah den Hund an.", NO),
    ({"kind": "language", "language": "de"}, "Die Katze saß auf der Matte und sah den Hund an.", YES),
    ({"kind": "language", "language": "fr"}, "Le chat est assis sur le tapis et regarde le chien.", YES),
    ({"kind": "language", "language": "ja"}, "今日は天気がいいです。", YES),
    ({"kind": "language", "language": "en"}, " ... ", NO),
    # `datasets` fills the keys of other rows in with nulls
    ({"kind": "max_words", "count": 2, "words": None, "keys": None, "language": None}, "one two", YES),
]


@pytest.mark.parametrize(("constraint", "text", "met"), CASES)
def test_by_hand(constraint, text, met):
    assert is_met(constraint, text) is met


def test_every_kind_has_a_case_that_meets_it_and_one_that_does_not():
    seen = {(constraint["kind"], met) for constraint, _, met in CASES}
    assert seen == {(kind.value, met) for kind in Kind for met in (YES, NO)}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"kind": "rhyme"}, "no known kind; use max_words, min_words, json"),
        ({}, "no known kind"),
        ("max_words", "no known kind"),
        ({"kind": "max_words"}, "needs 'count', a int"),
        ({"kind": "max_words", "count": "3"}, "needs 'count', a int"),
        ({"kind": "json", "keys": None}, "needs 'keys', a list"),
    ],
)
def test_what_is_no_constraint_is_refused(constraint, message):
    with pytest.raises(DataError, match=message):
        is_met(constraint, "text")


ANSWER = "Start slowly with a brisk walk, then jog for fifteen minutes, and rest whenever your body needs it today."
ROWS = [
    {"prompt": f"How do I start running in week {i}?", "completion": ANSWER, "id": i, "category": "qa"}
    for i in range(60)
]


def test_demonstrations_meet_their_constraints_and_the_prompt_says_them():
    found = constrained_rows(ROWS)
    kinds = set()
    for row, before in zip(found, ROWS, strict=True):
        assert 1 <= len(row["constraints"]) <= 2
        assert row["prompt"].startswith(before["prompt"] + "\n\n")
        assert row["prompt"].endswith("\n".join(instruction_of(c) for c in row["constraints"]))
        assert all(is_met(c, row["completion"]) for c in row["constraints"])
        kinds |= {c["kind"] for c in row["constraints"]}
        is_json = any(c["kind"] == "json" for c in row["constraints"])
        assert row["completion"] == (json.dumps({"answer": ANSWER}) if is_json else ANSWER)
        assert row["id"] == before["id"]
    assert kinds == {kind.value for kind in Kind}


def test_the_constraints_can_be_missed():
    """An answer to something else does not meet most of them: they ask for something."""
    other = "Bananas are yellow."
    met = [all(is_met(c, other) for c in row["constraints"]) for row in constrained_rows(ROWS)]
    assert sum(met) < 0.6 * len(met)


def test_the_draw_depends_on_prompt_and_seed_alone():
    found = constrained_rows(ROWS)
    assert constrained_rows(ROWS[::-1])[::-1] == found
    assert constrained_rows(ROWS[7:8]) == found[7:8]
    assert constrained_rows(ROWS, seed=1) != found
    assert constrained_rows(found) == found  # once is enough


def test_conversations_and_bare_prompts():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which fruit is yellow?"}]
    answer = [{"role": "assistant", "content": "Bananas are yellow when they are ripe."}]
    (pair,) = constrained_rows([{"prompt": turns, "completion": answer}], kinds=["max_words"])
    assert pair["prompt"][0] == turns[0]
    assert pair["prompt"][1]["content"] == "Which fruit is yellow?\n\nUse at most 10 words."  # 7, rounded up
    assert pair["completion"] == answer
    (messages,) = constrained_rows([{"messages": turns + answer}], kinds=["json"])
    assert set(messages) == {"prompt", "completion", "constraints"}
    assert json.loads(messages["completion"][0]["content"]) == {"answer": answer[0]["content"]}
    assert turns[1]["content"] == "Which fruit is yellow?"  # the caller's row is not touched
    (bare,) = constrained_rows([{"prompt": "Which fruit is yellow?"}], kinds=["exclude_words"])
    assert set(bare["constraints"][0]["words"]) <= {"which", "fruit", "yellow"}
    with pytest.raises(DataError, match="no prompt"):
        constrained_rows([{"text": "plain"}])
    with pytest.raises(ConfigError, match="'rhyme' is not a valid Kind; use max_words"):
        constrained_rows(ROWS, kinds=["rhyme"])


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 10))
def test_whatever_the_text_the_demonstration_meets_what_is_read_off_it(prompt, completion, seed):
    (row,) = constrained_rows([{"prompt": prompt, "completion": completion}], seed=seed)
    assert all(is_met(constraint, row["completion"]) for constraint in row["constraints"])
    json.dumps(row)


def test_without_py3langid_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("py3langid"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    constraints._identifier.cache_clear()
    try:
        with pytest.raises(ConfigError, match="pip install py3langid"):
            constrained_rows(ROWS[:1])
        assert len(constrained_rows(ROWS[:1], kinds=["max_words"])) == 1
    finally:
        constraints._identifier.cache_clear()


def test_words():
    assert words("") == []
    assert words("a b-c d' 3.5") == ["a", "b-c", "d", "3", "5"]
