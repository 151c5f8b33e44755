"""A training that was interrupted ends where it would have ended, to the last bit on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.tiny_models import with_lora
from tests.trainers.test_dpr import trainer_of
from transformers import TrainerCallback

from densepath.errors import ResumeError

STEPS = 5
COMMON = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}


class Interrupt(TrainerCallback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.after:
            control.should_training_stop = True


def policy(make_model, peft: bool):
    return with_lora(make_model(0)) if peft else make_model(0)


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for name, parameter in model.named_parameters()])


@pytest.mark.parametrize(
    ("peft", "changes", "after"),
    [
        (False, {}, 2),
        (True, {}, 2),
        # One generation serves 4 micro-batches, hence 2 steps: the checkpoint at 3 is in the middle of the second.
        (False, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}, 3),
        (False, {"per_device_train_batch_size": 8, "num_prompts": 3}, 3),  # three epochs, in orders of their own
        (False, {"num_iterations": 2}, 3),  # each generation is trained on twice
        (False, {"num_iterations": 2, "kl_in_return": False}, 3),  # the buffer holds hidden states of the SFT model
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, make_model, tokenizer, prompts, peft, changes, after):
    values = {**COMMON, **changes}
    data = prompts.select(range(values.pop("num_prompts", len(prompts))))

    def made(folder):
        model = policy(make_model, peft)
        return trainer_of(tmp_path / folder, make_model, tokenizer, data, model=model, **values), model

    whole, expected = made("whole")
    whole.train()
    first, _ = made("cut")
    first.add_callback(Interrupt(after))
    first.train()
    assert first.state.global_step == after
    second, resumed = made("cut")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == STEPS
    assert torch.equal(weights(resumed), weights(expected))
    names = ("loss", "reward", "kl_sequence", "entropy", "grad_norm", "num_tokens")
    logs = [
        [{name: row.get(name) for name in names} for row in trainer.state.log_history if "loss" in row]
        for trainer in (whole, second)
    ]
    assert logs[0] == logs[1]


def test_what_was_not_logged_yet_is_logged_after_a_resume(tmp_path, make_model, tokenizer, prompts):
    values = {**COMMON, "logging_steps": 5, "baseline": "none"}  # with which the loss is far from 0
    whole = trainer_of(tmp_path / "whole", make_model, tokenizer, prompts, **values)
    whole.train()
    first = trainer_of(tmp_path / "cut", make_model, tokenizer, prompts, **values)
    first.add_callback(Interrupt(3))
    first.train()
    second = trainer_of(tmp_path / "cut", make_model, tokenizer, prompts, **values)
    second.train(resume_from_checkpoint=True)
    names = ("loss", "samples", "flops", "num_tokens", "reward", "kl_sequence", "entropy")
    logs = [
        [
            {name: row[name] for name in names}
            for row in trainer.state.log_history
            if row["step"] == STEPS and "loss" in row
        ]
        for trainer in (whole, second)
    ]
    assert logs[0][0]["samples"] == 4 * STEPS
    assert logs[0] == logs[1]


def test_a_finished_training_is_not_gone_on_with(tmp_path, make_model, tokenizer, prompts):
    """transformers takes one step more from a checkpoint of the last step. A larger max_steps goes on as ever."""
    trained = trainer_of(tmp_path, make_model, tokenizer, prompts, model=(model := make_model(0)), **COMMON)
    trained.train()
    again = trainer_of(tmp_path, make_model, tokenizer, prompts, model=(resumed := make_model(0)), **COMMON)
    assert not torch.equal(weights(resumed), weights(model))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert torch.equal(weights(resumed), weights(model))
    longer = trainer_of(tmp_path, make_model, tokenizer, prompts, **{**COMMON, "max_steps": STEPS + 1})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == STEPS + 1


def test_a_later_pass_over_streamed_rows_is_not_resumed(tmp_path, make_model, tokenizer, prompts):
    """transformers would begin it with its first prompts again. In the first pass it finds the place."""
    seen = {}

    def made(folder, count=3, steps=STEPS):
        streamed = prompts.select(range(count)).to_iterable_dataset()
        trainer = trainer_of(tmp_path / folder, make_model, tokenizer, streamed, **{**COMMON, "max_steps": steps})
        inner, asked = trainer._generate, seen.setdefault(folder, [])
        trainer._generate = lambda texts: asked.extend(sorted(set(texts))) or inner(texts)
        return trainer

    made("whole").train()
    assert len(seen["whole"]) == STEPS  # one prompt a step
    cut = made("cut")
    cut.add_callback(Interrupt(2))
    cut.train()
    made("cut").train(resume_from_checkpoint=True)
    assert seen["cut"] == seen["whole"]
    with pytest.raises(ResumeError, match="is of a later pass over a train_dataset that is streamed"):
        made("cut").train(resume_from_checkpoint=str(tmp_path / "cut/dpr/checkpoint-4"))
    made("longer", count=9, steps=2).train()  # its last checkpoint is of the first pass still
    made("longer", count=9).train(resume_from_checkpoint=str(tmp_path / "longer/dpr/checkpoint-2"))
    made("at once", count=9).train()
    assert seen["longer"] == seen["at once"]
    assert len(set(seen["longer"])) == STEPS


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path, make_model, tokenizer, prompts):
    values = {**COMMON, "max_steps": 2}
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, **values)
    trainer.train()
    path = Path(trainer.args.output_dir) / "checkpoint-1/rollout_0.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "processes": "2"}
    save_file(load_file(path), path, metadata=metadata)
    again = trainer_of(tmp_path, make_model, tokenizer, prompts, **values)
    with pytest.raises(ResumeError, match="with 2 processes, and this one has 1"):
        again.train(resume_from_checkpoint=str(path.parent))


def test_a_checkpoint_holds_the_policy_alone_and_the_rollout_only_while_it_is_used(
    tmp_path, make_model, tokenizer, prompts
):
    changes = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 2}
    trainer = trainer_of(
        tmp_path, make_model, tokenizer, prompts, model=policy(make_model, peft=True), **{**COMMON, **changes}
    )
    trainer.train()
    inside, between = (Path(trainer.args.output_dir) / f"checkpoint-{step}" for step in (1, 2))
    assert not [path for path in inside.iterdir() if path.is_dir()]  # no folder of the frozen adapter
    names = load_file(inside / "adapter_model.safetensors").keys()
    assert names
    assert not [name for name in names if "sft" in name]
    assert load_file(inside / "rollout_0.safetensors")["batch.2.completion_ids"].shape[0] == 4
    assert load_file(between / "rollout_0.safetensors") == {}
