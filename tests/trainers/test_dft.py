"""TRL's `loss_type="dft"` through densepath's SFT trainer and its packed pass."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.trainers.test_sft import ROWS, by_hand, logged, loss_of, trainer_of

from densepath.trainers.sft import train_resumable


def dft_loss(model, rows) -> torch.Tensor:
    """- sum of p log p with the factor p held fixed, over the actions, divided by their number; in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, mask in rows:
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(ids)):
            if mask[position]:
                chosen = logprobs[position - 1, ids[position]]
                total = total - chosen.exp().detach() * chosen
                count += 1
    return total / count


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (1, 4)])
def test_loss_and_step_are_those_of_float64_by_hand(tmp_path, make_model, tokenizer, size, accumulation):
    model = make_model(0)
    model.load_state_dict(by_hand(model, 8)[1][-1])  # a model that knows something: weights p far from 0
    reference = copy.deepcopy(model).double()
    expected = dft_loss(reference, ROWS)
    expected.backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = trainer_of(
        model,
        tokenizer,
        tmp_path,
        loss_type="dft",
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    train_resumable(trainer, tmp_path)
    assert 0.05 < expected.item() < 0.9 * loss_of(reference, ROWS).item()
    assert logged(tmp_path)[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
    for name, weight in reference.named_parameters():
        step = (before[name] - dict(model.named_parameters())[name].detach()) / 0.05
        torch.testing.assert_close(step.double(), weight.grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert max(weight.grad.abs().max() for weight in reference.parameters()) > 0.01
