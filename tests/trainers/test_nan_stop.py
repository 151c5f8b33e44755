"""A NaN ends the training before it does harm, wherever it comes from: batch kept, last good checkpoint named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.trainers.test_dpr import config
from transformers import TrainerCallback

from densepath.errors import NumericalError
from densepath.trainers import dpr
from densepath.trainers.dpr import DPRTrainer

NAN = float("nan")


class At(TrainerCallback):
    """Does something once, at an event of a step (counted from 1)."""

    def __init__(self, event, step, action):
        self.step, self.action = step, action
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


def poison(model) -> None:
    with torch.no_grad():
        model.lm_head.weight[40] = NAN


def plant_ref(trainer, monkeypatch, step):
    trainer.add_callback(At("on_step_begin", step, lambda: poison(trainer.dense_reward.refs[0].model)))


def plant_policy(trainer, monkeypatch, step):
    trainer.add_callback(At("on_step_begin", step, lambda: poison(trainer.model)))


def plant_update(trainer, monkeypatch, step):
    trainer.add_callback(At("on_optimizer_step", step, lambda: poison(trainer.model)))


def plant_advantages(trainer, monkeypatch, step):
    honest = dpr.credit_of

    def planted(*args):
        credit = honest(*args)
        if trainer.state.global_step == step - 1:
            credit.advantages[5, 1] = NAN
        return credit

    monkeypatch.setattr(dpr, "credit_of", planted)


def plant_loss(trainer, monkeypatch, step):
    honest = trainer._compute_loss

    def planted(model, inputs):
        last = trainer.accelerator.sync_gradients  # the last micro-batch of the step
        return honest(model, inputs) * (NAN if trainer.state.global_step == step - 1 and last else 1)

    monkeypatch.setattr(trainer, "_compute_loss", planted)


def plant_function(trainer, monkeypatch, step):
    trainer.add_callback(At("on_step_begin", step, lambda: monkeypatch.setitem(GIVEN, "reward", NAN)))


def plant_gradient(trainer, monkeypatch, step):
    weight = trainer.model.lm_head.weight
    weight.register_hook(lambda grad: grad * (float("inf") if trainer.state.global_step == step - 1 else 1))


GIVEN = {"reward": 0.5}


def length_reward(completion_ids, **kwargs):
    """Differs between completions, and is what GIVEN says for the fourth."""
    return [GIVEN["reward"] if row == 3 else float(len(ids)) for row, ids in enumerate(completion_ids)]


def trainer_of(folder, make_model, tokenizer, prompts, **changes) -> DPRTrainer:
    return DPRTrainer(
        make_model(0),
        make_model(1),
        config(folder, **{"max_steps": 3, "save_strategy": "steps", "save_steps": 1, **changes}),
        prompts,
        processing_class=tokenizer,
        reward_funcs=length_reward,
    )


def finite(path: Path) -> bool:
    return all(bool(torch.isfinite(values).all()) for values in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize(
    ("plant", "cause", "accumulation"),
    [
        (plant_ref, r"the reference: sequence \d, completion token \d+ .*log-probability is nan", 2),
        (plant_policy, r"row \d: NaN or infinite logits at completion token 0", 1),
        (plant_advantages, r"advantages\[5, 1\] is nan", 2),
        (plant_function, r"reward function 'length_reward', completion 3 .*nan", 1),
        (plant_loss, r"loss is nan", 2),
        (plant_gradient, r"gradient norm is inf", 1),
        (plant_update, r"the update made weights NaN or infinite \(lm_head.weight\)", 1),
    ],
)
def test_the_batch_is_kept_and_the_last_checkpoint_is_good(
    tmp_path, make_model, tokenizer, prompts, monkeypatch, plant, cause, accumulation
):
    sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, save_total_limit=1, **sizes)
    plant(trainer, monkeypatch, 2)
    with pytest.raises(NumericalError, match=f"^training stopped at step 2: {cause}") as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "dpr").glob("checkpoint-*")] == ["checkpoint-1"]
    assert f"the last good checkpoint is {tmp_path / 'dpr' / 'checkpoint-1'};" in message
    assert finite(tmp_path / "dpr" / "checkpoint-1")
    (path,) = (Path(found) for found in re.findall(r"kept in (\S+\.safetensors)", message))
    kept, record = load_file(path), json.loads(path.with_suffix(".json").read_text())
    assert record["step"] == 2
    assert re.search(cause, record["cause"])
    assert record["last_good_checkpoint"].endswith("checkpoint-1")
    assert len(kept["prompt_ids"]) == 8
    assert {name: list(values.shape) for name, values in kept.items()} == {
        name: described["shape"] for name, described in record["tensors"].items()
    }
    if plant is not plant_policy:  # there the sampler gave nothing
        assert kept["completion_lengths"].max() == kept["completion_ids"].shape[1]
    if plant not in (plant_policy, plant_ref):
        assert {"rewards", "sft_logprobs", "ref_logprobs", "policy_logprobs"} <= kept.keys()
        assert "advantages" in kept or plant is plant_function
    if plant is plant_advantages:
        assert record["tensors"]["advantages"]["first_places"] == [[5, 1]]
        assert record["tensors"]["rewards"]["not_finite"] == 0


def test_a_run_that_is_resumed_from_the_named_checkpoint_equals_one_without_the_nan(
    tmp_path, make_model, tokenizer, prompts, monkeypatch
):
    whole = trainer_of(tmp_path / "whole", make_model, tokenizer, prompts, save_strategy="no")
    whole.train()
    cut = trainer_of(tmp_path, make_model, tokenizer, prompts)
    plant_gradient(cut, monkeypatch, 3)
    with pytest.raises(NumericalError, match="checkpoint-2") as caught:
        cut.train()
    (checkpoint,) = re.findall(r"good checkpoint is (\S+);", str(caught.value))
    resumed = trainer_of(tmp_path, make_model, tokenizer, prompts)
    resumed.train(resume_from_checkpoint=checkpoint)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_a_checkpoint_the_message_says_so(tmp_path, make_model, tokenizer, prompts, monkeypatch):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, save_strategy="no")
    plant_gradient(trainer, monkeypatch, 1)
    with pytest.raises(NumericalError, match=r"training stopped at step 1: .* none \(save_steps was not reached\)"):
        trainer.train()
