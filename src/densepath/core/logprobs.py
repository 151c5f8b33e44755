"""Logits or hidden states -> token log-probabilities, entropy and exact KL, in float32 or better.

Half-precision inputs are lifted to float32 before the log-softmax; float64 stays float64. The functions
that take hidden states project a chunk of positions at a time: (tokens, vocabulary) never exists whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK_TOKENS = 512
"""Positions projected through the head at once: 512 x 49,152 float32 logits are 96 MiB."""


class TokenScores(NamedTuple):
    """What one pass over the vocabulary gives for each chosen token; float32 or float64, nats.

    Attributes:
        logprobs: log-probability of the token.
        entropies: entropy of the distribution it was chosen from.
        log_normalizers: `V(s) = logsumexp_a` of the raw logits; `logprobs + log_normalizers` is the raw logit.
        is_top1: bool, whether the token is the first among the most probable.
    """

    logprobs: Tensor
    entropies: Tensor
    log_normalizers: Tensor
    is_top1: Tensor


def lift(values: Tensor) -> Tensor:
    """float32 of half-precision values; float32 and float64 as they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each id: `log_softmax(logits)[..., id]`.

    Args:
        logits: (..., vocabulary) float.
        ids: (...) int.

    Returns:
        (...) float32 (float64 for float64 logits), nats.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, ids {tuple(ids.shape)}")
    logits = lift(logits)
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax: `-sum_a p(a) log p(a)`.

    Args:
        logits: (..., vocabulary) float.

    Returns:
        (...) float32 or float64, nats.
    """
    return _entropy(torch.log_softmax(lift(logits), dim=-1))


def _entropy(logprobs: Tensor) -> Tensor:
    # a token of probability 0 adds nothing, where 0 * -inf would be NaN
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def exact_kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL over the whole vocabulary at each state: `sum_a p(a) (log p(a) - log q(a))`.

    Args:
        logits: (..., vocabulary) float, of p.
        other_logits: (..., vocabulary) float, of q.

    Returns:
        (...) float32 or float64, nats.
    """
    if logits.shape != other_logits.shape:
        raise ValueError(f"shapes differ: {tuple(logits.shape)} and {tuple(other_logits.shape)}")
    p = torch.log_softmax(lift(logits), dim=-1)
    q = torch.log_softmax(lift(other_logits), dim=-1)
    # where p(a) = 0 the term is 0, even if q(a) = 0 too
    return (p.exp() * torch.where(p > -torch.inf, p - q, torch.zeros_like(p))).sum(dim=-1)


def contrastive_logits(sft_logits: Tensor, ref_logits: Tensor, alpha: float) -> Tensor:
    """Logits of contrastive decoding: `(1 + alpha) log pi_SFT - alpha log pi_ref`, token by token.

    With alpha = 1/beta each factor is that of the KL-regularised optimum
    `pi*(y|x) ~ pi_SFT(y|x)^(1+1/beta) pi_ref(y|x)^(-1/beta)`, but each token is normalised on its own,
    so the sequences are not distributed as pi*.

    Args:
        sft_logits: (..., vocabulary) float.
        ref_logits: (..., vocabulary) float.
        alpha: strength, at least 0; 0 gives pi_SFT.

    Returns:
        (..., vocabulary) float32 or float64, unnormalised.

    Source: docs/method.md, section "Relatives without training"; derived, not the paper's.
    """
    if sft_logits.shape != ref_logits.shape:
        raise ValueError(f"shapes differ: {tuple(sft_logits.shape)} and {tuple(ref_logits.shape)}")
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    sft = torch.log_softmax(lift(sft_logits), dim=-1)
    ref = torch.log_softmax(lift(ref_logits), dim=-1)
    return (1 + alpha) * sft - alpha * ref


def _project_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = lift(torch.nn.functional.linear(hidden, weight, bias)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_normalizers = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = logits - log_normalizers
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen, _entropy(logprobs), log_normalizers.squeeze(-1), logprobs.argmax(dim=-1) == ids


def chunked_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    *,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> TokenScores:
    """Log-probabilities and entropies from hidden states, without the whole (tokens, vocabulary) tensor.

    Equal to `token_logprobs(hidden @ weight.T, ids)` and `entropy(hidden @ weight.T)`; with gradients each
    chunk is projected again in the backward pass.

    Args:
        hidden: (tokens, width) float, last hidden states at the positions that predict `ids`.
        weight: (vocabulary, width) float, the language-model head.
        ids: (tokens,) int.
        bias: (vocabulary,) float or None.
        chunk_tokens: positions projected at once; the result does not depend on it.
        logit_scale: factor on the logits (Cohere, Granite).
        softcap: final logit soft-capping (Gemma 2), or None.

    Returns:
        TokenScores of (tokens,) tensors.
    """
    if hidden.dim() != 2 or ids.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be (tokens, width) and ids (tokens,), got {tuple(hidden.shape)}, {tuple(ids.shape)}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    chunks = []
    for start in range(0, hidden.shape[0], chunk_tokens):
        stop = start + chunk_tokens
        arguments = (hidden[start:stop], weight, bias, ids[start:stop], logit_scale, softcap)
        if needs_grad:
            chunks.append(checkpoint(_project_chunk, *arguments, use_reentrant=False))
        else:
            chunks.append(_project_chunk(*arguments))
    if not chunks:
        empty = lift(hidden.new_zeros(0))
        return TokenScores(empty, empty.clone(), empty.clone(), torch.zeros(0, dtype=torch.bool, device=hidden.device))
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
