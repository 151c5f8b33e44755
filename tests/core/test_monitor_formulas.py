"""Repetition, effective sample size and correlation: values by hand, slow loops, and parts that add up."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.monitors import correlation, effective_sample_share, log_weight_sums, ngram_counts


def test_ngram_counts_literal():
    ids = torch.tensor([[1, 2, 1, 2, 1, 2], [3, 3, 3, 3, 9, 9], [1, 2, 3, 4, 5, 6], [7, 9, 9, 9, 9, 9]])
    lengths = torch.tensor([6, 4, 6, 1])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    # bigrams: 12 21 12 21 12 -> 2 of 5; 33 33 33 -> 1 of 3 (9s are padding); 5 of 5; a single token has none
    assert [values.tolist() for values in ngram_counts(ids, mask, 2)] == [[2, 1, 5, 0], [5, 3, 5, 0]]
    assert [values.tolist() for values in ngram_counts(ids, mask, 1)] == [[2, 1, 6, 1], [6, 4, 6, 1]]
    assert [values.tolist() for values in ngram_counts(ids, mask, 7)] == [[0] * 4, [0] * 4]


def test_an_ngram_does_not_reach_over_tokens_that_do_not_count():
    ids = torch.tensor([[1, 2, 8, 8, 1, 2]])
    mask = torch.tensor([[True, True, False, False, True, True]])  # a tool's answer in the middle
    assert [values.tolist() for values in ngram_counts(ids, mask, 2)] == [[1], [2]]  # 12 and 12, neither 2-8 nor 2-1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=4),
    n=st.integers(1, 4),
    padding=st.integers(0, 3),
    filler=st.integers(0, 3),
)
def test_ngram_counts_equal_a_loop_whatever_the_padding(rows, n, padding, filler):
    width = max(map(len, rows)) + padding
    ids = torch.tensor([row + [filler] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    distinct, total = ngram_counts(ids, mask, n)
    for place, row in enumerate(rows):
        grams = [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]
        assert (distinct[place], total[place]) == (len(set(grams)), len(grams))


def test_effective_sample_share_literal():
    def share(*weights):
        return effective_sample_share(log_weight_sums(torch.tensor(weights).log()).unsqueeze(0)).item()

    assert share(2.0, 2.0, 2.0) == pytest.approx(1.0)
    assert share(1.0, 3.0) == pytest.approx(16 / 20)  # (1 + 3)^2 / (2 (1 + 9))
    assert share(1.0, 0.0, 0.0, 0.0) == pytest.approx(1 / 4)
    huge = effective_sample_share(log_weight_sums(torch.tensor([500.0, 500.0, -500.0])).unsqueeze(0))
    assert huge.item() == pytest.approx(2 / 3, rel=1e-4)  # exp(500) alone would be infinite
    assert effective_sample_share(log_weight_sums(torch.zeros(0)).unsqueeze(0)).isnan()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5), max_size=4), min_size=1, max_size=4).filter(any))
def test_parts_of_a_batch_add_up_to_the_whole(parts):
    sums = torch.stack([log_weight_sums(torch.tensor(part, dtype=torch.float64)) for part in parts])
    weights = np.exp([value for part in parts for value in part])
    expected = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
    assert effective_sample_share(sums).item() == pytest.approx(expected)


def test_correlation_literal():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(x, 2 * x - 7).item() == pytest.approx(1.0)
    assert correlation(x, -x).item() == pytest.approx(-1.0)
    # deviations (-1.5, -.5, .5, 1.5) and (-.5, -.5, .5, .5): 2 / sqrt(5 * 1)
    assert correlation(x, torch.tensor([0.0, 0.0, 1.0, 1.0])).item() == pytest.approx(2 / math.sqrt(5))


def test_correlation_leaves_out_what_was_not_scored_and_is_undefined_without_variation():
    nan = float("nan")
    found = correlation(torch.tensor([1.0, 2.0, 99.0, 3.0]), torch.tensor([1.0, 0.0, nan, 2.0]))
    assert found.item() == pytest.approx(0.5)
    assert correlation(torch.tensor([1.0, 2.0]), torch.tensor([0.0, nan])).isnan()
    constant = torch.full((7,), 0.1)
    assert correlation(torch.arange(7.0), constant).isnan()
    with pytest.raises(ValueError, match=r"must both be \(n,\)"):
        correlation(torch.zeros(3), torch.zeros(2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=20))
def test_correlation_equals_numpy(pairs):
    x, y = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = correlation(torch.tensor(x), torch.tensor(y)).item()
    if x.std() == 0 or y.std() == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
