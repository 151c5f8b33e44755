"""Forward and backward of the policy: TRL's fused head alone against the packed pass in front of it."""

from __future__ import annotations

import copy

import torch
from trl.trainer.utils import add_fused_lm_head

from benchmarks.common import arguments, batch, load, side_by_side
from densepath.models.packed_forward import add_packed_forward

OUTPUTS = ("log_probs", "entropy")


def main() -> None:
    options = arguments(__doc__ or "")
    plain, tokenizer = load(options.model)
    packed = copy.deepcopy(plain)
    for model in (plain, packed):
        model.train().requires_grad_(True)
        add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(packed)
    prompt_ids, completion_ids = batch(tokenizer, options.prompts, options.num_generations)
    rows = [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)]
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor(
            [
                [-100] * len(p) + c + [-100] * (width - len(p) - len(c))
                for p, c in zip(prompt_ids, completion_ids, strict=True)
            ]
        ),
    }

    def step(model) -> None:
        model.zero_grad()
        model(**inputs, fused_lm_head=True).loss.backward()

    side_by_side(
        {"TRL's fused head": lambda: step(plain), "packed, prompts shared": lambda: step(packed)}, options.rounds
    )


if __name__ == "__main__":
    main()
