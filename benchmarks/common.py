"""Side-by-side timing: arms run in turn within one process, and ratios are reported, not seconds."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from densepath.data import encode_pairs, generate_tasks
from densepath.models.load import load_model, load_tokenizer


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--num-generations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    found = parser.parse_args()
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


def side_by_side(arms: dict[str, Callable[[], object]], rounds: int) -> None:
    """Run the arms in turn, once to warm up and then `rounds` times; print medians and ratios to the last arm."""
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    last = list(arms)[-1]
    print(f"{'arm':<34}{'wall s':>9}{'CPU s':>9}{'CPU ratio, min-max over rounds':>34}")
    for name in arms:
        ratios = [mine / other for mine, other in zip(cpu[name], cpu[last], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:<34}{statistics.median(wall[name]):>9.2f}{statistics.median(cpu[name]):>9.2f}{spread:>34}")
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
