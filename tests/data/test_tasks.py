from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.data.formats import validate_rows
from densepath.data.splits import content_hash
from densepath.data.tasks import (
    PHRASINGS,
    SEPARATOR,
    SYSTEM_TEXT,
    WORDS,
    Noise,
    TaskFamily,
    check_answer,
    generate_tasks,
    normalise_answer,
)
from densepath.errors import ConfigError, DataError

LIST_FAMILIES = ["reverse", "sort_words", "capitals", "sort_numbers"]


def items_of(row: dict[str, Any]) -> list[str]:
    """The list in a prompt, found by its phrasing: an oracle that shares nothing with the generator's draws."""
    text = row["prompt"][-1]["content"]
    for phrasing in PHRASINGS[TaskFamily(row["family"])]:
        lead = phrasing.removesuffix("{items}")
        if text.startswith(lead):
            return text.removeprefix(lead).split(SEPARATOR)
    raise AssertionError(text)


def solve(row: dict[str, Any]) -> str:
    items = items_of(row)
    by_family = {
        "reverse": list(reversed(items)),
        "sort_words": sorted(items),
        "last_word": [items[-1]],
        "capitals": [item.upper() for item in items],
        "count": [str(len(items))],
    }
    if row["family"] == "sort_numbers":
        return ", ".join(map(str, sorted(map(int, items))))
    return ", ".join(by_family[row["family"]])


def said(row: dict[str, Any]) -> str:
    return row["completion"][0]["content"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_answers_are_right_and_errors_are_errors(seed: int) -> None:
    rows = generate_tasks(60, seed=seed, error_rate=0.5)
    validate_rows(rows, "demonstrations")
    for row in rows:
        assert row["answer"] == solve(row)
        assert row["correct"] == check_answer(said(row), row) == (said(row) == row["answer"])
        assert row["correct"] == (row["noise"] == "none")
        assert 3 <= len(items_of(row)) <= 5


def test_literal_rows() -> None:
    first, second = generate_tasks(2, seed=0, error_rate=0.0)
    assert first == {
        "prompt": [
            {"role": "system", "content": "Reply with the answer only."},
            {"role": "user", "content": "Give the list from back to front: song, key, bear, fire"},
        ],
        "completion": [{"role": "assistant", "content": "fire, bear, key, song"}],
        "answer": "fire, bear, key, song",
        "family": "reverse",
        "correct": True,
        "noise": "none",
    }
    assert second["family"] == "sort_words"


def test_same_seed_same_rows_and_a_longer_call_begins_with_a_shorter_one() -> None:
    assert generate_tasks(30, seed=5) == generate_tasks(60, seed=5)[:30]
    assert generate_tasks(30, seed=5) != generate_tasks(30, seed=6)


def test_prompts_are_unique_and_families_take_turns() -> None:
    rows = generate_tasks(600, seed=1)
    assert len({content_hash(row) for row in rows}) == 600
    assert [row["family"] for row in rows[:6]] == [family.value for family in TaskFamily]
    assert all(sum(row["family"] == family for row in rows) == 100 for family in TaskFamily)


def test_error_rate_and_copy_share_are_met_on_average() -> None:
    rows = generate_tasks(3000, seed=2, error_rate=0.35)
    wrong = [row for row in rows if not row["correct"]]
    copied = [row for row in wrong if said(row) == SEPARATOR.join(items_of(row))]
    # Five binomial standard deviations: sqrt(3000 * 0.35 * 0.65) = 26 and sqrt(1050 * 0.7 * 0.3) = 15.
    assert abs(len(wrong) - 1050) < 130
    assert abs(len(copied) - 0.7 * len(wrong)) < 75


@pytest.mark.parametrize(("rate", "correct"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_error_rate(rate: float, correct: bool) -> None:
    assert all(row["correct"] is correct for row in generate_tasks(60, seed=3, error_rate=rate))


@pytest.mark.parametrize("family", LIST_FAMILIES)
def test_each_noise_is_what_its_name_says(family: str) -> None:
    for noise in ("copy", "drop", "swap"):
        for row in generate_tasks(20, seed=4, error_rate=1.0, families=[family], noise=[noise]):
            answer, wrong = row["answer"].split(", "), said(row).split(", ")
            if noise == "copy":
                assert wrong == items_of(row)
            if noise == "drop":
                assert len(wrong) == len(answer) - 1
                assert wrong == [item for item in answer if item in wrong]
            if noise == "swap":
                moved = [i for i, (a, b) in enumerate(zip(answer, wrong, strict=True)) if a != b]
                assert moved == [moved[0], moved[0] + 1]
                assert sorted(answer) == sorted(wrong)


def test_off_by_one() -> None:
    for row in generate_tasks(
        30, seed=4, error_rate=1.0, families=["count", "last_word", "sort_numbers"], noise=[Noise.OFF_BY_ONE]
    ):
        if row["family"] == "count":
            assert abs(int(said(row)) - int(row["answer"])) == 1
        elif row["family"] == "last_word":
            assert said(row) == items_of(row)[-2]
        else:
            pairs = zip(said(row).split(", "), row["answer"].split(", "), strict=True)
            assert sum(abs(int(a) - int(b)) for a, b in pairs) == 1


def test_the_system_turn_can_be_changed_or_left_out() -> None:
    assert generate_tasks(1, seed=0)[0]["prompt"][0] == {"role": "system", "content": SYSTEM_TEXT}
    assert generate_tasks(1, seed=0, system="Short.")[0]["prompt"][0]["content"] == "Short."
    assert [turn["role"] for turn in generate_tasks(1, seed=0, system=None)[0]["prompt"]] == ["user"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"error_rate": 1.5}, "1.5"),
        ({"families": ["sort_words", "rhyme"]}, "family 'rhyme' does not exist; choose from capitals, count"),
        ({"families": []}, "no family"),
        ({"noise": ["typo"]}, "noise 'typo' does not exist"),
        ({"noise": ["swap"], "families": ["count"]}, "suits the family count; add one of copy, off_by_one"),
        ({"noise": ["none"]}, "suits the family reverse"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_tasks(**{"n": 6, "seed": 0, **arguments})


def test_used_up_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.data.tasks.WORDS", ("cat", "dog", "sun", "tree", "star"))
    # 60 + 120 + 120 lists of 3, 4 and 5 words in 4 phrasings.
    with pytest.raises(ConfigError, match="no new last_word prompt"):
        generate_tasks(1201, seed=0, families=["last_word"])


def test_the_words_are_about_two_hundred_plain_ones() -> None:
    assert 190 <= len(WORDS) == len(set(WORDS))
    assert all(word.isascii() and word.isalpha() and word.islower() and 2 < len(word) < 8 for word in WORDS)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("CAT, DOG", True),
        ("  CAT,\n DOG. ", True),
        ("CAT, DOG..", False),
        ("cat, dog", False),
        ("CAT,DOG", False),
        ("CAT, DOG, SUN", False),
        ("The answer is CAT, DOG", False),
        ("", False),
    ],
)
def test_check_answer(completion: str, right: bool) -> None:
    assert check_answer(completion, {"answer": "CAT, DOG"}) is right


def test_a_row_without_answer_is_refused() -> None:
    with pytest.raises(DataError, match='no "answer"'):
        check_answer("x", {"prompt": "y"})


@given(st.text())
def test_normalising_changes_nothing_more_the_second_time_without_periods(text: str) -> None:
    once = normalise_answer(text.replace(".", ""))
    assert normalise_answer(once) == once
