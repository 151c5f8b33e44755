"""What a DPR run leaves behind: token tables, the model card, what would be pushed, logs, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tests.tiny_models import with_lora
from tests.trainers.test_dpr import config, naive_logprobs, trainer_of
from transformers import TrainerCallback

from densepath.trainers.completion_table import token_texts
from densepath.trainers.dpr import DPRTrainer

SAVING = {"save_strategy": "steps", "save_steps": 1}


def test_table_of_completions_holds_what_each_token_earned(tmp_path, make_model, tokenizer, prompts, capsys):
    sft, ref = make_model(0), make_model(1)
    trainer = trainer_of(
        tmp_path, make_model, tokenizer, prompts, model=make_model(0), ref=ref, max_steps=1, log_completions=True
    )
    trainer.train()
    (path,) = Path(trainer.args.output_dir, "completions").iterdir()
    assert path.name == "completions_00001.parquet"
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 8
    for row in rows:
        ids, texts = row["token_ids"], row["token_texts"]
        assert len(ids) == len(texts) == len(row["token_rewards"]) == len(row["token_advantages"])
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["completion"]
        assert "".join(texts) == tokenizer.decode(ids)
        prompt = tokenizer(row["prompt"])["input_ids"]
        expected = naive_logprobs(sft, prompt, ids) - naive_logprobs(ref, prompt, ids)
        assert row["token_rewards"] == pytest.approx(expected.tolist(), abs=2e-4)
        assert row["dense_reward_sum"] == pytest.approx(sum(row["token_rewards"]), abs=1e-3)
        assert row["advantage"] == pytest.approx(row["token_advantages"][0])
    assert "dense_reward_sum" in capsys.readouterr().out  # TRL's table on the terminal


def test_a_character_split_over_tokens_stands_at_the_first_of_them(tokenizer):
    ids = tokenizer("a é ✓!")["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == "a é ✓!"
    assert "" in texts


def test_model_card_says_what_the_run_was(tmp_path, make_model, tokenizer, prompts):
    model = make_model(0)
    model.config._name_or_path = "org/sft"
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=model)
    trainer.train()
    trainer.compared_with = ("continued SFT at the same FLOPs",)
    trainer.create_model_card(model_name="improved")
    card = Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")
    first, last = (row for row in trainer.state.log_history if "kl_sequence" in row)
    for text in (
        "base_model: org/sft",
        "- dpr",
        "2510.02493",
        "@article{li2025beyond",
        "| SFT policy | org/sft |",
        "| `beta` | 0.3 |",
        "| | step 1 | step 2 of 2 |",
        f"| KL to SFT, nats per completion | {first['kl_sequence']:.4g} | {last['kl_sequence']:.4g} |",
        "Compared with: continued SFT at the same FLOPs.",
    ):
        assert text in card
    assert str(tmp_path) not in card


class FakeHub:
    """Stands in for the hub's client: keeps what would have been uploaded."""

    def __init__(self):
        self.uploads = []

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=(), **kwargs):
        from huggingface_hub.utils import filter_repo_objects

        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = set(filter_repo_objects(files, ignore_patterns=list(ignore_patterns)))
        self.uploads.append({"repo_id": repo_id, "files": kept, **kwargs})
        return SimpleNamespace(is_done=lambda: True, wait_until_done=lambda: None)


@pytest.mark.parametrize("peft", [False, True])
def test_what_would_be_pushed(tmp_path, make_model, tokenizer, prompts, monkeypatch, peft):
    hub = FakeHub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    model = with_lora(make_model(0)) if peft else make_model(0)
    trainer = trainer_of(
        tmp_path, make_model, tokenizer, prompts, model=model, max_steps=1, hub_model_id="me/improved", **SAVING
    )
    trainer.train()
    assert hub.uploads == []
    trainer.push_to_hub()
    (upload,) = hub.uploads
    assert upload["repo_id"] == "me/improved"
    weights = "adapter_model.safetensors" if peft else "model.safetensors"
    assert {"README.md", weights, "tokenizer.json", "tokenizer_config.json"} <= upload["files"]
    assert not [name for name in upload["files"] if name.startswith("checkpoint") or "/" in name]
    assert "### This run" in Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")


def test_callbacks_see_the_logs_and_tensorboard_writes_them(tmp_path, make_model, tokenizer, prompts, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = DPRTrainer(
        model=make_model(0),
        ref_model=make_model(1),
        args=config(tmp_path, report_to="tensorboard"),
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    trainer.train()
    assert {"kl_sequence", "reward", "entropy", "loss"} <= seen[0].keys()
    (events,) = (tmp_path / "board").rglob("events.out.tfevents*")
    assert b"train/kl_sequence" in events.read_bytes()


def test_evaluation_during_training(tmp_path, make_model, tokenizer, prompts):
    """Held-out prompts, uneven last batch included. Evaluating changes nothing but the order of a batch's rows."""
    weights = []
    for evaluate in (True, False):
        model = make_model(0)
        trainer = DPRTrainer(
            model=model,
            ref_model=make_model(1),
            args=config(
                tmp_path,
                eval_strategy="steps" if evaluate else "no",
                eval_steps=1,
                per_device_eval_batch_size=8,
                num_generations_eval=2,
                max_steps=3,
            ),
            train_dataset=prompts.select(range(20)),
            eval_dataset=prompts.select(range(20, 26)),  # 12 completions: batches of 8 and 4
            processing_class=tokenizer,
        )
        trainer.train()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        rows = [row for row in trainer.state.log_history if "eval_reward" in row]
        assert len(rows) == (3 if evaluate else 0)
        for row in rows:
            assert {"eval_loss", "eval_kl_sequence", "eval_completions/mean_length"} <= row.keys()
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing(tmp_path, make_model, tokenizer, prompts):
    grads = []
    for checkpointing in (False, True):
        model = with_lora(make_model(0))
        trainer = trainer_of(
            tmp_path, make_model, tokenizer, prompts, model=model, gradient_checkpointing=checkpointing, max_steps=2
        )
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        grads.append([p.detach().clone() for n, p in model.named_parameters() if ".default." in n])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_seed_gives_the_same_run(tmp_path, make_model, tokenizer, prompts):
    runs = []
    for seed in (3, 3, 4):
        model = make_model(0)
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=model, seed=seed)
        trainer.train()
        runs.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_chat_prompts_are_rendered_by_the_models_own_template(tmp_path, make_model, tokenizer, prompts):
    chats = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    seen = []

    def look(prompts, completions, **kwargs):
        seen.append((prompts, completions))
        return [0.0] * len(prompts)

    trainer = DPRTrainer(
        make_model(0), make_model(1), config(tmp_path), chats, processing_class=tokenizer, reward_funcs=look
    )
    before = tokenizer.chat_template
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert tokenizer.chat_template == before
    asked, said = seen[0]
    for row, (prompt, completion) in enumerate(zip(asked, said, strict=True)):
        expected = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist() == expected
        assert completion[0]["role"] == "assistant"
    assert json.dumps(asked)  # plain turns, as the data set has them
