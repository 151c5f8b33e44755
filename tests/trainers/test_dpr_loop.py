"""The method in one file takes the step that the trainer takes, and runs as the script that it is."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from examples import dpr_loop
from tests.tiny_models import tiny_gpt2
from tests.trainers.test_dpr import config, uneven_lengths

from densepath.trainers.dpr import DPRTrainer

RATE, BETA = 0.1, 0.3


def trainer_of(tmp_path, make_model, tokenizer, prompts, policy, **changes) -> DPRTrainer:
    arguments = config(
        tmp_path, estimator="sampled", optim="sgd", learning_rate=RATE, beta=BETA, max_steps=1, **changes
    )
    return DPRTrainer(policy, make_model(1), arguments, prompts, sft_model=make_model(0), processing_class=tokenizer)


@pytest.mark.parametrize("lengths", ["as sampled", "uneven"])
def test_one_step_is_the_trainers(tmp_path, make_model, tokenizer, prompts, lengths):
    """The policy is another than the SFT model, so that the KL counts: loss, gradients, and weights after the step."""
    policy = make_model(2)
    mine = copy.deepcopy(policy)
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, policy)
    if lengths == "uneven":
        uneven_lengths(trainer)
    found = {}
    inner = trainer._compute_loss

    def watched(model, inputs):
        found["loss"] = inner(model, inputs)
        return found["loss"]

    trainer._compute_loss = watched
    hooks = {
        name: parameter.register_hook(lambda gradient, name=name: found.__setitem__(name, gradient.clone()))
        for name, parameter in policy.named_parameters()
    }
    trainer.train()
    sampled = trainer.rollout.scored.sampled
    batch = dpr_loop.Batch(sampled.prompt_ids, sampled.completion_ids, sampled.logprobs)
    loss, metrics = dpr_loop.loss_of(mine, make_model(0), make_model(1), batch, BETA)
    torch.testing.assert_close(loss, found["loss"].detach(), atol=2e-5, rtol=1e-5)
    loss.backward()
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}")
    assert len(hooks) == len(list(mine.named_parameters()))
    before = copy.deepcopy(mine.state_dict())
    dpr_loop.step(mine, make_model(0), make_model(1), torch.optim.SGD(mine.parameters(), RATE), batch, BETA)
    moved = max(float((value - before[name]).abs().max()) for name, value in mine.state_dict().items())
    assert moved > 1e-3
    for (name, ours), theirs in zip(mine.named_parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5, msg=lambda m, n=name: f"{n} {m}")
    (logged,) = [row for row in trainer.state.log_history if "loss" in row]
    assert metrics["reward"] == pytest.approx(logged["reward"], abs=1e-4)
    assert metrics["kl"] == pytest.approx(logged["kl_sequence"], abs=1e-4)


def test_what_is_trained_is_what_was_sampled_from(tmp_path, tokenizer, monkeypatch):
    """GPT-2 has dropout by default: the first step's probabilities are those at sampling all the same."""
    for name, seed in (("sft", 0), ("ref", 1)):
        tiny_gpt2(vocab_size=len(tokenizer), seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say red:"}\n')
    found = []

    def watched(policy, sft, ref, optimizer, batch, beta):
        found.append((dpr_loop.policy_logprobs(policy, batch.prompts, batch.completions).detach(), batch.logprobs))
        return {}

    monkeypatch.setattr(dpr_loop, "step", watched)
    given = {"sft": tmp_path / "sft", "ref": tmp_path / "ref", "prompts": tmp_path / "prompts.jsonl"}
    given |= {"output": tmp_path / "improved", "steps": 1, "max_completion_length": 8}
    dpr_loop.main([text for name, value in given.items() for text in (f"--{name}", str(value))])
    ((trained, sampled),) = found
    expected = dpr_loop.padded([torch.tensor(row) for row in sampled])
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)


def test_it_runs_as_a_script(tmp_path, make_model, tokenizer, capsys):
    for name, seed in (("sft", 0), ("ref", 1)):
        make_model(seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"Say {word}:"} for word in ("red", "blue", "green")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"sft": tmp_path / "sft", "ref": tmp_path / "ref", "prompts": tmp_path / "prompts.jsonl"}
    given |= {"output": tmp_path / "improved", "steps": 2, "max_completion_length": 4, "learning_rate": 1e-3}
    dpr_loop.main([text for name, value in given.items() for text in (f"--{name}", str(value))])
    assert capsys.readouterr().out.count("step ") == 2
    assert (tmp_path / "improved" / "model.safetensors").exists()
