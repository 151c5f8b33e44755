"""A real SFT run in a second or two: a tiny model learns to count on, and leaves a reference on the way."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import torch

from densepath.data.encode import encode_pairs
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

TOKENIZER = tiny_tokenizer()


def counting_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Demonstrations such as "3 +2:" -> "5 7 9."."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        start, step, size = rng.randint(0, 9), rng.choice([1, 2]), rng.randint(2, 4)
        numbers = [start + step * place for place in range(1, size + 1)]
        rows.append({"prompt": f"{start} +{step}:", "completion": " ".join(map(str, numbers)) + "."})
    return rows


def corrupted(row: dict[str, str], rng: random.Random) -> dict[str, str]:
    """The row with one of its numbers off by a few."""
    words = row["completion"].rstrip(".").split()
    place = rng.randrange(len(words))
    words[place] = str(int(words[place]) + rng.choice([-3, 4, 7]))
    return {**row, "completion": " ".join(words) + "."}


@cache
def counting_models() -> tuple[Any, Any, Any]:
    """(SFT model, reference at a quarter of its 160 steps, model before SFT)."""
    torch.manual_seed(0)
    base = tiny_llama(len(TOKENIZER), seed=0)
    model = copy.deepcopy(base).train()
    pairs = [pair for row in counting_rows(400, seed=0) for pair in encode_pairs(row, TOKENIZER)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = random.Random(1)
    ref: Any = None
    for step in range(160):
        if step == 40:
            ref = copy.deepcopy(model).eval()
        batch = rng.sample(pairs, 16)
        width = max(len(pair.prompt_ids) + len(pair.completion_ids) for pair in batch)
        input_ids, labels = torch.zeros(16, width, dtype=torch.long), torch.full((16, width), -100)
        for index, pair in enumerate(batch):
            ids = torch.tensor([*pair.prompt_ids, *pair.completion_ids])
            input_ids[index, : len(ids)] = ids
            labels[index, len(pair.prompt_ids) : len(ids)] = ids[len(pair.prompt_ids) :]
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False), ref.requires_grad_(False), base.requires_grad_(False)
