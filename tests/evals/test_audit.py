"""The audit finds planted faults: wrong numbers after a real SFT, duplicates, over-long rows and cut-off ends."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from tests.pipeline.planted import planted_model
from tests.support import PAD, tiny_tokenizer
from tests.tiny_models import tiny_llama
from tests.tiny_sft import TOKENIZER, corrupted, counting_models, counting_rows

from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DataError, UsageError
from densepath.evals.audit import audit_demonstrations, ends_openly
from densepath.evals.duplicates import exact_key, first_occurrences, normal_key, normalise_words
from densepath.rewards.dense import DenseReward

PROMPT = [{"role": "user", "content": "Say it."}]


@pytest.fixture(scope="module")
def reward():
    sft, ref, _ = counting_models()
    return DenseReward(sft, ref, tokenizer=TOKENIZER)


# --- faults in the text ------------------------------------------------------------------------------------------


def test_corrupted_demonstrations_rank_at_the_top(reward):
    rng = random.Random(5)
    rows = counting_rows(60, seed=5)  # held out
    wrong = {index + 1: corrupted(row, rng) for index, row in enumerate(rows) if index % 6 == 0}
    records = audit_demonstrations(
        reward, [wrong.get(index + 1, row) for index, row in enumerate(rows)], aggregation="min"
    )
    assert [record["rank"] for record in records] == list(range(1, 61))
    places = [record["rank"] for record in records if record["row"] in wrong]
    won = sum(good > bad for bad in places for good in set(range(1, 61)) - set(places))
    assert won / (10 * 50) > 0.98  # the AUROC with which the rank tells them from the rest
    for record in records[:5]:  # and the worst span touches a digit that was altered
        original, altered = rows[record["row"] - 1]["completion"], wrong[record["row"]]["completion"]
        span = record["worst_spans"][0]["text"]
        assert any(character.isdigit() for character in span)
        assert altered.count(span) > original.count(span), span


@pytest.mark.parametrize("how", ["mean", "sum", "min"])
def test_scores_are_those_of_the_reward(reward, how):
    rows = counting_rows(12, seed=8)
    records = audit_demonstrations(reward, rows, aggregation=how)
    pairs = [encode_pairs(row, TOKENIZER)[0] for row in rows]
    scores = reward.score_ids([pair.prompt_ids for pair in pairs], [pair.completion_ids for pair in pairs])
    fold = {"sum": math.fsum, "mean": lambda v: math.fsum(v) / len(v), "min": min}[how]
    expected = {index + 1: fold(values.tolist()) for index, values in enumerate(scores.rewards)}
    assert {record["row"]: record["score"] for record in records} == pytest.approx(expected, abs=1e-5)
    assert [record["score"] for record in records] == sorted(record["score"] for record in records)
    for record in records:
        values = scores.rewards[record["row"] - 1].tolist()
        assert record["turns"][0]["rewards"] == pytest.approx(values, abs=1e-5)
        assert record["lowest"] == pytest.approx(min(values), abs=1e-5)
        logprobs = scores.sft_logprobs[record["row"] - 1].tolist()
        assert record["sft_logprob_lowest"] == pytest.approx(min(logprobs), abs=1e-5)
        assert record["sft_logprob_per_token"] == pytest.approx(math.fsum(logprobs) / len(logprobs), abs=1e-5)
        for span in record["worst_spans"]:
            assert span["reward"] == pytest.approx(sum(values[span["start"] : span["end"]]), abs=1e-4)
            ids = pairs[record["row"] - 1].completion_ids[span["start"] : span["end"]]
            assert TOKENIZER.decode(ids) == span["text"]


def test_every_turn_of_a_conversation_is_audited(reward):
    turns = [*PROMPT, {"role": "assistant", "content": "1 2."}, *PROMPT, {"role": "assistant", "content": "cat"}]
    (record,) = audit_demonstrations(reward, [{"messages": turns, "id": "x", "category": "c"}])
    assert len(record["turns"]) == 2
    assert {span["turn"] for span in record["worst_spans"]} <= {0, 1}
    assert (record["id"], record["category"], record["prompt"][-1]["content"]) == ("x", "c", "Say it.")
    assert record["reward"] == pytest.approx(sum(turn["sum"] for turn in record["turns"]), abs=1e-5)


# --- duplicates ----------------------------------------------------------------------------------------------------


def test_duplicates_are_named_with_the_row_they_repeat(reward):
    rows = [
        {"prompt": "Say: 1", "completion": "1 2."},
        {"prompt": "Say: 2", "completion": "1 2."},
        {"prompt": "Say: 1", "completion": "1 2.", "id": "other"},  # equal to row 1 but for its id
        {"prompt": "say  1", "completion": "1 2!"},  # but for case, spacing and punctuation
        {"prompt": "Say: 1", "completion": "1.2"},  # not: 1.2 is another number
    ]
    records = audit_demonstrations(reward, rows)
    flags = {record["row"]: [flag for flag in record["flags"] if "of" in flag] for record in records}
    assert flags == {
        1: [],
        2: [],
        3: [{"flag": "duplicate", "of": 1}],
        4: [{"flag": "near_duplicate", "of": 1}],
        5: [],
    }


def test_a_row_names_its_twin_and_the_near_one_that_comes_before_it(reward):
    rows = [{"prompt": "Say: 1", "completion": text} for text in ("Yes.", "yes", "yes", "Yes.")]
    flags = {record["row"]: record["flags"] for record in audit_demonstrations(reward, rows)}
    named = {row: [(flag["flag"], flag["of"]) for flag in found if "of" in flag] for row, found in flags.items()}
    assert named == {
        1: [],
        2: [("near_duplicate", 1)],
        3: [("duplicate", 2), ("near_duplicate", 1)],
        4: [("duplicate", 1)],
    }


@pytest.mark.parametrize(
    "asked",
    [{"tools": [{"type": "function", "function": {"name": "add"}}]}, {"chat_template_kwargs": {"thinking": True}}],
    ids=["tools", "template"],
)
def test_what_is_asked_with_other_template_arguments_is_no_duplicate(asked):
    row = {"prompt": PROMPT, "completion": [{"role": "assistant", "content": "1."}]}
    rows = [row, {**row, **asked}, {**row, "tools": []}, {**row, **asked, "id": "again"}]
    for key in (exact_key, normal_key):
        assert list(first_occurrences(rows, key)) == [None, None, 0, 1]


def test_a_column_beside_prompt_and_completion_makes_no_duplicates(reward):
    """Questions on one source; and text beside a prompt, of which the format reads the text alone."""
    rows = [{"prompt": f"Say: {i}", "completion": f"{i} 2.", "text": "the source"} for i in range(2)]
    assert not any("of" in flag for record in audit_demonstrations(reward, rows) for flag in record["flags"])
    rows = [{"text": "1 2.", "prompt": "Say"}, {"text": "1 2!", "prompt": "Say more"}]
    flags = {record["row"]: record["flags"] for record in audit_demonstrations(reward, rows)}
    assert {"flag": "near_duplicate", "of": 1} in flags[2]


def test_the_format_of_a_row_does_not_matter_to_its_normal_form():
    standard = {"prompt": "Name a prime.", "completion": "Seven"}
    chat = {
        "prompt": [{"role": "user", "content": "name a prime"}],
        "completion": [{"role": "assistant", "content": "seven."}],
    }
    messages = {"messages": [*chat["prompt"], *chat["completion"]]}
    assert normal_key(standard) == normal_key(chat) == normal_key(messages)
    assert len({exact_key(row) for row in (standard, chat, messages)}) == 3
    assert normal_key({"text": "a"}) != normal_key(standard)


def test_first_occurrences_by_comparing_all_pairs():
    keys = list("abcabbda")
    expected = [next((i for i in range(j) if keys[i] == keys[j]), None) for j in range(len(keys))]
    assert list(first_occurrences([{"k": key} for key in keys], lambda row: row["k"])) == expected


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("“Don’t”, he said.", "dont he said", False),  # an apostrophe parts two words, here as there
        ("“Don’t”, he said.", "Don't he   said!", True),
        ("It is 2.5.", "it is 2.5", True),
        ("It is 2.5", "It is 25", False),
        ("2+3", "2-3", False),
        ("ﬁne", "Fine", True),
    ],
)
def test_normalised_words(text, other, same):
    assert (normalise_words(text) == normalise_words(other)) is same


# --- ends ----------------------------------------------------------------------------------------------------------


def test_a_cut_off_end_is_flagged_where_the_model_expects_more(reward):
    rows = counting_rows(40, seed=9)
    cut = [{**row, "completion": row["completion"].rstrip(".")} for row in rows]
    records = audit_demonstrations(reward, [*rows, *cut])
    flagged = {record["row"] for record in records if any(flag["flag"] == "cut_off" for flag in record["flags"])}
    assert not flagged & set(range(1, 41))  # each ends in a full stop
    assert len(flagged & set(range(41, 81))) > 36  # the model expects the stop, or the next number
    for record in records:
        for flag in record["flags"]:
            if flag["flag"] == "cut_off":
                assert 0 <= flag["eos_probability"] < 0.05


def test_an_answer_that_the_model_would_end_too_is_whole():
    tokenizer = tiny_tokenizer()
    sft = planted_model(tokenizer, {":": {"A": 0.5, "B": 0.5}, "A": {"": 0.9, "B": 0.1}, "B": {"": 0.01, "A": 0.99}})
    reward = DenseReward(sft, kind="logprob", tokenizer=tokenizer)
    records = audit_demonstrations(reward, [{"prompt": ":", "completion": "A"}, {"prompt": ":", "completion": "B"}])
    flags = {record["row"]: record["flags"] for record in records}
    assert flags[1] == []
    assert flags[2] == [{"flag": "cut_off", "eos_probability": pytest.approx(0.01, rel=1e-3)}]


def test_the_end_of_a_turn_before_eos_is_the_end_of_the_answer():
    """Phi 3: behind the end of a turn, which sampling stops at too, a line and EOS are certain."""
    tokenizer = tiny_tokenizer(pad_is_eos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ':' if m['role'] == 'assistant' }}{{ m['content'] + '<|pad|>\n' }}{% endfor %}"
        "{{ ':' if add_generation_prompt else eos_token }}"
    )
    sft = planted_model(tokenizer, {":": {"A": 0.5, "B": 0.5}, "A": {PAD: 0.9, "B": 0.1}, "B": {PAD: 0.01, "A": 0.99}})
    sft.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(PAD)]
    rows = [{"prompt": PROMPT, "completion": [{"role": "assistant", "content": text}]} for text in "AB"]
    ids = encode_pairs(rows[1], tokenizer)[0].completion_ids
    assert tokenizer.decode(ids) == f"B{PAD}\n{tokenizer.eos_token}"
    records = audit_demonstrations(DenseReward(sft, kind="logprob", tokenizer=tokenizer), rows)
    assert {record["row"]: record["flags"] for record in records} == {
        1: [],
        2: [{"flag": "cut_off", "eos_probability": pytest.approx(0.01, rel=1e-3)}],
    }


@pytest.mark.parametrize(
    ("text", "openly"),
    [
        ("She sold 9 of", True),
        ("She sold 9.", False),
        ("is it?  ", False),
        ("namely:", True),
        ("(as said)", False),
        ("f(", True),
        ("```\nx = 1\n```", False),
        ("```\nx = (1)", True),
        ("終わり。", False),
        ("”", False),
        ("", False),
    ],
)
def test_open_ends_by_hand(text, openly):
    assert ends_openly(text) is openly


def test_an_over_long_row_is_cut_and_flagged(reward):
    row = {"prompt": "3 +1:", "completion": "4 5 6 7 8 9 10."}
    (pair,) = encode_pairs(row, TOKENIZER)
    limit = len(pair.prompt_ids) + 3
    (record,) = audit_demonstrations(reward, [row], max_length=limit)
    length = len(pair.prompt_ids) + len(pair.completion_ids)
    assert record["flags"] == [{"flag": "over_long", "tokens": length}]
    assert record["num_tokens"] == 3
    assert record["turns"][0]["token_ids"] == list(pair.completion_ids[:3])
    (whole,) = audit_demonstrations(reward, [row], max_length=length)
    assert whole["flags"] == []
    with pytest.raises(DataError, match=rf"row 1: the prompt fills the limit of {limit - 3} tokens, as in every row"):
        audit_demonstrations(reward, [row], max_length=limit - 3)


def test_a_row_whose_prompt_leaves_no_room_is_told_and_left_out(reward):
    long, short = {"prompt": "3 +1: " * 20, "completion": "4."}, {"prompt": "3 +1:", "completion": "4 5."}
    with pytest.warns(
        UserWarning, match="row 1: the prompt fills the limit of 20 tokens, as in 1 row more: not audited"
    ):
        records = audit_demonstrations(reward, [long, short, long], max_length=20)
    assert [record["row"] for record in records] == [2]


def test_the_shortest_context_of_the_models_is_the_limit():
    models = [
        tiny_llama(len(TOKENIZER), seed=seed, max_position_embeddings=size) for seed, size in enumerate((256, 12))
    ]
    row = {"prompt": "3 +1:", "completion": "4 5 6 7 8 9 10."}
    (pair,) = encode_pairs(row, TOKENIZER)
    (record,) = audit_demonstrations(DenseReward(*models, tokenizer=TOKENIZER), [row])
    assert record["flags"] == [{"flag": "over_long", "tokens": len(pair.prompt_ids) + len(pair.completion_ids)}]
    assert record["num_tokens"] == 12 - len(pair.prompt_ids)


def test_turns_beyond_the_limit_are_left_out(reward):
    turns = list(itertools.chain.from_iterable([*PROMPT, {"role": "assistant", "content": "1."}] for _ in range(2)))
    pairs = encode_pairs({"messages": turns}, TOKENIZER)
    (record,) = audit_demonstrations(reward, [{"messages": turns}], max_length=len(pairs[1].prompt_ids))
    assert len(record["turns"]) == 1
    assert record["flags"][0]["flag"] == "over_long"


# --- wrong input ---------------------------------------------------------------------------------------------------


def test_mistakes_are_named(reward):
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match=r'rows\.jsonl, row 2: a prompt without "completion"'):
        audit_demonstrations(reward, [good, {"prompt": "a"}], source="rows.jsonl")
    with pytest.raises(DataError, match="no rows"):
        audit_demonstrations(reward, [])
    with pytest.raises(ConfigError, match="aggregation=worst"):
        audit_demonstrations(reward, [good], aggregation="worst")
    with pytest.raises(ConfigError, match="max_length=1"):
        audit_demonstrations(reward, [good], max_length=1)
    with pytest.raises(UsageError, match="no tokenizer"):
        audit_demonstrations(DenseReward(reward.sft, reward.refs), [good])


def test_progress_counts_each_model(reward):
    seen = []
    audit_demonstrations(reward, counting_rows(5, seed=3), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert np.diff([done for done, _ in seen]).min() > 0
