"""Best of n: the order is that of plainly computed rewards; groups by prompt; what a user can get wrong."""

from __future__ import annotations

import random

import pytest
import torch
from tests.support import CHATML, tiny_tokenizer
from tests.tiny_models import tiny_llama
from tests.tiny_sft import TOKENIZER, corrupted, counting_models, counting_rows

from densepath.data.encode import encode_pair, encode_pairs
from densepath.errors import ConfigError, DataError, UsageError
from densepath.evals.ranking import group_completions, rank_completions
from densepath.rewards.dense import DenseReward


@pytest.fixture(scope="module")
def reward():
    sft, ref, _ = counting_models()
    return DenseReward(sft, ref, tokenizer=TOKENIZER)


def plain_rewards(prompt, completion):
    """log pi_SFT - log pi_ref of each token, one forward pass a model, float64."""
    pair = encode_pair(prompt, completion, TOKENIZER)
    start, ids = pair.prompt_ids, pair.completion_ids
    tables = []
    for model in counting_models()[:2]:
        with torch.no_grad():
            logits = model.double()(input_ids=torch.tensor([[*start, *ids]])).logits[0]
        model.float()
        tables.append(logits.log_softmax(-1))
    return [float(tables[0][len(start) - 1 + t, i] - tables[1][len(start) - 1 + t, i]) for t, i in enumerate(ids)]


@pytest.mark.parametrize("how", ["sum", "mean", "min"])
def test_the_order_is_that_of_plainly_computed_rewards(reward, how):
    prompts = ["3 +1:", "5 +2:"]
    completions = [["4 5 6.", "4 5.", "9 9 9 9.", "cat"], ["7.", "7 9 11."]]
    fold = {"sum": sum, "mean": lambda v: sum(v) / len(v), "min": min}[how]
    for prompt, group, ranking in zip(
        prompts, completions, rank_completions(reward, prompts, completions, aggregation=how), strict=True
    ):
        rewards = [plain_rewards(prompt, completion) for completion in group]
        assert ranking.scores == pytest.approx([fold(values) for values in rewards], abs=1e-4)
        assert ranking.sums == pytest.approx([sum(values) for values in rewards], abs=1e-4)
        assert ranking.means == pytest.approx([sum(values) / len(values) for values in rewards], abs=1e-4)
        assert ranking.num_tokens == [len(values) for values in rewards]
        assert ranking.order == sorted(range(len(group)), key=lambda i: -fold(rewards[i]))


def test_right_answers_come_before_corrupted_ones(reward):
    rng = random.Random(0)
    rows = counting_rows(30, seed=11)
    groups = [[corrupted(row, rng)["completion"], row["completion"]] for row in rows]
    rankings = rank_completions(reward, [row["prompt"] for row in rows], groups, aggregation="min")
    assert sum(ranking.order[0] == 1 for ranking in rankings) >= 29


def test_equal_completions_tie_and_keep_their_order(reward):
    (ranking,) = rank_completions(reward, ["3 +1:"], [["9.", "4 5.", "9.", "4 5."]])
    assert ranking.scores[0] == ranking.scores[2]
    assert ranking.scores[1] == ranking.scores[3]
    assert ranking.order in ([1, 3, 0, 2], [0, 2, 1, 3])


def test_turns_are_ranked_as_text_is(reward):
    prompt = [{"role": "user", "content": "3 +1:"}]
    groups = [[[{"role": "assistant", "content": text}] for text in ("4 5.", "9.")]]
    (ranking,) = rank_completions(reward, [prompt], groups)
    pair = encode_pair(prompt, groups[0][0], TOKENIZER)
    direct = reward.score_ids([pair.prompt_ids], [pair.completion_ids]).sums
    assert ranking.sums[0] == pytest.approx(float(direct[0]), abs=1e-5)


def test_tools_are_part_of_what_was_asked(reward):
    """Turns asked with tools are another prompt, and both are read with their own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if tools %}3 +1 {% endif %}" + CHATML
    reward = DenseReward(reward.sft, reward.refs[0], tokenizer=tokenizer)
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"prompt": [{"role": "user", "content": "3 +1:"}], "completion": [{"role": "assistant", "content": "4 5."}]}
    asked = {**row, "tools": tools}
    plain, called = group_completions([row, asked, {**row, "tools": []}])
    assert (plain.rows, called.rows) == ([1, 3], [2])
    found = rank_completions(
        reward,
        [row["prompt"]] * 2,
        [[row["completion"]]] * 2,
        chat_template_kwargs=[plain.template_arguments, called.template_arguments],
    )
    pairs = [encode_pairs(each, tokenizer)[0] for each in (row, asked)]
    right = reward.score_ids([pair.prompt_ids for pair in pairs], [pair.completion_ids for pair in pairs]).sums
    assert [ranking.sums[0] for ranking in found] == pytest.approx([float(value) for value in right], abs=1e-5)
    assert reward([row["prompt"]] * 2, [row["completion"]] * 2, tools=[None, tools]) == pytest.approx(
        [float(value) for value in right], abs=1e-5
    )
    assert abs(float(right[0] - right[1])) > 1e-3


def test_groups_by_prompt_or_by_row():
    rows = [{"prompt": p, "completion": c} for p, c in (("a", "1"), ("b", "2"), ("a", "3"), ("a", "1"))]
    groups = group_completions(rows)
    assert [(g.prompt, g.completions, g.rows) for g in groups] == [
        ("a", ["1", "3", "1"], [1, 3, 4]),
        ("b", ["2"], [2]),
    ]
    twice = [{"prompt": "a", "completions": ["1"]}, {"prompt": "a", "completions": ["2", "3"]}]
    assert [g.completions for g in group_completions(twice)] == [["1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["x"]}, 'rows, row 2: no "prompt"'),
        ({"prompt": "a"}, 'row 2: give either "completions", a list, or "completion".*neither is there'),
        ({"prompt": "a", "completion": "x", "completions": ["x"]}, "both are there"),
        ({"prompt": "a", "completions": []}, r'row 2: "completions" is \[\], not a list of at least one'),
        ({"prompt": "a", "completions": "x"}, "row 2: \"completions\" is 'x', not a list"),
        ({"prompt": "a", "completion": "x"}, 'row 2: rows with "completions" and rows with "completion"'),
    ],
)
def test_rows_that_are_no_group_are_named(row, message):
    with pytest.raises(DataError, match=message):
        group_completions([{"prompt": "a", "completions": ["x", "y"]}, row], "rows")
    with pytest.raises(DataError, match="no rows"):
        group_completions([])


def test_mistakes_are_named(reward):
    with pytest.raises(DataError, match='prompt 1: "completions" is empty'):
        rank_completions(reward, ["a", "b"], [["x"], []])
    turns = [{"role": "user", "content": "a"}]
    answer = {"role": "assistant", "content": "x"}
    for prompt, group in (("a", "Seven."), (turns, [answer])):
        with pytest.raises(DataError, match=r'prompt 0: "completions" is one completion, .*; give a list of them'):
            rank_completions(reward, [prompt], [group])
    with pytest.raises(DataError, match="prompt 0: completion 1 has 3 turns, and answers to one prompt are ranked"):
        rank_completions(reward, [turns], [[[answer], [answer, *turns, answer]]])
    with pytest.raises(DataError, match="2 prompts but 1 groups"):
        rank_completions(reward, ["a", "b"], [["x"]])
    with pytest.raises(DataError, match="here: completion 0 and the prompt differ in kind"):
        rank_completions(reward, ["a"], [[[{"role": "assistant", "content": "x"}]]], places=["here"])
    with pytest.raises(DataError, match=r"prompt 0, completion 1: 3.. tokens, but .* holds 256"):
        rank_completions(reward, ["a"], [["x", "z" * 300]])
    short = DenseReward(reward.sft, tiny_llama(len(TOKENIZER), max_position_embeddings=40), tokenizer=TOKENIZER)
    with pytest.raises(DataError, match=r"prompt 0, completion 1: 5.* tokens, but .* holds 40"):
        rank_completions(short, ["a"], [["x", "z" * 50]])
    with pytest.raises(ConfigError, match="aggregation=best"):
        rank_completions(reward, ["a"], [["x"]], aggregation="best")
    with pytest.raises(UsageError, match="no tokenizer"):
        rank_completions(DenseReward(reward.sft, reward.refs), ["a"], [["x"]])
