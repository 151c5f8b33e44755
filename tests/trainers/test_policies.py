"""The three models of a run: on one base in memory or apart, quantised, by name; and what is refused before a step."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support import tiny_tokenizer
from tests.tiny_models import randomize_adapter, tiny_gpt2, tiny_llama, with_lora
from tests.trainers.test_dpr import config, trainer_of
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from densepath.errors import ConfigError, DataError, ModelError
from densepath.models.load import load_model
from densepath.rewards.frozen import FrozenPolicy
from densepath.trainers import checks
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.policies import loading_arguments
from densepath.trainers.sft import save_model


@pytest.fixture
def folders(tmp_path, make_model, tokenizer):
    """base, and two adapters of it: sft and earlier."""
    base = tmp_path / "base"
    make_model(0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    found = {"base": str(base)}
    for seed, name in ((1, "sft"), (2, "earlier")):
        adapter = with_lora(load_model(base, for_training=True), seed=seed)
        adapter.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found[name] = str(tmp_path / name)
    return found


def adapter_weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".default." in name}


@pytest.mark.parametrize("reference", ["base", "earlier"])
def test_models_on_one_base_train_like_models_apart(tmp_path, folders, prompts, reference):
    """Two steps with policy, SFT model and reference on one base, and with three models: the same adapter."""

    def made(ref, sft=None):
        args = config(tmp_path, learning_rate=5e-3, optim="sgd", max_grad_norm=0.0)
        trainer = DPRTrainer(folders["sft"], ref, args, prompts, sft_model=sft)
        trainer.train()
        return trainer

    shared = made(folders[reference])
    views = [shared.dense_reward.sft, *shared.dense_reward.refs]
    assert all(view.model is shared.model for view in views)
    assert [view.adapter for view in views] == ["sft", None if reference == "base" else "ref_0"]
    apart = made(load_model(folders[reference], merge=True), load_model(folders["sft"], merge=True))
    assert all(view.model is not apart.model for view in (apart.dense_reward.sft, *apart.dense_reward.refs))
    start = adapter_weights(DPRTrainer(folders["sft"], folders["base"], config(tmp_path), prompts))
    a, b = adapter_weights(shared), adapter_weights(apart)
    assert max((a[name] - start[name]).abs().max() for name in a) > 0.01
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)
    rewards = [[row["reward"] for row in t.state.log_history if "reward" in row] for t in (shared, apart)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-3)


def test_a_base_is_found_by_another_path_to_it(tmp_path, folders, prompts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = DPRTrainer(folders["sft"], "base", config(tmp_path), prompts)
    assert trainer.dense_reward.refs == (FrozenPolicy(trainer.model, None),)


def test_several_references_and_a_new_adapter_share_the_base(tmp_path, folders, prompts):
    from peft import LoraConfig

    trainer = DPRTrainer(
        folders["base"],
        [folders["earlier"], folders["sft"]],
        config(tmp_path, max_steps=1),
        prompts,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    assert trainer.dense_reward.sft == FrozenPolicy(trainer.model, None)
    assert [view.adapter for view in trainer.dense_reward.refs] == ["ref_0", "ref_1"]
    trainer.train()
    assert trainer.state.global_step == 1
    moved = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert moved
    assert all(".default." in name for name in moved)


def test_model_init_kwargs_reach_models_given_by_name(tmp_path, folders, prompts):
    trainer = DPRTrainer(
        folders["base"],
        folders["base"],
        config(tmp_path, model_init_kwargs={"attn_implementation": "eager", "dtype": "float64"}),
        prompts,
    )
    for model in (trainer.model, trainer.dense_reward.refs[0].model):
        assert model.config._attn_implementation == "eager"
        assert model.dtype == torch.float64


@pytest.mark.parametrize("was_named", [True, False])
def test_init_kwargs_that_were_used_are_not_said_to_be_ignored(
    tmp_path, folders, prompts, make_model, tokenizer, was_named
):
    said = []
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        model = folders["base"] if was_named else make_model(0)
        args = config(tmp_path, model_init_kwargs={"dtype": "float32"})
        DPRTrainer(model, folders["base"], args, prompts, processing_class=tokenizer)
    finally:
        logger.removeHandler(handler)
    assert any("will be ignored" in text for text in said) is not was_named
    assert logger.filters == []


# -- quantisation ------------------------------------------------------------------------------------------------


def test_without_bitsandbytes_quantisation_is_refused_by_name(tmp_path, folders, prompts, monkeypatch):
    monkeypatch.setattr("densepath.models.quantized.is_bitsandbytes_available", lambda: False)
    for kwargs in ({"load_in_4bit": True}, {"quantization_config": {"load_in_4bit": True}}):
        with pytest.raises(ModelError, match=r"load_in_4bit needs bitsandbytes: pip install bitsandbytes"):
            DPRTrainer(folders["sft"], folders["base"], config(tmp_path, model_init_kwargs=kwargs), prompts)
    with pytest.raises(ModelError, match="load_in_8bit needs bitsandbytes"):
        DPRTrainer(
            folders["sft"],
            folders["base"],
            config(tmp_path),
            prompts,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )


def test_a_quantisation_given_twice_is_refused(tmp_path, folders, prompts):
    with pytest.raises(ConfigError, match="the quantisation is given more than once"):
        DPRTrainer(
            folders["sft"],
            folders["base"],
            config(tmp_path, model_init_kwargs={"load_in_4bit": True}),
            prompts,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        )


@pytest.mark.slow
@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs the extra `quantization`")
def test_qlora_trains_an_adapter_on_a_base_of_4_bits(tmp_path, prompts, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    widths = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}  # a block of 4-bit weights is 64
    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.2, **widths)
    )
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with_lora(load_model(tmp_path / "base", for_training=True), seed=1).save_pretrained(tmp_path / "sft")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    trainer = DPRTrainer(
        str(tmp_path / "sft"), str(tmp_path / "base"), config(tmp_path), prompts, quantization_config=quantization
    )
    kinds = {type(module).__name__ for module in trainer.model.modules()}
    assert "Linear4bit" in kinds
    assert all(view.model is trainer.model for view in (trainer.dense_reward.sft, *trainer.dense_reward.refs))
    before = adapter_weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[name], now) for name, now in adapter_weights(trainer).items())
    logged = [row for row in trainer.state.log_history if "kl_sequence" in row]
    assert logged[0]["kl_sequence"] == pytest.approx(0.0, abs=0.05)  # the frozen copy of the adapter is the policy


# -- wrong input, before the first step --------------------------------------------------------------------------


def test_a_reference_with_another_vocabulary_is_refused(tmp_path, folders, prompts, make_model, tokenizer):
    other = tmp_path / "other"
    make_model(1).save_pretrained(other)  # the same size, but other words
    strange = tiny_tokenizer(byte_level=False)
    strange.save_pretrained(other)
    with pytest.raises(ModelError, match=r"the tokenizers of .* differ: token"):
        DPRTrainer(folders["base"], str(other), config(tmp_path), prompts)
    with pytest.raises(ModelError, match="a vocabulary of 384 tokens, the reference of 77"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, ref=tiny_llama(vocab_size=77))


def test_dropout_is_switched_off_with_a_warning(tmp_path, tokenizer, prompts, make_model):
    models = [tiny_gpt2(vocab_size=len(tokenizer), seed=seed) for seed in (0, 1)]
    with pytest.warns(UserWarning, match=r"dropout was on in \d+ places of the policy; it is off now"):
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=models[0], ref=models[1])
    ids = torch.arange(6).unsqueeze(0)
    trainer.model.train()
    assert torch.equal(trainer.model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)


def test_dropout_that_cannot_be_switched_off_is_refused(tmp_path, tokenizer, prompts, make_model):
    model = make_model(0)
    layer = model.model.layers[0].mlp
    inner = layer.forward
    layer.forward = lambda x: torch.nn.functional.dropout(inner(x), p=0.2, training=layer.training)
    with pytest.raises(ModelError, match=r"draws random numbers in train mode \(dropout is on\)"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=model)


def test_a_prompt_that_fills_the_context_is_named_with_its_row(tmp_path, tokenizer, prompts, make_model):
    rows = prompts.to_list()
    rows[17]["prompt"] = "blue " * 120
    data = type(prompts).from_list(rows)
    with pytest.raises(
        DataError, match=r"train_dataset, row 17: \d+ tokens beside .*, but the models' context holds 256"
    ):
        trainer_of(tmp_path, make_model, tokenizer, data)
    parts = [{"role": "user", "content": [{"type": "text", "text": "blue " * 120}]}]  # text that is no string
    with pytest.raises(DataError, match=r"train_dataset, row 0: \d+ tokens beside"):
        trainer_of(tmp_path, make_model, tokenizer, type(prompts).from_list([{"prompt": parts}] * 8))
    short = tiny_llama(len(tokenizer), max_position_embeddings=48)
    rows[17]["prompt"] = "blue " * 12
    data_of_short = type(prompts).from_list(rows)
    for refs in ({"ref_model": short}, {"ref_model": make_model(1), "held_out_ref_model": short}):
        given = {"args": config(tmp_path), "train_dataset": data_of_short, "processing_class": tokenizer, **refs}
        with pytest.raises(DataError, match=r"train_dataset, row 17: .*, but the models' context holds 48"):
            DPRTrainer(make_model(0), **given)
    with pytest.raises(DataError, match="eval_dataset hard, row 17"):
        DPRTrainer(
            make_model(0),
            make_model(1),
            config(tmp_path, eval_strategy="steps", per_device_eval_batch_size=8),
            prompts,
            {"hard": data},
            tokenizer,
        )
    with pytest.raises(ConfigError, match="max_completion_length=256 fills the models' context of 256 tokens"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, max_completion_length=256)


def test_what_is_left_of_a_grpo_script_is_explained(tmp_path, make_model, prompts, tokenizer):
    from trl import GRPOConfig

    def reward(completions, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(ConfigError, match="args is a GRPOConfig: DPRTrainer takes a DPRConfig"):
        DPRTrainer(make_model(0), make_model(1), GRPOConfig(str(tmp_path), bf16=False), prompts)
    with pytest.raises(ConfigError, match=r"ref_model is a function: .* reward functions go to reward_funcs="):
        DPRTrainer(make_model(0), reward, config(tmp_path), prompts)
    with pytest.raises(ConfigError, match="DPR cannot begin: `train_dataset` must be a `Dataset`"):
        DPRTrainer(make_model(0), make_model(1), config(tmp_path), prompts.to_list(), processing_class=tokenizer)


def test_the_constructor_is_grpos(tmp_path, make_model, tokenizer, prompts, monkeypatch):
    import inspect

    from trl import GRPOTrainer

    ours = list(inspect.signature(DPRTrainer.__init__).parameters)
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert set(theirs) <= set(ours)
    assert ours[:5] == ["self", "model", "ref_model", "args", "train_dataset"]
    assert [name for name in ours if name in theirs and name != "reward_funcs"] == [
        name for name in theirs if name != "reward_funcs"
    ]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, ref = (tiny_llama(len(tokenizer), seed=seed, max_position_embeddings=1024) for seed in range(2))
        model.config._name_or_path = "org/my-sft"
        trainer = DPRTrainer(model, ref, train_dataset=prompts, processing_class=tokenizer)
    assert type(trainer.args) is DPRConfig
    assert Path(trainer.args.output_dir).name == "my-sft-DPR"


def test_processes_that_are_not_joined_are_refused(tmp_path, make_model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(checks, "os", SimpleNamespace(environ={"WORLD_SIZE": "2"}))
    with pytest.raises(ConfigError, match="a launcher started 2 processes, which are not joined: set use_cpu=True"):
        trainer_of(tmp_path, make_model, tokenizer, prompts)


def test_fewer_prompts_than_one_generation_takes_are_refused(tmp_path, make_model, tokenizer, prompts):
    with pytest.raises(DataError, match="train_dataset has 1 prompts, and one generation takes 2"):
        trainer_of(tmp_path, make_model, tokenizer, prompts.select(range(1)))


@pytest.mark.parametrize(
    ("settings", "is_sft"),
    [({"bias": "lora_only"}, False), ({"bias": "lora_only"}, True), ({"init_lora_weights": "pissa"}, False)],
)
def test_the_sft_policy_stays_what_it_was_under_an_adapter_that_changes_the_base(
    tmp_path, tokenizer, prompts, settings, is_sft
):
    """Trained biases are the base's own, and PiSSA takes a part of its weights: neither is the SFT policy's."""
    base = tiny_gpt2(vocab_size=len(tokenizer), seed=0, dropout=0.0)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], **settings)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = get_peft_model(load_model(tmp_path / "base", for_training=True), adapter) if is_sft else base
    truth = FrozenPolicy(load_model(tmp_path / "base")).score([[5, 6, 7]], [[8, 9, 2]]).logprobs[0]
    args = config(tmp_path, learning_rate=0.5, optim="sgd", max_steps=1)
    more = {} if is_sft else {"peft_config": adapter}
    trainer = DPRTrainer(model, str(tmp_path / "base"), args, prompts, processing_class=tokenizer, **more)
    trainer.train()
    for frozen in (trainer.dense_reward.sft, *trainer.dense_reward.refs):
        found = frozen.score([[5, 6, 7]], [[8, 9, 2]]).logprobs[0]
        torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)


def test_the_old_name_of_dtype_is_taken(tmp_path):
    args = DPRConfig(str(tmp_path), model_init_kwargs={"torch_dtype": "bfloat16"})
    assert loading_arguments(args)["dtype"] == "bfloat16"


@pytest.mark.parametrize("others", [(), ("default",)])
@pytest.mark.parametrize("is_sft", [True, False])
def test_the_active_adapter_is_trained_and_saved_whatever_it_is_called(
    tmp_path, tokenizer, prompts, make_model, folders, others, is_sft
):
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    policy = get_peft_model(load_model(folders["base"], for_training=True), settings, adapter_name="policy")
    randomize_adapter(policy, "policy", seed=3)
    for name in others:
        policy.add_adapter(name, settings)
    ids = [[5, 6, 7]], [[8, 9, 2]]
    sft = FrozenPolicy(policy).score(*ids).logprobs[0]
    args = config(tmp_path, learning_rate=0.5, optim="sgd", max_steps=3, save_strategy="steps", save_steps=2)
    given = {} if is_sft else {"sft_model": copy.deepcopy(policy)}
    trainer = DPRTrainer(policy, folders["base"], args, prompts, processing_class=tokenizer, **given)
    assert trainer.dense_reward.refs == (FrozenPolicy(policy, None),)
    trainer.train()
    torch.testing.assert_close(trainer.dense_reward.sft.score(*ids).logprobs[0], sft, atol=1e-5, rtol=0)
    trained = FrozenPolicy(policy).score(*ids).logprobs[0]
    assert (trained - sft).abs().max() > 0.01
    trainer.save_model()
    save_model(trainer, tokenizer, tmp_path / "saved")
    for folder in (Path(args.output_dir), tmp_path / "saved"):  # as a user loads it, whatever else is there
        loaded = load_model(folder)
        assert list(loaded.peft_config) == ["default"]
        torch.testing.assert_close(FrozenPolicy(loaded).score(*ids).logprobs[0], trained, atol=1e-5, rtol=0)
        assert not [
            path for path in folder.glob("*/adapter_model.safetensors") if "checkpoint" not in path.parent.name
        ]
    randomize_adapter(policy, "policy", seed=4)
    trainer.train(resume_from_checkpoint=True)
    torch.testing.assert_close(FrozenPolicy(policy).score(*ids).logprobs[0], trained, atol=1e-5, rtol=0)


def test_the_policy_itself_is_no_frozen_model(tmp_path, tokenizer, prompts, make_model):
    """As the SFT model it is what it was before training; under an adapter the base is a view; else it is refused."""
    ids = [[5, 6, 7]], [[8, 9, 2]]
    truth = FrozenPolicy(make_model(0)).score(*ids).logprobs[0]
    model, args = make_model(0), config(tmp_path, learning_rate=0.5, optim="sgd", max_steps=1)
    trainer = DPRTrainer(model, make_model(1), args, prompts, processing_class=tokenizer, sft_model=model)
    trainer.train()
    assert torch.equal(trainer.dense_reward.sft.score(*ids).logprobs[0], truth)
    assert not torch.equal(FrozenPolicy(model).score(*ids).logprobs[0], truth)
    for settings in ({}, {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])}):
        base = make_model(0)
        policy = base if settings else with_lora(base)
        trainer = DPRTrainer(policy, base, args, prompts, processing_class=tokenizer, **settings)
        trainer.train()
        assert trainer.dense_reward.refs == (FrozenPolicy(trainer.model, None),)
        torch.testing.assert_close(trainer.dense_reward.refs[0].score(*ids).logprobs[0], truth, atol=1e-5, rtol=0)
    for wrapped in (lambda model: model, with_lora):
        for given in (lambda policy: policy, FrozenPolicy):
            policy = wrapped(make_model(0))
            with pytest.raises(ModelError, match="is the policy itself, which training changes: give a copy, a path"):
                trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, ref=given(policy))
    policy = with_lora(make_model(0))
    with pytest.raises(ModelError, match="is the policy itself"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, ref=FrozenPolicy(policy, "default"))


@pytest.mark.slow
def test_frozen_adapters_take_names_that_are_free(tmp_path, folders, prompts, tokenizer):
    """Where the policy's adapter has their name, and where an earlier trainer left its own on the base."""
    ids = [[5, 6, 7]], [[8, 9, 2]]
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    earlier = FrozenPolicy(load_model(folders["earlier"])).score(*ids).logprobs[0]
    for name in ("sft", "ref_0", "held_out_ref"):
        policy = get_peft_model(load_model(folders["base"], for_training=True), settings, adapter_name=name)
        randomize_adapter(policy, name, seed=3)
        for _ in range(2):
            sft = FrozenPolicy(policy).score(*ids).logprobs[0]
            args = config(tmp_path, learning_rate=0.5, optim="sgd", max_steps=1)
            given = {"processing_class": tokenizer, "held_out_ref_model": folders["base"]}
            trainer = DPRTrainer(policy, folders["earlier"], args, prompts, **given)
            trainer.train()
            assert policy.active_adapters == [name]
            (ref,) = trainer.dense_reward.refs
            torch.testing.assert_close(ref.score(*ids).logprobs[0], earlier, atol=1e-5, rtol=0)
            torch.testing.assert_close(trainer.dense_reward.sft.score(*ids).logprobs[0], sft, atol=1e-5, rtol=0)
            assert (FrozenPolicy(policy).score(*ids).logprobs[0] - sft).abs().max() > 1e-3
            assert ref.model is trainer.dense_reward.sft.model is policy


def test_models_are_named_by_paths_too(tmp_path, folders, prompts):
    args, ids = config(tmp_path, max_steps=1), ([[5, 6, 7]], [[8, 9, 2]])
    paths = {name: Path(folder) for name, folder in folders.items()}
    trainer = DPRTrainer(
        paths["earlier"], paths["base"], args, prompts, sft_model=paths["sft"], held_out_ref_model=paths["earlier"]
    )
    trainer.train()
    assert trainer.state.log_history[0]["reward_held_out_ref"] != trainer.state.log_history[0]["reward"]
    for view, name in zip((trainer.dense_reward.sft, *trainer.dense_reward.refs), ("sft", "base"), strict=True):
        truth = FrozenPolicy(load_model(folders[name])).score(*ids).logprobs[0]
        torch.testing.assert_close(view.score(*ids).logprobs[0], truth, atol=1e-5, rtol=0)
    assert trainer._names == {"sft": folders["sft"], "ref": folders["base"]}


def test_several_active_adapters_are_refused(tmp_path, tokenizer, prompts, make_model):
    policy = with_lora(make_model(0))
    policy.add_adapter("other", policy.peft_config["default"])
    policy.base_model.set_adapter(["default", "other"])
    with pytest.raises(ConfigError, match=r"adapters default, other are active at once: .*set_adapter\(NAME\)"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy)


def test_a_transformers_model_that_holds_an_adapter_itself_is_no_policy(tmp_path, tokenizer, prompts, make_model):
    policy = make_model(0)
    policy.add_adapter(LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with pytest.raises(
        ConfigError, match=r"holds an adapter itself, .*: give the name of .*PeftModel\.from_pretrained"
    ):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy)
