"""Logits -> token log-probabilities, entropy and exact KL, in float32 or better.

Half-precision inputs are lifted to float32 before the log-softmax; float64 stays float64. `core.heads` has what takes
hidden states instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_CHUNK_TOKENS = 512
"""Positions projected through the head at once; in the backward pass their logits exist whole: 512 x 49,152 float32
are 96 MiB."""


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
    return entropy_of_logprobs(torch.log_softmax(lift(logits), dim=-1))


def entropy_of_logprobs(logprobs: Tensor) -> Tensor:
    """`entropy` of what is normalised already: (..., vocabulary) log-probabilities, nats -> (...) nats."""
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
    return kl_of_logprobs(torch.log_softmax(lift(logits), dim=-1), torch.log_softmax(lift(other_logits), dim=-1))


def kl_of_logprobs(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """`exact_kl` of what is normalised already: (..., vocabulary) log-probabilities of p and q, nats -> (...) nats."""
    # where p(a) = 0 the term is 0, even if q(a) = 0 too
    difference = torch.where(logprobs > -torch.inf, logprobs - other_logprobs, torch.zeros_like(logprobs))
    return (logprobs.exp() * difference).sum(dim=-1)


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
    # An id that either model forbids has no contrast, which would be NaN, or infinite.
    forbidden = (sft == -torch.inf) | (ref == -torch.inf)
    return sft if alpha == 0 else torch.where(forbidden, -torch.inf, (1 + alpha) * sft - alpha * ref)


def logit_scores(logits: Tensor, ids: Tensor, *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> TokenScores:
    """`TokenScores` of logits that exist whole, lifted to float32 a chunk of positions at a time.

    Args:
        logits: (tokens, vocabulary) float.
        ids: (tokens,) int.
        chunk_tokens: positions lifted at once; the result does not depend on it.

    Returns:
        TokenScores of (tokens,) tensors, with gradients where `logits` has them.
    """
    if logits.dim() != 2 or ids.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (tokens, vocabulary), ids (tokens,): {tuple(logits.shape)}, {tuple(ids.shape)}"
        )
    chunks: list[TokenScores] = []
    for start in range(0, max(len(ids), 1), chunk_tokens):
        part, chosen = lift(logits[start : start + chunk_tokens]), ids[start : start + chunk_tokens]
        normalizers = part.logsumexp(dim=-1)
        logprobs = part - normalizers.unsqueeze(-1)
        found = logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        chunks.append(TokenScores(found, entropy_of_logprobs(logprobs), normalizers, part.argmax(dim=-1) == chosen))
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
