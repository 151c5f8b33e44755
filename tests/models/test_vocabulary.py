"""Embedding rows that are not the tokenizer's length: what the tokenizer gives is compared, scored and sampled."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tests.models.test_plain_heads import own
from tests.support import tiny_tokenizer
from tests.tiny_models import randomize_adapter, tiny_llama

from densepath.data.encode import Encoded
from densepath.errors import ModelError
from densepath.evals.preview import preview_logprobs
from densepath.models import compat
from densepath.models.compat import check_same_tokenizer, replaced_weights, warn_of_spare_ids
from densepath.models.load import load_model, load_tokenizer
from densepath.models.sampling import Contrast, ContrastKind, sample
from densepath.rewards.dense import DenseReward
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import load_policies, view_on_base

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER)
PROMPT, COMPLETION = [5, 6, 7], [20, 21, 22, 1]


def padded(seed: int, rows: int):
    model = tiny_llama(vocab_size=SIZE, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@pytest.mark.parametrize("rows", [(SIZE + 64, SIZE), (SIZE, SIZE + 64), (SIZE + 64, SIZE + 9)])
def test_padded_models_of_one_tokenizer_have_a_reward(rows):
    sft, ref = padded(0, rows[0]), padded(1, rows[1])
    rewards = DenseReward(sft, ref, tokenizer=TOKENIZER).score_ids([PROMPT], [COMPLETION]).rewards[0]
    expected = own(sft, PROMPT, COMPLETION) - own(ref, PROMPT, COMPLETION)  # over all rows of each
    torch.testing.assert_close(rewards.double(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="both must share one tokenizer; give it"):
        DenseReward(sft, ref)


def test_a_model_that_lacks_tokens_is_refused_and_added_ones_where_a_text_holds_them():
    with pytest.raises(ModelError, match=rf"the reference of {SIZE - 1}, which lacks token id {SIZE - 1}"):
        DenseReward(padded(0, SIZE), tiny_llama(vocab_size=SIZE - 1), tokenizer=TOKENIZER)
    grown = copy.deepcopy(TOKENIZER)
    grown.add_special_tokens({"pad_token": "[PAD]"})
    check_same_tokenizer(grown, TOKENIZER, special_tokens=False)
    check_same_tokenizer(TOKENIZER, grown, special_tokens=False)
    reward = DenseReward(padded(0, SIZE + 1), padded(1, SIZE), tokenizer=grown)
    assert torch.isfinite(reward.score_ids([PROMPT], [COMPLETION]).rewards[0]).all()
    with pytest.raises(ModelError, match=f"sequence 0 has token id {SIZE}, and the model has {SIZE}"):
        reward.score_ids([PROMPT], [[5, SIZE]])
    grown.eos_token = "[PAD]"
    with pytest.raises(ModelError, match=rf"which lacks token id {SIZE} \('\[PAD\]'\)"):
        DenseReward(padded(0, SIZE + 1), padded(1, SIZE), tokenizer=grown)


def test_contrast_of_two_lengths_is_over_the_ids_that_both_have():
    sft, ref = padded(0, SIZE + 64), padded(1, SIZE)
    drawn = sample(
        sft, [PROMPT], num_generations=8, max_completion_length=4, eos_token_ids=[],
        contrast=Contrast(ref, ContrastKind.CONTRASTIVE, 0.5),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert max(map(max, drawn.completion_ids)) < SIZE
    ids = drawn.completion_ids[0]
    with torch.no_grad():
        whole = torch.tensor([PROMPT + ids])
        logits = [model(input_ids=whole).logits[0, 2:-1, :SIZE].double() for model in (sft, ref)]
    expected = (1.5 * logits[0] - 0.5 * logits[1]).log_softmax(-1)[torch.arange(4), torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(drawn.logprobs[0]).double(), expected, atol=1e-4, rtol=0)
    policies = FrozenPolicy(sft), FrozenPolicy(ref)
    (states,) = zip(*(policy.hidden_states([PROMPT], [ids]) for policy in policies), strict=True)
    found = preview_logprobs(*policies, [Encoded(tuple(PROMPT), tuple(ids))], [0.5], [states])
    torch.testing.assert_close(found[0.5][0], expected, atol=1e-4, rtol=0)


def test_a_sampled_spare_row_is_said():
    with pytest.warns(UserWarning, match=rf"sampled id {SIZE + 3}, no token of its tokenizer \({SIZE} tokens\)"):
        warn_of_spare_ids([[4], [5, SIZE + 3]], TOKENIZER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_spare_ids([[4], [], [SIZE - 1]], TOKENIZER)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base; an adapter trained after `resize_token_embeddings`; one whose biases of the base are trained."""
    root = tmp_path_factory.mktemp("models")
    base = tiny_llama(vocab_size=SIZE, attention_bias=True)
    base.save_pretrained(root / "base")
    TOKENIZER.save_pretrained(root / "base")
    grown = copy.deepcopy(TOKENIZER)
    grown.add_tokens(["<new>", "<other>"], special_tokens=True)
    for name, rows, settings in (
        ("grown", len(grown), {}),
        ("grown head", len(grown), {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
        ("biased", SIZE, {"bias": "all"}),
    ):
        model = load_model(root / "base")
        if rows != SIZE:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=2, **{"target_modules": ["q_proj"], **settings})
        )
        randomize_adapter(model, "default", seed=1)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name == "biased" and key.endswith(".bias"):
                    parameter.add_(0.3)
        model.save_pretrained(root / name)
        (grown if rows != SIZE else TOKENIZER).save_pretrained(root / name)
        torch.save(own(model.eval(), PROMPT, COMPLETION), root / f"{name}.pt")
    return root


@pytest.mark.parametrize("name", ["grown", "grown head", "biased"])
def test_an_adapter_that_brings_weights_of_the_base_has_a_base_of_its_own(folders, name):
    assert replaced_weights(str(folders / name))
    expected = torch.load(folders / f"{name}.pt")
    for merge in (False, True):
        model = load_model(folders / name, merge=merge)
        torch.testing.assert_close(own(model, PROMPT, COMPLETION), expected, atol=1e-5, rtol=0)
    policies = load_policies([folders / name, folders / "base"])
    of_base = own(load_model(folders / "base"), PROMPT, COMPLETION)
    for policy, logprobs in zip(policies, (expected, of_base), strict=True):
        found = policy.score([PROMPT], [COMPLETION]).logprobs[0]
        torch.testing.assert_close(found.double(), logprobs, atol=1e-5, rtol=0)
    assert view_on_base(load_model(folders / name), str(folders / "base"), "ref") is None
    plain = get_peft_model(load_model(folders / "base"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    plain.peft_config["default"].base_model_name_or_path = str(folders / "base")
    assert view_on_base(plain, str(folders / name), "ref") is None
    assert view_on_base(plain, str(folders / "base"), "ref") is not None


def test_the_tokenizer_of_the_grown_adapter_is_its_own(folders):
    assert len(load_tokenizer(folders / "grown")) == SIZE + 2
    reward = DenseReward.from_models(folders / "grown", folders / "base")
    scores = reward.score(["Sort these words:"], ["moon star"])
    assert torch.isfinite(scores.rewards[0]).all()
    with pytest.raises(ModelError, match=f"has token id {SIZE}"):
        reward.score(["Sort these words:"], ["moon <new>"])


@pytest.mark.parametrize(("target", "lacks"), [("embed_tokens", "lm_head"), ("lm_head", "model.embed_tokens")])
def test_a_resized_adapter_without_all_its_new_rows_is_refused(tmp_path, target, lacks):
    from peft import LoraConfig, get_peft_model

    from densepath.models.load import load_model

    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    base.resize_token_embeddings(80)
    get_peft_model(base, LoraConfig(r=2, target_modules=[target])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"resized to 80 rows, and those of {lacks} are not in its files"):
        load_model(str(tmp_path / "adapter"))


def test_weights_of_a_hub_id_are_fetched_where_only_its_configuration_is_there(tmp_path, monkeypatch):
    """The tokenizer is fetched before the weights are compared."""
    fetched = []

    def snapshot_download(source, *, allow_patterns, local_files_only):
        fetched.append(local_files_only)
        if not local_files_only:
            save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert compat._tensor_files("org/model") == {"a": tmp_path / "model.safetensors"}
    assert fetched == [True, False]
    compat._tensor_files("org/model")
    assert fetched == [True, False, True]  # nobody is asked for what is there
