from __future__ import annotations

import hashlib
import math
import random
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.data.splits import check_disjoint, content_hash, hold_out_by_content, split_by_content
from densepath.errors import ConfigError, DataError

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PROMPTS = st.lists(TEXTS, min_size=1, max_size=30)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_hash_is_that_of_the_canonical_turns() -> None:
    expected = hashlib.sha256(b'[["user","caf\\u00e9 au lait"]]').hexdigest()
    assert content_hash({"prompt": "  cafe\u0301 \u00a0au\u2028lait\n"}) == expected  # decomposed é, odd spaces
    assert content_hash({"prompt": [turn("user", "café au lait")]}) == expected


def test_the_completion_never_enters() -> None:
    user, other = turn("user", "a"), turn("assistant", "b")
    hashes = {
        content_hash({"prompt": "a"}),
        content_hash({"prompt": "a", "completion": "b", "id": 3}),
        content_hash({"prompt": [user], "completion": [other]}),
        content_hash({"messages": [user, other]}),
        content_hash({"messages": [user]}),
    }
    assert len(hashes) == 1


def test_earlier_turns_and_roles_do_enter() -> None:
    turns = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    assert content_hash({"messages": turns}) == content_hash({"prompt": turns[:3]})
    assert content_hash({"messages": turns}) != content_hash({"prompt": turns[2:3]})
    assert content_hash({"prompt": [turn("system", "a")]}) != content_hash({"prompt": [turn("user", "a")]})
    assert content_hash({"text": "a"}) == content_hash({"prompt": "a"})  # text is hashed whole


@given(PROMPTS, st.randoms(use_true_random=False))
def test_a_rows_split_depends_on_its_prompt_alone(prompts: list[str], rng: random.Random) -> None:
    rows = [{"prompt": prompt, "completion": str(i)} for i, prompt in enumerate(prompts)]
    split_of = {row["completion"]: name for name, part in split_by_content(rows, SHARES).items() for row in part}
    assert len(split_of) == len(rows)  # every row lands once
    shuffled = rng.sample(rows, rng.randint(1, len(rows)))  # another order, other neighbours
    for name, part in split_by_content(shuffled, SHARES).items():
        assert all(split_of[row["completion"]] == name for row in part)


@given(PROMPTS, TEXTS)
def test_splits_are_disjoint_and_duplicates_stay_together(prompts: list[str], space: str) -> None:
    rows = [{"prompt": prompt} for prompt in prompts] + [{"prompt": f"\t{prompt} \n"} for prompt in prompts]
    splits = split_by_content(rows, {"a": 0.5, "b": 0.5})
    check_disjoint(splits)
    assert sorted(map(len, splits.values())) == sorted(2 * n for n in _half_sizes(prompts))


def _half_sizes(prompts: list[str]) -> list[int]:
    # The share 0.5 is decided by the hash's first bit, that is by its first hexadecimal digit.
    upper = sum(content_hash({"prompt": prompt})[0] in "89abcdef" for prompt in prompts)
    return [upper, len(prompts) - upper]


def test_shares_are_met_on_average() -> None:
    splits = split_by_content([{"prompt": str(i)} for i in range(4000)], SHARES)
    # Binomial standard deviations are 25 and 19 rows: five of them on either side.
    assert abs(len(splits["train"]) - 3200) < 126
    assert abs(len(splits["test"]) - 400) < 95


def test_a_dataset_gives_datasets_in_its_order() -> None:
    rows = datasets.Dataset.from_list([{"prompt": str(i), "id": i} for i in range(40)])
    splits = split_by_content(rows)
    assert set(splits) == {"train", "validation", "test"}
    assert all(isinstance(part, datasets.Dataset) for part in splits.values())
    assert splits["train"]["id"] == sorted(splits["train"]["id"])
    as_lists = split_by_content(list(rows))
    assert {name: part.to_list() for name, part in splits.items()} == as_lists


@pytest.mark.parametrize("shares", [{}, {"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}])
def test_bad_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_content([{"prompt": "a"}], shares)


def test_shares_that_sum_to_one_by_rounding_place_every_row() -> None:
    shares = {str(i): 0.1 for i in range(10)}  # adds up to 0.9999999999999999
    splits = split_by_content([{"prompt": str(i)} for i in range(500)], shares)
    assert sum(map(len, splits.values())) == 500


def test_a_shared_prompt_is_named_with_both_rows() -> None:
    train: list[dict[str, Any]] = [{"prompt": "x"}, {"prompt": "What is\n it?"}, {"prompt": "x"}]
    test = [{"prompt": "y"}, {"prompt": "z"}, {"prompt": [turn("user", "What is it?")]}]
    check_disjoint({"train": train, "test": test[:2]})
    with pytest.raises(DataError, match=r"train row 2 and test row 3 have the same prompt \('What is it\?'\)"):
        check_disjoint({"train": train, "test": test})


def conversation(*answered: str) -> dict[str, Any]:
    """`messages` in which each of these questions is answered."""
    return {"messages": [each for text in answered for each in (turn("user", text), turn("assistant", f"{text}!"))]}


def test_what_an_earlier_turn_answers_is_trained_on_and_may_not_be_held_out() -> None:
    train, held_out = [conversation("a"), conversation("b", "c")], [conversation("d"), conversation("b")]
    check_disjoint({"train": train, "test": held_out})  # prompts alone: of b, c no more than [b, b!, c] is asked
    for splits in ({"train": train, "test": held_out}, {"test": held_out, "train": train}):
        with pytest.raises(DataError, match=r"row 2 and t.* row 2 have the same prompt \('b'\)"):
            check_disjoint(splits, every_turn=["train"])
    check_disjoint({"train": held_out, "test": train[1:]}, every_turn=["train"])  # [b, b!, c] was not trained on
    several = {"prompt": [turn("user", "e")], "completion": conversation("f", "b")["messages"][1:]}
    asked = [{"prompt": [turn("user", "e"), turn("assistant", "f!"), turn("user", "b")]}]
    with pytest.raises(DataError, match="same prompt"):
        check_disjoint({"train": [several], "test": asked}, every_turn=["train"])


def test_conversations_that_begin_alike_are_in_one_split() -> None:
    begun, gone_on = ([conversation(f"q{i}", *more) for i in range(300)] for more in ((), ("Go on.",)))
    splits = split_by_content([*begun, *gone_on])
    check_disjoint(splits, every_turn=list(splits))
    assert all(begun[i] in part for part in splits.values() for i in range(300) if gone_on[i] in part)
    # So too where the earlier turns stand in the prompt, or the later ones in the completion.
    cut = [{"prompt": row["messages"][:3], "completion": row["messages"][3:]} for row in gone_on]
    whole = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in gone_on]
    splits = split_by_content([*cut, *whole, *begun])
    check_disjoint(splits, every_turn=list(splits))
    assert all(splits.values())


@pytest.mark.parametrize(
    "opening",
    [[turn("user", "Hi"), turn("assistant", "Hello!")], [turn("system", "s"), turn("assistant", "Hello!")]],
    ids=["user", "greeting"],
)
def test_turns_that_all_conversations_begin_with_tell_no_rows_apart(opening: list[dict[str, str]]) -> None:
    rows = [{"messages": [*opening, *conversation(f"q{i}", "Go on.")["messages"]]} for i in range(300)]
    splits = split_by_content(rows, {"a": 0.5, "b": 0.5})
    assert 100 < len(splits["a"]) < 200  # five standard deviations are 43 rows
    check_disjoint(splits, every_turn=["a", "b"])
    # With a row that asks no more than the opening all of them answer it, and stand in its split.
    together = split_by_content([*rows, {"messages": opening}], {"a": 0.5, "b": 0.5})
    assert sorted(map(len, together.values())) == [0, 301]
    with pytest.raises(DataError, match="same prompt"):
        check_disjoint({"a": rows[:1], "b": [{"messages": opening}]}, every_turn=["a"])


@given(PROMPTS, st.floats(0.01, 0.99))
def test_the_highest_contents_are_held_out_whatever_was_split_before(prompts: list[str], share: float) -> None:
    rows = [{"prompt": prompt, "completion": str(i)} for i, prompt in enumerate(prompts)]
    left, held = hold_out_by_content(rows, share)
    hashes = [sorted({content_hash(row) for row in part}) for part in (left, held)]
    assert [row for row in rows if row in held] == held  # in their order
    assert len(left) + len(held) == len(rows)
    assert len(hashes[1]) == math.ceil(share * (len(hashes[0]) + len(hashes[1])))
    assert not hashes[0] or hashes[0][-1] < hashes[1][0]


def test_what_is_held_out_is_what_a_split_holds_out_at_the_end() -> None:
    rows = [{"prompt": str(i)} for i in range(4000)]
    held = {row["prompt"] for row in hold_out_by_content(rows, 0.1)[1]}
    test = {row["prompt"] for row in split_by_content(rows, SHARES)["test"]}
    assert len(held ^ test) < 95  # five standard deviations of the split's share, as above
    assert held <= test or test <= held
