"""Several references, shaping, text in and out, and a reward that is saved and loaded again."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from tests.support import IM_END, tiny_tokenizer
from tests.tiny_models import randomize_adapter, tiny_llama, with_lora

from densepath.data.encode import encode_prompt
from densepath.errors import ConfigError, DamagedFileError, DataError, MissingFileError, ModelError, UsageError
from densepath.models.adapters import add_frozen_copy
from densepath.models.load import load_model
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy

PROMPTS = [[5, 9, 11], [7]]
COMPLETIONS = [[4, 8, 2], [30, 31]]
VOCABULARY = 400


def logprobs_of(model, prompt: list[int], completion: list[int]) -> list[float]:
    """One forward pass, the softmax written out in float64."""
    with torch.no_grad():
        z = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :].double()
    return [
        float(z[t, token]) - math.log(sum(math.exp(value) for value in z[t].tolist()))
        for t, token in enumerate(completion)
    ]


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_three_references_are_one_by_the_mean_of_their_probabilities(mean):
    sft, *refs = (tiny_llama(seed=seed) for seed in range(4))
    scores = DenseReward(sft, refs, reference_mean=mean).score_ids(PROMPTS, COMPLETIONS)
    for prompt, completion, found, ref_found in zip(
        PROMPTS, COMPLETIONS, scores.rewards, scores.ref_logprobs, strict=True
    ):
        own = logprobs_of(sft, prompt, completion)
        others = [logprobs_of(ref, prompt, completion) for ref in refs]
        for t in range(len(completion)):
            values = [other[t] for other in others]
            if mean == "arithmetic":
                expected = math.log(sum(math.exp(value) for value in values) / 3)
            else:
                expected = sum(values) / 3
            assert float(ref_found[t]) == pytest.approx(expected, abs=2e-4)
            assert float(found[t]) == pytest.approx(own[t] - expected, abs=2e-4)


def test_scale_floor_and_clip_are_applied_in_that_order():
    sft, ref = tiny_llama(seed=0), tiny_llama(seed=1)
    plain = DenseReward(sft, ref).score_ids(PROMPTS, COMPLETIONS)
    shaped = DenseReward(sft, ref, scale=0.5, floor=-4.0, clip=0.7).score_ids(PROMPTS, COMPLETIONS)
    for a, b, found in zip(plain.sft_logprobs, plain.ref_logprobs, shaped.rewards, strict=True):
        expected = [
            min(max(0.5 * (max(x, -4.0) - max(y, -4.0)), -0.7), 0.7)
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert any(abs(value) == pytest.approx(0.7) for row in shaped.rewards for value in row.tolist())


def test_settings_that_make_no_sense_are_refused():
    sft, ref = tiny_llama(seed=0), tiny_llama(seed=1)
    for settings, message in (
        ({"scale": 0.0}, "scale=0.0 must be"),
        ({"scale": float("nan")}, "scale=nan must be"),
        ({"clip": -1.0}, "clip=-1.0 must be above 0"),
        ({"floor": 0.0}, "floor=0.0 must be below 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            DenseReward(sft, ref, **settings)
    with pytest.raises(ConfigError, match="not for inverse_bellman"):
        DenseReward(sft, kind="inverse_bellman", clip=1.0)
    with pytest.raises(ValueError, match="harmonic"):
        DenseReward(sft, ref, reference_mean="harmonic")
    with pytest.raises(ModelError, match="both must share one tokenizer"):
        DenseReward(sft, [ref, tiny_llama(vocab_size=65)])
    with pytest.raises(ModelError, match="needs a reference"):
        DenseReward(sft, [])


def text_reward(**settings) -> DenseReward:
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(vocab_size=VOCABULARY, seed=seed) for seed in (0, 1)]
    return DenseReward(*models, tokenizer=tokenizer, **settings)


def test_text_is_scored_as_its_ids_and_each_token_has_its_place():
    reward = text_reward()
    prompt = "Sort these words: tree, é"
    conversation = [{"role": "user", "content": "Reverse this list: cat, dog"}]
    scores = reward.score([prompt, conversation, conversation], ["moon 🎉 star", "dog, cat", [turn("dog, cat")]])
    assert len(scores) == 3
    assert scores.texts == ["moon 🎉 star", "dog, cat", "dog, cat"]
    ids = reward.tokenizer("moon 🎉 star")["input_ids"] + [reward.tokenizer.eos_token_id]
    by_ids = reward.score_ids([reward.tokenizer(prompt)["input_ids"]], [ids])
    assert scores.completion_ids[0] == ids
    torch.testing.assert_close(scores.rewards[0], by_ids.rewards[0], atol=1e-5, rtol=1e-5)
    # a turn given as text is the assistant's turn
    torch.testing.assert_close(scores.rewards[1], scores.rewards[2], atol=1e-5, rtol=1e-5)
    for text, offsets, tokens in zip(scores.texts, scores.offsets, scores.completion_ids, strict=True):
        assert len(offsets) == len(tokens)
        assert offsets[-1] == (len(text), len(text))
        assert sorted(offsets) == offsets
        covered = sorted(set(offsets[:-1]))
        assert "".join(text[start:end] for start, end in covered) == text
    # the bytes of one character share its range
    party = next(range_ for range_ in scores.offsets[0] if scores.texts[0][slice(*range_)].strip() == "🎉")
    assert scores.offsets[0].count(party) > 1
    completion = scores.completion(0)
    assert "".join(span.text for span in completion.spans) == "moon 🎉 star" + IM_END
    assert [value for span in completion.spans for value in span.rewards] == list(completion.rewards)
    assert completion.rewards == pytest.approx(scores.rewards[0].tolist(), rel=1e-6)
    assert completion == scores.completion(0, reward.tokenizer)
    with pytest.raises(UsageError, match="hold no text; give the tokenizer as well"):
        by_ids.completion(0)


def turn(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_sums_means_and_z_scores():
    scores = text_reward().score(["a", "b", "c"], ["one", "two words", "three more words"])
    for values, total, mean in zip(scores.rewards, scores.sums.tolist(), scores.means.tolist(), strict=True):
        assert total == pytest.approx(sum(values.tolist()), abs=1e-4)
        assert mean == pytest.approx(sum(values.tolist()) / len(values), abs=1e-4)
    z = scores.z_scores()
    assert [len(row) for row in z] == [len(row) for row in scores.rewards]
    for t in range(max(map(len, z))):
        column = [float(row[t]) for row in scores.rewards if len(row) > t]
        found = [float(row[t]) for row in z if len(row) > t]
        centre = sum(column) / len(column)
        spread = math.sqrt(sum((value - centre) ** 2 for value in column) / len(column))
        if len(column) > 1:
            assert found == pytest.approx([(value - centre) / spread for value in column], abs=1e-3)
        else:
            assert found == [0.0]


def test_it_is_a_reward_function_of_trl():
    reward = text_reward()
    prompts = ["Say red:", "Say blue:"]
    sampled = [[40, 41, 42], [50, reward.tokenizer.eos_token_id]]  # the first was cut: no EOS is added to it
    found = reward(prompts=prompts, completions=["?", "?"], completion_ids=sampled, trainer_state=None)
    expected = reward.score_ids([encode_prompt(prompt, reward.tokenizer) for prompt in prompts], sampled).sums
    assert found == pytest.approx(expected.tolist())
    assert all(type(value) is float for value in found)
    assert reward(prompts, ["red", "blue"]) == pytest.approx(reward.score(prompts, ["red", "blue"]).sums.tolist())
    assert reward.__name__ == "dense_reward"


def test_what_a_tool_wrote_is_graded_as_nobodys_action():
    reward = text_reward()
    turns = [turn("red"), {"role": "tool", "content": "blue"}, turn("red")]
    with pytest.raises(UsageError, match="completion 1 holds a tool's turn, whose tokens would be graded"):
        reward(["Say red:"] * 2, [[turn("red")], turns], completion_ids=[[40], [40, 41, 42]])


def test_what_cannot_be_read_is_named():
    reward = text_reward()
    with pytest.raises(DataError, match="2 prompts but 1 completions"):
        reward.score(["a", "b"], ["c"])
    with pytest.raises(DataError, match="completion 1: the completion has 2 turns"):
        reward.score(["a", [{"role": "user", "content": "b"}]], ["c", [turn("d"), turn("e")]])
    with pytest.raises(UsageError, match="no tokenizer to read text with"):
        DenseReward(reward.sft, list(reward.refs)).score(["a"], ["b"])


# -- from and to disk ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three full models and three adapters on the first of them, on disk."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    for seed in range(3):
        tiny_llama(vocab_size=VOCABULARY, seed=seed).save_pretrained(folder / f"model-{seed}")
        tokenizer.save_pretrained(folder / f"model-{seed}")
    base = load_model(folder / "model-0")
    model = with_lora(base, seed=1)
    model.peft_config["default"].base_model_name_or_path = str(folder / "model-0")
    for seed in range(3):
        randomize_adapter(model, "default", seed=10 + seed)
        model.save_pretrained(str(folder / f"adapter-{seed}"), selected_adapters=["default"])
    return folder


def test_a_saved_reward_is_the_same_reward(saved, tmp_path):
    reward = DenseReward.from_models(
        saved / "model-0", [saved / "model-1", saved / "model-2"], reference_mean="geometric", scale=0.5, clip=2.0
    )
    reward.save_pretrained(tmp_path / "reward")
    assert [path.name for path in (tmp_path / "reward").iterdir()] == ["dense_reward.json"]
    again = DenseReward.from_pretrained(tmp_path / "reward", token_budget=64)
    expected, found = (r.score(["Say red:"], ["red"]).rewards[0] for r in (reward, again))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert again.token_budget == 64


def test_models_below_the_folder_move_with_it(saved, tmp_path):
    saved_copy = tmp_path / "first"
    saved_copy.mkdir()
    for name in ("model-0", "model-1"):
        (saved_copy / name).mkdir()
        for path in (saved / name).iterdir():
            (saved_copy / name / path.name).write_bytes(path.read_bytes())
    DenseReward.from_models(saved_copy / "model-0", saved_copy / "model-1").save_pretrained(saved_copy)
    record = json.loads((saved_copy / "dense_reward.json").read_text())
    assert (record["sft"], record["refs"]) == ("./model-0", ["./model-1"])
    moved = saved_copy.rename(tmp_path / "second")
    assert DenseReward.from_pretrained(moved).score(["a"], ["b"]).sums.shape == (1,)
    shutil.copyfile(moved / "model-0/model.safetensors", moved / "model-1/model.safetensors")
    with pytest.raises(ModelError, match=r"model-1 is another model than it was \(weights changed\): save anew"):
        DenseReward.from_pretrained(moved)


def test_adapters_and_their_base_share_it_in_memory(saved):
    names = [saved / name for name in ("adapter-0", "model-0", "adapter-1", "adapter-2", "adapter-1", "model-1")]
    reward = DenseReward.from_models(names[0], names[1:])
    policies = [reward.sft, *reward.refs]
    assert len({id(policy.model) for policy in policies[:5]}) == 1
    assert policies[5].model is not policies[0].model
    assert policies[1].adapter is None
    assert policies[2].adapter == policies[4].adapter
    for name, policy in zip(names, policies, strict=True):
        alone = load_model(name, merge=True)
        found = policy.score([[5, 9]], [[4, 8, 2]]).logprobs[0]
        assert found.tolist() == pytest.approx(logprobs_of(alone, [5, 9], [4, 8, 2]), abs=2e-3)


def test_a_base_that_comes_before_its_adapters_shares_them_too(saved):
    reward = DenseReward.from_models(saved / "model-0", saved / "adapter-0")
    assert reward.sft.model is reward.refs[0].model
    assert (reward.sft.adapter, reward.refs[0].adapter) == (None, "default")


def test_equal_weights_are_warned_of(saved):
    with pytest.warns(UserWarning, match="have the same weights: the reward is zero everywhere"):
        DenseReward.from_models(saved / "model-0", saved / "model-0")


def test_what_cannot_be_saved_or_loaded_is_named(saved, tmp_path):
    with pytest.raises(UsageError, match="made from model objects"):
        text_reward().save_pretrained(tmp_path)
    with pytest.raises(MissingFileError, match=r"dense_reward\.json: no such file"):
        DenseReward.from_pretrained(tmp_path)
    (tmp_path / "dense_reward.json").write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="not a file that DenseReward"):
        DenseReward.from_pretrained(tmp_path)
    (tmp_path / "dense_reward.json").write_text("{")
    with pytest.raises(DamagedFileError, match="it is no JSON"):
        DenseReward.from_pretrained(tmp_path)
    with pytest.raises(MissingFileError, match="no such model folder"):
        DenseReward.from_models(saved / "model-0", saved / "model-9")


def test_one_model_alone_ignores_references(saved):
    reward = DenseReward.from_models(saved / "model-0", saved / "model-9", kind="logprob")
    assert reward.refs == ()
    assert reward.passes == 1


def test_a_frozen_policy_is_taken_as_it_is():
    model = with_lora(tiny_llama(), seed=1)
    add_frozen_copy(model, name="sft")
    policy = FrozenPolicy(model, "sft")
    assert DenseReward(policy, FrozenPolicy(model, None)).sft is policy
