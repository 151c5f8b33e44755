"""Cells with known truth: verdicts drawn for each prompt with a given chance."""

from __future__ import annotations

import numpy as np

from densepath.experiments.records import BUDGET, CellResult, MethodInfo

METHODS = (
    MethodInfo("sft", "SFT", True),
    MethodInfo("continued_sft", "continued SFT", True),
    MethodInfo("contrastive", "contrastive decoding", True),
    MethodInfo("dpr", "DPR", False),
)


def cell(method, seed, values, *, setting="habit", decoding="greedy", split="test", length=10, **fields):
    """A cell of so many tokens a completion."""
    budget = dict.fromkeys(BUDGET, 0.0) | fields.pop("budget", {})
    fields = {"truncated": 0.0, "kl": None, "reward": None, **fields}
    lengths = (length,) * len(values)
    return CellResult(setting, method, seed, decoding, split, tuple(values), lengths, budget=budget, **fields)


def drawn(chances, *, seeds, prompts, spread=0.0, rng, setting="habit", decodings=("greedy",), **fields):
    """Cells of methods, name -> chance of a right answer; `spread` of a seed's own level is shared by its methods."""
    found = []
    for seed in range(seeds):
        shift = spread * rng.standard_normal()
        for decoding in decodings:
            for method, chance in chances.items():
                for split in ("validation", "test"):
                    chance_here = chance[split] if isinstance(chance, dict) else chance
                    values = rng.random(prompts) < np.clip(chance_here + shift, 0, 1)
                    found.append(cell(method, seed, values, setting=setting, decoding=decoding, split=split, **fields))
    return found
