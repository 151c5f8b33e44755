"""The average of the weights that SFT keeps, against the recursion written out in float64."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTConfig

from densepath.errors import ConfigError, ResumeError
from densepath.models.load import load_model
from densepath.trainers.sft import sft_trainer, train_resumable

DECAY, STEPS = 0.6, 5
ROWS = {"input_ids": [[10, 11, 40, 1], [20, 41, 42, 1]], "completion_mask": [[0, 0, 1, 1], [0, 1, 1, 1]]}


class Recorder(TrainerCallback):
    """The weights before the first step and after each."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.stop_at = stop_at

    def record(self, model) -> None:
        self.seen.append({n: p.detach().double().clone() for n, p in model.named_parameters() if p.requires_grad})

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.record(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.record(model)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


def trainer_of(model, tokenizer, folder, recorder, decay=DECAY, peft_config=None):
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        optim="adamw_torch",
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
    )
    return sft_trainer(
        model,
        tokenizer,
        Dataset.from_dict(ROWS),
        config,
        peft_config=peft_config,
        reference_folder=folder / "references",
        ema_decay=decay,
        callbacks=[recorder],
    )


def average(seen: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """decay^T theta_0 + sum_t (1 - decay) decay^(T - t) theta_t."""
    last = len(seen) - 1
    weights = [DECAY**last] + [(1 - DECAY) * DECAY ** (last - t) for t in range(1, last + 1)]
    return {name: sum(w * step[name] for w, step in zip(weights, seen, strict=True)) for name in seen[0]}


def test_the_reference_is_the_average_of_all_steps(tmp_path, make_model, tokenizer):
    recorder, model = Recorder(), make_model()
    trainer = trainer_of(model, tokenizer, tmp_path, recorder)
    train_resumable(trainer, tmp_path)
    assert len(recorder.seen) == STEPS + 1
    kept = dict(load_model(tmp_path / "references/ema").named_parameters())
    for name, expected in average(recorder.seen).items():
        torch.testing.assert_close(kept[name].double(), expected, atol=1e-6, rtol=1e-5)
    for name, value in model.named_parameters():  # training itself has not seen the average
        torch.testing.assert_close(value.double(), recorder.seen[-1][name], atol=0, rtol=0)
    assert max(float((kept[name] - value).detach().abs().max()) for name, value in model.named_parameters()) > 1e-3


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")])
def test_a_resumed_run_ends_with_the_same_average(tmp_path, make_model, tokenizer, peft_config):
    def run(folder, stop_at=None):
        torch.manual_seed(0)
        train_resumable(
            trainer_of(make_model(), tokenizer, folder, Recorder(stop_at), peft_config=peft_config), folder
        )

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=4)
    assert not (tmp_path / "cut/references").exists()
    run(tmp_path / "cut")
    name = "model.safetensors" if peft_config is None else "adapter_model.safetensors"
    whole, cut = (load_file(tmp_path / folder / "references/ema" / name) for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_checkpoint_without_an_average_is_refused(tmp_path, make_model, tokenizer):
    with pytest.raises(KeyboardInterrupt):
        train_resumable(trainer_of(make_model(), tokenizer, tmp_path, Recorder(4), decay=None), tmp_path)
    with pytest.raises(ResumeError, match="holds no average of the weights"):
        train_resumable(trainer_of(make_model(), tokenizer, tmp_path, Recorder()), tmp_path)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_outside_of_0_and_1_is_refused(tmp_path, make_model, tokenizer, decay):
    with pytest.raises(ConfigError, match="must lie in"):
        trainer_of(make_model(), tokenizer, tmp_path, Recorder(), decay=decay)
