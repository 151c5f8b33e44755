"""Cells with known truth: verdicts drawn for each prompt with a given chance."""

from __future__ import annotations

import numpy as np

from densepath.records.arm import Arm, ArmResult, Budget

METHODS = (
    Arm("sft", "SFT", True),
    Arm("continued_sft", "continued SFT", True),
    Arm("contrastive", "contrastive decoding", True),
    Arm("dpr", "DPR", False),
)


def cell(method, seed, values, *, setting="habit", decoding="greedy", split="test", length=10, **fields):
    """A cell of so many tokens a completion."""
    arm = next((arm for arm in METHODS if arm.name == method), None) or Arm(method, method, False)
    budget = Budget(**fields.pop("budget", {}))
    per_completion = {name: (fields.pop(name),) * len(values) for name in ("kl", "reward") if name in fields}
    fields = {"truncated": 0.0, **fields, **per_completion}
    lengths = (length,) * len(values)
    return ArmResult(arm, setting, seed, decoding, split, tuple(values), lengths, budget=budget, **fields)


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
