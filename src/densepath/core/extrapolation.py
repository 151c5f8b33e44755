"""Weights beyond the SFT model's, on the line from a reference through it."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.logprobs import lift


def extrapolated(sft: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """`theta_SFT + alpha (theta_SFT - theta_ref)`, in float32 or better; exact at alpha 0 (SFT) and -1 (reference).

    Args:
        sft: any shape, float.
        ref: the same shape.
        alpha: 0 stays at SFT, above 0 goes on beyond it.

    Source: docs/method.md, section "Relatives without training"; derived, not the paper's.
    """
    if sft.shape != ref.shape:
        raise ValueError(f"shapes differ: {tuple(sft.shape)} and {tuple(ref.shape)}")
    return torch.lerp(lift(sft), lift(ref), -alpha)


def extrapolated_lora(
    sft: tuple[Tensor, Tensor], ref: tuple[Tensor, Tensor] | None, alpha: float, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """One pair of LoRA matrices that extrapolates two adapters of one weight, exactly: ranks add up.

        W + c_S B_S A_S + alpha (c_S B_S A_S - c_R B_R A_R) = W + B A,
        A = [A_S; A_R],   B = [(1 + alpha) c_S B_S, -alpha c_R B_R]

    Args:
        sft: A (rank, in) and B (out, rank) of the SFT model.
        ref: likewise of the reference; None if it is the base.
        alpha: see `extrapolated`.
        scales: c_S and c_R, `lora_alpha / r` of each.

    Returns:
        A and B, to be used with scale 1.
    """
    a, b = lift(sft[0]), (1 + alpha) * scales[0] * lift(sft[1])
    if ref is None:
        return a, b
    return torch.cat([a, lift(ref[0])]), torch.cat([b, -alpha * scales[1] * lift(ref[1])], dim=1)
