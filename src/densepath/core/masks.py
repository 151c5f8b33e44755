"""The one place for EOS, padding and truncation, and for sums and means under a mask.

A mask is bool, and True means that the token counts: it was sampled (or demonstrated), EOS included.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def mask_after_eos(completion_ids: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Mask of sampled rows: True up to and including the first EOS, False after it.

    EOS is an action like any other, so it counts. When a tokenizer pads with its EOS, only the first one
    counts. A row without EOS was truncated and counts whole.

    Args:
        completion_ids: (batch, tokens) int.
        eos_token_ids: ids that end a completion.

    Returns:
        (batch, tokens) bool.
    """
    if completion_ids.dim() != 2:
        raise ValueError(f"completion_ids must be (batch, tokens), got {tuple(completion_ids.shape)}")
    eos = torch.tensor(list(eos_token_ids), dtype=completion_ids.dtype, device=completion_ids.device)
    is_eos = torch.isin(completion_ids, eos)
    eos_before = is_eos.cumsum(dim=1) - is_eos.long()
    return eos_before == 0


def is_truncated(completion_ids: Tensor, completion_mask: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """True for rows that hold no EOS among the tokens that count: the budget ended them, not the policy.

    Args:
        completion_ids: (batch, tokens) int.
        completion_mask: (batch, tokens) bool.
        eos_token_ids: ids that end a completion.

    Returns:
        (batch,) bool.
    """
    check_mask(completion_mask, completion_ids)
    eos = torch.tensor(list(eos_token_ids), dtype=completion_ids.dtype, device=completion_ids.device)
    return ~(torch.isin(completion_ids, eos) & completion_mask).any(dim=1)


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
