"""`use_vllm` with a stand-in for vLLM: what it samples, its log-probabilities and the ratios reach the loss.

The last test is vLLM's CPU build itself.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from scipy import stats
from tests.launching import ENVIRONMENT, NEEDS_VLLM, ROOT
from tests.trainers.test_dpr import completion_of, config, naive_logprobs
from trl.trainer import grpo_trainer

from densepath.errors import ConfigError
from densepath.trainers.dpr import DPRTrainer

OFF = 0.3
"""Nats by which the stand-in's log-probabilities differ from the policy's: above for even ids, below for odd."""


class StandIn:
    """`VLLMGeneration` with fixed completions, whose reported log-probabilities are off as another engine's are."""

    def __init__(self, **arguments):
        self.arguments = arguments
        self.model, self.mode = arguments["model"], "server"  # where nothing is left of vLLM to look into
        self.synchronised = 0
        self.vllm_client = self

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self):
        self.synchronised += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        generator = torch.Generator().manual_seed(len(prompts))
        eos = 1  # <|im_end|> of the test tokenizer
        ids = [torch.randint(3, 300, (5,), generator=generator).tolist() for _ in prompts]
        ids = [row[: 2 + index % 3] + ([eos] if index % 2 else []) for index, row in enumerate(ids)]
        self.logprobs = []
        for prompt, row in zip(prompts, ids, strict=True):
            own = naive_logprobs(self.model, prompt, row)
            self.logprobs.append([[float(value) + sign(token)] for value, token in zip(own, row, strict=True)])
        return prompts, ids, self.logprobs, None


def sign(token: int) -> float:
    return OFF if token % 2 == 0 else -OFF


@pytest.fixture
def made(tmp_path, make_model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", StandIn)

    def make(**changes):
        models = make_model(0), make_model(1), make_model(2)
        values = {"use_vllm": True, "baseline": "none", "estimator": "sampled", **changes}
        trainer = DPRTrainer(
            model=models[2],
            ref_model=models[1],
            sft_model=models[0],
            args=config(tmp_path, **values),
            train_dataset=prompts,
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        return trainer, models, output

    return make


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_arguments_pass_through(made, mode):
    trainer, _, _ = made(
        vllm_mode=mode, vllm_gpu_memory_utilization=0.25, vllm_server_port=1234, vllm_max_model_length=99
    )
    given = trainer.vllm_generation.arguments
    assert given["mode"] == mode
    assert given["gpu_memory_utilization"] == 0.25
    assert given["server_port"] == 1234
    assert given["max_model_length"] == 99
    assert (given["temperature"], given["top_p"]) == (1.0, 1.0)
    assert trainer.vllm_generation.synchronised == 1


def test_ids_log_probabilities_and_ratios_reach_the_loss(made):
    """The KL is the trainer's own; the score function carries the ratio of trainer and sampler."""
    trainer, (sft, ref, policy), output = made(vllm_importance_sampling_mode="token_truncate")
    total = torch.zeros((), dtype=torch.float64)
    rows = len(output["advantages"])
    for row in range(rows):
        prompt, ids = completion_of(output, row)
        own, s, r = (naive_logprobs(model, prompt, ids) for model in (policy, sft, ref))
        assert output["sampling_per_token_logps"][row, : len(ids)].tolist() == pytest.approx(
            [values[0] for values in trainer.vllm_generation.logprobs[row]], abs=1e-5
        )
        q = (s - r) - 0.3 * (own - s)
        returns = q.flip(0).cumsum(0).flip(0)
        assert output["advantages"][row, : len(ids)].tolist() == pytest.approx(returns.tolist(), abs=5e-4)
        ratio = torch.tensor([-sign(token) for token in ids], dtype=torch.float64).exp()  # exp(log pi - log mu)
        assert output["importance_sampling_ratio"][row, : len(ids)].tolist() == pytest.approx(ratio.tolist(), abs=1e-4)
        logits = policy(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)]
        total = total - (chosen * returns * ratio).sum() / rows
    expected = torch.autograd.grad(total, list(policy.parameters()))
    loss = trainer._compute_loss(trainer.model, output)
    found = torch.autograd.grad(loss, list(policy.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=2e-3)


def test_a_ratio_of_sequences_is_one_number_a_completion(made):
    _, _, output = made(vllm_importance_sampling_mode="sequence_truncate", vllm_importance_sampling_clip_max=1e9)
    for row in range(len(output["advantages"])):
        _, ids = completion_of(output, row)
        expected = torch.tensor(sum(-sign(token) for token in ids)).exp()
        assert output["importance_sampling_ratio"][row].tolist() == [pytest.approx(expected.item(), rel=1e-3)]


def test_training_steps_with_all_actions_and_without_correction(made):
    for changes in ({"estimator": "auto"}, {"vllm_importance_sampling_correction": False}):
        trainer, _, _ = made(max_steps=2, **changes)
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert len(rows) == 2
        assert trainer.vllm_generation.synchronised >= 2  # new weights before each generation


def test_a_sampler_that_cuts_the_distribution_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must sample from the policy it differentiates"):
        config(tmp_path, use_vllm=True, top_p=0.9)


@pytest.mark.slow
@NEEDS_VLLM
def test_vllm_in_the_same_process_samples_from_the_policy_of_each_step(tmp_path):
    command = [sys.executable, "-m", "tests.trainers.vllm_script", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    assert len(found["seen"]) == len(found["logs"]) == 2
    for ids, sampled, own in found["seen"]:
        for row, values, theirs in zip(ids, sampled, own, strict=True):
            assert len(row) == len(values)
            torch.testing.assert_close(torch.tensor(values).flatten(), theirs, atol=1e-3, rtol=0)
    for log in found["logs"]:
        for name in ("min", "mean", "max"):
            assert log[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(1.0, abs=1e-3)
    counts, expected = found["counts"].double(), found["probs"] * found["counts"].sum()
    often = expected >= 5
    both = [torch.cat([each[often], each[~often].sum()[None]]).numpy() for each in (counts, expected)]
    assert stats.chisquare(*both).pvalue > 1e-3
