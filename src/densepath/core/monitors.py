"""What helps to tell a healthy run from a gamed one: repetition, effective sample size, correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.masks import check_mask


def ngram_counts(ids: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Distinct n-grams and all n-grams of each row.

    An n-gram is n neighbouring tokens that all count. `distinct / total` is 1 without any repetition and falls
    towards 0 in a loop; it is 1 less the "seq-rep-n" of Welleck et al., "Neural Text Generation with Unlikelihood
    Training".

    Args:
        ids: (batch, tokens) int.
        mask: (batch, tokens) bool.
        n: tokens in an n-gram, at least 1.

    Returns:
        (batch,) int64 distinct and (batch,) int64 total; both 0 for a row without n neighbouring tokens.

    >>> ngram_counts(torch.tensor([[5, 6, 5, 6, 5]]), torch.ones(1, 5, dtype=torch.bool), 2)
    (tensor([2]), tensor([4]))
    """
    check_mask(mask, ids)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rows, width = ids.shape
    if width < n:
        empty = torch.zeros(rows, dtype=torch.int64, device=ids.device)
        return empty, empty.clone()
    counts = mask.unfold(1, n, 1).all(dim=-1)
    total = counts.sum(dim=1)
    row_of = torch.arange(rows, device=ids.device).unsqueeze(1).expand_as(counts)[counts]
    grams = torch.cat([row_of.unsqueeze(1), ids.unfold(1, n, 1)[counts].long()], dim=1)
    distinct = torch.bincount(torch.unique(grams, dim=0)[:, 0], minlength=rows)
    return distinct, total


def log_weight_sums(log_weights: Tensor) -> Tensor:
    """What `effective_sample_share` needs of a part of a batch: `[log sum w, log sum w^2, log n]`.

    Sums of parts are the `logsumexp` of their logarithms, so micro-batches and processes can be combined.

    Args:
        log_weights: (n,) float, log importance weights.

    Returns:
        (3,) float; -inf throughout for n = 0.
    """
    if log_weights.dim() != 1:
        raise ValueError(f"log_weights must be (n,), got {tuple(log_weights.shape)}")
    return torch.stack(
        [
            log_weights.logsumexp(dim=0),
            (2 * log_weights).logsumexp(dim=0),
            torch.zeros_like(log_weights).logsumexp(dim=0),
        ]
    )


def effective_sample_share(sums: Tensor) -> Tensor:
    """Effective sample size as a share of the samples: `(sum w)^2 / (n sum w^2)`, in (0, 1].

    1 where all importance weights are equal, 1/n where one of them is everything.

    Args:
        sums: (parts, 3) float, from `log_weight_sums` of each part.

    Returns:
        Scalar float; NaN without any sample.

    Source: Kish's effective sample size.
    """
    weights, squares, samples = sums.logsumexp(dim=0)
    return torch.exp(2 * weights - squares - samples)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of two lists of numbers; pairs with a NaN are left out.

    Args:
        x: (n,) float.
        y: (n,) float.

    Returns:
        Scalar float64 in [-1, 1]; NaN where fewer than two pairs are left or one side does not vary.

    >>> round(correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 3.0])).item(), 3)
    0.5
    """
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must both be (n,), got {tuple(x.shape)} and {tuple(y.shape)}")
    kept = ~(x.isnan() | y.isnan())
    x, y = x[kept].double(), y[kept].double()
    undefined = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    if len(x) < 2:
        return undefined
    varies = (x.max() > x.min()) & (y.max() > y.min())  # centred, a constant leaves rounding errors that correlate
    x, y = x - x.mean(), y - y.mean()
    return torch.where(varies, (x * y).sum() / (x.norm() * y.norm()), undefined).clamp(-1, 1)
