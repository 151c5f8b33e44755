"""Scoring completions: padded batches of 16 through transformers against the packed engine, same numbers.

    python -m benchmarks.scoring                                       made-up rows of a data file's lengths
    python -m benchmarks.scoring --dataset_name rows.jsonl             rows of a file, in its order
    python -m benchmarks.scoring ... --num-generations 4               4 completions of each prompt

Accuracy: each arm against one forward pass a row in float64.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import OPTIONS, Pairs, keep, parser, peaks, print_peak, rows, side_by_side
from benchmarks.words import count, run_command
from densepath.models.load import load_model, load_tokenizer
from densepath.models.scoring import score_completions

BATCH = 16


@torch.no_grad()
def padded(model, prompt_ids, completion_ids, batch_size: int = BATCH) -> list[torch.Tensor]:
    """The usual way: right-padded batches, logits of every position, log-softmax, gather."""
    found = []
    for start in range(0, len(prompt_ids), batch_size):
        part = slice(start, start + batch_size)
        rows = [p + c for p, c in zip(prompt_ids[part], completion_ids[part], strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logprobs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        chosen = logprobs[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        found += [
            chosen[k, len(prompt_ids[start + k]) - 1 : len(row) - 1].clone()  # not a view that keeps the batch alive
            for k, row in enumerate(rows)
        ]
    return found


@torch.no_grad()
def padded_sorted(model, prompt_ids, completion_ids) -> list[torch.Tensor]:
    """The same after sorting all rows by length, which takes most of the padding away."""
    order = sorted(range(len(prompt_ids)), key=lambda k: len(prompt_ids[k]) + len(completion_ids[k]))
    scored = padded(model, [prompt_ids[k] for k in order], [completion_ids[k] for k in order])
    return [values for _, values in sorted(zip(order, scored, strict=True), key=lambda pair: pair[0])]


def packed(model, prompt_ids, completion_ids) -> list[torch.Tensor]:
    """densepath's engine, as `densepath score` uses it."""
    return score_completions(model, prompt_ids, completion_ids).logprobs


ARMS = {"padded transformers, batch 16": padded, "padded, sorted by length": padded_sorted, "densepath": packed}


def differences(model_name: str, pairs: Pairs, found: dict[str, list[torch.Tensor]]) -> dict[str, tuple[float, float]]:
    """Largest and mean distance of each arm from one float64 forward pass a row, nats per token."""
    model = load_model(model_name, dtype="float64")
    exact = []
    with torch.no_grad():
        for prompt, completion in zip(*pairs, strict=True):
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            exact.append(logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1))
    whole = torch.cat(exact)
    return {
        arm: ((error := (torch.cat(scores).double() - whole).abs()).max().item(), error.mean().item())
        for arm, scores in found.items()
    }


def main() -> None:
    given = parser(__doc__, *OPTIONS, arms=ARMS)
    given.add_argument("--exact", type=count, default=16, help="rows compared with float64")
    given.set_defaults(prompts=64, num_generations=1)
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    pairs = rows(options, load_tokenizer(options.model))
    if options.only:
        ARMS[options.only](load_model(options.model), *pairs)
        print_peak()
        return
    memory = peaks("benchmarks.scoring", ARMS)  # before this process holds a model
    model = load_model(options.model)
    completion_tokens, tokens = sum(map(len, pairs[1])), sum(map(len, pairs[0] + pairs[1]))
    print(
        f"{len(pairs[0])} completions of {len(set(map(tuple, pairs[0])))} prompts, {completion_tokens} completion "
        f"tokens, {tokens} with prompts"
    )
    few = pairs[0][: options.exact], pairs[1][: options.exact]
    found = {arm: run(model, *few) for arm, run in ARMS.items()}
    apart = (torch.cat(found["densepath"]) - torch.cat(found["padded transformers, batch 16"])).abs()
    print(f"between the first and the last arm: largest {apart.max():.1e}, mean {apart.mean():.1e} nats per token")
    time = side_by_side(
        {arm: partial(run, model, *pairs) for arm, run in ARMS.items()},
        options.rounds,
        tokens=completion_tokens,
        warm_up=False,  # the few rows above did
    )
    del model  # float64 needs twice as much
    print(f"{'against float64, nats per token':<34}{'largest':>10}{'mean':>10}")
    error = differences(options.model, few, found)
    for arm, (largest, mean) in error.items():
        print(f"{arm:<34}{largest:>10.1e}{mean:>10.1e}")
    keep(options, completion_tokens=completion_tokens, tokens=tokens, time=time, peak_bytes=memory, error=error)


if __name__ == "__main__":
    run_command(main)
