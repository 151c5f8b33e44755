"""Margins, their signal-to-noise and its spread, against closed forms."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch

from densepath.evals.signal_to_noise import reward_margins, signal_to_noise, signal_to_noise_replicates


def test_margins_are_per_token():
    rewards = [torch.tensor([1.0, 3.0]), torch.tensor([-1.0])]
    others = [torch.tensor([1.0]), torch.tensor([0.0, 0.0, 3.0])]
    assert reward_margins(rewards, others) == [1.0, -2.0]


def test_signal_to_noise_by_hand():
    # Mean 1, squared deviations 4, 0, 4: population deviation sqrt(8 / 3).
    assert signal_to_noise([-1.0, 1.0, 3.0]) == pytest.approx(1 / math.sqrt(8 / 3))
    assert signal_to_noise([-10.0, 10.0, 30.0]) == pytest.approx(1 / math.sqrt(8 / 3))  # free of scale
    assert signal_to_noise([0.0, 0.0]) == 0.0
    assert math.isnan(signal_to_noise([0.3]))  # nothing says how much it varies
    assert math.isnan(signal_to_noise([-0.1] * 3))  # whose deviation is 1e-17 in float64


@pytest.mark.parametrize("margins", [[0.3], [0.3, 0.5], [0.3, 0.5, 0.1], [0.3, 0.3, 0.1], [0.0, 0.0, 0.5]])
def test_replicates_of_few_margins_are_those_of_all_draws(margins):
    """Drawn alone, one margin has no ratio; 0 has none of signal."""
    drawn = list(itertools.product(margins, repeat=len(margins)))
    varied = {statistics.fmean(each) / statistics.pstdev(each) for each in drawn if len(set(each)) > 1}
    expected = sorted(varied | {0.0 for each in drawn if set(each) == {0.0}})
    replicates = signal_to_noise_replicates(np.array(margins), seed=0)
    known = replicates[np.isfinite(replicates)]
    assert all(np.abs(known - value).min() < 1e-9 for value in expected)
    assert all(min(abs(value - each) for each in expected) < 1e-9 for value in np.unique(known))
    alone = sum(len(set(each)) == 1 and each[0] != 0 for each in drawn) / len(drawn)
    assert np.isnan(replicates).mean() == pytest.approx(alone, abs=0.02)


def test_replicates_are_those_of_drawn_prompts_and_spread_as_theory_says(monkeypatch):
    values = np.random.default_rng(0).normal(0.8, 1.0, 400)
    seen = []
    from densepath.evals import signal_to_noise as module

    full = module.bootstrap

    def spy(rows, statistic, **settings):
        return full(rows, lambda counts: seen.append(counts) or statistic(counts), **settings)

    monkeypatch.setattr(module, "bootstrap", spy)
    replicates = signal_to_noise_replicates(values, seed=3)
    counts = np.concatenate(seen)
    for index in (0, 5, 99):
        drawn = np.repeat(values, counts[index])
        assert replicates[index] == pytest.approx(statistics.fmean(drawn) / statistics.pstdev(drawn), abs=1e-9)
    # Of normal values the standard error of mean over deviation is sqrt((1 + s^2 / 2) / n) (Lo 2002).
    s = signal_to_noise(values.tolist())
    assert np.std(replicates) == pytest.approx(math.sqrt((1 + s * s / 2) / 400), rel=0.1)
