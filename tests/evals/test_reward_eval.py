"""`evaluate_reward` where the answer is known: planted models, and random ones against plain forward passes."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from tests.pipeline.planted import planted_model
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DataError, UsageError
from densepath.evals.altered_numbers import alter_answer
from densepath.evals.reward_eval import evaluate_reward
from densepath.records.codec import to_json
from densepath.rewards.dense import DenseReward

TOKENIZER = tiny_tokenizer()


def evaluated(*given, **named):
    """The record as the command writes it."""
    return to_json(evaluate_reward(*given, **named))


def figure(record, name):
    (found,) = (figure for figure in record["figures"] if figure["name"] == name)
    return found


def values(record, name):
    return {measure["name"]: measure["value"]["mean"] for measure in figure(record, name)["measures"]}


def verdicts(record, name):
    return {one["against"]: one["verdict"] for one in figure(record, name)["comparisons"]}


@pytest.fixture(scope="module")
def planted():
    """After ":" SFT prefers "A" and the reference does not; both find "C" likelier than either, and alike."""
    sft = planted_model(
        TOKENIZER, {":": {"A": 0.3, "B": 0.1, "C": 0.6}, "A": {"": 1.0}, "B": {"": 1.0}, "C": {"": 1.0}}
    )
    ref = planted_model(
        TOKENIZER, {":": {"A": 0.1, "B": 0.3, "C": 0.6}, "A": {"": 1.0}, "B": {"": 1.0}, "C": {"": 1.0}}
    )
    return sft, ref


PAIRS = [
    {
        "prompt": f"{index}:",
        "chosen": "A",
        "rejected": "C" if index % 2 else "B",
        "category": "C" if index % 2 else "B",
    }
    for index in range(40)
]


def test_preferences_that_the_reward_sees_and_the_likelihood_does_not(planted):
    sft, ref = planted
    seen = []
    record = evaluated(
        DenseReward(sft, ref, tokenizer=TOKENIZER), PAIRS, on_progress=lambda done, total: seen.append((done, total))
    )
    found = values(record, "accuracy")
    # r("A") = log 3 > r("C") = 0 > r("B") = -log 3. log pi_SFT prefers "A" to "B" alone, log pi_ref neither.
    assert (found["reward/sum"], found["reward/mean"]) == (1.0, 1.0)
    assert found["sft_logprob/sum"] == 0.5
    assert found["ref_logprob/sum"] == 0.0
    assert found["random"] == found["shorter"] == found["longer"] == 0.5
    assert verdicts(record, "accuracy")["sft_logprob/sum"] == "better"
    assert verdicts(record, "accuracy")["random"] == "better"
    assert verdicts(record, "accuracy")["reward/sum"] == "tie"
    (reward,) = (m for m in figure(record, "accuracy")["measures"] if m["name"] == "reward/mean")
    # Wilson for 40 of 40: n / (n + z^2).
    assert reward["value"]["low"] == pytest.approx(40 / (40 + 1.959964**2), abs=1e-6)
    (sft_sum,) = (m for m in figure(record, "accuracy")["measures"] if m["name"] == "sft_logprob/sum")
    assert sft_sum["groups"]["category"]["B"]["mean"] == 1.0
    assert sft_sum["groups"]["category"]["C"]["mean"] == 0.0
    assert sft_sum["groups"]["length"] == {"same length": sft_sum["value"]}
    # The lowest token of "A" and of "C" is EOS, whose reward is 0: a tie in every second pair.
    assert found["reward/min"] == 0.75
    said = figure(record, "accuracy")["statement"]
    assert said.startswith("accuracy of reward/mean: 1.000 [0.912, 1.000]; better than reward/min, sft_logprob/sum,")
    assert said.endswith("; no difference shown to reward/sum")
    assert seen[-1] == (2 * 80, 2 * 80)
    assert (record["task"], record["rows"], record["set_aside"]) == ("preference", 40, [])


def test_a_reward_of_equal_models_ties_everywhere(planted):
    sft, _ = planted
    record = evaluated(DenseReward(sft, sft, tokenizer=TOKENIZER), PAIRS)
    (reward,) = (m for m in figure(record, "accuracy")["measures"] if m["name"] == "reward/mean")
    assert (reward["value"]["mean"], reward["ties"]) == (0.5, 40)
    assert verdicts(record, "accuracy")["random"] == "tie"


def test_one_model_alone_is_its_own_baseline(planted):
    sft, ref = planted
    record = evaluated(DenseReward(sft, kind="logprob", tokenizer=TOKENIZER), PAIRS)
    assert set(values(record, "accuracy")) == {
        *("reward/sum", "reward/mean", "reward/min"), "shorter", "longer", "random"
    }  # fmt: skip
    with_base = evaluated(DenseReward(sft, kind="logprob", tokenizer=TOKENIZER), PAIRS, base=ref)
    assert values(with_base, "accuracy")["base_logprob/sum"] == 0.0


def test_the_inverse_bellman_reading_stands_beside_the_likelihood(planted):
    record = evaluated(DenseReward(planted[0], kind="inverse_bellman", tokenizer=TOKENIZER), PAIRS[:8])
    assert {name.split("/")[0] for name in values(record, "accuracy")} == {
        *("reward", "sft_logprob", "shorter", "longer", "random")
    }
    assert record["reward"] == "inverse_bellman"


def test_a_base_that_is_the_reference_is_scored_once(planted):
    sft, ref = planted
    reward = DenseReward(sft, ref, tokenizer=TOKENIZER)
    seen = []
    again = evaluated(reward, PAIRS, base=reward.refs[0], on_progress=lambda done, total: seen.append(total))
    assert seen[-1] == 2 * 80
    other = evaluated(reward, PAIRS, base=ref, on_progress=lambda done, total: seen.append(total))
    assert seen[-1] == 2 * 80  # equal FrozenPolicies of one model are one
    assert values(again, "accuracy") == values(other, "accuracy")


@pytest.mark.parametrize("beside", [{}, {"prompt": "1:"}])
def test_whole_conversations_that_share_their_prompt(planted, beside):
    ask = {"role": "user", "content": "1:"}
    turns = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "A"), ("rejected", "B and"))}
    implicit = {**beside, **{name: [ask, *turn] for name, turn in turns.items()}}
    reward = DenseReward(*planted, tokenizer=TOKENIZER)
    found, expected = (evaluated(reward, [row]) for row in (implicit, {"prompt": [ask], **turns}))
    assert found == expected
    with pytest.raises(DataError, match='row 1: "prompt" and "chosen" differ in kind'):
        evaluated(reward, [{"prompt": "1:", **turns}])
    two = {"chosen": [ask, *turns["chosen"], ask, *turns["chosen"]], "rejected": [ask, *turns["rejected"]]}
    with pytest.raises(DataError, match='row 1: "chosen" has 3 turns of its own; give one assistant turn'):
        evaluated(reward, [two])


# --- against plain forward passes ----------------------------------------------------------------------------------


def plain_logprobs(model, pair):
    ids = torch.tensor([[*pair.prompt_ids, *pair.completion_ids]])
    with torch.no_grad():
        table = model.double()(input_ids=ids).logits[0].log_softmax(-1)
    start = len(pair.prompt_ids)
    return [float(table[start - 1 + t, token]) for t, token in enumerate(pair.completion_ids)]


@pytest.fixture(scope="module")
def tiny():
    size = len(TOKENIZER)
    return [tiny_llama(vocab_size=size, seed=seed) for seed in range(3)]


STEPPED = [
    {
        "prompt": [{"role": "user", "content": f"{index} and {index + 1}?"}],
        "steps": [f"the answer is {index}", "12 = 12", "cat, dog"][: 2 + index % 2],
        "first_error": index % 3 - 1,
        "category": "a" if index < 6 else "b",
    }
    for index in range(12)
]


def test_first_errors_of_random_models_by_hand(tiny):
    sft, ref, base = tiny
    record = evaluated(
        DenseReward(sft, ref, tokenizer=TOKENIZER), STEPPED, base=base, aggregation="sum", step_separator="\n"
    )
    credits, bad, good = [], [], []
    for row in STEPPED:
        texts = [step + "\n" for step in row["steps"][:-1]] + [row["steps"][-1]]
        whole = {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": "".join(texts)}]}
        (pair,) = encode_pairs(whole, TOKENIZER)
        sizes = [len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in texts]
        assert sum(sizes) == len(pair.completion_ids) - 1
        rewards = [a - b for a, b in zip(plain_logprobs(sft, pair), plain_logprobs(ref, pair), strict=True)]
        ends = list(itertools.accumulate(sizes))
        sums = [math.fsum(rewards[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        if row["first_error"] < 0:
            good += sums
            continue
        credits.append(float(sums[row["first_error"]] == min(sums)))
        good += sums[: row["first_error"]]
        bad.append(sums[row["first_error"]])
    assert values(record, "lowest_step")["reward/sum"] == pytest.approx(sum(credits) / len(credits))
    won = sum(b < g for b in bad for g in good) / (len(bad) * len(good))
    assert values(record, "auroc_step")["reward/sum"] == pytest.approx(won)
    names = {name.split("/")[0] for name in values(record, "auroc_step")}
    assert names == {"reward", "sft_logprob", "base_logprob", "shorter", "longer", "random", "earlier", "later"}
    assert set(values(record, "auroc_token")) == {"reward", "sft_logprob", "base_logprob", "earlier", "random"}


def test_altered_numbers_are_fixed_by_the_seed_and_drawn_by_it(planted):
    sft, ref = planted
    rows = [{"prompt": f"{index}:", "completion": f"A {index} = {index + 3}"} for index in range(20)]
    rows.insert(4, {"prompt": "x:", "completion": "A"})
    reward = DenseReward(sft, ref, tokenizer=TOKENIZER)
    record = evaluated(reward, rows, task="altered_numbers", seed=3)
    assert record == evaluated(reward, rows, task="altered_numbers", seed=3)
    assert record["rows"] == 20
    assert record["set_aside"] == [{"row": 5, "reason": "the answer holds no number"}]
    # Both models know nothing of digits: after any token but ":" they expect EOS alike.
    assert record["changes"]["reward"]["at"]["mean"] == pytest.approx(0, abs=1e-4)
    few = evaluated(reward, rows, task="altered_numbers", seed=3, max_samples=6)
    assert few["rows"] == 6
    assert [f["name"] for f in few["figures"]] == ["lowest_token", "rank_of_token", "accuracy"]


ASKED, TOLD = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "I count 7."}
TOOL = [{"role": "assistant", "content": "Let me look."}, {"role": "tool", "content": "count: 7"}]


@pytest.mark.parametrize(
    ("row", "number"),
    [
        ({"messages": [ASKED, TOLD]}, "new"),
        ({"messages": [ASKED, TOLD, {"role": "user", "content": "7? Thanks"}]}, "new"),
        ({"messages": [ASKED, *TOOL, TOLD]}, "copied"),
        ({"prompt": [ASKED], "completion": [*TOOL, TOLD]}, "copied"),
        ({"prompt": "How many of 7?", "completion": "I count 7."}, "copied"),
        ({"prompt": "How many?", "completion": "I count 7."}, "new"),
        ({"text": "I count 7."}, "new"),
    ],
)
def test_a_number_is_copied_where_it_stands_before_the_answer(row, number):
    assert alter_answer(row, TOKENIZER, random.Random(0)).number == number


def test_an_altered_number_that_sft_knows_better_is_the_lowest_token():
    digits = "0123456789"
    even = dict.fromkeys(digits, 0.1)
    sft = planted_model(TOKENIZER, {"=": {digit: 0.91 if digit == "7" else 0.01 for digit in digits}})
    ref = planted_model(TOKENIZER, {"=": even})
    rows = [{"prompt": f"{index} ", "completion": "=7"} for index in range(15)]
    record = evaluated(DenseReward(sft, ref, tokenizer=TOKENIZER), rows, task="altered_numbers")
    assert values(record, "lowest_token")["reward"] == 1.0
    assert values(record, "rank_of_token")["reward"] == 1.0
    assert values(record, "accuracy")["reward/min"] == 1.0
    at, after = (record["changes"]["reward"][column]["mean"] for column in ("at", "after"))
    assert at == pytest.approx(math.log(0.01 / 0.1) - math.log(0.91 / 0.1), abs=1e-3)
    assert after == pytest.approx(0.0, abs=1e-3)


# --- wrong input ---------------------------------------------------------------------------------------------------


def without(row, *names):
    return {key: value for key, value in row.items() if key not in names}


STEPS = STEPPED[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without(PAIRS[0], "rejected"), 'row 2: no "rejected"; a preference row has "prompt", "chosen"'),
        (without(PAIRS[0], "prompt"), 'row 2: no "prompt"'),
        ({**PAIRS[0], "chosen": " "}, 'row 2: "chosen" is empty'),
        ({**PAIRS[0], "chosen": ""}, 'row 2: "chosen" is empty'),
    ],
)
def test_bad_preference_rows_are_named(planted, bad, message):
    with pytest.raises(DataError, match=message):
        evaluated(DenseReward(*planted, tokenizer=TOKENIZER), [PAIRS[0], bad])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**STEPS, "first_error": 2}, r'row 2: "first_error" is 2, and there are 2 steps: it must be 0 to 1, or -1'),
        ({**STEPS, "first_error": -2}, 'row 2: "first_error" is -2'),
        (without(STEPS, "first_error"), 'row 2: "first_error" is None; give the 0-based index'),
        (without(STEPS, "steps"), 'row 2: "steps" is None, not a list of one or more strings'),
        ({**STEPS, "steps": []}, r'row 2: "steps" is \[\], not a list'),
        (without(STEPS, "prompt"), 'row 2: no "prompt"'),
    ],
)
def test_bad_first_error_rows_are_named(planted, bad, message):
    with pytest.raises(DataError, match=message):
        evaluated(DenseReward(*planted, tokenizer=TOKENIZER), [STEPS, bad])


def test_rows_that_cannot_be_told_apart_are_set_aside_with_the_reason(planted):
    reward = DenseReward(*planted, tokenizer=TOKENIZER)
    same = {**PAIRS[0], "rejected": "A"}
    long = {**PAIRS[0], "prompt": "z" * 300}
    record = evaluated(reward, [PAIRS[0], same, long, PAIRS[1]])
    assert record["rows"] == 2
    reasons = {item["row"]: item["reason"] for item in record["set_aside"]}
    assert reasons[2] == "chosen and rejected are the same tokens"
    assert "tokens, but the models' context holds 128; shorten" in reasons[3]
    with pytest.raises(DataError, match="no row can be used; of row 1: chosen and rejected are the same tokens"):
        evaluated(reward, [same])


def test_a_pair_that_any_model_does_not_hold_is_set_aside(planted):
    sft, ref = planted
    short = tiny_llama(len(TOKENIZER), max_position_embeddings=40)
    long = {**PAIRS[0], "prompt": "z" * 60}
    for models, base in (((sft, short), None), ((sft, ref), short)):
        record = evaluated(DenseReward(*models, tokenizer=TOKENIZER), [*PAIRS[:2], long], base=base)
        (aside,) = record["set_aside"]
        assert aside["row"] == 3
        assert "tokens, but the models' context holds 40; shorten" in aside["reason"]


def test_other_mistakes(planted):
    sft, ref = planted
    reward = DenseReward(sft, ref, tokenizer=TOKENIZER)
    with pytest.raises(DataError, match="for demonstrations give task=altered_numbers"):
        evaluated(reward, [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ConfigError, match="task=guess is not one of preference, first_error, altered_numbers"):
        evaluated(reward, PAIRS, task="guess")
    with pytest.raises(ConfigError, match="aggregation=max is not one of sum, mean, min"):
        evaluated(reward, PAIRS, aggregation="max")
    with pytest.raises(ConfigError, match="max_samples=0 must be at least 1"):
        evaluated(reward, PAIRS, max_samples=0)
    with pytest.raises(UsageError, match="has no tokenizer"):
        evaluated(DenseReward(sft, ref), PAIRS)
    with pytest.raises(DataError, match="no rows"):
        evaluated(reward, [])
    with pytest.raises(DataError, match='row 1: a prompt without "completion"'):
        evaluated(reward, [{"prompt": "a"}], task="altered_numbers")
