"""Sampling completions of one length: `model.generate` against the sampler of DPRTrainer.

    python -m benchmarks.sampling [--prompts 8] [--num-generations 4] [--length 64]

No completion ends before `--length` tokens, so that both arms draw as many.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import OPTIONS, Floor, distinct, keep, parser, peaks, print_peak, rows, side_by_side
from benchmarks.words import count, run_command
from densepath.models.load import load_model, load_tokenizer
from densepath.models.sampling import sample


@torch.no_grad()
def generate(model, tokenizer, prompt_ids, options) -> None:
    """transformers' own loop over prompts that are padded on the left."""
    torch.manual_seed(0)
    padded = tokenizer.pad({"input_ids": prompt_ids}, return_tensors="pt", padding_side="left")
    lengths = {"min_new_tokens": options.length, "max_new_tokens": options.length}
    model.generate(**padded, **lengths, do_sample=True, top_k=0, num_return_sequences=options.num_generations)


def ours(model, tokenizer, prompt_ids, options) -> None:
    """densepath's sampler: a prompt is read once for its completions."""
    sample(
        model,
        prompt_ids,
        num_generations=options.num_generations,
        max_completion_length=options.length,
        eos_token_ids=(),
        generator=torch.Generator().manual_seed(0),
    )


ARMS = {"transformers generate": generate, "densepath sampler": ours}


def main() -> None:
    given = parser(__doc__, *OPTIONS, arms=ARMS)
    given.add_argument("--length", type=count, default=64)
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    prompt_ids, _ = rows(options, tokenizer)
    memory = {} if options.only else peaks("benchmarks.sampling", ARMS)  # before this process holds a model
    model, distinct_prompts = load_model(options.model), prompt_ids[:: options.num_generations]
    setting = model, tokenizer, distinct_prompts, options
    if options.only:
        ARMS[options.only](*setting)
        print_peak()
        return
    tokens = len(prompt_ids) * options.length
    print(f"{len(prompt_ids)} completions of {options.length} tokens each")
    least = Floor(model)
    floor = {
        "read prompts": least.forward(distinct(distinct_prompts), 0),
        "decode": least.decode(len(prompt_ids), options.length),
    }
    arms = {arm: partial(run, *setting) for arm, run in ARMS.items()}
    time = side_by_side(arms, options.rounds, tokens=tokens, floor=floor)
    keep(options, completion_tokens=tokens, floor=floor, time=time, peak_bytes=memory)


if __name__ == "__main__":
    run_command(main)
