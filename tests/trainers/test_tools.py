"""Tools: what a tool wrote is part of the state. It earns nothing, and its tokens are not trained on."""

from __future__ import annotations

import json
from importlib.resources import files

import datasets
import pytest
import torch
from tests.trainers.test_dpr import config, naive_logprobs

from densepath.models.sampling import Samples
from densepath.trainers import dpr
from densepath.trainers.dpr import DPRTrainer

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The sum.
    """
    return a + b


@pytest.fixture
def run(tmp_path, make_model, tokenizer, monkeypatch):
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    models = make_model(2), make_model(0), make_model(1)
    for model in models:
        model.config.max_position_embeddings = 2048
    turns, asked = [], []

    def scripted(model, prompt_ids, **kwargs):
        """The first turn of every second completion calls the tool; later turns answer."""
        asked.append((kwargs["generator"].initial_seed(), kwargs["max_completion_length"], max(map(len, prompt_ids))))
        turns.append(len(prompt_ids))
        texts = [CALL if len(turns) == 1 and row % 2 == 0 else "It is 5.<|im_end|>" for row in range(len(prompt_ids))]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        own = [naive_logprobs(model, prompt, row).tolist() for prompt, row in zip(prompt_ids, ids, strict=True)]
        return Samples(ids, own, [False] * len(ids))

    monkeypatch.setattr(dpr, "sample", scripted)
    data = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": f"Add {n}."}]} for n in range(4)])
    seen = []

    def verifier(completions, completion_ids, **kwargs):
        seen.append(completions)
        return [[1.0] * len(ids) for ids in completion_ids]

    def make(**changes):
        make.asked = asked
        trainer = DPRTrainer(
            model=models[0],
            ref_model=models[2],
            sft_model=models[1],
            args=config(tmp_path, baseline="none", max_completion_length=200, **changes),
            train_dataset=data,
            processing_class=tokenizer,
            reward_funcs=verifier,
            tools=[add],
        )
        return trainer, models, seen

    return make


@pytest.mark.parametrize("estimator", ["sampled", "auto"])
def test_tool_results_are_state_and_no_action(run, estimator):
    trainer, (policy, sft, ref), seen = run(estimator=estimator, dense_reward_weight=0.5)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    roles = [[turn["role"] for turn in completion] for completion in seen[0]]
    assert roles[0] == ["assistant", "tool", "assistant"]
    assert roles[1] == ["assistant"]
    assert json.dumps(seen[0][0][1]).count("5") == 1
    dense = 0.0
    for row in range(len(roles)):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        whole = output["completion_mask"][row].bool()
        ids, own = output["completion_ids"][row][whole].tolist(), output["tool_mask"][row][whole].bool()
        assert (not bool(own.all())) == (row % 2 == 0)
        pi, s, r = (naive_logprobs(model, prompt, ids) for model in (policy, sft, ref))
        dense += float((s - r)[own].sum()) / len(roles)
        q = torch.where(own, 0.5 * (s - r) + 0.5 - 0.3 * (pi - s), 0.0)
        returns = q.flip(0).cumsum(0).flip(0)
        if estimator == "sampled":
            found = output["advantages"][row, : len(ids)]
            assert found[own].tolist() == pytest.approx(returns[own].tolist(), abs=2e-3)
            assert found[~own].abs().sum() == 0
    logged = trainer._metrics["train"]
    counts = [sum(mask) for mask in (output["completion_mask"].bool() & output["tool_mask"].bool()).tolist()]
    assert logged["rewards/verifier/mean"] == [pytest.approx(sum(counts) / len(counts))]
    assert logged["rewards/dense_reward_sum/mean"] == [pytest.approx(dense, abs=1e-3)]
    assert logged["tools/call_frequency"] == [0.5]
    assert torch.isfinite(trainer._compute_loss(trainer.model, output))


def test_each_turn_draws_numbers_of_its_own_and_fits_the_context(run):
    """A turn that repeated the numbers of the first would act alike in alike states."""
    trainer, _, _ = run()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._generate_and_score_completions(batch)
    (first, whole, _), (second, _, _) = run.asked
    assert first != second
    assert whole == 200
    trainer._context = run.asked[1][2] + 50
    trainer._turn = 1
    trainer._generate_single_turn([[1] * run.asked[1][2]], None, {})
    assert run.asked[2][1] == 50
