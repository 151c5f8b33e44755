"""`DenseReward` against log-probabilities of plain float64 forward passes, one sequence and token at a time."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tiny_tokenizer
from tests.tiny_models import randomize_adapter, tiny_gpt2, tiny_llama, tiny_mistral, with_lora

from densepath.config.mixins import REWARDS
from densepath.core.estimator import Estimator
from densepath.data.encode import encode_pairs, encode_row_prompt
from densepath.errors import DataError, ModelError, NumericalError, UsageError
from densepath.models.adapters import add_frozen_copy
from densepath.rewards.dense import DenseReward, FrozenPolicy, RewardKind
from densepath.trainers.estimation import SampledTokens
from densepath.trainers.rollout import Sampled
from densepath.trainers.whole_vocabulary import WholeVocabulary

EOS = 2
PROMPTS = [[5, 9, 11], [5, 9, 11], [7], [5, 9, 11, 40, 41]]
COMPLETIONS = [[4, 8, EOS], [4, 8, 21, 22], [EOS], [30, EOS, 31, 6, EOS]]
"""Finished, truncated, EOS alone, and with an EOS inside (an earlier turn's)."""


def test_commands_know_every_reading():
    """Configs import no torch, so the names stand there again."""
    assert [kind.value for kind in RewardKind] == list(REWARDS)


def logits_of(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """(completion + 1, vocabulary) float64 logits: of each state that an action was taken in, and of the last."""
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return exact(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :]


def naive(kind: str, sft, ref, prompt: list[int], completion: list[int]) -> list[float]:
    z = logits_of(sft, prompt, completion)
    rewards = []
    for t, token in enumerate(completion):
        if kind == "inverse_bellman":
            ended = t + 1 == len(completion) and token == EOS
            following = 0.0 if ended else math.log(sum(math.exp(value) for value in z[t + 1].tolist()))
            rewards.append(float(z[t, token]) - following)
            continue
        rewards.append(float(z[t, token]) - math.log(sum(math.exp(value) for value in z[t].tolist())))
        if kind == "baseline_relative":
            y = logits_of(ref, prompt, completion)
            rewards[-1] -= float(y[t, token]) - math.log(sum(math.exp(value) for value in y[t].tolist()))
    return rewards


@pytest.mark.parametrize("kind", [kind.value for kind in RewardKind])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_mistral])
def test_rewards_equal_a_plain_forward_pass(kind, make):
    sft, ref = make(seed=0), make(seed=1)
    reward = DenseReward(sft, ref if kind == "baseline_relative" else None, kind=kind, token_budget=8)
    scores = reward.score_ids(PROMPTS, COMPLETIONS, eos_token_ids=[EOS])
    for prompt, completion, found in zip(PROMPTS, COMPLETIONS, scores.rewards, strict=True):
        assert found.tolist() == pytest.approx(naive(kind, sft, ref, prompt, completion), abs=2e-4)
    sums = [sum(naive(kind, sft, ref, p, c)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores.sums.tolist() == pytest.approx(sums, abs=5e-4)
    for prompt, completion, found in zip(PROMPTS, COMPLETIONS, scores.sft_logprobs, strict=True):
        assert found.tolist() == pytest.approx(naive("logprob", sft, ref, prompt, completion), abs=2e-4)
    assert len(scores.ref_logprobs) == (len(PROMPTS) if kind == "baseline_relative" else 0)


def test_inverse_bellman_telescopes():
    """sum_t r_t = log pi(y|x) + V(s_0) - V(s_end), and V(s_end) is 0 exactly where EOS ended the completion."""
    sft = tiny_llama()
    reward = DenseReward(sft, kind="inverse_bellman")
    scores = reward.score_ids(PROMPTS, COMPLETIONS, eos_token_ids=[EOS])
    for prompt, completion, found, logprobs in zip(
        PROMPTS, COMPLETIONS, scores.rewards, scores.sft_logprobs, strict=True
    ):
        z = logits_of(sft, prompt, completion)
        end = 0.0 if completion[-1] == EOS else float(z[-1].logsumexp(0))
        assert float(found.sum()) == pytest.approx(float(logprobs.sum()) + float(z[0].logsumexp(0)) - end, abs=1e-3)


def test_inverse_bellman_of_a_truncated_completion_reads_the_value_at_the_cut():
    """The same ids, with EOS known and unknown as an end: they differ in the last reward alone, by V at the cut."""
    reward = DenseReward(tiny_llama(), kind="inverse_bellman")
    (ended,) = reward.score_ids([[5, 9]], [[4, EOS]], eos_token_ids=[EOS]).rewards
    (cut,) = reward.score_ids([[5, 9]], [[4, EOS]], eos_token_ids=[]).rewards
    value = float(logits_of(tiny_llama(), [5, 9], [4, EOS])[-1].logsumexp(0))
    assert (ended - cut).tolist() == pytest.approx([0.0, value], abs=1e-4)


def test_what_is_trained_on_pays_the_value_at_the_cut_back():
    """By enumeration: over all completions of one token, of which only EOS ends, exp(r) is in proportion to pi_SFT."""
    tokenizer = tiny_tokenizer()
    sft, words = tiny_llama(vocab_size=len(tokenizer)), len(tokenizer)
    reward = DenseReward(sft, kind="inverse_bellman", tokenizer=tokenizer)
    prompts, completions = [encode_row_prompt({"prompt": "x"}, tokenizer)] * words, [[token] for token in range(words)]
    truth = logits_of(sft, prompts[0], [0])[0].softmax(0)
    sampled = Sampled(prompts, completions)
    for found in (
        torch.tensor(reward(["x"] * words, [""] * words, completion_ids=completions)),  # as TRL's trainers call it
        SampledTokens(reward, Estimator(), per_token=None).score(sampled, None).scores.sums,
        WholeVocabulary(reward, Estimator(kl_in_return=False)).score(sampled, sft).scores.sums,
    ):
        assert float((found.double().softmax(0) - truth).abs().sum()) / 2 < 1e-5


def test_a_reference_equal_to_sft_gives_no_reward():
    sft = tiny_llama()
    scores = DenseReward(sft, copy.deepcopy(sft)).score_ids(PROMPTS, COMPLETIONS)
    assert all(values.abs().max() == 0 for values in scores.rewards)


def test_the_expected_reward_of_a_token_is_the_divergence():
    """E_{a ~ SFT}[log pi_SFT - log pi_ref] = KL(pi_SFT || pi_ref) at the state: over all 64 tokens."""
    sft, ref = tiny_llama(seed=0), tiny_llama(seed=1)
    scores = DenseReward(sft, ref).score_ids([[5, 9, 11]] * 64, [[token] for token in range(64)])
    p, q = (logits_of(model, [5, 9, 11], [0])[0].log_softmax(0) for model in (sft, ref))
    expected = sum(float(values) * float(p[token].exp()) for token, values in enumerate(scores.rewards))
    assert expected == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)


def test_order_company_and_budget_change_nothing():
    sft, ref = tiny_llama(seed=0), tiny_llama(seed=1)
    together = DenseReward(sft, ref).score_ids(PROMPTS, COMPLETIONS)
    backwards = DenseReward(sft, ref, token_budget=1).score_ids(PROMPTS[::-1], COMPLETIONS[::-1])
    for a, b in zip(together.rewards, backwards.rewards[::-1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_adapters_on_one_base_are_scored_as_the_models_they_stand_for():
    """ "sft" and "ref" as two adapters beside the one in training, and the bare base as reference."""
    model = with_lora(tiny_llama(), seed=1)
    add_frozen_copy(model, name="sft")
    sft_alone = copy.deepcopy(model).merge_and_unload()
    randomize_adapter(model, "default", seed=2)
    add_frozen_copy(model, name="ref")
    ref_alone = copy.deepcopy(model).merge_and_unload()
    randomize_adapter(model, "default", seed=3)  # training went on
    expected = DenseReward(sft_alone, ref_alone).score_ids(PROMPTS, COMPLETIONS)
    found = DenseReward(FrozenPolicy(model, "sft"), FrozenPolicy(model, "ref")).score_ids(PROMPTS, COMPLETIONS)
    for a, b in zip(found.rewards, expected.rewards, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert model.active_adapter == "default"
    expected = DenseReward(sft_alone, tiny_llama()).score_ids(PROMPTS, COMPLETIONS)
    found = DenseReward(FrozenPolicy(model, "sft"), FrozenPolicy(model, None)).score_ids(PROMPTS, COMPLETIONS)
    for a, b in zip(found.rewards, expected.rewards, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert max(float(values.abs().max()) for values in found.rewards) > 0.1
    with pytest.raises(UsageError, match="no adapter 'other'"):
        DenseReward(FrozenPolicy(model, "other"), FrozenPolicy(model, "ref")).score_ids(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(("broken", "name"), [("sft", "the SFT model"), ("ref", "the reference")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(broken, name, value):
    models = {"sft": tiny_llama(seed=0), "ref": tiny_llama(seed=1)}
    with torch.no_grad():
        models[broken].lm_head.weight[4] = value  # the logit of token 4, which only some completions hold
    with pytest.raises(NumericalError, match=rf"^{name}: sequence 0, completion token 0 \(id 4\): log-prob"):
        DenseReward(models["sft"], models["ref"]).score_ids(PROMPTS, COMPLETIONS)
    if broken == "ref":
        with pytest.raises(NumericalError, match=r"^reference 2: sequence 0"):
            DenseReward(models["sft"], [tiny_llama(), models["ref"]]).score_ids(PROMPTS, COMPLETIONS)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ModelError, match="needs a reference model; name one, or use reward=logprob"):
        DenseReward(tiny_llama())
    with pytest.raises(ModelError, match="both must share one tokenizer"):
        DenseReward(tiny_llama(), tiny_llama(vocab_size=65))
    with pytest.raises(ValueError, match="not a valid RewardKind"):
        DenseReward(tiny_llama(), kind="dense")


def test_a_text_that_any_model_does_not_hold_is_refused():
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(len(tokenizer), max_position_embeddings=size) for size in (64, 256, 32)]
    reward = DenseReward(models[0], models[1:], tokenizer=tokenizer)
    assert reward.context == 32
    assert DenseReward(models[0], models[1], tokenizer=tokenizer).context == 64
    with pytest.raises(DataError, match=r"completion 1: 4. tokens, but the models' context holds 32; shorten"):
        reward.score(["a", "a"], ["x", "z" * 40])


def test_progress_counts_every_sequence_of_both_models():
    done: list[int] = []
    DenseReward(tiny_llama(seed=0), tiny_llama(seed=1)).score_ids(PROMPTS, COMPLETIONS, on_progress=done.append)
    assert sum(done) == 2 * len(PROMPTS)


def test_no_sequences_have_no_rewards():
    scores = DenseReward(tiny_llama(), kind="logprob").score_ids([], [])
    assert scores.rewards == []
    assert scores.sums.shape == (0,)


# --- what is neither text nor turns ----------------------------------------------------------------------------------

_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
_JSON = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
_TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | _JSON, "content": st.just("a") | _JSON},
    optional={"tool_calls": _JSON, "reasoning_content": _JSON, "name": _JSON},
)
_SIDE = _JSON | st.just("a") | st.lists(_TURN | _JSON, min_size=1, max_size=2)


@functools.cache
def _tiny_reward():
    return DenseReward(tiny_llama(), kind="logprob", tokenizer=tiny_tokenizer())


@settings(deadline=None, max_examples=25)
@given(prompt=_SIDE, completion=_SIDE)
def test_any_json_is_scored_or_refused(prompt, completion):
    reward = _tiny_reward()
    calls = (
        lambda: reward.score([prompt], [completion]),
        lambda: reward([prompt], [completion]),
        lambda: reward([prompt], [completion], [[5, EOS]]),
        lambda: encode_pairs({"prompt": prompt, "completion": completion}, reward.tokenizer),
        lambda: encode_pairs({"messages": prompt}, reward.tokenizer),
    )
    for call in calls:
        with warnings.catch_warnings(), contextlib.suppress(DataError, UsageError):
            warnings.simplefilter("ignore")  # a turn that is not simply prompt and answer
            call()


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        ("a", 3, '"completion" is 3, not a string or a list of turns'),
        ("a", None, '"completion" is null; give a string'),
        (3, "b", '"prompt" is 3, not a string or a list of turns'),
        ([3], "b", '"prompt" turn 1 is 3; a turn is an object'),
        ("a", {"role": "assistant", "content": "b"}, r"\"completion\" is {'role': 'assistant', .*, not a string or a"),
        (
            [{"role": "user", "content": "a"}],
            [{"role": "assistant", "content": "b", "tool_calls": [3]}],
            r'"completion" turn 1 has the tool_calls \[3\]; give a list of objects',
        ),
    ],
)
def test_what_is_no_pair_is_named(prompt, completion, message):
    with pytest.raises(DataError, match=rf"^completion 0: {message}"):
        _tiny_reward().score([prompt], [completion])
