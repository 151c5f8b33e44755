"""Sampling several completions of each prompt: `model.generate` against the sampler of DPRTrainer."""

from __future__ import annotations

import torch

from benchmarks.common import arguments, batch, load, side_by_side
from densepath.models.compat import eos_token_ids
from densepath.models.sampling import sample

LENGTH = 24


def main() -> None:
    options = arguments(__doc__ or "")
    model, tokenizer = load(options.model)
    prompt_ids, _ = batch(tokenizer, options.prompts, 1)
    padded = tokenizer.pad({"input_ids": prompt_ids}, return_tensors="pt")

    @torch.no_grad()
    def generate() -> None:
        torch.manual_seed(0)
        model.generate(
            **padded,
            do_sample=True,
            top_k=0,
            num_return_sequences=options.num_generations,
            max_new_tokens=LENGTH,
        )

    def ours() -> None:
        sample(
            model,
            prompt_ids,
            num_generations=options.num_generations,
            max_completion_length=LENGTH,
            eos_token_ids=eos_token_ids(model, tokenizer),
            generator=torch.Generator().manual_seed(0),
            pad_token_id=tokenizer.pad_token_id,
        )

    side_by_side({"transformers generate": generate, "densepath sampler": ours}, options.rounds)


if __name__ == "__main__":
    main()
