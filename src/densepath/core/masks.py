"""The one place for EOS, padding and truncation, and for sums and means under a mask.

A mask is bool, and True means that the token counts: it was sampled (or demonstrated), EOS included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_mask(mask: Tensor, like: Tensor) -> None:
    """Refuse a mask that is not bool or not of the shape of `like`.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: the shapes differ.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask is bool (True = counts), got {mask.dtype}")
    if mask.shape != like.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the values have {tuple(like.shape)}")


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """Mask of right-padded rows: `mask[i, t] = t < lengths[i]`.

    Args:
        lengths: (batch,) int, tokens that count in each row.
        width: number of columns.

    Returns:
        (batch, width) bool.
    """
    if lengths.dim() != 1:
        raise ValueError(f"lengths must be (batch,), got {tuple(lengths.shape)}")
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def at_first(values: Tensor, mask: Tensor) -> Tensor:
    """Each row's value at its first token that counts, which is not the first column where a tool wrote that one.

    Args:
        values: (batch, tokens).
        mask: (batch, tokens) bool.

    Returns:
        (batch, 1); the first column's where no token of the row counts.
    """
    check_mask(mask, values)
    return values.gather(1, mask.int().argmax(dim=1, keepdim=True))


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """The values that count, and 0 elsewhere: not even a NaN behind the mask reaches a sum or a gradient.

    Args:
        values: any shape, float.
        mask: same shape, bool.
    """
    check_mask(mask, values)
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values that count; what stands under a False (NaN included) never enters.

    Args:
        values: any shape, float.
        mask: same shape, bool.
        dim: dimension to sum over; all of them if None.
    """
    kept = keep(values, mask)
    return kept.sum() if dim is None else kept.sum(dim=dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values that count; 0 where none does.

    Args:
        values: any shape, float.
        mask: same shape, bool.
        dim: dimension to average over; all of them if None.
    """
    count = mask.sum() if dim is None else mask.sum(dim=dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)
