"""The verdicts by simulation: how often no difference is called one, and how often a planted one is found."""

from __future__ import annotations

import numpy as np
import pytest
from tests.experiments.made_up import METHODS, cell, drawn

from densepath.evidence.cells import SettingCells
from densepath.evidence.comparisons import setting_comparisons


def compared(cells, methods=METHODS):
    return setting_comparisons(SettingCells("habit", cells, methods))


@pytest.mark.parametrize(
    ("seeds", "prompts", "least"),
    [
        pytest.param(1, 100, 15, marks=pytest.mark.slow),
        pytest.param(2, 40, 3, marks=pytest.mark.slow),  # two coarse seeds: even a single t-test hardly ever errs
        (4, 60, 20),
    ],
)
def test_sft_sampled_with_other_seeds_is_rarely_called_different(seeds, prompts, least):
    """Every method has SFT's chance: a false verdict anywhere in the setting comes in at most 5 % of the grids."""
    rng = np.random.default_rng(seeds)
    false, uncorrected, grids = 0, 0, 200
    for _ in range(grids):
        cells = drawn({m.name: 0.4 for m in METHODS}, seeds=seeds, prompts=prompts, spread=0.03, rng=rng)
        found = compared(cells)
        false += any(one.verdict != "tie" for one in found)
        uncorrected += any(one.p is not None and one.p < 0.05 for one in found)
    assert false <= 20  # 10 expected at most; four standard deviations are 12
    assert uncorrected >= max(least, 2 * false)  # without the correction the same grids err far more often


def test_a_planted_improvement_is_detected():
    """+.10 in 5 seeds of 500 prompts, the gain itself spread by .02 over seeds."""
    rng = np.random.default_rng(0)
    detected, wrong, grids = 0, 0, 40
    for _ in range(grids):
        cells = drawn({"sft": 0.4, "continued_sft": 0.4}, seeds=5, prompts=500, spread=0.02, rng=rng)
        for seed in range(5):
            chance = 0.5 + 0.02 * rng.standard_normal()
            cells += [cell("dpr", seed, rng.random(500) < chance, split=split) for split in ("validation", "test")]
        found = {(one.method, one.role): one for one in compared(cells, (METHODS[0], METHODS[1], METHODS[3]))}
        detected += found["dpr", "sft"].verdict == "better"
        wrong += found["dpr", "sft"].verdict == "worse" or found["continued_sft", "sft"].verdict != "tie"
    assert detected >= 32
    assert wrong <= 6
