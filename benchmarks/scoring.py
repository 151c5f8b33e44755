"""Scoring completions: padded batches through transformers against the packed engine, same numbers."""

from __future__ import annotations

import torch

from benchmarks.common import arguments, batch, load, side_by_side
from densepath.models.scoring import score_completions


@torch.no_grad()
def padded_transformers(model, prompt_ids, completion_ids, batch_size: int = 16) -> list[torch.Tensor]:
    """The usual way: right-padded batches, logits of every position, log-softmax, gather."""
    found = []
    for start in range(0, len(prompt_ids), batch_size):
        rows = [
            p + c
            for p, c in zip(
                prompt_ids[start : start + batch_size], completion_ids[start : start + batch_size], strict=True
            )
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logprobs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        chosen = logprobs[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        for k, row in enumerate(rows):
            first = len(prompt_ids[start + k]) - 1
            found.append(chosen[k, first : len(row) - 1])
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    model, tokenizer = load(options.model)
    prompt_ids, completion_ids = batch(tokenizer, options.prompts, options.num_generations)
    ours = score_completions(model, prompt_ids, completion_ids).logprobs
    theirs = padded_transformers(model, prompt_ids, completion_ids)
    worst = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    tokens = sum(map(len, completion_ids))
    print(f"{len(prompt_ids)} completions, {tokens} completion tokens; largest difference {worst:.1e} nats")
    side_by_side(
        {
            "padded transformers, batch 16": lambda: padded_transformers(model, prompt_ids, completion_ids),
            "packed, prompts shared": lambda: score_completions(model, prompt_ids, completion_ids),
        },
        options.rounds,
    )


if __name__ == "__main__":
    main()
