"""Scoring completions: padded batches of 16 through transformers against the packed engine, same numbers.

    python -m benchmarks.scoring                                       made-up rows of a data file's lengths
    python -m benchmarks.scoring --dataset_name rows.jsonl             rows of a file, in its order
    python -m benchmarks.scoring ... --num-generations 4               4 completions of each prompt

Time: the arms take turns in one process, CPU seconds, ratios within each round. Memory: each arm in a process of its
own that loads the model and scores once; the most that was resident (VmHWM), so libraries and weights are in it.
Accuracy: each arm against one forward pass a row in float64.
"""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial

import torch

from benchmarks.common import load, parser, side_by_side
from densepath.data.encode import encode_pairs
from densepath.data.formats import load_dataset_rows
from densepath.models.load import load_model
from densepath.models.scoring import score_completions
from densepath.pipeline.environment import resident_bytes

Pairs = tuple[list[list[int]], list[list[int]]]
BATCH = 16
MEDIAN_TOKENS, SPREAD = 110, 0.5  # of made-up completions: about those of GSM8K


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


def rows(options, tokenizer) -> Pairs:
    """Prompts and completions, of a file in its order or made up; several completions of a prompt stand together."""
    rng = random.Random(0)
    if options.dataset_name is None:
        vocabulary = len(tokenizer)
        prompts = [_ids(rng, vocabulary, 90) for _ in range(options.prompts)]
        completions = [_ids(rng, vocabulary, MEDIAN_TOKENS) for _ in prompts]
    else:
        found = load_dataset_rows(options.dataset_name, limit=options.prompts, needs="demonstrations")
        pairs = [pair for row in found for pair in encode_pairs(row, tokenizer)]
        prompts = [list(pair.prompt_ids) for pair in pairs]
        completions = [list(pair.completion_ids) for pair in pairs]
    if options.num_generations > 1:  # the others are completions of other prompts: of real lengths
        several = [[c, *rng.sample(completions, options.num_generations - 1)] for c in completions]
        prompts = [prompt for prompt, group in zip(prompts, several, strict=True) for _ in group]
        completions = [completion for group in several for completion in group]
    return prompts, completions


def _ids(rng: random.Random, vocabulary: int, median: int) -> list[int]:
    return [rng.randrange(vocabulary) for _ in range(max(4, round(median * rng.lognormvariate(0, SPREAD))))]


def peak_of(arm: str) -> int:
    """Peak of a fresh process that loads the model and runs one arm."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scoring", *sys.argv[1:], "--only", arm], check=True, stdout=subprocess.PIPE
    )
    return int(done.stdout.split()[-1])


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
    given = parser(__doc__ or "")
    given.add_argument("--dataset_name", help="rows in any TRL format; made up if left out")
    given.add_argument("--exact", type=int, default=16, help="rows compared with float64")
    given.add_argument("--only", choices=ARMS, help="run one arm once and print this process's peak memory")
    given.set_defaults(prompts=64, num_generations=1)
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        model, tokenizer = load(options.model)
        pairs = rows(options, tokenizer)
        ARMS[options.only](model, *pairs)
        print(int(resident_bytes()))
        return
    peaks = {arm: peak_of(arm) for arm in ARMS}  # before this process holds a model
    model, tokenizer = load(options.model)
    pairs = rows(options, tokenizer)
    completion_tokens, tokens = sum(map(len, pairs[1])), sum(map(len, pairs[0] + pairs[1]))
    print(
        f"{len(pairs[0])} completions of {len(set(map(tuple, pairs[0])))} prompts, {completion_tokens} completion "
        f"tokens, {tokens} with prompts"
    )
    few = pairs[0][: options.exact], pairs[1][: options.exact]
    found = {arm: run(model, *few) for arm, run in ARMS.items()}
    apart = (torch.cat(found["densepath"]) - torch.cat(found["padded transformers, batch 16"])).abs()
    print(f"between the first and the last arm: largest {apart.max():.1e}, mean {apart.mean():.1e} nats per token")
    side_by_side(
        {arm: partial(run, model, *pairs) for arm, run in ARMS.items()},
        options.rounds,
        tokens=completion_tokens,
        warm_up=False,  # the few rows above did
    )
    print(f"{'arm':<34}{'peak MiB':>10}{'x last':>8}")
    for arm, peak in peaks.items():
        print(f"{arm:<34}{peak / 2**20:>10.0f}{peak / peaks['densepath']:>8.2f}")
    del model  # float64 needs twice as much
    print(f"{'against float64, nats per token':<34}{'largest':>10}{'mean':>10}")
    for arm, (largest, mean) in differences(options.model, few, found).items():
        print(f"{arm:<34}{largest:>10.1e}{mean:>10.1e}")


if __name__ == "__main__":
    main()
