from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mamba, with_lora

from densepath.errors import MissingFileError, ModelError, UsageError
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.load import (
    _add_adapter,
    check_vocabulary,
    context_length,
    disable_dropout,
    eos_token_ids,
    load_model,
    load_tokenizer,
)

IDS = torch.tensor([[1, 5, 9, 3]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tiny_llama(vocab_size=400).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path, base):
    folder = tmp_path / "adapter"
    with_lora(load_model(base), seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def no_hub(monkeypatch):
    """The hub is unreachable, and nothing is cached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_gives_a_frozen_model(base):
    model = load_model(base)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    assert torch.equal(logits(model), logits(tiny_llama(vocab_size=400)))
    assert torch.equal(logits(load_model(str(base))), logits(model))


@pytest.fixture
def gemma_with_pictures(tmp_path):
    """A Gemma 3 folder as the hub has it: language model, vision tower and projector."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = Gemma3Config(
        text_config=tiny_gemma3(vocab_size=400).config.to_dict(),
        vision_config={**vision, "patch_size": 8, "image_size": 32, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=399,
        boi_token_index=398,
        eoi_token_index=397,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "gemma")
    return model, tmp_path / "gemma"


def test_of_a_model_with_pictures_the_text_part_is_loaded(gemma_with_pictures, tmp_path):
    whole, folder = gemma_with_pictures
    model = load_model(folder)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    text = [p.numel() for name, p in whole.named_parameters() if "language_model" in name]
    assert sum(p.numel() for p in model.parameters()) == sum(text)
    assert torch.equal(logits(model), logits(whole))
    # Saved, it is a text model; an adapter finds the text part of its base again.
    model.save_pretrained(tmp_path / "text")
    assert torch.equal(logits(load_model(tmp_path / "text")), logits(whole))
    adapter = with_lora(load_model(folder), seed=1)
    adapter.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter")), logits(adapter))


def test_another_token_can_end_turns(base):
    tokenizer = load_tokenizer(base, eos_token="<|pad|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|pad|>"
    with pytest.raises(ModelError, match=r"its tokenizer has no token '<end_of_turn>'"):
        load_tokenizer(base, eos_token="<end_of_turn>")


def test_for_training_is_trainable(base):
    model = load_model(base, for_training=True)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (torch.float64, torch.float64)])
def test_dtype(base, dtype, expected):
    assert load_model(base, dtype=dtype).dtype == expected


def test_auto_dtype_is_that_of_the_file(tmp_path):
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load_model(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_folder_brings_its_base(base, adapter, merge):
    expected = logits(with_lora(tiny_llama(vocab_size=400), seed=1))
    for model in (load_model(adapter, merge=merge), load_model(base, adapter=adapter, merge=merge)):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert hasattr(model, "peft_config") != merge


def test_training_an_adapter_trains_it_alone(adapter):
    model = load_model(adapter, for_training=True)
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in key for key in trainable)
    merged = load_model(adapter, for_training=True, merge=True)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_an_adapter_whose_base_moved_names_the_remedy(base, adapter, tmp_path):
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"its base model .*base is not there: load the base .* with adapter="):
        load_model(adapter)
    load_model(tmp_path / "elsewhere", adapter=adapter)


def test_an_adapter_with_missing_weights_is_refused(adapter):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file)
    with pytest.raises(ModelError, match="weights of the adapter are missing"):
        load_model(adapter)
    file.unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_model(adapter)


def test_two_adapters_at_once_are_refused(adapter):
    with pytest.raises(UsageError, match="is an adapter itself"):
        load_model(adapter, adapter=adapter)


def test_not_an_adapter(base):
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_model(base, adapter=base)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_folder_is_named(name):
    for load in (load_model, load_tokenizer):
        with pytest.raises(MissingFileError, match=f"no such model folder: {name}"):
            load(name)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["gpt-none", "nobody/nothing", "not a hub id!"])
def test_an_unreachable_hub_is_one_line_with_a_remedy(name):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="no such folder, and") as error:
            load(name)
        assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_folder_is_said(base, tmp_path):
    with pytest.raises(ModelError, match="is a file: give the folder"):
        load_model(base / "config.json")
    with pytest.raises(ModelError, match=r"no config\.json.*base has one"):
        load_model(tmp_path)
    (base / "model.safetensors").rename(tmp_path / "m")
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights in it"):
        load_model(base)
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled \.bin weights are not read"):
        load_model(base)
    (base / "model.safetensors").write_bytes((tmp_path / "m").read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_model(base)


def test_weights_that_would_be_random_are_refused(base):
    file = base / "model.safetensors"
    weights = load_file(file)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in its files.*layers\.1\.mlp\.up_proj"):
        load_model(base)


def test_foreign_code_is_not_run(base):
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "my-own", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "c.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"Python code of its own.*trust_remote_code=True"):
        load_model(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"model_init_kwargs": {"torch_dtype": "bfloat16"}}, "holds torch_dtype: give dtype beside it"),
    ],
)
def test_arguments_are_checked(base, change, message):
    with pytest.raises(UsageError, match=message):
        load_model(base, **change)


def test_tokenizer_pads_left_with_eos_where_it_has_no_pad(base, adapter, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.pad_token_id == loaded.eos_token_id
    assert loaded.padding_side == "left"
    other = load_tokenizer(adapter)  # it has none of its own
    assert other.get_vocab() == load_tokenizer(base).get_vocab()
    assert load_tokenizer(base).chat_template == tiny_tokenizer().chat_template


def test_tokenizer_without_eos_or_absent(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    with pytest.raises(ModelError, match="no eos_token"):
        load_tokenizer(tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no tokenizer\.json in this folder"):
        load_tokenizer(tmp_path / "empty")


def test_same_tokenizer():
    check_same_tokenizer(tiny_tokenizer(), tiny_tokenizer())
    check_same_tokenizer(tiny_tokenizer(pad_is_eos=True), tiny_tokenizer(pad_is_eos=False))  # pad is never read
    longer, ended = tiny_tokenizer(), tiny_tokenizer()
    longer.add_tokens(["<new>"])
    ended.eos_token = "<|im_start|>"
    with pytest.raises(ModelError, match="'<new>' is only in the second"):
        check_same_tokenizer(tiny_tokenizer(), longer)
    with pytest.raises(ModelError, match=r"token '<new>' is 3.. and does not exist"):
        check_same_tokenizer(longer, tiny_tokenizer())
    with pytest.raises(ModelError, match=r"token .* is .* and (is .*|does not exist)"):
        check_same_tokenizer(tiny_tokenizer(), tiny_tokenizer(byte_level=False))
    with pytest.raises(ModelError, match="eos_token_id is 1 and 0"):
        check_same_tokenizer(tiny_tokenizer(), ended)
    check_same_tokenizer(tiny_tokenizer(), ended, special_tokens=False)


def test_vocabulary_must_fit_the_embeddings():
    tokenizer = tiny_tokenizer()
    check_vocabulary(tokenizer, tiny_llama(vocab_size=len(tokenizer)))
    check_vocabulary(tokenizer, tiny_llama(vocab_size=len(tokenizer) + 10))
    with pytest.raises(ModelError, match=f"the id {len(tokenizer) - 1}, and the model has {len(tokenizer) - 1} "):
        check_vocabulary(tokenizer, tiny_llama(vocab_size=len(tokenizer) - 1))


def test_context_length():
    assert context_length(tiny_llama()) == 256
    assert context_length(tiny_gpt2()) == 256
    assert context_length(with_lora(tiny_llama())) == 256
    assert context_length(tiny_mamba()) == sys.maxsize


def test_context_length_of_a_nested_configuration():
    from transformers import Gemma3Config, Gemma3TextConfig

    class Shell:
        config = Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=77).to_dict())

    assert context_length(Shell()) == 77


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, (1,)), (1, (1,)), (7, (1, 7)), ([7, 1], (7, 1)), ([7, 8], (1, 7, 8))]
)
def test_eos_token_ids_follow_trl(configured, expected):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    assert tokenizer.eos_token_id == 1
    model.generation_config.eos_token_id = configured
    assert eos_token_ids(model, tokenizer) == expected
    assert eos_token_ids(with_lora(model), tokenizer) == expected


def test_a_model_that_never_ends_is_refused():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="never end"):
        eos_token_ids(model, tokenizer)


@pytest.mark.parametrize(
    "build", [tiny_gpt2, lambda: tiny_llama(attention_dropout=0.4), lambda: with_lora(tiny_llama(), dropout=0.3)]
)
def test_without_dropout_train_mode_is_eval_mode(build):
    model = build()
    expected = logits(model.eval())
    assert not torch.equal(logits(model.train()), expected)
    assert disable_dropout(model) > 0
    assert torch.equal(logits(model.train()), expected)
    assert disable_dropout(model) == 0


def test_a_loaded_scorer_has_no_dropout(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    scorer = load_model(tmp_path)
    assert torch.equal(logits(scorer.train()), logits(tiny_gpt2()))
    assert load_model(tmp_path, for_training=True).config.attn_pdrop == 0.1


def test_weights_differ(base, adapter, tmp_path):
    copy, other, zero = tmp_path / "copy", tmp_path / "other", tmp_path / "zero"
    shutil.copytree(base, copy)
    tiny_llama(vocab_size=400, seed=1).save_pretrained(other)
    with_lora(load_model(base), scale=0.0).save_pretrained(zero)
    assert not weights_differ(base, base)
    assert not weights_differ(base, str(copy))
    assert weights_differ(base, other)
    assert weights_differ(base, adapter)
    assert not weights_differ(base, zero)
    assert not weights_differ(adapter, adapter)
    shutil.copytree(adapter, tmp_path / "adapter2")
    assert not weights_differ(adapter, tmp_path / "adapter2")
    with_lora(load_model(base), seed=9).save_pretrained(tmp_path / "adapter3")
    assert weights_differ(adapter, tmp_path / "adapter3")
    with pytest.raises(MissingFileError):
        weights_differ(base, tmp_path / "nowhere")


def test_sharded_weights_equal_one_file(base, tmp_path):
    load_model(base).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert not weights_differ(base, tmp_path / "shards")
    assert torch.equal(logits(load_model(tmp_path / "shards")), logits(load_model(base)))


def test_no_adapter_is_merged_into_a_base_in_pieces(tmp_path):
    model = tiny_llama()
    with_lora(model).save_pretrained(tmp_path)
    pieces = tiny_llama()
    next(pieces.parameters()).ds_id = 0  # as DeepSpeed marks what it spreads
    with pytest.raises(ModelError, match="loads in pieces: save it merged"):
        _add_adapter(pieces, str(tmp_path), trainable=False, merge=True)


@pytest.mark.parametrize(
    "change",
    [{"layer_types": ["full_attention", "of_tomorrow"]}, {"num_hidden_layers": "2"}, {"num_attention_heads": 0}],
)
def test_a_configuration_that_transformers_does_not_take_is_one_line(base, change):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=r"cannot load the model .*base") as raised:
        load_model(base)
    assert "\n" not in str(raised.value)
