"""Side-by-side timing: arms run in turn within one process, and ratios are reported, not seconds."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from densepath.data.encode import encode_pairs
from densepath.data.tasks import generate_tasks
from densepath.models.load import load_model, load_tokenizer


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="smollm2-135m-instruct")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--prompts", type=int, default=8)
    found.add_argument("--num-generations", type=int, default=4)
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    return found


def arguments(description: str) -> argparse.Namespace:
    found = parser(description).parse_args()
    torch.set_num_threads(found.threads)
    return found


def load(name: str):
    tokenizer = load_tokenizer(name)
    return load_model(name), tokenizer


def batch(tokenizer, prompts: int, num_generations: int):
    """Prompts of the text tasks, each repeated, with completions of about their answers' lengths."""
    rng = random.Random(0)
    pairs = [encode_pairs(row, tokenizer)[0] for row in generate_tasks(prompts, seed=0)]
    prompt_ids, completion_ids = [], []
    for pair in pairs:
        for _ in range(num_generations):
            prompt_ids.append(list(pair.prompt_ids))
            length = max(2, len(pair.completion_ids) + rng.randrange(-3, 6))
            completion_ids.append([rng.randrange(1000, 40000) for _ in range(length)])
    return prompt_ids, completion_ids


def side_by_side(
    arms: dict[str, Callable[[], object]], rounds: int, *, tokens: int | None = None, warm_up: bool = True
) -> None:
    """Run the arms in turn, once to warm up and then `rounds` times; print medians and ratios to the last arm.

    With `tokens`, those that one run of an arm handles, also tokens per CPU second.
    """
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-int(warm_up), rounds):
        for name, run in arms.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            if turn >= 0:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    last = list(arms)[-1]
    rate = "" if tokens is None else f"{'tokens/CPU s':>14}"
    print(f"{'arm':<34}{'wall s':>9}{'CPU s':>9}{rate}{'CPU ratio, min-max over rounds':>34}")
    for name in arms:
        ratios = [mine / other for mine, other in zip(cpu[name], cpu[last], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        seconds = statistics.median(cpu[name])
        rate = "" if tokens is None else f"{tokens / seconds:>14.0f}"
        print(f"{name:<34}{statistics.median(wall[name]):>9.2f}{seconds:>9.2f}{rate}{spread:>34}")
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
