"""Scoring completions: padded batches of 16 through transformers, and vLLM, against the packed engine, same numbers.

    python -m benchmarks.scoring                                       made-up rows of a data file's lengths
    python -m benchmarks.scoring --dataset_name rows.jsonl             rows of a file, in its order
    python -m benchmarks.scoring ... --num-generations 4               4 completions of each prompt

Then where the time of one run goes, by phase; the head has all that the body of the model has not, log-probabilities
and packing too. Accuracy: each arm against one forward pass a row in float64.

vLLM takes part where it is installed (docs/engines.md says how, and which variables it wants on a CPU), in float32 and
in this process, so that its CPU seconds count.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.common import OPTIONS, Floor, Pairs, distinct, keep, parser, peaks, print_peak, rows, side_by_side
from benchmarks.words import count, run_command
from densepath.models.load import load_model, load_tokenizer
from densepath.models.scoring import score_completions
from densepath.rewards.vllm_policy import load_vllm_policy

BATCH = 16
VLLM = "vLLM"
PRODUCTS, ATTENTION, REST, HEAD = "products of the layers", "attention", "rest of the layers", "head"


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


def in_vllm(policy, prompt_ids, completion_ids) -> list[torch.Tensor]:
    """vLLM, as `densepath score --use_vllm True` uses it."""
    return policy.score(prompt_ids, completion_ids).logprobs


ARMS = {
    "padded transformers, batch 16": padded,
    "padded, sorted by length": padded_sorted,
    VLLM: in_vllm,
    "densepath": packed,
}
if importlib.util.find_spec("vllm") is None:
    del ARMS[VLLM]


def load_of(arm: str, name: str) -> Any:
    """What an arm scores with."""
    return load_vllm_policy(name) if arm == VLLM else load_model(name)


def phases(model, run: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of a run by phase, each without what it calls of another.

    Classes are timed: hooks on modules would make another kind of model of this one.
    """
    names = {type(model.base_model): REST, nn.Linear: PRODUCTS}
    names |= {type(m): ATTENTION for m in model.modules() if type(m).__name__.endswith("Attention")}
    seconds: Counter[str] = Counter()
    opened, since = [HEAD], time.process_time()

    def charge() -> None:
        nonlocal since
        before, since = since, time.process_time()
        seconds[opened[-1]] += since - before

    def timed(forward, name: str):
        def called(*args, **given):
            charge()
            opened.append(HEAD if opened == [HEAD] and name == PRODUCTS else name)
            found = forward(*args, **given)
            charge()
            opened.pop()
            return found

        return called

    with ExitStack() as stack:
        for kind, name in names.items():
            stack.enter_context(mock.patch.object(kind, "forward", timed(kind.forward, name)))
        run()  # what is tried once for a model
        charge()
        seconds.clear()
        run()
        charge()
    return {name: seconds[name] for name in (PRODUCTS, ATTENTION, REST, HEAD)}


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
        ARMS[options.only](load_of(options.only, options.model), *pairs)
        print_peak()
        return
    if VLLM not in ARMS:
        print("vLLM is not installed here: its arm is left out")
    memory = peaks("benchmarks.scoring", ARMS)  # before this process holds a model
    model = load_model(options.model)
    ready = {arm: partial(run, load_of(arm, options.model) if arm == VLLM else model) for arm, run in ARMS.items()}
    torch.set_num_threads(options.threads)  # vLLM sets its own
    completion_tokens, tokens = sum(map(len, pairs[1])), sum(map(len, pairs[0] + pairs[1]))
    print(
        f"{len(pairs[0])} completions of {len(set(map(tuple, pairs[0])))} prompts, {completion_tokens} completion "
        f"tokens, {tokens} with prompts"
    )
    few = pairs[0][: options.exact], pairs[1][: options.exact]
    found = {arm: run(*few) for arm, run in ready.items()}
    apart = (torch.cat(found["densepath"]) - torch.cat(found["padded transformers, batch 16"])).abs()
    print(f"between the first and the last arm: largest {apart.max():.1e}, mean {apart.mean():.1e} nats per token")
    least, read = Floor(model), distinct(p + c for p, c in zip(*pairs, strict=True))
    predicted = read - distinct(pairs[0])
    floor = {PRODUCTS: least.forward(read, 0), HEAD: least.forward(0, predicted)}
    time = side_by_side(
        {arm: partial(run, *pairs) for arm, run in ready.items()},
        options.rounds,
        tokens=completion_tokens,
        floor=floor,
        warm_up=False,  # the few rows above did
    )
    where = {arm: phases(model, partial(ready[arm], *pairs)) for arm in ARMS if arm != VLLM}
    print(f"{'CPU s by phase':<34}" + "".join(f"{name:>24}" for name in next(iter(where.values()))))
    for arm, seconds in where.items():
        print(f"{arm:<34}" + "".join(f"{each:>24.2f}" for each in seconds.values()))
    print()
    del model, ready  # float64 needs twice as much
    print(f"{'against float64, nats per token':<34}{'largest':>10}{'mean':>10}")
    error = differences(options.model, few, found)
    for arm, (largest, mean) in error.items():
        print(f"{arm:<34}{largest:>10.1e}{mean:>10.1e}")
    sizes = {"completion_tokens": completion_tokens, "tokens": tokens}
    keep(options, **sizes, floor=floor, time=time, phases=where, peak_bytes=memory, error=error)


if __name__ == "__main__":
    run_command(main)
